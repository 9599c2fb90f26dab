package node

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/engine/enginetest"
	"github.com/berth-run/berth/image"
)

// runtimes runs a test with each OCI runtime that is installed.
func runtimes(t *testing.T, test func(t *testing.T, e *Engine)) {
	for _, runtime := range []string{"crun", "runc"} {
		t.Run(runtime, func(t *testing.T) {
			if _, err := exec.LookPath(runtime); err != nil {
				t.Skipf("%s is not installed", runtime)
			}
			test(t, openEngineWith(t, t.TempDir(), runtime))
		})
	}
}

// owner is who a file belongs to on the machine.
func owner(t *testing.T, path string) (uid, gid int) {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	stat := info.Sys().(*syscall.Stat_t)
	return int(stat.Uid), int(stat.Gid)
}

func TestInstance_IsNobodyOutside(t *testing.T) {
	t.Parallel()
	runtimes(t, func(t *testing.T, e *Engine) {
		s := enginetest.New(t, e)
		firsts := map[string]bool{}
		for _, uid := range []int64{0, 1000, idsEach - 1} {
			i := s.Start(t, func(spec *engine.Spec) { spec.Container.User = new(uid) }, "serve").(*instance)
			if found := enginetest.Inspect(t, i); found.UID != int(uid) {
				t.Errorf("inside it is user %d, want %d", found.UID, uid)
			}
			for _, file := range []string{"uid_map", "gid_map"} {
				mapping := strings.Fields(enginetest.Get(t, i, "/read?path=/proc/self/"+file))
				if want := []string{"0", fmt.Sprint(i.link.ids.first), fmt.Sprint(idsEach)}; !slices.Equal(mapping, want) {
					t.Errorf("%s is %q, want %q", file, mapping, want)
				}
				firsts[mapping[1]] = true
			}
			want := i.link.ids.outside(uint32(uid))
			if got, _ := owner(t, fmt.Sprintf("/proc/%d/stat", i.containers[0].life.process.pid)); got != want || got < firstID {
				t.Errorf("user %d is %d outside, want %d", uid, got, want)
			}
		}
		if len(firsts) != 3 {
			t.Errorf("three instances have the users from %v: each should have its own", firsts)
		}
	})
}

func TestInstance_LeavesTheMachinesDevicesAlone(t *testing.T) {
	t.Parallel()
	runtimes(t, func(t *testing.T, e *Engine) {
		i := enginetest.New(t, e).Start(t, func(spec *engine.Spec) { spec.Container.User = new(int64(1000)) }, "serve").(*instance)
		for _, device := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
			uid, gid := owner(t, "/dev/"+device)
			if i.link.ids.first <= uint32(uid) || i.link.ids.first <= uint32(gid) || uid == 1000 {
				t.Errorf("the machine's /dev/%s belongs to %d:%d, the instance's user", device, uid, gid)
			}
		}
	})
}

func TestInstance_RootHasNoPowerOverTheMachine(t *testing.T) {
	t.Parallel()
	runtimes(t, func(t *testing.T, e *Engine) {
		s := enginetest.New(t, e)
		i := s.Start(t, nil, "serve").(*instance)
		// A program that finds its way out of everything but its users is nobody there.
		enter := func(command string) (string, error) {
			out, err := exec.Command("nsenter", "-t", fmt.Sprint(i.containers[0].life.process.pid), "-U", "-S", "0", "-G", "0", "sh", "-c", command).CombinedOutput()
			return string(out), err
		}
		if out, err := enter("cat /proc/self/uid_map"); err != nil || !strings.Contains(out, fmt.Sprint(i.link.ids.first)) {
			t.Fatalf("entering the user namespace: %v: %s", err, out)
		}
		for _, command := range []string{
			// None would change anything if it could be done.
			"cat /etc/shadow", "cat /proc/1/environ", "kill -0 1", "chmod 666 /dev/null", ": >> /etc/passwd",
			"cat /proc/sys/kernel/panic > /proc/sys/kernel/panic", "ip link set lo up", "mount -o remount /",
		} {
			if out, err := enter(command); err == nil {
				t.Errorf("root of an instance can: %s\n%s", command, out)
			}
		}
	})
}

func TestInstance_SeesItsOwnNetworkDevicesOnly(t *testing.T) {
	t.Parallel()
	runtimes(t, func(t *testing.T, e *Engine) {
		i := enginetest.New(t, e).Start(t, nil, "serve")
		for _, directory := range []string{"/sys/class/net", "/sys/devices/virtual/net"} {
			if got := enginetest.Get(t, i, "/list?path="+directory); got != "eth0\nlo\n" {
				t.Errorf("%s lists %q", directory, got)
			}
		}
	})
}

func TestPrepare_RefusesToShowTheMachinesDevices(t *testing.T) {
	runtimes(t, func(t *testing.T, e *Engine) {
		s := enginetest.New(t, e)
		spec := s.Spec(t, nil, "serve")
		known := endedChildren(t)
		// The kernel gives a user namespace no new sysfs where something covers a part of the old one.
		err := e.namespace.do(func() error { return unix.Mount("cover", "/sys/class", "tmpfs", 0, "") })
		if err != nil {
			t.Fatal(err)
		}
		i, err := e.Prepare(t.Context(), spec)
		if err == nil {
			t.Errorf("it has interfaces %q", enginetest.Get(t, i, "/list?path=/sys/class/net"))
			i.Stop(0)
		}
		if left := zombies(t, known); len(left) > 0 {
			t.Errorf("processes are left: %q", left)
		}
		t.Log(err) // crun falls back to the machine's, which the engine notices; runc fails
		err = e.namespace.do(func() error { return unix.Unmount("/sys/class", unix.MNT_DETACH) })
		if err != nil {
			t.Fatal(err)
		}
		s.Start(t, nil, "serve")
	})
}

func TestInstance_OwnsItsFiles(t *testing.T) {
	t.Parallel()
	runtimes(t, func(t *testing.T, e *Engine) {
		s := enginetest.New(t, e)
		image := s.Registry.Push(t, "owned", v1.Config{Entrypoint: []string{"/bin/program"}, User: "1000:1000", WorkingDir: "/made/dir"}, []enginetest.File{
			{Name: "bin/program", Mode: 0o755, Text: s.Program},
			{Name: "bin/setuid", Mode: 0o4755, Text: s.Program},
			{Name: "home/", Mode: 0o700, UID: 1000, GID: 1000},
			{Name: "home/mine", Mode: 0o600, Text: "mine", UID: 1000, GID: 1000},
			{Name: "home/roots", Mode: 0o600, Text: "root's"},
			{Name: "home/large", Mode: 0o644, Text: "of a user no instance has", UID: 1000650000, GID: 1000650000},
			{Name: "home/secret", Mode: 0o600, Text: "of a user no instance has", UID: 1000650000, GID: 1000650000},
			{Name: "lib/", Mode: 0o755, UID: 2000, GID: 2000},
		})
		i := s.Start(t, func(spec *engine.Spec) { spec.Container.Image = image }).(*instance)
		for path, can := range map[string]bool{
			"/home/mine": true, "/home/new": true, "/home/roots": false, "/lib/new": false, "/made/dir/new": false, "/etc/hosts": false, "/tmp/new": true,
		} {
			status, body := enginetest.Request(t, i, http.MethodPost, "/write?path="+url.QueryEscape(path))
			if (status == http.StatusOK) != can {
				t.Errorf("user 1000 writing to %s: status %d: %s", path, status, strings.TrimSpace(body))
			}
		}
		for path, want := range map[string]uint32{"home/mine": 1000, "home/new": 1000, "home/roots": 0, "etc/hosts": 0, "made/dir": 0, "made": 0, "tmp": 0, "": 0} {
			uid, gid := owner(t, fmt.Sprintf("/proc/%d/root/%s", i.containers[0].life.process.pid, path))
			if uid != i.link.ids.outside(want) || gid != i.link.ids.outside(want) {
				t.Errorf("/%s belongs to %d:%d outside, want %d", path, uid, gid, i.link.ids.outside(want))
			}
		}
		root := s.Start(t, func(spec *engine.Spec) { spec.Container.Image, spec.Container.User = image, new(int64(0)) }).(*instance)
		for path, can := range map[string]bool{
			"/home/mine": true, "/home/new": true, "/home/roots": true, "/lib/new": true, "/bin/setuid": true, "/made/dir/new": true, "/etc/hosts": true,
			// Files of users that no instance has are nobody's: they can be read if others may.
			"/home/large": false, "/home/secret": false,
		} {
			status, body := enginetest.Request(t, root, http.MethodPost, "/write?path="+url.QueryEscape(path))
			if (status == http.StatusOK) != can {
				t.Errorf("root writing to %s: status %d: %s", path, status, strings.TrimSpace(body))
			}
		}
		if got := enginetest.Get(t, root, "/read?path=/home/large"); got != "of a user no instance has" {
			t.Errorf("read %q", got)
		}
		// What is in the store still belongs to whom the image says.
		stored, err := e.images.Image(image)
		if err != nil {
			t.Fatal(err)
		}
		if uid, _ := owner(t, filepath.Join(stored.Layers[0], "home/mine")); uid != 1000 {
			t.Errorf("in the store the file belongs to %d, want 1000", uid)
		}
	})
}

func TestPrepare_RefusesUsersThatNoInstanceHas(t *testing.T) {
	t.Parallel()
	e := openEngine(t, t.TempDir())
	s := enginetest.New(t, e)
	_, err := e.Prepare(t.Context(), s.Spec(t, func(spec *engine.Spec) { spec.Container.User = new(int64(idsEach)) }, "serve"))
	failure, ok := err.(*engine.StartError)
	if !ok || failure.Reason != engine.ReasonInvalidUser || !strings.Contains(err.Error(), "0 to 65535") {
		t.Errorf("user %d: %v", idsEach, err)
	}
}

// openWithUsers opens an engine with a setting of user namespaces.
func openWithUsers(t *testing.T, dir, setting string) (*Engine, error) {
	t.Helper()
	images, err := image.Open(filepath.Join(t.TempDir(), "images"), image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { images.Close() })
	e, err := Open(Config{
		Dir: dir, Images: images, Network: netip.MustParsePrefix("10.213.0.0/16"), LogKeep: 1 << 20,
		UserNamespaces: setting, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err == nil {
		t.Cleanup(func() {
			if err := e.Close(); err != nil {
				t.Errorf("closing the engine: %v", err)
			}
		})
	}
	return e, err
}

// ramfs mounts a file system whose owners the kernel cannot shift.
func ramfs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("berth-test", dir, "ramfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return filepath.Join(dir, "node")
}

func TestOpen_FailsWhereUserNamespacesCannotBeUsed(t *testing.T) {
	_, err := openWithUsers(t, ramfs(t), "")
	if err == nil || !strings.Contains(err.Error(), "--user-namespaces=off") || !strings.Contains(err.Error(), "shifting the owners") {
		t.Errorf("got %v", err)
	}
	if _, err := openWithUsers(t, t.TempDir(), "perhaps"); err == nil || !strings.Contains(err.Error(), "want on, auto or off") {
		t.Errorf("got %v", err)
	}
}

func TestOpen_GoesWithoutUserNamespacesWhenToldTo(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ setting, dir, says string }{
		{UserNamespacesAuto, ramfs(t), "off: mounting layer"},
		{UserNamespacesOff, t.TempDir(), "off"},
		{UserNamespacesAuto, t.TempDir(), "on, "},
	} {
		e, err := openWithUsers(t, test.dir, test.setting)
		if err != nil {
			t.Fatal(err)
		}
		if info := e.Info()["users"]; !strings.HasPrefix(info, test.says) {
			t.Errorf("%s: users are %q, want %q", test.setting, info, test.says)
		}
		s := enginetest.New(t, e)
		for _, user := range []*int64{nil, new(int64(1000)), new(int64(1000650000))} {
			i, err := e.Prepare(t.Context(), s.Spec(t, func(spec *engine.Spec) { spec.Container.User = user }, "serve"))
			if user != nil && *user >= idsEach && test.says == "on, " {
				if err == nil {
					i.Stop(0)
					t.Errorf("%s: it takes user %d", test.setting, *user)
				}
				continue
			}
			if err == nil {
				defer i.Stop(0)
				err = i.Start(t.Context())
			}
			if err != nil {
				t.Fatalf("%s: %v", test.setting, err)
			}
			enginetest.Get(t, i, "/")
			if status, _ := enginetest.Request(t, i, http.MethodPost, "/write?path=/tmp/file"); status != http.StatusOK {
				t.Errorf("%s: it cannot write to /tmp", test.setting)
			}
		}
		if uid, _ := owner(t, "/dev/null"); uid != 0 {
			t.Errorf("%s: /dev/null belongs to %d", test.setting, uid)
		}
	}
}
