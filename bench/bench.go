// Package bench holds what the benchmarks under bench/ share: a Berth server of their own as a child process, and
// figures printed as "name value unit" lines. Each benchmark is a program: `make bench-coldstart` and so on.
package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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
	"github.com/berth-run/berth/serving"
)

// Server is a running berth server with a state directory of its own.
type Server struct {
	Client *client.Client
	PID    int

	dir     string
	binary  string
	command *exec.Cmd
	log     bytes.Buffer
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
	s := &Server{dir: dir, binary: binary}
	args := append([]string{"server", "--state-dir", dir, "--api-address", "127.0.0.1:0", "--gateway-address", "127.0.0.1:0", "--access-log=false"}, flags...)
	s.command = exec.Command(binary, args...)
	s.command.Stdout, s.command.Stderr = &s.log, &s.log
	if err := s.command.Start(); err != nil {
		return nil, err
	}
	s.PID = s.command.Process.Pid
	if err := s.awaitReady(ctx); err != nil {
		s.Stop()
		return nil, err
	}
	return s, nil
}

func (s *Server) awaitReady(ctx context.Context) error {
	deadline := time.Now().Add(30 * time.Second)
	for time.Now().Before(deadline) && ctx.Err() == nil {
		if err := s.command.Process.Signal(syscall.Signal(0)); err != nil {
			return fmt.Errorf("berth server ended: %s", s.log.String())
		}
		if config, err := client.Load(filepath.Join(s.dir, "kubeconfig")); err == nil {
			if s.Client, err = client.New(config); err != nil {
				return err
			}
			asking := http.Client{Transport: s.Client.Transport()}
			if answer, err := asking.Get(config.Server + "/readyz"); err == nil {
				answer.Body.Close()
				if answer.StatusCode == http.StatusOK {
					return nil
				}
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("berth server is not ready: %s", s.log.String())
}

// Stop ends the server as Ctrl-C does and removes what it kept.
func (s *Server) Stop() error {
	s.command.Process.Signal(syscall.SIGTERM)
	err := s.command.Wait()
	return errors.Join(err, os.RemoveAll(s.dir))
}

// Berth runs one berth command against the server.
func (s *Server) Berth(ctx context.Context, args ...string) error {
	command := exec.CommandContext(ctx, s.binary, append(args, "--kubeconfig", filepath.Join(s.dir, "kubeconfig"))...)
	out, err := command.CombinedOutput()
	if err != nil {
		return fmt.Errorf("berth %s: %w\n%s", strings.Join(args, " "), err, out)
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
		case <-time.After(20 * time.Millisecond):
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

// Get asks a service on a connection of its own and returns how long the whole answer took. *.localhost need not
// resolve on this machine: the gateway is dialed, the host name goes into the request.
func Get(ctx context.Context, url string) (time.Duration, int, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, 0, err
	}
	request.Host = request.URL.Host
	request.URL.Host = "127.0.0.1:" + request.URL.Port()
	transport := &http.Transport{DisableKeepAlives: true}
	start := time.Now()
	answer, err := transport.RoundTrip(request)
	if err != nil {
		return time.Since(start), 0, err
	}
	defer answer.Body.Close()
	var body bytes.Buffer
	_, err = body.ReadFrom(answer.Body)
	return time.Since(start), answer.StatusCode, err
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
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The command's name, in brackets, may hold spaces: fields count from behind it (proc(5): utime and stime).
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	user, err := strconv.ParseInt(fields[11], 10, 64)
	if err != nil {
		return 0, err
	}
	system, err := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond, err
}

// Service is a service of one container.
func Service(name, image string) *serving.Service {
	s := &serving.Service{ObjectMeta: serving.ObjectMeta{Namespace: "default", Name: name}}
	s.Spec.Template.Spec.Containers = []serving.Container{{Image: image}}
	return s
}
