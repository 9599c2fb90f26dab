package node

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/engine/enginetest"
)

// await waits until an instance says that it is ready, or is not. It may say what it was before once more.
func await(t *testing.T, i engine.Instance, want bool) {
	t.Helper()
	for late := time.After(time.Minute); ; {
		select {
		case ready := <-i.Readiness():
			if ready == want {
				return
			}
		case <-late:
			t.Fatalf("readiness has not become %v", want)
		}
	}
}

func systemLines(t *testing.T, e *Engine, i engine.Instance) []string {
	t.Helper()
	var said []string
	err := e.Logs(t.Context(), engine.LogQuery{Instance: i.ID()}, func(line engine.LogLine) error {
		if line.Stream == "system" {
			said = append(said, line.Container+": "+line.Text)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return said
}

func TestRestart_KeepsTheNetworkAndTheVolumes(t *testing.T) {
	t.Parallel()
	runtimes(t, func(t *testing.T, e *Engine) {
		s := enginetest.New(t, e)
		i := s.Start(t, func(spec *engine.Spec) {
			spec.Volumes = []engine.Volume{{Name: "scratch"}}
			spec.Container.Mounts = []engine.Mount{{Volume: "scratch", Path: "/scratch"}}
		}, "graceful").(*instance)
		for _, path := range []string{"/scratch/kept", "/gone"} {
			if status, body := enginetest.Request(t, i, http.MethodPost, "/write?mib=1&path="+path); status != http.StatusOK {
				t.Fatal(body)
			}
		}
		address, pid := i.link.address, i.containers[0].life.process.pid
		const why = "LIVENESS HTTP probe failed 3 times consecutively"
		if err := i.containers[0].restart(i.containers[0].life, why); err != nil {
			t.Fatal(err)
		}
		await(t, i, true)
		if i.link.address != address || i.containers[0].life.process.pid == pid {
			t.Errorf("address %s, was %s; process %d, was %d", i.link.address, address, i.containers[0].life.process.pid, pid)
		}
		enginetest.Get(t, i, "/read?path=/scratch/kept")
		if status, _ := enginetest.Request(t, i, http.MethodGet, "/read?path=/gone"); status != http.StatusNotFound {
			t.Error("what was written to the root is still there")
		}
		c := i.Containers()[0]
		if c.Restarts != 1 || !c.Ready || c.State != engine.ContainerRunning || c.LastExit == nil || !slices.Equal(c.LastExit.LastLines, []string{"goodbye"}) || c.LastExit.Cause != why {
			t.Errorf("the container is %+v", c)
		}
		if said := systemLines(t, e, i); !slices.Equal(said, []string{"user-container: " + why + ". The container is started again."}) {
			t.Errorf("the log says %q", said)
		}
		if hasEnded(i.Exited()) {
			t.Error("the instance has ended")
		}
		// Its own end is the instance's, now as before.
		_ = i.containers[0].life.process.signal(9)
		<-i.Exited()
	})
}

func TestRestart_LeavesWhatIsInVolumesCountedToTheContainer(t *testing.T) {
	t.Parallel()
	runtimes(t, func(t *testing.T, e *Engine) {
		s := enginetest.New(t, e)
		i := s.Start(t, func(spec *engine.Spec) {
			spec.Container.Memory = 64 << 20
			spec.Volumes = []engine.Volume{{Name: "a"}, {Name: "b"}}
			spec.Container.Mounts = []engine.Mount{{Volume: "a", Path: "/a"}, {Volume: "b", Path: "/b"}}
		}, "serve").(*instance)
		if status, body := enginetest.Request(t, i, http.MethodPost, "/write?mib=40&path=/a/kept"); status != http.StatusOK {
			t.Fatal(body)
		}
		if err := i.containers[0].restart(i.containers[0].life, "LIVENESS"); err != nil {
			t.Fatal(err)
		}
		conn, err := i.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, "POST /write?mib=40&path=/b/more HTTP/1.0\r\n\r\n")
		if answer, _ := io.ReadAll(conn); strings.Contains(string(answer), "200 OK") {
			t.Fatal("it wrote more to its volumes than its memory limit")
		}
		<-i.Exited()
		if !i.Exit().OOM {
			t.Errorf("it ended with %+v", i.Exit())
		}
	})
}

func TestRestart_OfAnInstanceThatBreaksDownEndsIt(t *testing.T) {
	t.Parallel()
	e := openEngine(t, t.TempDir())
	s := enginetest.New(t, e)
	for range 8 {
		i := s.Start(t, nil, "graceful").(*instance)
		c := i.containers[0]
		l := c.life
		done := make(chan error, 1)
		go func() { done <- c.restart(l, "LIVENESS") }()
		await(t, i, false)
		<-l.exited // and another is to follow it
		i.mu.Lock()
		i.breakDown(engine.Exit{OOM: true})
		i.mu.Unlock()
		if err := <-done; err == nil {
			t.Error("it was started again")
		}
		<-i.Exited()
		if !i.Exit().OOM {
			t.Errorf("it ended with %+v", i.Exit())
		}
	}
}

func TestExec_DoesNotBeginInTheNextLife(t *testing.T) {
	t.Parallel()
	e := openEngine(t, t.TempDir())
	i := enginetest.New(t, e).Start(t, nil, "serve").(*instance)
	l, err := i.alive("")
	if err != nil {
		t.Fatal(err)
	}
	if err := i.containers[0].restart(l, "LIVENESS"); err != nil {
		t.Fatal(err)
	}
	if code, err := l.exec(t.Context(), engine.Command{Args: []string{"/bin/program", "exit", "3"}}); err == nil {
		t.Errorf("a command of the former life ran, and ended with code %d", code)
	}
}

func TestRestart_IsTriedAgainAfterAPause(t *testing.T) {
	t.Parallel()
	e := openEngine(t, t.TempDir())
	s := enginetest.New(t, e)
	// Its second life ends at once, for what the first has left in a volume; so does the third, and the fourth not.
	i := s.Start(t, func(spec *engine.Spec) {
		spec.Volumes = []engine.Volume{{Name: "scratch"}}
		spec.Container.Mounts = []engine.Mount{{Volume: "scratch", Path: "/scratch"}}
	}, "fickle", "/scratch/lives", "2", "3").(*instance)
	done := make(chan error, 1)
	go func() { done <- i.containers[0].restart(i.containers[0].life, "LIVENESS") }()
	await(t, i, false)
	seen := map[string]bool{}
	for !hasEnded(i.Exited()) {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			await(t, i, true)
			if c := i.Containers()[0]; c.Restarts != 3 || c.LastExit == nil || c.LastExit.Code != 1 {
				t.Errorf("the container is %+v", c)
			}
			if !seen[reasonBackOff] {
				t.Errorf("it was never seen to wait: %v", seen)
			}
			said := strings.Join(systemLines(t, e, i), "\n")
			for _, want := range []string{"the container is started again in 1s", "the container is started again in 2s", "exited with code 1 before it listened on port 8080"} {
				if !strings.Contains(said, want) {
					t.Errorf("the log lacks %q: %s", want, said)
				}
			}
			enginetest.Get(t, i, "/")
			return
		case <-time.After(10 * time.Millisecond):
			c := i.Containers()[0]
			seen[c.Reason] = true
			if c.Ready {
				if c.Restarts < 3 {
					t.Fatalf("it is ready after %d restarts: %+v", c.Restarts, c)
				}
			}
		}
	}
	t.Fatalf("the instance has ended: %+v", i.Exit())
}

func TestStop_EndsARestartAtAnyMoment(t *testing.T) {
	runtimes(t, func(t *testing.T, e *Engine) {
		s := enginetest.New(t, e)
		spec := s.Spec(t, s.WithSidecar(nil, "silent"), "serve")
		known := endedChildren(t)
		const tries = 12
		for n := range tries {
			made, err := e.Prepare(t.Context(), spec)
			if err != nil {
				t.Fatal(err)
			}
			i := made.(*instance)
			if err := i.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			var restarts sync.WaitGroup
			for _, c := range i.containers {
				restarts.Go(func() {
					if err := c.restart(c.life, "LIVENESS"); err != nil && !errors.Is(err, errEnding) {
						t.Error(err)
					}
				})
			}
			time.Sleep(time.Duration(n) * 5 * time.Millisecond) // another moment each time
			i.Stop(0)
			restarts.Wait()
			if !hasEnded(i.Exited()) {
				t.Error("it has stopped and not exited")
			}
		}
		if left := zombies(t, known); len(left) > 0 {
			t.Errorf("processes are left: %q", left)
		}
		for _, directory := range e.cgroups.directories() {
			entries, err := os.ReadDir(directory)
			if err != nil {
				t.Fatal(err)
			}
			for _, entry := range entries {
				if entry.IsDir() {
					t.Errorf("cgroup %s/%s is left", directory, entry.Name())
				}
			}
		}
	})
}

func TestSidecar_OutOfMemoryWhileAnotherIsStartedAgainEndsTheInstance(t *testing.T) {
	t.Parallel()
	e := openEngine(t, t.TempDir())
	s := enginetest.New(t, e)
	i := s.Start(t, s.WithSidecar(func(c *engine.Container) {
		c.Memory = 32 << 20
		c.StartupProbe = &engine.Probe{TCP: &engine.TCPProbe{Port: 9000}}
		c.Env = []engine.Env{{Name: "PORT", Value: "9000"}}
	}, "parent"), "stubborn").(*instance)
	i.spec.Container.TerminationGrace = time.Hour // it ignores SIGTERM: the restart lasts
	done := make(chan error, 1)
	go func() { done <- i.containers[0].restart(i.containers[0].life, "LIVENESS") }()
	await(t, i, false)
	go func() { // its end is the instance's
		_, _ = i.Exec(t.Context(), engine.Command{Container: "helper", Args: []string{"/bin/program", "ask", "POST", "http://localhost:9000/bloat"}})
	}()
	<-i.Exited()
	if exit := i.Exit(); !exit.OOM {
		t.Errorf("exit %+v, want one for lack of memory", exit)
	}
	if err := <-done; !errors.Is(err, errEnding) {
		t.Errorf("restart returned %v", err)
	}
}

func TestExec_ManyAtOnce(t *testing.T) {
	runtimes(t, func(t *testing.T, e *Engine) {
		s := enginetest.New(t, e)
		i := s.Start(t, nil)
		files := openFiles(t)
		known := endedChildren(t)
		var group sync.WaitGroup
		for n := range 24 {
			group.Go(func() {
				if n%3 == 0 {
					if _, err := i.Exec(t.Context(), engine.Command{Args: []string{"/bin/nothing"}}); err == nil {
						t.Error("a missing program ran")
					}
					return
				}
				if code, out, _ := enginetest.Exec(t, i, "", "say", fmt.Sprint("I am ", n), "", fmt.Sprint(n)); code != n || out != fmt.Sprintf("I am %d\n", n) {
					t.Errorf("command %d: code %d, %q", n, code, out)
				}
			})
		}
		group.Wait()
		if now := openFiles(t); now > files+spareLinks {
			t.Errorf("%d open files, were %d", now, files)
		}
		if left := zombies(t, known); len(left) > 0 {
			t.Errorf("processes are left: %q", left)
		}
		err := e.namespace.do(func() error {
			entries, err := os.ReadDir(e.run)
			for _, entry := range entries {
				if strings.HasPrefix(entry.Name(), "x") {
					t.Errorf("%s is left", entry.Name())
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

func TestExec_WhileTheContainerIsStartedAgain(t *testing.T) {
	runtimes(t, func(t *testing.T, e *Engine) {
		s := enginetest.New(t, e)
		i := s.Start(t, nil).(*instance)
		known := endedChildren(t)
		stop := make(chan struct{})
		var group sync.WaitGroup
		for n := range 3 {
			group.Go(func() {
				for !hasEnded(stop) {
					program := []string{"/bin/program", "/bin/program", "/bin/nothing"}[n]
					// It fails when there is no container, or no program; what counts is what is left.
					_, _ = i.Exec(t.Context(), engine.Command{Args: []string{program, "look"}})
				}
			})
		}
		c := i.containers[0]
		for range 5 {
			c.attempts = 0 // no pauses: nobody else uses it between restarts
			if err := c.restart(c.life, "LIVENESS"); err != nil {
				t.Fatal(err)
			}
		}
		close(stop)
		group.Wait()
		if code, out, _ := enginetest.Exec(t, i, "", "say", "well", "", "3"); code != 3 || out != "well\n" {
			t.Errorf("afterwards a command ends with code %d, %q", code, out)
		}
		i.Stop(0)
		if left := zombies(t, known); len(left) > 0 {
			t.Errorf("processes are left: %q", left)
		}
	})
}
