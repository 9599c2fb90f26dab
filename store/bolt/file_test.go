package bolt

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

// childDir, when it is set, makes a test that runs this binary again do the child's part, in that directory.
const childDir = "BERTH_TEST_CHILD_DIR"

// child returns a command that runs one test of this binary as a child.
func child(t *testing.T, dir string) *exec.Cmd {
	c := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	c.Env = append(os.Environ(), childDir+"="+dir)
	return c
}

func TestStore_KeepsWhatItHoldsWhenReopened(t *testing.T) {
	path := newPath(t)
	s := open(t, path, Options{})
	create(t, s, namespace("default"))
	create(t, s, configMap("gone", "1"))
	kept := create(t, s, configMap("kept", "1"))
	last, err := s.Delete(t.Context(), serving.KindConfigMap, "default", "gone", serving.DeleteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = open(t, path, Options{})
	objects, version, err := s.List(t.Context(), serving.KindConfigMap, "")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]serving.Object{kept}, objects); diff != "" {
		t.Error(diff)
	}
	if versionOf(t, version) <= versionOf(t, last.GetResourceVersion()) {
		t.Errorf("got version %s after the restart, want one after the deletion's, %s", version, last.GetResourceVersion())
	}
	w, err := s.Watch(t.Context(), serving.KindConfigMap, "", version)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	if _, err := s.Watch(t.Context(), serving.KindConfigMap, "", kept.GetResourceVersion()); !errors.Is(err, store.ErrGone) {
		t.Errorf("watching from before the restart: got error %v, want ErrGone", err)
	}
	create(t, s, configMap("next", "1"))
	if event := <-w.Events(); event.Object.GetName() != "next" || event.Object.GetResourceVersion() == version {
		t.Errorf("got event of %s at version %s, want one of next at a later version than %s",
			event.Object.GetName(), event.Object.GetResourceVersion(), version)
	}
}

func TestStore_FinishesDeletionsThatAClosedStoreLeft(t *testing.T) {
	path := newPath(t)
	s := open(t, path, Options{})
	create(t, s, namespace("default"))
	owner := create(t, s, configMap("owner", "1"))
	owned := configMap("owned", "1")
	owned.OwnerReferences = []serving.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: "owner", UID: owner.GetUID()}}
	create(t, s, owned)
	create(t, s, namespace("ending"))
	inside := configMap("inside", "1")
	inside.Namespace = "ending"
	create(t, s, inside)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// What a crash between two commits of a long cascade leaves: the owner is gone, its dependent is not; the
	// namespace is marked, what is in it is not.
	edit(t, path, func(tx *bbolt.Tx) error {
		if err := tx.Bucket([]byte("configmaps")).Delete([]byte("default/owner")); err != nil {
			return err
		}
		namespaces := tx.Bucket([]byte("namespaces"))
		marked := strings.Replace(string(namespaces.Get([]byte("/ending"))), `"uid"`, `"deletionTimestamp":"2026-01-01T00:00:00Z","uid"`, 1)
		return namespaces.Put([]byte("/ending"), []byte(marked))
	})

	s = open(t, path, Options{})
	w, err := s.Watch(t.Context(), serving.KindNamespace, "", "")
	if err != nil {
		t.Fatal(err)
	}
	for event := range w.Events() {
		if event.Type == store.Deleted {
			break
		}
		// The namespace may be gone already when the watch starts.
		if _, err := s.Get(t.Context(), serving.KindNamespace, "", "ending"); errors.Is(err, store.ErrNotFound) {
			break
		}
	}
	if objects, _, err := s.List(t.Context(), serving.KindConfigMap, ""); err != nil || len(objects) > 0 {
		t.Errorf("got %d objects and error %v, want none", len(objects), err)
	}
}

func TestOpen_NamesWhatIsWrongWithTheFile(t *testing.T) {
	// A sound store, large enough to lose a part.
	sound := newPath(t)
	s := open(t, sound, Options{})
	create(t, s, namespace("default"))
	for i := range 20 {
		create(t, s, configMap(fmt.Sprint("o-", i), strings.Repeat("x", 3000)))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(sound)
	if err != nil {
		t.Fatal(err)
	}

	meta := func(tx *bbolt.Tx) *bbolt.Bucket { return tx.Bucket([]byte("berth")) }
	tests := []struct {
		name    string
		damage  func(t *testing.T, path string)
		want    string
		advises string
	}{
		{"zero length", holding(nil), "the file has 0 bytes", "restore a backup"},
		{"garbage", holding([]byte(strings.Repeat("garbage ", 4096))), "damaged or not a store", "restore a backup"},
		{"a short text", holding([]byte("hello\n")), "the file has 6 bytes", "restore a backup"},
		{"cut off", holding(data[:len(data)/2]), "cut off", "restore a backup"},
		{"cut off after the header", holding(data[:3*4096]), "cut off", "restore a backup"},
		{"cut off in the header", holding(data[:5000]), "the file has 5000 bytes", "restore a backup"},
		{"pages overwritten", holding(append(data[:2*4096:2*4096], make([]byte, len(data)-2*4096)...)), "damaged", "restore a backup"},
		{"another program's", changed(data, func(tx *bbolt.Tx) error { return tx.DeleteBucket([]byte("berth")) }), "another program's", "another path"},
		{"a newer format", changed(data, func(tx *bbolt.Tx) error {
			return meta(tx).Put([]byte("format"), binary.BigEndian.AppendUint64(nil, 2))
		}), "format 2", "newer version"},
		{"no version", changed(data, func(tx *bbolt.Tx) error { return meta(tx).Delete([]byte("version")) }), "version has 0 bytes", "restore a backup"},
		{"no JSON", changed(data, func(tx *bbolt.Tx) error {
			return tx.Bucket([]byte("configmaps")).Put([]byte("default/o-7"), []byte("{"))
		}), `configmaps "default/o-7"`, "restore a backup"},
		{"under another name", changed(data, func(tx *bbolt.Tx) error {
			configMaps := tx.Bucket([]byte("configmaps"))
			return configMaps.Put([]byte("default/renamed"), configMaps.Get([]byte("default/o-7")))
		}), `"default/renamed"`, "restore a backup"},
		{"a directory", func(t *testing.T, path string) {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}, "not a file", "path of the store's file"},
		{"in no directory", func(t *testing.T, path string) {
			if err := os.Remove(filepath.Dir(path)); err != nil {
				t.Fatal(err)
			}
		}, "no such file or directory", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := newPath(t)
			test.damage(t, path)
			before, _ := os.ReadFile(path)
			for range 2 { // the first attempt leaves nothing behind, no lock either
				s, err := Open(path, Options{})
				if err == nil {
					s.Close()
					t.Fatal("it opened")
				}
				for _, want := range []string{path, test.want, test.advises} {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("error %q does not say %q", err, want)
					}
				}
			}
			if after, _ := os.ReadFile(path); string(after) != string(before) {
				t.Error("the file was changed")
			}
		})
	}
}

func holding(data []byte) func(*testing.T, string) {
	return func(t *testing.T, path string) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func changed(data []byte, change func(*bbolt.Tx) error) func(*testing.T, string) {
	return func(t *testing.T, path string) {
		holding(data)(t, path)
		edit(t, path, change)
	}
}

func edit(t *testing.T, path string, change func(*bbolt.Tx) error) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Update(change), db.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestOpen_RefusesAFileThatIsOpenElsewhere(t *testing.T) {
	path := newPath(t)
	open(t, path, Options{})
	_, err := Open(path, Options{})
	if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "another process has it open") {
		t.Errorf("got error %v, want one that names the path and the other process", err)
	}
}

func TestOpen_CompactsAFileThatIsMostlyFree(t *testing.T) {
	path := newPath(t)
	s := open(t, path, Options{})
	create(t, s, namespace("default"))
	create(t, s, namespace("large"))
	kept := create(t, s, configMap("kept", "1"))
	var group sync.WaitGroup
	for i := range 80 {
		group.Go(func() {
			o := configMap(fmt.Sprint("o-", i), strings.Repeat("x", 100_000))
			o.Namespace = "large"
			if _, err := s.Create(t.Context(), o); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if _, err := s.Delete(t.Context(), serving.KindNamespace, "", "large", serving.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	s = open(t, path, Options{})
	after, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if after.Size() > before.Size()/10 {
		t.Errorf("the file went from %d to %d bytes, want a tenth", before.Size(), after.Size())
	}
	if got, err := s.Get(t.Context(), serving.KindConfigMap, "default", "kept"); err != nil || got.GetUID() != kept.GetUID() {
		t.Errorf("got %v, %v, want the object of before", got, err)
	}
	if names, _ := filepath.Glob(path + "?*"); len(names) > 0 {
		t.Errorf("%v are left", names)
	}
}

func TestStore_RefusesEverythingButReadsWhenClosed(t *testing.T) {
	s := open(t, newPath(t), Options{})
	create(t, s, namespace("default"))
	w, err := s.Watch(t.Context(), serving.KindNamespace, "", "1")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if event, open := <-w.Events(); open {
		t.Errorf("got event %s, want the end", event.Type)
	}
	if _, err := s.Create(t.Context(), namespace("late")); !errors.Is(err, ErrClosed) {
		t.Errorf("Create: got error %v, want ErrClosed", err)
	}
	if _, err := s.Watch(t.Context(), serving.KindNamespace, "", ""); !errors.Is(err, ErrClosed) {
		t.Errorf("Watch: got error %v, want ErrClosed", err)
	}
	if _, err := s.Get(t.Context(), serving.KindNamespace, "", "default"); err != nil {
		t.Errorf("Get: %v", err)
	}
}

func TestStore_KeepsEveryAcknowledgedWriteWhenKilled(t *testing.T) {
	if dir := os.Getenv(childDir); dir != "" {
		writeUntilKilled(t, filepath.Join(dir, "store.db"))
		return
	}
	dir := t.TempDir()
	acknowledged := make(map[string]uint64) // name → newest version
	newest := uint64(0)
	for round := range 5 {
		c := child(t, dir)
		c.Stderr = os.Stderr
		output, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		before, n := newest, 0
		for lines := bufio.NewScanner(output); lines.Scan(); n++ {
			var name string
			var version uint64
			if _, err := fmt.Sscan(lines.Text(), &name, &version); err != nil {
				c.Process.Kill()
				t.Fatalf("the child wrote %q: %v", lines.Text(), err)
			}
			if version <= before {
				t.Errorf("round %d: version %d was given out again; %d was acknowledged before", round, version, before)
			}
			acknowledged[name] = max(acknowledged[name], version)
			newest = max(newest, version)
			if n == 100*(round+1) { // what it acknowledges until it dies is read, too
				if err := c.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := c.Wait(); err == nil || n < 100 {
			t.Fatalf("the child ended after %d writes with error %v, want it killed", n, err)
		}

		s, err := Open(filepath.Join(dir, "store.db"), Options{})
		if err != nil {
			t.Fatal(err)
		}
		for name, version := range acknowledged {
			o, err := s.Get(t.Context(), serving.KindConfigMap, "default", name)
			if err != nil {
				t.Errorf("round %d: acknowledged and lost: %v", round, err)
				continue
			}
			if got, err := strconv.ParseUint(o.GetResourceVersion(), 10, 64); err != nil || got < version {
				t.Errorf("round %d: %s is at version %s, acknowledged was %d", round, name, o.GetResourceVersion(), version)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// writeUntilKilled creates and updates objects from several writers, and prints each write when it is acknowledged.
func writeUntilKilled(t *testing.T, path string) {
	s := open(t, path, Options{})
	if _, err := s.Create(t.Context(), namespace("default")); err != nil && !errors.Is(err, store.ErrAlreadyExists) {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for writer := range 4 {
		group.Go(func() {
			for i := 0; ; i++ {
				o := configMap(fmt.Sprintf("o-%d-%d-%d", os.Getpid(), writer, i/4), fmt.Sprint(i))
				written, err := s.Create(t.Context(), o)
				if errors.Is(err, store.ErrAlreadyExists) {
					written, err = s.Update(t.Context(), o, store.Spec)
				}
				if err != nil {
					t.Error(err)
					return
				}
				fmt.Println(written.GetName(), written.GetResourceVersion())
			}
		})
	}
	group.Wait()
}

func TestStore_RefusesWritesOnAFullDiskAndGoesOnAfterwards(t *testing.T) {
	if dir := os.Getenv(childDir); dir != "" {
		fillDisk(t, dir)
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

// fillDisk writes on a disk of 2 MiB until it is full, makes room and writes again.
func fillDisk(t *testing.T, dir string) {
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
	w, err := s.Watch(t.Context(), serving.KindConfigMap, "", "")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()

	written, full := 0, error(nil)
	for full == nil && written < 1000 {
		if _, full = s.Create(t.Context(), configMap(fmt.Sprint("o-", written), strings.Repeat("x", 10_000))); full == nil {
			written++
		}
	}
	if !errors.Is(full, unix.ENOSPC) || !strings.Contains(full.Error(), path) {
		t.Fatalf("after %d writes: got error %v, want ENOSPC and the path", written, full)
	}
	failed := fmt.Sprint("o-", written)
	if _, err := s.Get(t.Context(), serving.KindConfigMap, "default", failed); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the refused object: got error %v, want ErrNotFound", err)
	}
	if objects, _, err := s.List(t.Context(), serving.KindConfigMap, ""); err != nil || len(objects) != written {
		t.Errorf("got %d objects and error %v, want %d", len(objects), err, written)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	create(t, s, configMap(failed, "small"))
	for i := range written + 1 {
		if event := <-w.Events(); event.Object.GetName() != fmt.Sprint("o-", i) {
			t.Errorf("event %d is of %s", i, event.Object.GetName())
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path, Options{})
	if objects, _, err := s.List(t.Context(), serving.KindConfigMap, ""); err != nil || len(objects) != written+1 {
		t.Errorf("after reopening: got %d objects and error %v, want %d", len(objects), err, written+1)
	}
}

func TestStore_TellsWhoReadsADamagedObjectAndGoesOnWithTheOthers(t *testing.T) {
	path := newPath(t)
	s := open(t, path, Options{})
	create(t, s, namespace("default"))
	create(t, s, configMap("sound", "1"))
	create(t, s, configMap("damaged", "1"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	edit(t, path, func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("configmaps")).Put([]byte("default/damaged"), []byte(`{"metadata":{"namespace":"default","name":"damaged"},"data":7}`))
	})
	s = open(t, path, Options{})
	_, got := s.Get(t.Context(), serving.KindConfigMap, "default", "damaged")
	_, _, listed := s.List(t.Context(), serving.KindConfigMap, "")
	_, watched := s.Watch(t.Context(), serving.KindConfigMap, "", "")
	_, updated := s.Update(t.Context(), configMap("damaged", "2"), store.Spec)
	for what, err := range map[string]error{"Get": got, "List": listed, "Watch": watched, "Update": updated} {
		if err == nil || !strings.Contains(err.Error(), `configmaps "default/damaged"`) || !strings.Contains(err.Error(), "restore a backup") {
			t.Errorf("%s: got error %v, want one that names the object and what to do", what, err)
		}
	}
	if _, err := s.Update(t.Context(), configMap("sound", "2"), store.Spec); err != nil {
		t.Errorf("the other one: %v", err)
	}
}
