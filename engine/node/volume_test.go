package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/engine/enginetest"
	"github.com/berth-run/berth/image"
)

// changing is a volume whose files tests change.
type changing struct {
	mu    sync.Mutex
	files []engine.File
	err   error
	read  chan struct{} // gets one for each reading, as far as there is room
}

func newChanging(files ...engine.File) *changing {
	return &changing{files: files, read: make(chan struct{})}
}

func (c *changing) set(err error, files ...engine.File) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.files, c.err = files, err
}

func (c *changing) volume(name string) engine.Volume {
	return engine.Volume{Name: name, Files: func(string) func(context.Context) ([]engine.File, error) {
		return func(context.Context) ([]engine.File, error) {
			select {
			case c.read <- struct{}{}:
			default:
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.files, c.err
		}
	}}
}

// refreshed waits until what was set is in place: the files were read twice, and so written once in between.
func (c *changing) refreshed() {
	<-c.read
	<-c.read
}

func text(path, data string) engine.File {
	return engine.File{Path: path, Mode: 0o644, Data: []byte(data)}
}

// openRefreshing opens an engine that reads volumes again all the time.
func openRefreshing(t *testing.T, log *bytes.Buffer) *Engine {
	t.Helper()
	dir := t.TempDir()
	images, err := image.Open(filepath.Join(dir, "images"), image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { images.Close() })
	e, err := Open(Config{
		Dir: filepath.Join(dir, "node"), Images: images, Network: netip.MustParsePrefix("10.213.0.0/16"), LogKeep: LeastLogKeep,
		VolumeRefresh: 5 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("closing the engine: %v", err)
		}
	})
	return e
}

func TestVolume_FilesAreReplacedWhileTheInstanceRuns(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	s := enginetest.New(t, openRefreshing(t, &log))
	conf := newChanging(text("a", "1"), text("d/b", "1"), text("gone", "1"))
	i := s.Start(t, func(spec *engine.Spec) {
		spec.Volumes = []engine.Volume{conf.volume("conf")}
		spec.Container.Mounts = []engine.Mount{
			{Volume: "conf", Path: "/conf"}, {Volume: "conf", Path: "/fixed/a", SubPath: "a"}, {Volume: "conf", Path: "/fixed/d", SubPath: "d"},
		}
	}, "serve")
	conf.set(nil, text("a", "2"), text("d/c", "2"), text("new", "2"))
	conf.refreshed()
	for path, want := range map[string]string{
		"/conf/a": "2", "/conf/d/c": "2", "/conf/new": "2",
		"/fixed/a": "1", "/fixed/d/b": "1", // a part stays what it was when it was mounted
	} {
		if got := enginetest.Get(t, i, "/read?path="+path); got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
	var names []string
	for name := range strings.Lines(enginetest.Get(t, i, "/list?path=/conf")) {
		if name = strings.TrimSpace(name); !strings.HasPrefix(name, "..2") {
			names = append(names, name)
		}
	}
	if want := []string{"..data", "a", "d", "new"}; !cmp.Equal(names, want) {
		t.Errorf("the volume has %q, want %q", names, want)
	}
	if log.Len() > 0 {
		t.Errorf("logged: %s", log.String())
	}
}

func TestVolume_FilesThatAreTheSameAreNotWritten(t *testing.T) {
	t.Parallel()
	e := openRefreshing(t, new(bytes.Buffer))
	s := enginetest.New(t, e)
	conf := newChanging(text("a", "1"))
	i := s.Start(t, func(spec *engine.Spec) {
		spec.Volumes = []engine.Volume{conf.volume("conf")}
		spec.Container.Mounts = []engine.Mount{{Volume: "conf", Path: "/conf"}}
	}, "serve")
	before := enginetest.Get(t, i, "/list?path=/conf")
	conf.refreshed()
	if after := enginetest.Get(t, i, "/list?path=/conf"); after != before {
		t.Errorf("the directories are %q, were %q", after, before)
	}
	changed := text("a", "1")
	changed.Mode = 0o600
	conf.set(nil, changed)
	conf.refreshed()
	if got := enginetest.Get(t, i, "/stat?path=/conf/a"); got != "-rw------- 0:0" {
		t.Errorf("a file whose mode alone has changed is %s", got)
	}
}

func TestVolume_ReadersSeeAllOfAChangeOrNothing(t *testing.T) {
	e := openRefreshing(t, new(bytes.Buffer))
	v, err := e.openVolumes(t.Context(), "reader", engine.Spec{Volumes: []engine.Volume{{
		Name: "conf", Files: func(string) func(context.Context) ([]engine.File, error) {
			n := 0
			return func(ctx context.Context) ([]engine.File, error) {
				n++
				return []engine.File{text("a", fmt.Sprint(n)), text("b", fmt.Sprint(n))}, ctx.Err()
			}
		},
	}}}, ids{})
	if err != nil {
		t.Fatal(err)
	}
	defer v.close()
	const looks = 300
	err = e.namespace.do(func() error {
		seen := map[string]bool{}
		for range looks {
			data, err := os.Open(filepath.Join(v.dir, "conf", dataLink))
			if err != nil {
				return err
			}
			a, errA := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d/a", data.Fd()))
			b, errB := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d/b", data.Fd()))
			data.Close()
			if errA != nil || errB != nil {
				continue // it was replaced, and is gone
			}
			seen[string(a)] = true
			if string(a) != string(b) {
				t.Errorf("a is of change %s, and b of %s", a, b)
			}
			if _, err := os.ReadFile(filepath.Join(v.dir, "conf", "a")); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Error(err)
			}
			time.Sleep(time.Millisecond)
		}
		if len(seen) < 3 {
			t.Errorf("only %d changes were seen", len(seen))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestVolume_RefreshThatFailsIsLoggedOnceAndTriedAgain(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	e := openRefreshing(t, &log)
	s := enginetest.New(t, e)
	conf := newChanging(text("a", "1"))
	i := s.Start(t, func(spec *engine.Spec) {
		spec.Volumes = []engine.Volume{conf.volume("conf")}
		spec.Container.Mounts = []engine.Mount{{Volume: "conf", Path: "/conf"}}
	}, "serve")
	conf.set(errors.New("it was deleted"))
	conf.refreshed()
	conf.refreshed()
	if got := enginetest.Get(t, i, "/read?path=/conf/a"); got != "1" {
		t.Errorf("the file is %q when it cannot be read again", got)
	}
	conf.set(nil, text("a", "2"))
	conf.refreshed()
	if got := enginetest.Get(t, i, "/read?path=/conf/a"); got != "2" {
		t.Errorf("the file is %q when it can be read again", got)
	}
	i.Stop(0) // nobody writes to the log any more
	if n := strings.Count(log.String(), "it was deleted"); n != 1 || !strings.Contains(log.String(), "volume=conf") {
		t.Errorf("logged %d times: %s", n, log.String())
	}
}

func TestVolume_PartsDoNotLeadOutOfIt(t *testing.T) {
	t.Parallel()
	e := openRefreshing(t, new(bytes.Buffer))
	v, err := e.openVolumes(t.Context(), "escape", engine.Spec{Volumes: []engine.Volume{{Name: "scratch"}}}, ids{})
	if err != nil {
		t.Fatal(err)
	}
	defer v.close()
	mount := func(subPath string) ([]string, error) {
		var sources []string
		err := e.namespace.do(func() error {
			mounts, err := v.mounts(engine.Container{Name: "one", Mounts: []engine.Mount{{Volume: "scratch", Path: "/m", SubPath: subPath}}})
			for _, m := range mounts {
				sources = append(sources, m.Source)
			}
			return err
		})
		return sources, err
	}
	err = e.namespace.do(func() error {
		scratch := filepath.Join(v.dir, "scratch")
		return errors.Join(os.Symlink("/etc", filepath.Join(scratch, "absolute")), os.Symlink("../../..", filepath.Join(scratch, "up")),
			os.Mkdir(filepath.Join(scratch, "dir"), 0o755), os.Symlink("dir", filepath.Join(scratch, "inside")),
			os.Symlink("nowhere", filepath.Join(scratch, "dangling")), os.Symlink("loop", filepath.Join(scratch, "loop")),
			os.WriteFile(filepath.Join(scratch, "file"), nil, 0o644))
	})
	if err != nil {
		t.Fatal(err)
	}
	for subPath, says := range map[string]string{
		"absolute": "leads out", "absolute/passwd": "leads out", "up": "leads out", "up/x": "leads out", "dir/../../x": "leads out", "..": "leads out",
		"dangling": "no such file", "dangling/x": "no such file", "loop": "symbolic links", "file/x": "not a directory",
	} {
		if sources, err := mount(subPath); err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), `"`+subPath+`"`) {
			t.Errorf("subPath %q: mounts %q, error %v; want %q", subPath, sources, err, says)
		}
	}
	for _, subPath := range []string{"inside", "inside/made", "new/also", "file", "."} {
		sources, err := mount(subPath)
		if err != nil {
			t.Errorf("subPath %q: %v", subPath, err)
			continue
		}
		err = e.namespace.do(func() error { // the mount is the place itself, whatever becomes of the path
			here, err := os.Stat(sources[0])
			if err != nil {
				return err
			}
			there, err := os.Stat(filepath.Join(v.dir, "scratch", subPath))
			if err == nil && !os.SameFile(here, there) {
				err = errors.New("another file is mounted")
			}
			return err
		})
		if err != nil {
			t.Errorf("subPath %q: %v", subPath, err)
		}
	}
}

func TestVolume_LeavesNothing(t *testing.T) {
	runtimes(t, func(t *testing.T, e *Engine) {
		s := enginetest.New(t, e)
		spec := s.Spec(t, func(spec *engine.Spec) {
			spec.Volumes = []engine.Volume{enginetest.Filled("conf", text("a", "1")), {Name: "scratch"}}
			spec.Container.Mounts = []engine.Mount{
				{Volume: "conf", Path: "/conf"}, {Volume: "scratch", Path: "/scratch"}, {Volume: "scratch", Path: "/part", SubPath: "part"},
				{Volume: "conf", Path: "/a", SubPath: "a"},
			}
		}, "serve")
		broken := spec
		broken.Container.Mounts = append(spec.Container.Mounts, engine.Mount{Volume: "conf", Path: "/b", SubPath: "b"})
		left := func() string {
			var text []byte
			err := e.namespace.do(func() error {
				entries, err := os.ReadDir(e.volumes)
				for _, entry := range entries {
					t.Errorf("directory %q is left", entry.Name())
				}
				if err == nil {
					text, err = os.ReadFile("/proc/thread-self/mountinfo")
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			return string(text)
		}
		mounted := left()
		for range 3 {
			i, err := e.Prepare(t.Context(), spec)
			if err != nil {
				t.Fatal(err)
			}
			if err := i.Start(t.Context()); err != nil {
				t.Error(err)
			}
			i.Stop(0)
			if i, err := e.Prepare(t.Context(), broken); err == nil {
				i.Stop(0)
				t.Error("a part that is not there is mounted")
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			if i, err := e.Prepare(ctx, spec); err == nil {
				i.Stop(0)
			}
			cancel()
		}
		if now := left(); now != mounted {
			t.Errorf("mounts are\n%s\nwere\n%s", now, mounted)
		}
	})
}

func TestVolume_OutlivesTheRestartOfAContainer(t *testing.T) {
	t.Parallel()
	runtimes(t, func(t *testing.T, e *Engine) {
		s := enginetest.New(t, e)
		conf := newChanging(text("a", "1"))
		i := s.Start(t, func(spec *engine.Spec) {
			spec.Volumes = []engine.Volume{conf.volume("conf"), {Name: "scratch"}}
			spec.Container.Mounts = []engine.Mount{
				{Volume: "conf", Path: "/conf"}, {Volume: "conf", Path: "/a", SubPath: "a"},
				{Volume: "scratch", Path: "/scratch"}, {Volume: "scratch", Path: "/part", SubPath: "made/part"},
			}
			side := spec.Container
			side.Name, side.Port, side.Args = "side", 0, []string{"listen", "127.0.0.1:9000"}
			side.Mounts = []engine.Mount{{Volume: "scratch", Path: "/shared"}, {Volume: "conf", Path: "/conf"}}
			spec.Sidecars = []engine.Container{side}
		}, "serve").(*instance)
		if status, body := enginetest.Request(t, i, "POST", "/write?mib=1&path=/part/file"); status != 200 {
			t.Fatal(body)
		}
		conf.set(nil, text("a", "2"))
		one := i.volumes.all["conf"].files
		if err := i.volumes.load(t.Context(), one); err != nil { // as a minute later
			t.Fatal(err)
		}
		if err := e.namespace.do(one.replace); err != nil {
			t.Fatal(err)
		}
		for path, want := range map[string]string{"/conf/a": "2", "/a": "1"} {
			if got := enginetest.Get(t, i, "/read?path="+path); got != want {
				t.Errorf("before: %s is %q, want %q", path, got, want)
			}
		}
		for range 2 {
			if err := i.containers[0].restart(i.containers[0].life, "a test wants it"); err != nil {
				t.Fatal(err)
			}
		}
		for path, want := range map[string]string{"/conf/a": "2", "/a": "2"} {
			if got := enginetest.Get(t, i, "/read?path="+path); got != want {
				t.Errorf("after: %s is %q, want %q", path, got, want)
			}
		}
		for _, path := range []string{"/part/file", "/scratch/made/part/file"} {
			if got := enginetest.Get(t, i, "/read?path="+path); len(got) != 1<<20 {
				t.Errorf("%s has %d bytes after a restart", path, len(got))
			}
		}
		shared := fmt.Sprintf("/proc/%d/root/shared/made/part/file", i.containers[1].life.process.pid)
		if info, err := os.Stat(shared); err != nil || info.Size() != 1<<20 {
			t.Errorf("the sidecar sees %v, %v", info, err)
		}
		if n := len(i.volumes.parts["user-container"]); n != 1 {
			t.Errorf("%d parts are mounted", n)
		}
		if n := len(one.held); n != 1 {
			t.Errorf("%d versions of the files are held", n)
		}
	})
}

func TestVolume_AllOfAnInstanceAreWithinTheLimits(t *testing.T) {
	t.Parallel()
	e := openRefreshing(t, new(bytes.Buffer))
	half := engine.File{Path: "half", Data: make([]byte, maxVolumeBytes/2)}
	many := make([]engine.File, maxVolumeFiles)
	for i := range many {
		many[i] = text(fmt.Sprint(i), "")
	}
	for says, volumes := range map[string][]engine.Volume{
		"bytes":       {enginetest.Filled("a", half), enginetest.Filled("b", half), enginetest.Filled("c", text("one", "1"))},
		"files":       {enginetest.Filled("a", many...), enginetest.Filled("b", text("one", "1"))},
		"129 volumes": make([]engine.Volume, maxVolumes+1),
	} {
		v, err := e.openVolumes(t.Context(), "limits", engine.Spec{Volumes: volumes}, ids{})
		if err == nil {
			v.close()
		}
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want %q", err, says)
		}
	}
	v, err := e.openVolumes(t.Context(), "limits", engine.Spec{Volumes: []engine.Volume{enginetest.Filled("a", half), enginetest.Filled("b", half)}}, ids{})
	if err != nil {
		t.Fatalf("just within: %v", err)
	}
	if err := v.close(); err != nil {
		t.Error(err)
	}
}

func TestVolume_WithoutUserNamespaces(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	images, err := image.Open(filepath.Join(dir, "images"), image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer images.Close()
	e, err := Open(Config{
		Dir: filepath.Join(dir, "node"), Images: images, Network: netip.MustParsePrefix("10.213.0.0/16"), LogKeep: LeastLogKeep, UserNamespaces: UserNamespacesOff,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	i := enginetest.New(t, e).Start(t, func(spec *engine.Spec) {
		spec.Container.User = new(int64(1000))
		spec.Volumes = []engine.Volume{enginetest.Filled("conf", text("a", "1")), {Name: "scratch"}}
		spec.Container.Mounts = []engine.Mount{{Volume: "conf", Path: "/conf"}, {Volume: "scratch", Path: "/scratch", SubPath: "part"}}
	}, "serve")
	if got := enginetest.Get(t, i, "/read?path=/conf/a") + enginetest.Get(t, i, "/stat?path=/conf/a"); got != "1-rw-r--r-- 0:0" {
		t.Errorf("got %q", got)
	}
	if status, body := enginetest.Request(t, i, "POST", "/write?mib=1&path=/scratch/file"); status != 200 {
		t.Error(body)
	}
}
