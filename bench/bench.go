// Package bench holds what the benchmarks under bench/ share: a Berth server of their own as a child process, and
// figures printed as "name value unit" lines. Each benchmark is a program: `make bench-coldstart` and so on.
package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/berth-run/berth/client"
	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/serving"
)

// Server is a running berth server with a state directory of its own.
type Server struct {
	Client *client.Client
	PID    int

	dir       string // holds "state", the state directory, and "log", what the server wrote
	binary    string
	flags     []string
	addresses []string // as flags
	process   *os.Process
	ended     chan struct{} // closed when the process has ended
	err       error         // how it ended; read it after ended is closed
}

// Start runs bin/berth with extra flags and waits until it is ready.
func Start(ctx context.Context, flags ...string) (*Server, error) {
	binary, err := filepath.Abs("bin/berth")
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "berth-bench-")
	if err != nil {
		return nil, err
	}
	s := &Server{dir: dir, binary: binary, flags: flags, addresses: []string{"--api-address", "127.0.0.1:0", "--gateway-address", "127.0.0.1:0"}}
	if err := s.launch(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := s.awaitReady(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("starting berth server: %w; it wrote:\n%s", err, s.log()), s.Stop())
	}
	return s, nil
}

// launch starts the process.
func (s *Server) launch() error {
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close() // the process has its own
	args := slices.Concat([]string{"server", "--state-dir", s.state(), "--access-log=false"}, s.addresses, s.flags)
	command := exec.Command(s.binary, args...)
	command.Stdout, command.Stderr = log, log
	if err := command.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	s.process, s.PID, s.ended = command.Process, command.Process.Pid, ended
	go func() {
		s.err = command.Wait()
		close(ended)
	}()
	return nil
}

func (s *Server) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		if ready, err := s.isReady(ctx); err != nil || ready {
			return err
		}
		select {
		case <-s.ended:
			return errors.New("it ended")
		case <-ctx.Done():
			return fmt.Errorf("waiting for it to be ready: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// isReady asks the server. What it has not written yet, and no answer, are no errors.
func (s *Server) isReady(ctx context.Context) (bool, error) {
	config, err := client.Load(s.kubeconfig())
	if err != nil {
		return false, nil
	}
	if s.Client, err = client.New(config); err != nil {
		return false, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, config.Server+"/readyz", nil)
	if err != nil {
		return false, err
	}
	answer, err := s.Client.Transport().RoundTrip(request)
	if err != nil {
		return false, nil
	}
	return answer.StatusCode == http.StatusOK, answer.Body.Close()
}

func (s *Server) state() string      { return filepath.Join(s.dir, "state") }
func (s *Server) kubeconfig() string { return filepath.Join(s.state(), "kubeconfig") }

// log is what the server wrote, or why that cannot be read.
func (s *Server) log() string {
	data, err := os.ReadFile(filepath.Join(s.dir, "log"))
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// Stop ends the server as Ctrl-C does and removes what it kept.
func (s *Server) Stop() error {
	// It has ended already when this fails.
	_ = s.process.Signal(syscall.SIGTERM)
	<-s.ended
	return errors.Join(s.err, os.RemoveAll(s.dir))
}

// Berth runs one berth command against the server.
func (s *Server) Berth(ctx context.Context, args ...string) error {
	command := exec.CommandContext(ctx, s.binary, append(args, "--kubeconfig", s.kubeconfig())...)
	out, err := command.CombinedOutput()
	if err != nil {
		return fmt.Errorf("berth %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// Kubectl runs one kubectl command against the server.
func (s *Server) Kubectl(ctx context.Context, args ...string) error {
	command := exec.CommandContext(ctx, "kubectl", append(args, "--kubeconfig", s.kubeconfig())...)
	out, err := command.CombinedOutput()
	if err != nil {
		return fmt.Errorf("kubectl %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// DeployHello deploys examples/hello and returns its URL and its image.
func (s *Server) DeployHello(ctx context.Context, flags ...string) (url, image string, err error) {
	if err := s.Berth(ctx, append([]string{"deploy", "hello", "--source", "examples/hello"}, flags...)...); err != nil {
		return "", "", err
	}
	service, err := s.Client.Services("default").Get(ctx, "hello")
	if err != nil {
		return "", "", err
	}
	return service.Status.URL.String(), service.Spec.Template.Spec.Containers[0].Image, nil
}

// Await polls until done, for at most a minute and a half.
func Await(ctx context.Context, what string, done func() (bool, error)) error {
	return await(ctx, what, 20*time.Millisecond, done)
}

func await(ctx context.Context, what string, pause time.Duration, done func() (bool, error)) error {
	deadline := time.Now().Add(90 * time.Second)
	for {
		ok, err := done()
		if err != nil || ok {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("waited too long for %s", what)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// States counts the instances of each state.
func (s *Server) States(ctx context.Context) (map[string]int, error) {
	instances, err := s.Client.Instances(ctx, "")
	if err != nil {
		return nil, err
	}
	states := map[string]int{}
	for _, i := range instances {
		states[string(i.State)]++
	}
	return states, nil
}

// AwaitZero waits until there are no instances but as many prepared ones.
func (s *Server) AwaitZero(ctx context.Context, prepared int) error {
	want := map[string]int{}
	if prepared > 0 {
		want[string(engine.Prepared)] = prepared
	}
	return Await(ctx, "the service to be at zero", func() (bool, error) {
		states, err := s.States(ctx)
		return err == nil && maps.Equal(states, want), err
	})
}

// Get asks a service on a connection of its own and returns how long the whole answer took. *.localhost need not
// resolve on this machine: the gateway is dialed, the host name goes into the request.
func Get(ctx context.Context, url string) (time.Duration, int, error) {
	return GetOver(ctx, url, func(ctx context.Context, address string) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "tcp", address)
	})
}

// Ask is Get that returns the response, whose body has been read.
func Ask(ctx context.Context, url string) (time.Duration, *http.Response, error) {
	return ask(ctx, url, func(ctx context.Context, address string) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "tcp", address)
	})
}

// GetOver is Get over the connection that dial makes to 127.0.0.1 and the URL's port.
func GetOver(ctx context.Context, url string, dial func(ctx context.Context, address string) (net.Conn, error)) (time.Duration, int, error) {
	took, answer, err := ask(ctx, url, dial)
	if err != nil {
		return took, 0, err
	}
	return took, answer.StatusCode, nil
}

func ask(ctx context.Context, url string, dial func(ctx context.Context, address string) (net.Conn, error)) (time.Duration, *http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, nil, err
	}
	request.Host = request.URL.Host
	request.URL.Host = "127.0.0.1:" + request.URL.Port()
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, address string) (net.Conn, error) { return dial(ctx, address) },
	}
	start := time.Now()
	answer, err := transport.RoundTrip(request)
	if err != nil {
		return time.Since(start), nil, err
	}
	defer answer.Body.Close()
	_, err = io.Copy(io.Discard, answer.Body)
	return time.Since(start), answer, err
}

// Print writes one figure.
func Print(name string, value float64, unit string) {
	fmt.Printf("%s %s %s\n", name, strconv.FormatFloat(value, 'f', 2, 64), unit)
}

// Quantile returns the q-th quantile (0 to 1) of durations, in milliseconds.
func Quantile(durations []time.Duration, q float64) float64 {
	if len(durations) == 0 {
		return 0
	}
	sorted := slices.Clone(durations)
	slices.Sort(sorted)
	i := int(q*float64(len(sorted)-1) + 0.5)
	return float64(sorted[i].Microseconds()) / 1000
}

// PSS is the proportional memory of a process, in KiB.
func PSS(pid int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Pss:" {
			return strconv.ParseFloat(f[1], 64)
		}
	}
	return 0, fmt.Errorf("no Pss in smaps_rollup of process %d", pid)
}

// CPU is the processor time a process has used, in steps of 10 ms.
func CPU(pid int) (time.Duration, error) {
	own, _, err := cpu(pid)
	return own, err
}

// CPUWithChildren is CPU, and what those of its children that have ended used.
func CPUWithChildren(pid int) (time.Duration, error) {
	own, children, err := cpu(pid)
	return own + children, err
}

func cpu(pid int) (own, children time.Duration, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	// The command's name, in brackets, may hold spaces: fields count from behind it (proc(5): utime, stime, cutime, cstime).
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) < 15 {
		return 0, 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	var ticks [4]int64
	for i := range ticks {
		if ticks[i], err = strconv.ParseInt(fields[11+i], 10, 64); err != nil {
			return 0, 0, err
		}
	}
	const tick = 10 * time.Millisecond
	return time.Duration(ticks[0]+ticks[1]) * tick, time.Duration(ticks[2]+ticks[3]) * tick, nil
}

// Settle rests until the server has given back what work left behind, then reads its memory (KiB) and its CPU (percent of
// one processor over a window).
func (s *Server) Settle(rest, window time.Duration) (pss, cpu float64, err error) {
	time.Sleep(rest)
	before, err := CPU(s.PID)
	if err != nil {
		return 0, 0, err
	}
	time.Sleep(window)
	after, err := CPU(s.PID)
	if err != nil {
		return 0, 0, err
	}
	pss, err = PSS(s.PID)
	return pss, 100 * float64(after-before) / float64(window), err
}

// Service is a service of one container.
func Service(name, image string) *serving.Service {
	s := &serving.Service{ObjectMeta: serving.ObjectMeta{Namespace: "default", Name: name}}
	s.Spec.Template.Spec.Containers = []serving.Container{{Image: image}}
	return s
}
