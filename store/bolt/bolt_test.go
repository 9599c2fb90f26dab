package bolt

import (
	"path/filepath"
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
