package e2e

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/websocket"
	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/client"
	"github.com/berth-run/berth/serving"
)

// What a client is told, from contract 1.2.
const (
	toldNotStarted = "The request failed because the instance could not start successfully."                                         // E11
	toldMemory     = "While handling this request, the container instance was found to be using too much memory and was terminated." // E12
	toldBroken     = "The request failed because either the HTTP response was malformed or connection to the instance had an error." // E13
)

// processes lists the processes of a service's instances, as this machine sees them.
func (p *platform) processes(service string) []int {
	p.t.Helper()
	instances, err := p.Instances(p.t.Context(), "")
	if err != nil {
		p.t.Fatal(err)
	}
	var pids []int
	for _, i := range instances {
		if i.Service != service || i.State == "prepared" {
			continue
		}
		pids = append(pids, p.processesIn(i.ID)...)
	}
	return pids
}

// processesIn lists the processes in a cgroup of the platform's: INSTANCE, or INSTANCE.CONTAINER for a sidecar.
func (p *platform) processesIn(group string) (pids []int) {
	p.t.Helper()
	files, err := filepath.Glob("/sys/fs/cgroup/*/berth-" + mark(p.dir) + "/" + group + "/cgroup.procs")
	if err != nil {
		p.t.Fatal(err)
	}
	v2, _ := filepath.Glob("/sys/fs/cgroup/berth-" + mark(p.dir) + "/" + group + "/cgroup.procs")
	for _, file := range append(files, v2...)[:1] {
		text, err := os.ReadFile(file)
		if err != nil {
			p.t.Fatal(err)
		}
		for field := range strings.FieldsSeq(string(text)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				p.t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	return pids
}

func TestInstance_KilledWithARequestInFlight(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	image := program(t, "hello")
	// Go programs make an exit with code 2 of SIGSEGV.
	for signal, said := range map[syscall.Signal]string{syscall.SIGKILL: "killed by signal 9", syscall.SIGSEGV: "exited with code 2"} {
		name := fmt.Sprintf("signal-%d", int(signal))
		url := p.deploy(service(name, image)).Status.URL.String()
		first := p.get(url)
		if first.status != 200 {
			t.Fatalf("answer %d %q", first.status, first.body)
		}
		inFlight := make(chan answer, 1)
		go func() {
			a, err := p.tryGet(url + "/sleep?ms=60000")
			if err != nil {
				t.Error(err)
			}
			inFlight <- a
		}()
		p.await("the request to be in flight", func() error { return p.inFlight(name, 1) })
		pids := p.processes(name)
		if len(pids) != 1 {
			t.Fatalf("processes %v, want one", pids)
		}
		if err := syscall.Kill(pids[0], signal); err != nil {
			t.Fatal(err)
		}
		if a := <-inFlight; a.status != 503 || strings.TrimSpace(a.body) != toldBroken {
			t.Errorf("killed by %s, the client is told %d %q", signal, a.status, a.body)
		}
		next := p.get(url)
		if next.status != 200 || next.body == first.body {
			t.Errorf("the next request gets %d %q, the one before the kill got %q", next.status, next.body, first.body)
		}
		if log := p.mustBerth("logs", name); !strings.Contains(log, said) {
			t.Errorf("the service's log does not say that it %s:\n%s", said, log)
		}
	}
}

// inFlight is nil when that many requests of a service are with its instances.
func (p *platform) inFlight(service string, want int) error {
	config, err := client.Load(p.addresses.Kubeconfig)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(p.t.Context(), http.MethodGet, config.Server+"/metrics", nil)
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+config.Token)
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(config.CA) // none over plain HTTP
	transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: trusted}}
	reply, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	if reply.StatusCode != http.StatusOK {
		return fmt.Errorf("metrics: %s", reply.Status)
	}
	var text bytes.Buffer
	if _, err := text.ReadFrom(reply.Body); err != nil {
		return err
	}
	for line := range strings.Lines(text.String()) {
		if strings.HasPrefix(line, "berth_requests_in_flight{") && strings.Contains(line, `service="`+service+`"`) {
			fields := strings.Fields(line)
			return errorUnless(fields[len(fields)-1] == strconv.Itoa(want), "%s", line)
		}
	}
	return fmt.Errorf("no requests in flight of %s in the metrics", service)
}

func TestInstance_OutOfMemoryWithARequestInFlight(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	p.mustBerth("deploy", "bloat", "--image", program(t, "bloat"), "--memory", "64Mi")
	s, err := p.Services("default").Get(t.Context(), "bloat")
	if err != nil {
		t.Fatal(err)
	}
	url := s.Status.URL.String()
	if a := p.get(url + "/?mb=10"); a.status != 200 || a.body != "holding 10 MiB\n" {
		t.Fatalf("within the limit: %d %q", a.status, a.body)
	}
	if a := p.get(url + "/?mb=200"); a.status != 500 || !strings.HasPrefix(a.body, toldMemory) {
		t.Errorf("beyond the limit: %d %q", a.status, a.body)
	}
	if a := p.get(url + "/?mb=1"); a.status != 200 || a.body != "holding 1 MiB\n" {
		t.Errorf("the next request: %d %q", a.status, a.body)
	}
	if log := p.mustBerth("logs", "bloat"); !strings.Contains(log, "used more memory than its limit") {
		t.Errorf("the service's log does not say that memory was short:\n%s", log)
	}
}

func TestInstance_CrashingInALoopDisturbsNoNeighbour(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	neighbour := p.deploy(service("neighbour", program(t, "echo")))
	crashing := p.deploy(service("crashing", program(t, "crash"))).Status.URL.String()
	l := p.startLoad(neighbour.Status.URL.String())
	for n := range 4 {
		path := []string{"/exit?code=3", "/panic"}[n%2]
		if a := p.get(crashing + path); a.status != 503 || strings.TrimSpace(a.body) != toldBroken {
			t.Errorf("%s: %d %q", path, a.status, a.body)
		}
		// The more often it has crashed the later it is started again; its clients are told so, in words.
		p.await("the crashed service to serve again", func() error {
			a := p.get(crashing)
			if a.status != 200 && (a.status != 500 || !strings.HasPrefix(a.body, toldNotStarted)) {
				t.Errorf("while it does not run: %d %q", a.status, a.body)
			}
			return errorUnless(a.status == 200, "%d %q", a.status, a.body)
		})
	}
	p.awaitServed(l, neighbour.Status.LatestReadyRevisionName, 50)
	p.unharmed(l)
}

func TestInstance_BreakingOffAnAnswerIsSeenByTheClient(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	url := p.deploy(service("crash", program(t, "crash"))).Status.URL.String()
	a, err := p.tryGet(url + "/abort")
	if err == nil || a.status != 200 || a.body != "the beginning\n" {
		t.Errorf("an answer that was cut is %d %q with error %v", a.status, a.body, err)
	}
}

func TestPull_OnAFullDiskSaysSoAndSucceedsWhenThereIsRoom(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	disk := filepath.Join(dir, "images")
	if err := os.MkdirAll(disk, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("berth-test", disk, "tmpfs", 0, "size=24m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	ballast := filepath.Join(disk, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 22<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	p := startIn(t, dir, nil)
	image := program(t, "hello")
	why := p.failed(p.apply(service("hello", image)))
	for _, want := range []string{"disk full", disk, "free space", image} {
		if !strings.Contains(why, want) {
			t.Errorf("the service failed with %q, which does not name %q", why, want)
		}
	}
	wholeLayers(t, disk)

	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	s := p.deploy(service("hello", image, "TRY=2"))
	if a := p.get(s.Status.URL.String()); a.status != 200 {
		t.Errorf("answer %d %q", a.status, a.body)
	}
	wholeLayers(t, disk)
	if err := p.stop(); err != nil {
		t.Error(err)
	}
}

func TestStop_FinishesRequestsInFlightAndLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	p := startIn(t, dir, nil)
	hello := p.deploy(service("hello", program(t, "hello"), traced(dir))).Status.URL.String()
	echo := p.deploy(service("echo", program(t, "echo"), traced(dir))).Status.URL
	answers := make(chan answer)
	const requests = 10
	for range requests {
		go func() {
			a, err := p.tryGet(hello + "/sleep?ms=3000")
			if err != nil {
				t.Error(err)
			}
			answers <- a
		}()
	}
	stream := p.begin(echo.String() + "/slow?ms=3000")
	socket := p.dialWebSocket(echo.URL())
	p.await("the requests to be in flight", func() error { return p.inFlight("hello", requests) })
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		p.stopped()
	}()
	// A connection that is never closed by its user does not keep the server from stopping: it is closed when
	// the time for requests in flight is over, or by its user before.
	for range requests {
		if a := <-answers; a.status != 200 || !strings.HasPrefix(a.body, "Hello from") {
			t.Errorf("answer %d %q", a.status, a.body)
		}
	}
	if text := stream.rest(); text != "first\nsecond\n" {
		t.Errorf("the stream was %q", text)
	}
	var heard string
	if err := websocket.Message.Send(socket, "still here"); err != nil {
		t.Errorf("sending to a WebSocket while the server stops: %v", err)
	} else if err := websocket.Message.Receive(socket, &heard); err != nil || heard != "still here" {
		t.Errorf("heard %q, %v", heard, err)
	}
	if err := socket.Close(); err != nil {
		t.Error(err)
	}
	<-stopped
}

func TestServices_FiftyAtOnce(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	p := startIn(t, dir, nil)
	image := program(t, "hello")
	const services = 50
	names := map[string]bool{}
	var group sync.WaitGroup
	var failures atomic.Int64
	for n := range services {
		name := fmt.Sprintf("many-%02d", n)
		names[name] = true
		group.Go(func() {
			if out, errs, code := p.berth("deploy", name, "--image", image); code != 0 {
				failures.Add(1)
				t.Errorf("deploying %s: exit %d\n%s%s", name, code, out, errs)
			}
		})
	}
	group.Wait()
	if failures.Load() > 0 {
		t.FailNow()
	}
	all, _, err := p.Services("default").List(t.Context(), selectAll)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, s := range all {
		found[s.Name] = s.IsReady()
		group.Go(func() {
			a, err := p.tryGet(s.Status.URL.String())
			if err != nil || a.status != 200 || !strings.HasPrefix(a.body, "Hello from "+s.Name+"-00001 ") {
				t.Errorf("%s: %d %q %v", s.Name, a.status, a.body, err)
			}
		})
	}
	group.Wait()
	if diff := cmp.Diff(names, found); diff != "" {
		t.Errorf("services that are ready (-want +got):\n%s", diff)
	}

	for name := range names {
		group.Go(func() {
			if err := p.Services("default").Delete(t.Context(), name, serving.DeleteOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	p.await("everything of the services to be gone", func() error {
		instances, err := p.Instances(t.Context(), "")
		if err != nil {
			return err
		}
		revisions, _, err := p.Revisions("").List(t.Context(), selectAll)
		if err != nil {
			return err
		}
		configurations, _, err := p.Configurations("").List(t.Context(), selectAll)
		if err != nil {
			return err
		}
		routes, _, err := p.Routes("").List(t.Context(), selectAll)
		if err != nil {
			return err
		}
		left := len(instances) + len(revisions) + len(configurations) + len(routes)
		return errorUnless(left == 0, "%d instances, %d revisions, %d configurations, %d routes",
			len(instances), len(revisions), len(configurations), len(routes))
	})
	if left := traceOf(t, dir); len(left.processes) > 0 {
		t.Errorf("processes of deleted services: %v", left.processes)
	}
	p.stopped()
}
