package e2e

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/testimage"
	"github.com/berth-run/berth/server"
	"github.com/berth-run/berth/serving"
)

func TestRestart_ServesWithoutTheRegistry(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	registry := testimage.Serve(t, testimage.Options{})
	image := registry.Push(t, images.Go(t, "examples/hello"), "hello:latest")
	p := startIn(t, dir, nil)
	s := p.deploy(service("hello", image))
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	registry.Close()

	p = startIn(t, dir, nil)
	if a := p.get(s.Status.URL.String()); a.status != 200 {
		t.Errorf("after the restart: %d %q", a.status, a.body)
	}
	// What the service says of itself has not changed.
	now := p.ready(s)
	if now.Status.LatestReadyRevisionName != s.Status.LatestReadyRevisionName || now.Generation != s.Generation {
		t.Errorf("revision %s of generation %d, was %s of %d", now.Status.LatestReadyRevisionName, now.Generation,
			s.Status.LatestReadyRevisionName, s.Generation)
	}
	p.awaitZero("hello")
	if a := p.get(s.Status.URL.String()); a.status != 200 {
		t.Errorf("from zero: %d %q", a.status, a.body)
	}
}

func TestRestart_FinishesADeletion(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	image := program(t, "hello")
	p := spawn(t, dir)
	const services = 8
	for n := range services {
		p.apply(service(fmt.Sprint("gone-", n), image, traced(dir)))
	}
	kept := p.deploy(service("kept", image, traced(dir)))
	for n := range services {
		if err := p.Services("default").Delete(t.Context(), fmt.Sprint("gone-", n), serving.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	p.kill()
	p = p.again()
	p.await("only the kept service's objects to be there", func() error {
		services, _, err := p.Services("").List(t.Context(), selectAll)
		if err != nil {
			return err
		}
		revisions, _, err := p.Revisions("").List(t.Context(), selectAll)
		if err != nil {
			return err
		}
		routes, _, err := p.Routes("").List(t.Context(), selectAll)
		if err != nil {
			return err
		}
		return errorUnless(len(services) == 1 && len(revisions) == 1 && len(routes) == 1,
			"%d services, %d revisions, %d routes", len(services), len(revisions), len(routes))
	})
	if a := p.get(kept.Status.URL.String()); a.status != 200 {
		t.Errorf("the kept service answers %d %q", a.status, a.body)
	}
	p.stopped()
}

func TestStop_CutsWhatTakesTooLong(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	p := startIn(t, dir, func(c *server.Config) { c.ShutdownTimeout = time.Second })
	hello := p.deploy(service("hello", program(t, "hello"), traced(dir))).Status.URL.String()
	echo := p.deploy(service("echo", program(t, "echo"), traced(dir))).Status.URL
	socket := p.dialWebSocket(echo.URL())
	var group sync.WaitGroup
	group.Go(func() {
		if a, err := p.tryGet(hello + "/sleep?ms=600000"); err == nil && a.status == 200 {
			t.Error("a request of ten minutes was answered")
		}
	})
	stream := p.begin(echo.String() + "/slow?ms=600000")
	p.await("the requests to be in flight", func() error { return p.inFlight("hello", 1) })
	p.stopped()
	group.Wait()
	if _, err := stream.reader.WriteTo(new(strings.Builder)); err == nil {
		t.Error("a stream that was cut looks whole to the client")
	}
	if _, err := socket.Read(make([]byte, 1)); err == nil {
		t.Error("the WebSocket is still open")
	}
}

func TestStop_BeforeItIsReady(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	p := startIn(t, dir, nil)
	s := service("hello", program(t, "hello"), traced(dir))
	s.Spec.Template.Annotations = map[string]string{"autoscaling.knative.dev/min-scale": "1"}
	p.deploy(s)
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	config := settings(dir)
	config.Logger = slog.New(slog.DiscardHandler)
	if err := server.Run(stopped, config); err != nil {
		t.Errorf("the server, stopped before it began, ended with: %v", err)
	}
	if left := traceOf(t, dir).all(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestStop_InTheMiddleOfEverything(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	slow := newSlowBlobs()
	registry := testimage.Serve(t, testimage.Options{Wrap: slow.wrap})
	image := registry.Push(t, images.Go(t, "examples/hello"), "hello:latest")
	other := registry.Push(t, images.Program(t, "inspect"), "inspect:latest")
	p := startIn(t, dir, nil)
	s := service("burst", image, traced(dir))
	one := int64(1)
	s.Spec.Template.Spec.ContainerConcurrency = &one
	url := p.deploy(s).Status.URL.String()
	p.awaitZero("burst")
	// An image is being pulled, another service is being deployed, and requests wait for instances that start.
	slow.begin()
	t.Cleanup(slow.end)
	p.apply(service("pulling", other, traced(dir)))
	<-slow.half
	p.apply(service("deploying", image, traced(dir)))
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			// Those that were taken are answered: with 200, or that there was no instance.
			a, err := p.tryGet(url + "/sleep?ms=100")
			if err == nil && a.status != 200 && a.status != 429 && a.status != 500 && a.status != 503 {
				t.Errorf("answer %d %q", a.status, a.body)
			}
		})
	}
	p.await("instances to start", func() error {
		n := p.running("burst")
		return errorUnless(n > 0, "%d instances", n)
	})
	p.stopped()
	group.Wait()
}

func TestState_OnAFullDiskServesOnAndRefusesWrites(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("berth-test", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	p := startIn(t, dir, nil)
	image := program(t, "inspect")
	url := p.deploy(service("inspect", image)).Status.URL.String()
	ballast := filepath.Join(dir, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 64<<10)
	for err == nil {
		_, err = f.Write(block)
	}
	for size := len(block) / 2; size > 0; size /= 2 { // to the last byte
		for err = nil; err == nil; {
			_, err = f.Write(block[:size])
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}

	// A service that is there answers, logs though its log has no room, goes to zero and wakes.
	for range 2 {
		if a := p.get(url + "/log?n=2000&size=100"); a.status != 200 || !strings.Contains(a.body, `"ok":true`) {
			t.Errorf("on a full disk: %d %q", a.status, a.body)
		}
		p.awaitZero("inspect")
	}
	// Writes are refused, and say why, from the first that has no room.
	var refusal error
	for n := 0; n < 200 && refusal == nil; n++ {
		_, refusal = p.Services("default").Create(t.Context(), service(fmt.Sprint("new-", n), "127.0.0.1:9/none:none"))
	}
	if refusal == nil || !strings.Contains(refusal.Error(), "no space left") {
		t.Errorf("writes on a full disk end with %v", refusal)
	}
	t.Log(refusal)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	p.await("writes to succeed again", func() error {
		_, _, err := p.Services("default").Apply(t.Context(), service("inspect", image, "TRY=2"))
		return err
	})
	s, err := p.Services("default").Get(t.Context(), "inspect")
	if err != nil {
		t.Fatal(err)
	}
	p.ready(s)
	if a := p.get(url); a.status != 200 || !strings.Contains(a.body, `"TRY":"2"`) {
		t.Errorf("with room again: %d %q", a.status, a.body)
	}
	if err := p.stop(); err != nil {
		t.Error(err)
	}
}

func TestServices_ComingAndGoingLeaveNoFilesThreadsNorCgroups(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	image := program(t, "hello")
	p := spawn(t, dir)
	round := func(n int) {
		t.Helper()
		// One client for all: each has connections of its own, which the server keeps for a while.
		var services []*serving.Service
		for i := range 8 {
			services = append(services, p.apply(service(fmt.Sprintf("round-%d-%d", n, i), image)))
		}
		for _, s := range services {
			if a := p.get(p.ready(s).Status.URL.String()); a.status != 200 {
				t.Errorf("%s answers %d %q", s.Name, a.status, a.body)
			}
		}
		for _, s := range services {
			if err := p.Services("default").Delete(t.Context(), s.Name, serving.DeleteOptions{}); err != nil {
				t.Error(err)
			}
		}
		p.await("every instance to be gone", func() error {
			instances, err := p.Instances(t.Context(), "")
			if err != nil {
				return err
			}
			return errorUnless(len(instances) == 0, "%d instances", len(instances))
		})
	}
	count := func(what string) int {
		t.Helper()
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/%s", p.cmd.Process.Pid, what))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	// What is kept for the next instances, such as links and threads, is there after some rounds.
	for n := range 3 {
		round(n)
	}
	files, threads := count("fd"), count("task")
	const rounds, slack = 5, 12 // connections of clients and idle links come and go
	for n := range rounds {
		round(10 + n)
	}
	t.Logf("open files %d, then %d; threads %d, then %d", files, count("fd"), threads, count("task"))
	if now := count("fd"); now > files+slack {
		t.Errorf("%d open files after %d more services, were %d", now, rounds*8, files)
	}
	if now := count("task"); now > threads+slack {
		t.Errorf("%d threads after %d more services, were %d", now, rounds*8, threads)
	}
	p.await("every cgroup to be gone", func() error { // one was perhaps being prepared when its service went
		for _, group := range traceOf(t, dir).groups {
			if filepath.Base(group) != "berth-"+mark(dir) {
				return fmt.Errorf("cgroup %s is left", group)
			}
		}
		return nil
	})
	p.stopped()
}
