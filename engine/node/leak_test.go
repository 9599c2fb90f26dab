package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/engine/enginetest"
)

// traces lists what an engine on dir has left on the machine.
func traces(t *testing.T, dir string) []string {
	t.Helper()
	var found []string
	mark := mark(filepath.Join(dir, "node"))
	links, err := listLinks()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, "bt"+mark) {
			found = append(found, "interface "+l.Attrs().Name)
		}
	}
	addresses, err := listAddresses()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		if a.Label == addressLabel("bt"+mark) {
			found = append(found, "address "+a.String())
		}
	}
	routes, err := listRoutes()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		if l, err := netlink.LinkByIndex(r.LinkIndex); err == nil && strings.HasPrefix(l.Attrs().Name, "bt"+mark) {
			found = append(found, "route "+r.String())
		}
	}
	groups, err := filepath.Glob("/sys/fs/cgroup/*/berth-" + mark)
	if err != nil {
		t.Fatal(err)
	}
	for _, group := range groups {
		found = append(found, "cgroup "+group)
	}
	tables, err := exec.Command("nft", "list", "tables").Output()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(tables), "berth_"+mark) {
		found = append(found, "packet rules")
	}
	if _, err := os.Stat(lifeFile(mark)); err == nil {
		found = append(found, "file "+lifeFile(mark))
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), dir) {
		found = append(found, "mounts")
	}
	programs, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range programs {
		if text, err := os.ReadFile(path); err == nil && strings.Contains(string(text), "/berth-"+mark+"/") {
			found = append(found, "process "+path)
		}
	}
	if _, err := os.Stat(runDir(mark)); err == nil {
		found = append(found, "directory "+runDir(mark))
	}
	return found
}

func TestClose_LeavesNothingBehind(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	e := openEngine(t, dir)
	s := enginetest.New(t, e)
	s.Start(t, nil, "stubborn")
	if err := s.Start(t, s.WithSidecar(nil, "stubborn"), "graceful").Freeze(); err != nil {
		t.Fatal(err)
	}
	s.Prepare(t, nil, "serve")
	if len(traces(t, dir)) == 0 {
		t.Fatal("a running engine leaves no traces: the test does not look where they are")
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if left := traces(t, dir); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestStop_LeavesNothingOfTheInstance(t *testing.T) {
	e := openEngine(t, t.TempDir())
	s := enginetest.New(t, e)
	spec := s.Spec(t, nil, "serve")
	cycle := func() {
		i, err := e.Prepare(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		if err := i.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := i.Freeze(); err != nil {
			t.Fatal(err)
		}
		i.Stop(0)
	}
	cycle()
	files := openFiles(t)
	var mounts string
	count := func() int {
		err := e.namespace.do(func() error {
			text, err := os.ReadFile("/proc/thread-self/mountinfo")
			mounts = string(text)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(mounts, "\n")
	}
	mounted := count()
	for range 10 {
		cycle()
	}
	if now := count(); now != mounted {
		t.Errorf("%d mounts, were %d:\n%s", now, mounted, mounts)
	}
	// Links are made ahead in the background, each of which is an open file.
	if now := openFiles(t); now > files+spareLinks {
		t.Errorf("%d open files, were %d", now, files)
	}
	for _, directory := range e.cgroups.directories() {
		entries, err := os.ReadDir(directory)
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range entries {
			if entry.IsDir() && entry.Name() != alwaysFrozen {
				t.Errorf("cgroup %s/%s is left", directory, entry.Name())
			}
		}
	}
	if len(e.instances) != 0 {
		t.Errorf("%d instances are remembered", len(e.instances))
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestOpen_RefusesADirectoryInUse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	e := openEngine(t, dir)
	_, err := Open(Config{Dir: filepath.Join(dir, "node"), Images: e.images, Network: e.network.prefix})
	if err == nil || !strings.Contains(err.Error(), "another server uses") {
		t.Errorf("got %v", err)
	}
	s := enginetest.New(t, e)
	enginetest.Get(t, s.Start(t, nil, "serve"), "/") // the first is unharmed
}

// crashDir tells the re-executed test binary to be a server that will be killed.
const crashDir = "BERTH_TEST_CRASH_DIR"

// TestCrashingServer is not a test but the server that TestOpen_CleansUpAfterAServerThatWasKilled kills.
func TestCrashingServer(t *testing.T) {
	dir := os.Getenv(crashDir)
	if dir == "" {
		t.Skip("runs as a process of another test only")
	}
	enginetest.LoadProgram(t, os.Getenv(programFile))
	e := openEngine(t, dir)
	s := enginetest.New(t, e)
	s.Start(t, s.WithSidecar(nil, "stubborn"), "stubborn")
	if err := s.Start(t, s.WithSidecar(nil, "stubborn"), "graceful").Freeze(); err != nil {
		t.Fatal(err)
	}
	busy := s.Start(t, nil, "serve")
	s.Prepare(t, nil, "serve")
	go func() { _, _ = busy.Exec(t.Context(), engine.Command{Args: []string{"/bin/program", "nest"}}) }()
	spec := s.Spec(t, func(spec *engine.Spec) {
		s.WithSidecar(nil, "silent")(spec)
		spec.Volumes = []engine.Volume{enginetest.Filled("conf", text("a", "1")), {Name: "scratch"}}
		spec.Container.Mounts = []engine.Mount{{Volume: "conf", Path: "/conf"}, {Volume: "scratch", Path: "/scratch", SubPath: "part"}}
	}, "serve")
	fmt.Println("ready")
	var group sync.WaitGroup
	for range 2 { // so that the kill meets every moment of an instance's life
		group.Go(func() {
			for {
				i, err := e.Prepare(t.Context(), spec)
				if err != nil {
					t.Error(err)
					return
				}
				if err := i.Start(t.Context()); err != nil {
					t.Error(err)
				}
				i.Stop(0)
			}
		})
	}
	group.Wait()
}

// crash runs a server on dir and kills it in the middle of its work.
func crash(t *testing.T, dir string) {
	t.Helper()
	server := exec.Command(os.Args[0], "-test.run=^TestCrashingServer$", "-test.v")
	server.Env = append(server.Environ(), crashDir+"="+dir, "TMPDIR="+dir, programFile+"="+enginetest.SaveProgram(t))
	output, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	var said []string
	lines := bufio.NewScanner(output)
	for lines.Scan() {
		said = append(said, lines.Text())
		if lines.Text() == "ready" {
			break
		}
	}
	if !slices.Contains(said, "ready") {
		t.Fatalf("the server did not get ready:\n%s", strings.Join(said, "\n"))
	}
	// Not after the kill: any other server that starts removes them.
	if len(traces(t, dir)) == 0 {
		t.Error("a running server leaves no traces: the test does not look where they are")
	}
	if err := server.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, output)
	_ = server.Wait() // it was killed: an error is right
}

func TestOpen_CleansUpAfterAServerThatWasKilled(t *testing.T) {
	for range 3 {
		dir := t.TempDir()
		crash(t, dir)
		e := openEngine(t, dir)
		s := enginetest.New(t, e)
		enginetest.Get(t, s.Start(t, nil, "serve"), "/")
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		if left := traces(t, dir); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	}
}

func TestOpen_CleansUpAfterAServerWhoseDirectoryIsGone(t *testing.T) {
	living := openEngine(t, t.TempDir())
	i := enginetest.New(t, living).Start(t, nil, "serve")
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	crash(t, dir)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	openEngine(t, t.TempDir())
	left := traces(t, dir)
	// A server of another test, that begins at the same time, may be the one that removes it.
	for deadline := time.Now().Add(20 * time.Second); len(left) > 0 && time.Now().Before(deadline); left = traces(t, dir) {
		time.Sleep(50 * time.Millisecond)
	}
	if len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	enginetest.Get(t, i, "/")
	if restored, err := living.firewall.restore(); restored || err != nil {
		t.Errorf("the packet rules of a living server were gone: %v, %v", restored, err)
	}
}

// zombies lists children of this process that have ended and that nobody waits for: they are still there after a
// while. Those that other tests have left, by killing a server, are known.
func zombies(t *testing.T, known []string) []string {
	t.Helper()
	const looks = 1000 // what a failed runtime leaves is reaped after seconds
	var found []string
	for range looks {
		found = slices.DeleteFunc(endedChildren(t), func(child string) bool { return slices.Contains(known, child) })
		if len(found) == 0 {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return found
}

func endedChildren(t *testing.T) []string {
	t.Helper()
	var found []string
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it is gone
		}
		// "pid (name) state ppid …"
		_, after, _ := strings.Cut(string(text), ") ")
		if fields := strings.Fields(after); len(fields) > 1 && fields[0] == "Z" && fields[1] == fmt.Sprint(os.Getpid()) {
			found = append(found, string(text))
		}
	}
	return found
}

func TestPrepare_CanceledAtAnyMomentLeavesNothing(t *testing.T) {
	runtimes(t, func(t *testing.T, e *Engine) {
		s := enginetest.New(t, e)
		spec := s.Spec(t, nil, "serve")
		known := endedChildren(t)
		begun := time.Now()
		i, err := e.Prepare(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		took := time.Since(begun)
		i.Stop(0)
		const tries = 40
		for n := range tries {
			ctx, cancel := context.WithTimeout(t.Context(), took*time.Duration(n)/tries)
			if i, err := e.Prepare(ctx, spec); err == nil {
				i.Stop(0)
			} else if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("canceled: %v", err)
			}
			cancel()
		}
		if left := zombies(t, known); len(left) > 0 {
			t.Errorf("processes are left: %q", left)
		}
		if left := killAll(e.cgroups.directories()[0]); len(left) > 0 {
			t.Errorf("processes are left in the cgroup: %v", left)
		}
		enginetest.Get(t, s.Start(t, nil, "serve"), "/")
	})
}
