package enginetest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/berth-run/berth/engine"
)

// still is for how long something must not happen.
const still = 100 * time.Millisecond

// freeze freezes an instance, which must then be frozen.
func freeze(t *testing.T, i engine.Instance) {
	t.Helper()
	if err := i.Freeze(); err != nil {
		t.Fatalf("freezing: %v", err)
	}
	if !i.Frozen() {
		t.Fatal("it is not frozen after Freeze")
	}
}

// thaw thaws an instance, which must then not be frozen.
func thaw(t *testing.T, i engine.Instance) {
	t.Helper()
	if err := i.Thaw(); err != nil {
		t.Fatalf("thawing: %v", err)
	}
	if i.Frozen() {
		t.Fatal("it is frozen after Thaw")
	}
}

// used is the CPU time that an instance has used.
func used(t *testing.T, i engine.Instance) time.Duration {
	t.Helper()
	usage, err := i.Usage()
	if err != nil {
		t.Fatal(err)
	}
	return usage.CPU
}

// awaitCPU waits until an instance that has always something to do uses CPU, or uses none.
func awaitCPU(t *testing.T, i engine.Instance, want bool) {
	t.Helper()
	late := time.Now().Add(patience)
	for before := used(t, i); ; {
		time.Sleep(still)
		now := used(t, i)
		if (now > before) == want {
			return
		}
		if time.Now().After(late) {
			t.Fatalf("it used %s of CPU time in %s; want some: %t", now-before, still, want)
		}
		before = now
	}
}

// client is a connection to an instance, to send requests over one by one.
type client struct {
	net.Conn
	answers *bufio.Reader
}

func newClient(t *testing.T, i engine.Instance) *client {
	t.Helper()
	conn, err := i.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &client{conn, bufio.NewReader(conn)}
}

func (c *client) send(t *testing.T) {
	t.Helper()
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: instance\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
}

// wantAnswer waits for the answer to a request.
func (c *client) wantAnswer(t *testing.T) {
	t.Helper()
	err := c.SetReadDeadline(time.Now().Add(patience))
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(c.answers, nil)
	if err != nil {
		t.Fatalf("reading the answer: %v", err)
	}
	defer response.Body.Close()
	if body, err := io.ReadAll(response.Body); err != nil || string(body) != "hello\n" {
		t.Fatalf("the answer is %q: %v", body, err)
	}
}

// wantSilence makes sure that no answer comes.
func (c *client) wantSilence(t *testing.T) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(still)); err != nil {
		t.Fatal(err)
	}
	if got, err := c.answers.Peek(1); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("it answers: %q, %v", got, err)
	}
}

func frozenInstanceGetsNoCPU(t *testing.T, s *Suite) {
	i := s.Start(t, s.WithSidecar(func(c *engine.Container) { c.CPU = 100 }, "spin"), "serve")
	awaitCPU(t, i, true)
	if i.Frozen() {
		t.Error("it is frozen, and nobody has frozen it")
	}
	thaw(t, i) // which does nothing
	for range 2 {
		freeze(t, i)
		freeze(t, i) // again does nothing
		awaitCPU(t, i, false)
		before := used(t, i)
		time.Sleep(still)
		if now := used(t, i); now != before {
			t.Errorf("frozen, it used %s", now-before)
		}
		thaw(t, i)
		awaitCPU(t, i, true)
	}
}

func connectionsOutlastAFreeze(t *testing.T, s *Suite) {
	i := s.Start(t, nil)
	kept := newClient(t, i)
	kept.send(t)
	kept.wantAnswer(t)
	freeze(t, i)
	kept.send(t)
	fresh := newClient(t, i)
	fresh.send(t)
	kept.wantSilence(t)
	fresh.wantSilence(t)
	thaw(t, i)
	fresh.wantAnswer(t)
	kept.wantAnswer(t)
	kept.send(t)
	kept.wantAnswer(t)
}

func stopLetsAFrozenInstanceSayGoodbye(t *testing.T, s *Suite) {
	i := s.Start(t, s.WithSidecar(func(c *engine.Container) {
		c.Env = []engine.Env{{Name: "PORT", Value: fmt.Sprint(helperPort)}}
		c.StartupProbe = &engine.Probe{TCP: &engine.TCPProbe{Port: helperPort}} // it listens for the signal before
	}, "graceful"), "graceful")
	freeze(t, i)
	i.Stop(time.Minute)
	if exit := i.Exit(); exit.Code != 0 || exit.Signal != 0 || !slices.Equal(exit.LastLines, []string{"goodbye"}) {
		t.Errorf("exit %+v, want code 0 after a goodbye", exit)
	}
	if i.Frozen() {
		t.Error("what is gone is frozen")
	}
	if err := errors.Join(i.Freeze(), i.Thaw()); err != nil || i.Frozen() {
		t.Errorf("freezing what is gone: frozen %t, error %v", i.Frozen(), err)
	}
}

func stopEndsAFrozenInstance(t *testing.T, s *Suite) {
	i := s.Start(t, s.WithSidecar(nil, "stubborn"), "stubborn")
	freeze(t, i)
	i.Stop(0)
	if exit := i.Exit(); exit.Signal != syscall.SIGKILL || exit.OOM {
		t.Errorf("exit %+v, want SIGKILL", exit)
	}
}

func onlyReadyInstancesAreFrozen(t *testing.T, s *Suite) {
	i := s.Prepare(t, nil)
	if err := i.Freeze(); err != nil || i.Frozen() {
		t.Errorf("freezing what is only prepared: frozen %t, error %v", i.Frozen(), err)
	}
	if err := i.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	Get(t, i, "/")
	unready := s.Start(t, func(spec *engine.Spec) {
		spec.Container.ReadinessProbe = &engine.Probe{HTTP: &engine.HTTPProbe{Port: port, Path: "/health"}, Period: 20 * time.Millisecond, FailureThreshold: 1}
	}, "serve")
	Request(t, unready, http.MethodPost, "/health?code=503")
	awaitReadiness(t, unready, false)
	if err := unready.Freeze(); err != nil || unready.Frozen() {
		t.Errorf("freezing what is not ready: frozen %t, error %v", unready.Frozen(), err)
	}
	Request(t, unready, http.MethodPost, "/health?code=200")
	awaitReadiness(t, unready, true)
	freeze(t, unready)
}

func execRunsInAFrozenInstance(t *testing.T, s *Suite) {
	i := s.Start(t, s.WithSidecar(func(c *engine.Container) { c.CPU = 100 }, "spin"), "serve")
	freeze(t, i)
	for _, name := range []string{"", "helper"} {
		if code, output, said := Exec(t, i, name, "ask", "GET", fmt.Sprintf("http://127.0.0.1:%d/", port)); code != 0 || output != "hello\n" {
			t.Errorf("the command in container %q ends with %d, %q and %q", name, code, output, said)
		}
	}
	if !i.Frozen() {
		t.Error("a command has ended the freeze")
	}
	awaitCPU(t, i, false) // as before

	// A freeze begins once the command has ended.
	thaw(t, i)
	input, feed := io.Pipe()
	output, say := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		_, err := i.Exec(t.Context(), engine.Command{Args: []string{"/bin/program", "cat"}, Stdin: input, Stdout: say})
		ended <- err
	}()
	lines := bufio.NewReader(output)
	for n := range 3 {
		if n == 1 {
			freeze(t, i)
		}
		if _, err := io.WriteString(feed, "line\n"); err != nil {
			t.Fatal(err)
		}
		if line, err := lines.ReadString('\n'); line != "line\n" {
			t.Fatalf("the command gives %q back: %v", line, err)
		}
	}
	awaitCPU(t, i, true)
	feed.Close()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	awaitCPU(t, i, false)
}

func portsOfAFrozenInstanceAreReached(t *testing.T, s *Suite) {
	i := s.Start(t, nil)
	freeze(t, i)
	for range 2 {
		if answer, err := ask(t, i, port); err != nil || !strings.HasSuffix(answer, "hello\n") {
			t.Errorf("it answers %q: %v", answer, err)
		}
	}
	if _, err := i.DialPort(t.Context(), 1); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dialing a port where nothing listens: %v", err)
	}
	client := newClient(t, i)
	client.send(t)
	client.wantSilence(t) // it is frozen again
	thaw(t, i)
	client.wantAnswer(t)
}

func frozenInstanceIsNotProbed(t *testing.T, s *Suite) {
	probe := func() *engine.Probe {
		return &engine.Probe{HTTP: &engine.HTTPProbe{Port: port, Path: "/health"}, Period: 100 * time.Millisecond, Timeout: 50 * time.Millisecond}
	}
	i := s.Start(t, func(spec *engine.Spec) {
		spec.Container.LivenessProbe, spec.Container.ReadinessProbe = probe(), probe()
	}, "serve")
	freeze(t, i)
	select {
	case <-i.Readiness():
		t.Errorf("its readiness turned while it was frozen: %+v", onlyContainer(t, i))
	case <-i.Exited():
		t.Fatalf("it ended: %v", i.Exit())
	case <-time.After(time.Second): // more than all tries take
	}
	thaw(t, i)
	if c := onlyContainer(t, i); !c.Ready || c.Restarts != 0 {
		t.Errorf("after the thaw it is %+v", c)
	}
	Request(t, i, http.MethodPost, "/health?code=500")
	awaitReadiness(t, i, false) // it is probed again
	awaitReadiness(t, i, true)
	if c := onlyContainer(t, i); c.Restarts == 0 {
		t.Errorf("after a failure it is %+v, want started again", c)
	}
}

func instanceThatRunsNowAndThenIsProbed(t *testing.T, s *Suite) {
	i := s.Start(t, func(spec *engine.Spec) {
		spec.Container.LivenessProbe = &engine.Probe{
			HTTP: &engine.HTTPProbe{Port: port, Path: "/health"}, Period: 500 * time.Millisecond, FailureThreshold: 2,
		}
	}, "serve")
	Request(t, i, http.MethodPost, "/health?code=500")
	for late := time.Now().Add(patience); onlyContainer(t, i).Restarts == 0; {
		if time.Now().After(late) {
			t.Fatal("it is not started again although its probe fails")
		}
		for _, change := range []func() error{i.Freeze, i.Thaw} {
			if err := change(); err != nil { // while it is being started again it is not frozen
				t.Fatal(err)
			}
			time.Sleep(still) // less than the period
		}
	}
}

func sidecarOfAFrozenInstanceIsStartedAgain(t *testing.T, s *Suite) {
	i := s.Start(t, s.WithSidecar(func(c *engine.Container) {
		c.StartupProbe = &engine.Probe{TCP: &engine.TCPProbe{Port: helperPort}}
	}, "listen", fmt.Sprint(":", helperPort)))
	conn, err := i.DialPort(t.Context(), helperPort)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "POST /exit?code=1 HTTP/1.1\r\nHost: instance\r\nContent-Length: 0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	freeze(t, i)
	if _, err := io.ReadAll(conn); err != nil && !errors.Is(err, syscall.ECONNRESET) { // which ends when it does
		t.Fatal(err)
	}
	conn.Close() // and now the instance may freeze
	late := time.After(patience)
	for i.Containers()[1].Restarts == 0 || !i.Containers()[1].Ready {
		select {
		case <-i.Readiness():
		case <-late:
			t.Fatalf("it is %+v, want the sidecar started again", i.Containers())
		}
	}
	thaw(t, i)
	Get(t, i, "/")
}

func outOfMemoryEndsOneThatIsToBeFrozen(t *testing.T, s *Suite) {
	i := s.Start(t, func(spec *engine.Spec) { spec.Container.Memory = 32 << 20 }, "parent")
	conn, err := i.DialPort(t.Context(), port) // keeps it running
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	freeze(t, i)
	if _, err := io.WriteString(conn, "POST /bloat HTTP/1.1\r\nHost: instance\r\nContent-Length: 0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-i.Exited():
	case <-time.After(patience):
		t.Fatal("it goes on")
	}
	if exit := i.Exit(); !exit.OOM {
		t.Errorf("exit %+v, want for lack of memory", exit)
	}
}

func lastOfFreezeAndThawWins(t *testing.T, s *Suite) {
	i := s.Start(t, nil)
	client := newClient(t, i)
	for n := range 20 {
		var group sync.WaitGroup
		for range 4 {
			group.Go(func() {
				for range 10 {
					if err := errors.Join(i.Freeze(), i.Thaw()); err != nil {
						t.Error(err)
					}
				}
			})
		}
		group.Wait()
		if n%2 == 0 {
			thaw(t, i)
			client.send(t)
			client.wantAnswer(t)
			continue
		}
		freeze(t, i)
		client.send(t)
		client.wantSilence(t)
		thaw(t, i)
		client.wantAnswer(t)
	}
}

func usageIsWhatItUses(t *testing.T, s *Suite) {
	i := s.Start(t, s.WithSidecar(nil, "spin"))
	before, err := i.Usage()
	if err != nil || before.CPU <= 0 || before.Memory <= 0 {
		t.Fatalf("it uses %+v: %v", before, err)
	}
	const mib = 32
	if status, body := Request(t, i, http.MethodPost, fmt.Sprintf("/write?path=/dev/shm/file&mib=%d", mib)); status != http.StatusOK {
		t.Fatal(body)
	}
	after, err := i.Usage()
	if err != nil {
		t.Fatal(err)
	}
	if grown := after.Memory - before.Memory; grown < mib<<19 || grown > 2*mib<<20 {
		t.Errorf("its memory has grown by %d MiB, want about %d", grown>>20, mib)
	}
	awaitCPU(t, i, true)
}

func reclaimingTakesNothingThatIsNeeded(t *testing.T, s *Suite) {
	i := s.Start(t, nil)
	if freed, err := i.Reclaim(); freed != 0 || err != nil {
		t.Errorf("of one that is not frozen %d bytes are taken: %v", freed, err)
	}
	freeze(t, i)
	if freed, err := i.Reclaim(); freed < 0 || err != nil {
		t.Errorf("of one that is frozen %d bytes are taken: %v", freed, err)
	}
	thaw(t, i)
	Get(t, i, "/")
	Inspect(t, i)
}

// cpuQuota is for how long a container may run in each 100 ms, in microseconds, as it sees it itself.
func cpuQuota(t *testing.T, i engine.Instance) string {
	t.Helper()
	if status, text := Request(t, i, http.MethodGet, "/read?path=/sys/fs/cgroup/cpu/cpu.cfs_quota_us"); status == http.StatusOK {
		return strings.TrimSpace(text)
	}
	quota, _, _ := strings.Cut(Get(t, i, "/read?path=/sys/fs/cgroup/cpu.max"), " ")
	return quota
}

func boostEndsAfterTheStart(t *testing.T, s *Suite) {
	if runtime.NumCPU() < 2 {
		t.Skip("the machine has one CPU only: there is no more to be given")
	}
	i := s.Start(t, func(spec *engine.Spec) {
		spec.Boost = true
		spec.Container.LivenessProbe = &engine.Probe{HTTP: &engine.HTTPProbe{Port: port, Path: "/health"}, Period: 20 * time.Millisecond}
	}, "serve")
	const boosted, normal = "200000", "100000"
	for range 2 { // the second time, of a container that was started again
		if got := cpuQuota(t, i); got != boosted {
			t.Errorf("after the start the quota is %s, want %s", got, boosted)
		}
		late := time.Now().Add(engine.BoostAfter + patience)
		for cpuQuota(t, i) != normal {
			if time.Now().After(late) {
				t.Fatalf("the quota stays at %s, want %s", cpuQuota(t, i), normal)
			}
			time.Sleep(still)
		}
		Request(t, i, http.MethodPost, "/health?code=500")
		awaitReadiness(t, i, false)
		awaitReadiness(t, i, true)
	}
}
