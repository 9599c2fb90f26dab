package bolt

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
	"github.com/berth-run/berth/store/storetest"
)

func TestStore_PassesTheSuite(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return open(t, newPath(t), Options{History: 500}) })
}

func newPath(t testing.TB) string { return filepath.Join(t.TempDir(), "store.db") }

// open opens a store for the rest of a test.
func open(t testing.TB, path string, options Options) *Store {
	t.Helper()
	s, err := Open(path, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func create(t testing.TB, s *Store, o serving.Object) serving.Object {
	t.Helper()
	created, err := s.Create(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return created
}

func namespace(name string) *serving.Namespace {
	return &serving.Namespace{ObjectMeta: serving.ObjectMeta{Name: name}}
}

func configMap(name, value string) *serving.ConfigMap {
	return &serving.ConfigMap{
		ObjectMeta: serving.ObjectMeta{Namespace: "default", Name: name},
		Data:       map[string]string{"key": value},
	}
}

func TestStore_NamesAKindThatItDoesNotKeep(t *testing.T) {
	s := open(t, newPath(t), Options{})
	_, err := s.Get(t.Context(), serving.Kind{Group: "run.googleapis.com", Plural: "jobs", Name: "Job"}, "default", "hello")
	if err == nil || !strings.Contains(err.Error(), "jobs.run.googleapis.com") {
		t.Errorf("got error %v, want one that names the kind", err)
	}
}

func TestStore_StopsWritingWhenItCannotTellWhatIsOnDisk(t *testing.T) {
	s := open(t, newPath(t), Options{})
	create(t, s, namespace("default"))
	if err := s.db.Close(); err != nil { // now neither writing works nor reading what was written
		t.Fatal(err)
	}
	for range 2 {
		_, err := s.Create(t.Context(), configMap("lost", "1"))
		if err == nil || !strings.Contains(err.Error(), s.path) || !strings.Contains(err.Error(), "restart the server") {
			t.Errorf("got error %v, want one that names the file and says to restart", err)
		}
	}
	if _, err := s.Get(t.Context(), serving.KindConfigMap, "default", "lost"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the refused object: got error %v, want ErrNotFound", err)
	}
}

func TestStore_FailedWriteLeavesNothingOfItself(t *testing.T) {
	s := open(t, newPath(t), Options{})
	create(t, s, namespace("default"))
	owner := create(t, s, configMap("owner", "1"))
	w, err := s.Watch(t.Context(), serving.KindConfigMap, "", owner.GetResourceVersion())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	// A write that changes something before it fails, in one commit with one that does not fail.
	broken := errors.New("broken")
	requests := []*request{
		{done: make(chan result, 1), apply: func(b *batch) (serving.Object, error) {
			k, _ := keyOf(serving.KindConfigMap, "default", "owner")
			if _, err := b.delete(k, ""); err != nil {
				return nil, err
			}
			return nil, broken
		}},
		{done: make(chan result, 1), apply: func(b *batch) (serving.Object, error) {
			o := configMap("next", "1")
			o.UID = newUID()
			k, err := s.keyOfObject(o)
			if err != nil {
				return nil, err
			}
			return b.create(k, o)
		}},
	}
	for _, r := range requests {
		go func() { s.requests <- r }()
	}
	if got := <-requests[0].done; !errors.Is(got.err, broken) {
		t.Errorf("got error %v, want the write's own", got.err)
	}
	if got := <-requests[1].done; got.err != nil {
		t.Errorf("got error %v for the write that is well", got.err)
	}
	if _, err := s.Get(t.Context(), serving.KindConfigMap, "default", "owner"); err != nil {
		t.Error(err)
	}
	if event := <-w.Events(); event.Type != store.Added || event.Object.GetName() != "next" {
		t.Errorf("got event %s %s, want ADDED next alone", event.Type, event.Object.GetName())
	}
	// The owner still owns what is created for it.
	owned := configMap("owned", "1")
	owned.OwnerReferences = []serving.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: "owner", UID: owner.GetUID()}}
	create(t, s, owned)
	if _, err := s.Get(t.Context(), serving.KindConfigMap, "default", "owned"); err != nil {
		t.Error(err)
	}
}
