package node

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/engine/enginetest"
)

func TestFreeze_HoldsNoFilesOpen(t *testing.T) {
	e := openEngine(t, t.TempDir())
	i := enginetest.New(t, e).Start(t, nil, "serve")
	for _, change := range []func() error{i.Freeze, i.Thaw} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		files, err := filepath.Glob("/proc/self/fd/*")
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if path, err := os.Readlink(file); err == nil && strings.HasPrefix(path, cgroupMount) && strings.Contains(path, i.ID()) && !strings.Contains(path, "oom_control") {
				t.Errorf("%s stays open", path)
			}
		}
	}
}

func TestFreeze_BesideAllElseDoesNotOutlastStop(t *testing.T) {
	t.Parallel()
	runtimes(t, func(t *testing.T, e *Engine) {
		s := enginetest.New(t, e)
		spec := s.Spec(t, s.WithSidecar(nil, "listen", ":7000"), "serve")
		spec.Container.LivenessProbe = httpProbe("/health", 5*time.Millisecond, 1, 1)
		spec.Container.ReadinessProbe = &engine.Probe{Exec: &engine.ExecProbe{Command: []string{"/bin/program", "healthy"}}, Period: 20 * time.Millisecond}
		for n := range 8 {
			i, err := e.Prepare(t.Context(), spec)
			if err != nil {
				t.Fatal(err)
			}
			if err := i.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			over := make(chan struct{})
			var group sync.WaitGroup
			for _, change := range []func() error{
				i.Freeze, i.Freeze, i.Thaw,
				func() error { _, err := i.Reclaim(); return err },
				func() error { // the sidecar ends again and again
					if conn, err := i.DialPort(t.Context(), 7000); err == nil {
						_, _ = fmt.Fprint(conn, "POST /exit?code=1 HTTP/1.1\r\nHost: instance\r\nContent-Length: 0\r\n\r\n")
						conn.Close()
					}
					return nil
				},
				func() error {
					_, _ = i.Exec(t.Context(), engine.Command{Args: []string{"/bin/program", "say", "a", "b", "0"}}) // it may be stopped
					return nil
				},
			} {
				group.Go(func() {
					for !hasEnded(over) {
						if err := change(); err != nil {
							t.Error(err)
						}
						runtime.Gosched()
					}
				})
			}
			time.Sleep(time.Duration(n) * 20 * time.Millisecond) // another moment each time
			i.Stop(time.Duration(n%2) * 50 * time.Millisecond)
			close(over)
			group.Wait()
			if i.Frozen() || !hasEnded(i.Exited()) {
				t.Errorf("after Stop it is frozen: %t, and has ended: %t", i.Frozen(), hasEnded(i.Exited()))
			}
		}
		if left := killAll(e.cgroups.directories()[0]); len(left) > 0 {
			t.Errorf("processes are left: %v", left)
		}
	})
}

func TestFreeze_SaysWhenTheMachineHasNoFreezer(t *testing.T) {
	c := &cgroups{roots: map[string]string{"memory": "/sys/fs/cgroup/memory"}, name: "berth-012345"}
	err := c.freezable()
	if err == nil || !strings.Contains(err.Error(), `"freezer" is not mounted below /sys/fs/cgroup`) {
		t.Errorf("it says %v", err)
	}
	if said := c.freezerKind(); !strings.Contains(said, "not mounted") {
		t.Errorf("people are told %q", said)
	}
	old := v2Groups(t)
	if err := old.freezable(); err == nil || !strings.Contains(err.Error(), "Linux 5.2") {
		t.Errorf("with a kernel without cgroup.freeze it says %v", err)
	}
}

// TestCgroups_OfVersion2Freeze uses the freezer of version 2, which is there also where version 1 has the controllers.
func TestCgroups_OfVersion2Freeze(t *testing.T) {
	root := cgroupMount
	if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err != nil {
		root = filepath.Join(root, "unified")
	}
	if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err != nil {
		t.Skip("there is no hierarchy of version 2")
	}
	c := &cgroups{v2: true, roots: map[string]string{"": root}, name: fmt.Sprintf("berth-test-%d", os.Getpid())}
	const id = "hello-00001-aaaaa"
	group := filepath.Join(root, c.path(id))
	if err := os.MkdirAll(group, 0o755); err != nil {
		t.Fatal(err)
	}
	sleeper := exec.Command("sleep", "1000")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- sleeper.Wait() }()
	defer func() {
		if err := c.sweep(); err != nil { // though it is frozen
			t.Error(err)
		}
		<-ended
	}()
	if err := tell(filepath.Join(group, "cgroup.procs"), strconv.Itoa(sleeper.Process.Pid)); err != nil {
		t.Fatal(err)
	}
	await := func(want string) {
		t.Helper()
		for begun := time.Now(); ; time.Sleep(time.Millisecond) {
			text, err := os.ReadFile(filepath.Join(group, "cgroup.events"))
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(text), want) {
				return
			}
			if time.Since(begun) > time.Minute {
				t.Fatalf("the kernel says %q, want %q", text, want)
			}
		}
	}
	if err := c.freezable(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := c.freeze(id); err != nil {
			t.Fatal(err)
		}
		await("frozen 1")
		if err := c.thaw(id); err != nil {
			t.Fatal(err)
		}
		await("frozen 0")
	}
	if err := c.freeze(id); err != nil {
		t.Fatal(err)
	}
	if err := c.freeze("gone"); err != nil {
		t.Errorf("freezing a cgroup that is gone: %v", err)
	}
}

// v2Files is the cgroup of a container in v2Groups, with what the kernel would have in it.
func v2Files(t *testing.T, c *cgroups, id string, files map[string]string) (read func(name string) string) {
	t.Helper()
	group := filepath.Join(c.roots[""], c.path(id))
	if err := os.MkdirAll(group, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(group, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return func(name string) string {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(group, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
}

func TestUsage_OfVersion2IsWhatCannotBeDropped(t *testing.T) {
	c := v2Groups(t)
	v2Files(t, c, "a", map[string]string{
		"cpu.stat":       "usage_usec 1234567\nuser_usec 1000000\n",
		"memory.current": "10000000\n",
		"memory.stat":    "anon 500\nfile 3000000\ninactive_anon 9\nactive_anon 9\ninactive_file 2000000\nactive_file 1000000\n",
	})
	got, err := c.usage("a")
	if want := (engine.Usage{CPU: 1234567 * time.Microsecond, Memory: 7_000_000}); err != nil || got != want {
		t.Errorf("it uses %+v, want %+v: %v", got, want, err)
	}
	if _, err := c.usage("b"); err == nil {
		t.Error("one that is gone uses nothing, and that is no error")
	}
}

func TestReclaim_OfVersion2LetsMemoryGoToSwapForAsLongAsItTakes(t *testing.T) {
	c := v2Groups(t)
	read := v2Files(t, c, "a", map[string]string{"memory.current": "10000000\n", "memory.reclaim": "", "memory.swap.max": "0\n"})
	if _, err := c.reclaim("a"); err != nil {
		t.Fatal(err)
	}
	if got := read("memory.reclaim"); got != "10000000" {
		t.Errorf("the kernel is asked for %q bytes", got)
	}
	if got := read("memory.swap.max"); !strings.HasPrefix(got, "0") {
		t.Errorf("the limit of swap is left at %q", got)
	}
}

func TestBoosted(t *testing.T) {
	for _, test := range []struct {
		limit int64
		cpus  int
		want  int64
	}{
		{0, 8, 0}, {80, 8, 2000}, {1000, 8, 2000}, {1000, 1, 1000}, {1000, 2, 2000}, {1500, 8, 4000}, {2000, 8, 4000},
		{2000, 3, 3000}, {4000, 16, 8000}, {4000, 2, 4000}, {6000, 16, 8000}, {8000, 16, 8000}, {12000, 16, 12000},
	} {
		if got := boosted(test.limit, test.cpus); got != test.want {
			t.Errorf("a limit of %d on %d CPUs is boosted to %d, want %d", test.limit, test.cpus, got, test.want)
		}
	}
}

func TestBoost_IsInTheBundleOnlyWhereAskedFor(t *testing.T) {
	b := bundle{container: &engine.Container{CPU: 500}}
	if got := *b.resources().CPU.Quota; got != 50_000 {
		t.Errorf("without a boost the quota is %d", got)
	}
	shares := *b.resources().CPU.Shares
	b.spec.Boost = true
	if got, want := *b.resources().CPU.Quota, quota(boosted(500, 2)); got < want/2 || *b.resources().CPU.Shares != shares {
		t.Errorf("with a boost the quota is %d and the shares %d, were %d", got, *b.resources().CPU.Shares, shares)
	}
	c := v2Groups(t)
	read := v2Files(t, c, "a", map[string]string{"cpu.max": "max 100000"})
	if err := c.limitCPU("a", 1500); err != nil {
		t.Fatal(err)
	}
	if got := read("cpu.max"); got != "150000 100000" {
		t.Errorf("with version 2 the limit is %q", got)
	}
}

// A service that is used now and then is frozen for most of the time, and each time for less than a probe's period runs:
// it is probed nevertheless.
func TestProber_GoesOnAfterAFreeze(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatched()
		w.readiness, w.liveness = httpProbe("/ready", 3*time.Second, 1, 1), httpProbe("/live", 10*time.Second, 3, 1)
		w.set("/live", true)
		for range 7 {
			stop := w.start(t)
			time.Sleep(100 * time.Millisecond)
			stop()
			w.anew = true
			time.Sleep(3900 * time.Millisecond) // frozen
		}
		const s, pause = time.Second, thawPause
		want := map[string][]time.Duration{
			"/live":  {0, 12*s + pause, 24*s + pause},
			"/ready": {4*s + pause, 8*s + pause, 12*s + pause, 16*s + pause, 20*s + pause, 24*s + pause},
		}
		if diff := cmp.Diff(want, w.tries); diff != "" {
			t.Errorf("tries (-want +got):\n%s", diff)
		}
		if len(w.did) != 1 || !strings.Contains(w.did[0], "LIVENESS HTTP probe failed 3 times consecutively") {
			t.Errorf("it did %q, want that the third try is the last", w.did)
		}
	})
}

func TestProber_TriesNothingThatIsFrozen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatched()
		w.hold = func() (func(), bool) { return nil, false }
		w.liveness = httpProbe("/live", time.Second, 1, 1)
		w.start(t)
		time.Sleep(time.Minute)
		if len(w.tries) != 0 {
			t.Errorf("tries: %v", w.tries)
		}
	})
}

// addSwap lends the machine memory on disk until the test ends.
func addSwap(t *testing.T, mib int64) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "swap")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = unix.Fallocate(int(file.Fd()), 0, 0, mib<<20)
		file.Close()
	}
	if err != nil {
		t.Skipf("a swap file cannot be made: %v", err)
	}
	for _, name := range []string{"mkswap", "swapon"} {
		if output, err := exec.Command(name, path).CombinedOutput(); err != nil {
			t.Skipf("swap cannot be added: %s: %v: %s", name, err, output)
		}
	}
	t.Cleanup(func() {
		if output, err := exec.Command("swapoff", path).CombinedOutput(); err != nil {
			t.Errorf("removing the swap: %v: %s", err, output)
		}
	})
}

func TestReclaim_MovesMemoryOfFrozenInstancesToSwap(t *testing.T) {
	const mib = 64
	addSwap(t, 4*mib)
	e := openEngine(t, t.TempDir())
	i := enginetest.New(t, e).Start(t, nil, "serve")
	if status, body := enginetest.Request(t, i, http.MethodPost, fmt.Sprintf("/write?path=/dev/shm/file&mib=%d", mib)); status != http.StatusOK {
		t.Fatal(body)
	}
	usage := func() int64 {
		u, err := i.Usage()
		if err != nil {
			t.Fatal(err)
		}
		return u.Memory
	}
	before := usage()
	if err := i.Freeze(); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	freed, err := i.Reclaim()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d of %d KiB are taken in %s", freed>>10, before>>10, time.Since(begun))
	if freed < mib<<20/2 || before-usage() < mib<<20/2 {
		t.Errorf("%d bytes are taken, and it uses %d after %d", freed, usage(), before)
	}
	if err := i.Thaw(); err != nil {
		t.Fatal(err)
	}
	if got := len(enginetest.Get(t, i, "/read?path=/dev/shm/file")); got != mib<<20 {
		t.Errorf("of its file of %d bytes there are %d", mib<<20, got)
	}

	// Whoever thaws it need not wait.
	if err := i.Freeze(); err != nil {
		t.Fatal(err)
	}
	reclaimed := make(chan error, 1)
	go func() {
		_, err := i.Reclaim()
		reclaimed <- err
	}()
	if err := i.Thaw(); err != nil {
		t.Fatal(err)
	}
	enginetest.Get(t, i, "/")
	if err := <-reclaimed; err != nil {
		t.Error(err)
	}
}
