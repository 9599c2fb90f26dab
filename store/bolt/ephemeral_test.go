package bolt

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

func pod(name string) *serving.Pod {
	return &serving.Pod{ObjectMeta: serving.ObjectMeta{Namespace: "default", Name: name}}
}

func versionOf(t testing.TB, version string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(version, 10, 64)
	if err != nil {
		t.Fatalf("resourceVersion %q is not a number", version)
	}
	return n
}

func TestStore_ForgetsEphemeralObjectsWhenReopened(t *testing.T) {
	path := newPath(t)
	s := open(t, path, Options{})
	create(t, s, namespace("default"))
	create(t, s, configMap("kept", "1"))
	create(t, s, pod("gone"))
	_, before, err := s.List(t.Context(), serving.KindPod, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path, Options{})
	for kind, want := range map[*serving.Kind]int{&serving.KindPod: 0, &serving.KindConfigMap: 1} {
		objects, version, err := s.List(t.Context(), *kind, "")
		if err != nil || len(objects) != want {
			t.Errorf("%s: got %d objects and error %v, want %d", kind, len(objects), err, want)
		}
		if versionOf(t, version) <= versionOf(t, before) {
			t.Errorf("version %s follows %s of before the restart", version, before)
		}
		// Who watches must see that the pod has gone: only a list tells.
		if _, err := s.Watch(t.Context(), *kind, "", before); !errors.Is(err, store.ErrGone) {
			t.Errorf("%s: watching from before the restart: got error %v, want ErrGone", kind, err)
		}
	}
	if again := create(t, s, pod("gone")); versionOf(t, again.GetResourceVersion()) <= versionOf(t, before) {
		t.Errorf("version %s was given out after %s", again.GetResourceVersion(), before)
	}
}

func TestStore_WritesNothingForEphemeralObjects(t *testing.T) {
	s := open(t, newPath(t), Options{})
	create(t, s, namespace("default"))
	before := s.db.Stats()
	for i := range ahead / 2 {
		create(t, s, pod(fmt.Sprint("p-", i)))
	}
	after := s.db.Stats()
	if n := after.TxStats.GetWrite() - before.TxStats.GetWrite(); n != 0 {
		t.Errorf("%d ephemeral objects cost %d writes", ahead/2, n)
	}
	for i := range 2 * ahead {
		create(t, s, pod(fmt.Sprint("q-", i)))
	}
	if s.reserved <= s.last {
		t.Errorf("version %d was given out, and only %d are reserved", s.last, s.reserved)
	}
}

func TestStore_GivesNoVersionTwiceWhenKilledBetweenEphemeralWrites(t *testing.T) {
	if dir := os.Getenv(childDir); dir != "" {
		writePodsUntilKilled(t, filepath.Join(dir, "store.db"))
		return
	}
	dir := t.TempDir()
	newest := uint64(0)
	for round := range 4 {
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
			version := versionOf(t, lines.Text())
			if version <= newest {
				t.Errorf("round %d: version %d follows %d (%d before the kill)", round, version, newest, before)
			}
			newest = version
			if n == ahead/2*(round+1) {
				if err := c.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := c.Wait(); err == nil || n < ahead/2 {
			t.Fatalf("the child ended after %d writes with error %v, want it killed", n, err)
		}
		s, err := Open(filepath.Join(dir, "store.db"), Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Watch(t.Context(), serving.KindPod, "", strconv.FormatUint(newest, 10)); !errors.Is(err, store.ErrGone) {
			t.Errorf("round %d: watching from the last version before the kill: got error %v, want ErrGone", round, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// writePodsUntilKilled creates objects that are not on disk, one in a hundred that is, and prints their versions.
func writePodsUntilKilled(t *testing.T, path string) {
	s := open(t, path, Options{})
	if _, err := s.Create(t.Context(), namespace("default")); err != nil && !errors.Is(err, store.ErrAlreadyExists) {
		t.Fatal(err)
	}
	for i := 0; ; i++ {
		var o serving.Object = pod(fmt.Sprintf("p-%d", i))
		if i%100 == 50 {
			o = configMap(fmt.Sprintf("c-%d-%d", os.Getpid(), i), "1")
		}
		fmt.Println(create(t, s, o).GetResourceVersion())
	}
}
