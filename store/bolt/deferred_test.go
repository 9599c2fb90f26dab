package bolt

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
	"github.com/berth-run/berth/store/storetest"
)

// crashed opens a copy of what a store has on disk now: what there would be if it were killed.
func crashed(t testing.TB, s *Store) *Store {
	t.Helper()
	path := newPath(t)
	if err := s.db.View(func(tx *bbolt.Tx) error { return tx.CopyFile(path, 0o600) }); err != nil {
		t.Fatal(err)
	}
	return open(t, path, Options{})
}

// values are the values of the config maps in a store, by name.
func values(t testing.TB, s store.Store) map[string]string {
	t.Helper()
	objects, _, err := s.List(t.Context(), serving.KindConfigMap, "")
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]string)
	for _, o := range objects {
		all[o.GetName()] = o.(*serving.ConfigMap).Data["key"]
	}
	return all
}

func put(t testing.TB, s store.Store, name, value string) {
	t.Helper()
	if _, err := s.Create(t.Context(), configMap(name, value)); err == nil {
		return
	}
	if _, err := s.Update(t.Context(), configMap(name, value), store.Spec); err != nil {
		t.Fatal(err)
	}
}

func TestDeferred_PassesTheSuite(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return open(t, newPath(t), Options{History: 500}).Deferred() })
}

func TestDeferred_IsVisibleAtOnceAndOnDiskWithTheNextWriteThatIsNot(t *testing.T) {
	s := open(t, newPath(t), Options{})
	create(t, s, namespace("default"))
	later := s.Deferred()
	put(t, later, "changed", "1")
	put(t, later, "changed", "2")
	put(t, later, "deleted", "1")
	if _, err := later.Delete(t.Context(), serving.KindConfigMap, "default", "deleted", serving.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(values(t, s)); got != "map[changed:2]" {
		t.Errorf("got %s, want what was written", got)
	}
	put(t, s, "durable", "1")
	if got := fmt.Sprint(values(t, crashed(t, s))); got != "map[changed:2 durable:1]" {
		t.Errorf("after a durable write there is on disk %s, want all that was written before it, too", got)
	}
}

func TestDeferred_IsOnDiskSoonByItself(t *testing.T) {
	s := open(t, newPath(t), Options{})
	create(t, s, namespace("default"))
	put(t, s.Deferred(), "soon", "1")
	for deadline := time.Now().Add(10 * time.Second); values(t, crashed(t, s))["soon"] != "1"; time.Sleep(deferTime / 10) {
		if time.Now().After(deadline) {
			t.Fatal("it is not on disk after 10 s")
		}
	}
}

func TestDeferred_IsOnDiskWhenTheStoreIsClosed(t *testing.T) {
	path := newPath(t)
	s := open(t, path, Options{})
	create(t, s, namespace("default"))
	put(t, s.Deferred(), "last", "1")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got := values(t, open(t, path, Options{}))["last"]; got != "1" {
		t.Errorf("got value %q after reopening, want 1", got)
	}
}

func TestDeferred_IsOnDiskWhenAnotherIsToldThatItIsThereAlready(t *testing.T) {
	s := open(t, newPath(t), Options{})
	create(t, s, namespace("default"))
	put(t, s.Deferred(), "same", "1")
	if _, err := s.Update(t.Context(), configMap("same", "1"), store.Spec); err != nil {
		t.Fatal(err)
	}
	if got := values(t, crashed(t, s))["same"]; got != "1" {
		t.Errorf("a write of the same was acknowledged, and on disk is %q", got)
	}
}

func TestDeferred_CrashTakesBackOnlyTheNewestWrites(t *testing.T) {
	s := open(t, newPath(t), Options{})
	create(t, s, namespace("default"))
	done := make(chan uint64)
	go func() {
		defer close(done)
		later, newest := s.Deferred(), uint64(0)
		for i := range 3 * ahead { // more than versions are reserved
			o, err := later.Create(t.Context(), configMap(fmt.Sprintf("o-%05d", i), "1"))
			if err != nil {
				t.Error(err)
				return
			}
			newest = versionOf(t, o.GetResourceVersion())
		}
		done <- newest
	}()
	check := func() {
		after := crashed(t, s)
		have := values(t, after)
		for i := range len(have) {
			if name := fmt.Sprintf("o-%05d", i); have[name] == "" {
				t.Errorf("%d objects are on disk, and %s of them is not", len(have), name)
			}
		}
	}
	for {
		select {
		case newest := <-done:
			// What was given out last is not given out again, whether it is on disk or not.
			after := crashed(t, s)
			if o := create(t, after, configMap("next", "1")); versionOf(t, o.GetResourceVersion()) <= newest {
				t.Errorf("version %s was given out after %d", o.GetResourceVersion(), newest)
			}
			return
		default:
			check()
		}
	}
}

func TestDeferred_RefusesMoreWhileTheDiskIsFull(t *testing.T) {
	if dir := os.Getenv(childDir); dir != "" {
		fillDiskLater(t, dir)
		return
	}
	if os.Getuid() != 0 {
		t.Skip("mounts a file system, which takes root")
	}
	c := child(t, t.TempDir())
	c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	if output, err := c.CombinedOutput(); err != nil {
		t.Errorf("%v:\n%s", err, output)
	}
}

// fillDiskLater is fillDisk with deferred writes: those that were answered are there when the disk has room again.
func fillDiskLater(t *testing.T, dir string) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Fatal(err)
	}
	path, ballast := filepath.Join(dir, "store.db"), filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, path, Options{})
	create(t, s, namespace("default"))
	later := s.Deferred()
	answered, full := 0, error(nil)
	for full == nil && answered < deferMost {
		if _, full = later.Create(t.Context(), configMap(fmt.Sprint("o-", answered), strings.Repeat("x", 10_000))); full == nil {
			answered++
		}
	}
	if full == nil || !strings.Contains(full.Error(), path) {
		t.Fatalf("after %d writes: got error %v, want one that names the file", answered, full)
	}
	if _, err := s.Create(t.Context(), configMap("durable", strings.Repeat("x", 10_000))); err == nil {
		t.Error("a write was acknowledged that stands behind what the disk refuses")
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=512m"); err != nil {
		t.Fatal(err)
	}
	put(t, s, "durable", "1")
	have := values(t, crashed(t, s))
	for i := range answered {
		if have[fmt.Sprint("o-", i)] == "" {
			t.Errorf("o-%d was answered and is not on disk", i)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
