package reconcile

import (
	"context"
	"io"
	"log/slog"
	"testing"

	"github.com/berth-run/berth/gateway"
	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
	"github.com/berth-run/berth/store/bolt"
)

// changingStore is a store where an object changes just after it was read for the first time.
type changingStore struct {
	store.Store
	kind   serving.Kind
	change func(serving.Object)
}

func (s *changingStore) Get(ctx context.Context, kind serving.Kind, namespace, name string) (serving.Object, error) {
	o, err := s.Store.Get(ctx, kind, namespace, name)
	if change := s.change; err == nil && change != nil && kind.String() == s.kind.String() {
		s.change = nil
		change(o)
	}
	return o, err
}

// A change is not missed when its event comes between the moment a route or mapping reads what it depends on and the
// moment it is known to depend on it.
func TestReconcile_LooksAgainWhenWhatWasReadChangesMeanwhile(t *testing.T) {
	for name, test := range map[string]struct {
		reads     serving.Kind
		reconcile func(*Reconciler) (key, error)
	}{
		"route of the latest revision": {serving.KindConfiguration, func(r *Reconciler) (key, error) {
			k := key{serving.KindRoute.String(), "default", "latest"}
			return k, r.reconcileRoute(t.Context(), k)
		}},
		"route of a named revision": {serving.KindRevision, func(r *Reconciler) (key, error) {
			k := key{serving.KindRoute.String(), "default", "named"}
			return k, r.reconcileRoute(t.Context(), k)
		}},
		"domain mapping": {serving.KindRoute, func(r *Reconciler) (key, error) {
			return domainKey(host), r.reconcileDomain(t.Context(), domainKey(host))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			logger := slog.New(slog.NewTextHandler(io.Discard, nil))
			objects, err := bolt.Open(t.TempDir()+"/objects.db", bolt.Options{Logger: logger})
			if err != nil {
				t.Fatal(err)
			}
			defer objects.Close()
			changing := &changingStore{Store: objects, kind: test.reads}
			r := New(Config{
				Store: changing, Gateway: gateway.New(gateway.Config{Logger: logger}), Logger: logger,
				URL: func(host string) string { return "http://" + host }, Domain: "example.com",
			})
			meta := func(name string) serving.ObjectMeta { return serving.ObjectMeta{Namespace: "default", Name: name} }
			latest, named := &serving.Route{ObjectMeta: meta("latest")}, &serving.Route{ObjectMeta: meta("named")}
			latest.Spec.Traffic = []serving.TrafficTarget{{ConfigurationName: "hello"}}
			named.Spec.Traffic = []serving.TrafficTarget{{RevisionName: "hello-00001"}}
			m := &serving.DomainMapping{ObjectMeta: meta(host)}
			m.Spec.Ref.APIVersion, m.Spec.Ref.Kind, m.Spec.Ref.Name = serving.KindRoute.APIVersion(), serving.KindRoute.Name, "latest"
			for _, o := range []serving.Object{
				&serving.Namespace{ObjectMeta: serving.ObjectMeta{Name: "default"}}, &serving.Configuration{ObjectMeta: meta("hello")},
				&serving.Revision{ObjectMeta: meta("hello-00001")}, latest, named, m,
			} {
				made, err := objects.Create(t.Context(), o)
				if err != nil {
					t.Fatal(err)
				}
				r.index(store.Added, serving.KindOf(o), made)
			}
			changed := false
			changing.change = func(o serving.Object) {
				changed = true
				r.affected(test.reads, o) // as the watch does
			}
			k, err := test.reconcile(r)
			if err != nil || !changed {
				t.Fatalf("reconciled with %v; read %t", err, changed)
			}
			if r.queue.state[k] != queued {
				t.Errorf("%s is not looked at again", k)
			}
		})
	}
}
