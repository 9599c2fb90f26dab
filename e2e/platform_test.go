// Package e2e tests the whole platform with real containers: server.Run on free ports, several at a time in one
// process, driven through the API, the command line and the gateway as users do.
package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-run/berth/cli"
	"github.com/berth-run/berth/client"
	"github.com/berth-run/berth/internal/testimage"
	"github.com/berth-run/berth/server"
	"github.com/berth-run/berth/serving"
)

// patience is how long a test waits for what must happen.
const patience = 90 * time.Second

// platform is a running server.
type platform struct {
	*client.Client
	t         *testing.T
	dir       string
	addresses server.Addresses
	stop      func() error // as Ctrl-C does; returns what Run returned
}

// start runs a server on free ports with short scaling windows. change, when not nil, adjusts its settings.
func start(t *testing.T, change func(*server.Config)) *platform {
	t.Helper()
	return startIn(t, t.TempDir(), change)
}

// startIn runs a server on a state directory.
func startIn(t *testing.T, dir string, change func(*server.Config)) *platform {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("instances need root: run the tests as root")
	}
	config := settings(dir)
	var log lockedBuffer
	config.Logger = slog.New(slog.NewTextHandler(&log, nil))
	if change != nil {
		change(&config)
	}
	ready := make(chan server.Addresses, 1)
	config.Ready = func(a server.Addresses) { ready <- a }

	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	go func() { result <- server.Run(ctx, config) }()
	p := &platform{t: t, dir: dir}
	select {
	case p.addresses = <-ready:
	case err := <-result:
		cancel()
		t.Fatalf("server: %v\n%s", err, log.String())
	case <-time.After(patience):
		cancel()
		t.Fatalf("server not ready\n%s", log.String())
	}
	var stopped error
	once := false
	p.stop = func() error {
		if once {
			return stopped
		}
		once = true
		cancel()
		stopped = <-result
		return stopped
	}
	t.Cleanup(func() {
		if err := p.stop(); err != nil {
			t.Errorf("server stopped with: %v", err)
		}
		if t.Failed() {
			t.Logf("server log:\n%s", log.String())
		}
	})
	p.connect()
	return p
}

// settings are those of a server for tests: on free ports, with short windows.
func settings(dir string) server.Config {
	config := server.DefaultConfig()
	config.StateDir = dir
	config.APIAddress, config.GatewayAddress = "127.0.0.1:0", "127.0.0.1:0"
	config.InsecureRegistries = []string{"127.0.0.1"}
	config.InstanceNetwork = netip.MustParsePrefix("10.208.0.0/12") // room for the servers of many tests at a time
	config.AccessLog = false
	config.ShutdownTimeout = 20 * time.Second
	config.Scaling.StableWindow = 2 * time.Second
	config.Scaling.Tick = 200 * time.Millisecond
	config.Scaling.ScaleToZeroGrace = 500 * time.Millisecond
	config.Scaling.StopGrace = 2 * time.Second
	return config
}

// connect makes the client of a server whose addresses are known.
func (p *platform) connect() {
	p.t.Helper()
	config, err := client.Load(p.addresses.Kubeconfig)
	if err != nil {
		p.t.Fatal(err)
	}
	if p.Client, err = client.New(config); err != nil {
		p.t.Fatal(err)
	}
}

// berth runs a command of the command line against the server and returns what it printed and its exit code.
func (p *platform) berth(args ...string) (stdout, stderr string, code int) {
	p.t.Helper()
	var out, errs bytes.Buffer
	code = cli.Main(p.t.Context(), append(args, "--kubeconfig", p.addresses.Kubeconfig), strings.NewReader(""), &out, &errs)
	return out.String(), errs.String(), code
}

// mustBerth runs a command that must succeed.
func (p *platform) mustBerth(args ...string) string {
	p.t.Helper()
	out, errs, code := p.berth(args...)
	if code != 0 {
		p.t.Fatalf("berth %s: exit %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

// service is a service of one container, to create or change.
func service(name, image string, env ...string) *serving.Service {
	s := &serving.Service{ObjectMeta: serving.ObjectMeta{Namespace: "default", Name: name}}
	container := serving.Container{Image: image}
	for _, e := range env {
		k, v, _ := strings.Cut(e, "=")
		container.Env = append(container.Env, serving.EnvVar{Name: k, Value: v})
	}
	s.Spec.Template.Spec.Containers = []serving.Container{container}
	return s
}

// deploy creates or changes a service and waits until it is ready.
func (p *platform) deploy(s *serving.Service) *serving.Service {
	p.t.Helper()
	return p.ready(p.apply(s))
}

// apply creates or changes a service.
func (p *platform) apply(s *serving.Service) *serving.Service {
	p.t.Helper()
	applied, _, err := p.Services(s.Namespace).Apply(p.t.Context(), s)
	if err != nil {
		p.t.Fatalf("applying service %s: %v", s.Name, err)
	}
	return applied
}

// ready waits until a service's newest generation is ready.
func (p *platform) ready(s *serving.Service) *serving.Service {
	p.t.Helper()
	return p.settled(s, func(s *serving.Service) bool { return s.IsReady() })
}

// failed waits until a service's newest generation has failed and returns why.
func (p *platform) failed(s *serving.Service) string {
	p.t.Helper()
	s = p.settled(s, func(s *serving.Service) bool { return s.IsFailed() })
	return s.Status.GetCondition(serving.ServiceReady).GetMessage()
}

func (p *platform) settled(s *serving.Service, done func(*serving.Service) bool) *serving.Service {
	p.t.Helper()
	var last *serving.Service
	p.await(fmt.Sprintf("service %s to settle", s.Name), func() error {
		got, err := p.Services(s.Namespace).Get(p.t.Context(), s.Name)
		if err != nil {
			return err
		}
		last = got
		if got.Generation == got.Status.ObservedGeneration && done(got) {
			return nil
		}
		condition := got.Status.GetCondition(serving.ServiceReady)
		return fmt.Errorf("generation %d, observed %d, ready %v", got.Generation, got.Status.ObservedGeneration, condition)
	})
	return last
}

// await polls until check returns nil.
func (p *platform) await(what string, check func() error) {
	p.t.Helper()
	await(p.t, what, check)
}

func await(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited too long for %s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// answer is what a service answered.
type answer struct {
	status int
	header http.Header
	body   string
}

// get asks a service by its URL. Names under localhost need not resolve here: the gateway's address is dialed.
func (p *platform) get(rawURL string) answer {
	p.t.Helper()
	a, err := p.tryGet(rawURL)
	if err != nil {
		p.t.Fatalf("GET %s: %v", rawURL, err)
	}
	return a
}

func (p *platform) tryGet(rawURL string) (answer, error) {
	request, err := p.request(p.t.Context(), http.MethodGet, rawURL, nil)
	if err != nil {
		return answer{}, err
	}
	transport := &http.Transport{DisableKeepAlives: true}
	reply, err := transport.RoundTrip(request)
	if err != nil {
		return answer{}, err
	}
	defer reply.Body.Close()
	body, err := io.ReadAll(reply.Body)
	return answer{reply.StatusCode, reply.Header, string(body)}, err
}

// request makes a request to a service's URL that is dialed at the gateway.
func (p *platform) request(ctx context.Context, method, rawURL string, body io.Reader) (*http.Request, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, err
	}
	host := u.Host
	u.Host = p.addresses.Gateway
	request, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	request.Host = host
	return request, nil
}

// running counts the instances of a service that hold a running program.
func (p *platform) running(service string) int {
	p.t.Helper()
	instances, err := p.Instances(p.t.Context(), "")
	if err != nil {
		p.t.Fatal(err)
	}
	n := 0
	for _, i := range instances {
		if i.Service == service && i.State != "prepared" {
			n++
		}
	}
	return n
}

// awaitZero waits until a service has no running instance.
func (p *platform) awaitZero(service string) {
	p.t.Helper()
	p.await(service+" to scale to zero", func() error {
		if n := p.running(service); n != 0 {
			return fmt.Errorf("%d instances run", n)
		}
		return nil
	})
}

// images builds each test program once for all tests of the package.
var images testimage.Builder

// program builds one of the test programs into an image and pushes it to a registry of the test's own.
func program(t *testing.T, name string) string {
	t.Helper()
	registry := testimage.Serve(t, testimage.Options{})
	if name == "hello" {
		return registry.Push(t, images.Go(t, "examples/hello"), "hello:latest")
	}
	return registry.Push(t, images.Program(t, name), name+":latest")
}

// errorUnless is nil when ok, for await.
func errorUnless(ok bool, format string, args ...any) error {
	if ok {
		return nil
	}
	return fmt.Errorf(format, args...)
}

// lockedBuffer is a bytes.Buffer for several goroutines.
type lockedBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}
