package storetest

import (
	"fmt"
	"sync"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

func deleteChecksItsPreconditions(t *testing.T, f *fixture) {
	created := f.create(configMap("settings", "1"))
	wrong, version := "1", created.GetResourceVersion()
	for _, preconditions := range []*v1.Preconditions{{UID: uid("another")}, {ResourceVersion: &wrong}} {
		_, err := f.store.Delete(t.Context(), serving.KindConfigMap, "default", "settings", serving.DeleteOptions{Preconditions: preconditions})
		f.wantError(err, store.ErrConflict)
	}
	right := created.GetUID()
	options := serving.DeleteOptions{Preconditions: &v1.Preconditions{UID: &right, ResourceVersion: &version}}
	if _, err := f.store.Delete(t.Context(), serving.KindConfigMap, "default", "settings", options); err != nil {
		t.Error(err)
	}
	unknown := v1.DeletionPropagation("Sideways")
	if _, err := f.store.Delete(t.Context(), serving.KindConfigMap, "default", "settings", serving.DeleteOptions{PropagationPolicy: &unknown}); err == nil {
		t.Error("an unknown propagationPolicy is accepted")
	}
}

func deleteTakesAVersion(t *testing.T, f *fixture) {
	created := f.create(configMap("settings", "1"))
	w := f.watch(serving.KindConfigMap, created.GetResourceVersion())
	deleted := f.delete(created, "")
	event := f.next(w)
	if event.Type != store.Deleted || event.Object.GetUID() != created.GetUID() {
		t.Errorf("got event %s of %s, want DELETED of %s", event.Type, event.Object.GetUID(), created.GetUID())
	}
	if got := event.Object.(*serving.ConfigMap).Data["key"]; got != "1" {
		t.Errorf("the event has data %q, want the last state's", got)
	}
	if f.version(event.Object) <= f.version(created) || deleted.GetResourceVersion() != event.Object.GetResourceVersion() {
		t.Errorf("created at %s, the event has version %s and Delete returned %s; want one later version",
			created.GetResourceVersion(), event.Object.GetResourceVersion(), deleted.GetResourceVersion())
	}
	if next := f.create(configMap("settings", "2")); f.version(next) <= f.version(event.Object) {
		t.Errorf("version %s was given out again", next.GetResourceVersion())
	}
}

func finalizersDelayADeletion(t *testing.T, f *fixture) {
	o := configMap("settings", "1")
	o.Finalizers = []string{"example.com/first", "example.com/second"}
	created := f.create(o)
	w := f.watch(serving.KindConfigMap, created.GetResourceVersion())

	deleted := f.delete(created, "").(*serving.ConfigMap)
	if deleted.DeletionTimestamp == nil || deleted.Generation != 1 {
		t.Fatalf("got deletionTimestamp %v and generation %d, want one that is set, and 1", deleted.DeletionTimestamp, deleted.Generation)
	}
	if again := f.delete(created, ""); again.GetResourceVersion() != deleted.ResourceVersion {
		t.Errorf("a second deletion made version %s of %s", again.GetResourceVersion(), deleted.ResourceVersion)
	}
	_, err := f.store.Create(t.Context(), configMap("settings", "2"))
	f.wantError(err, store.ErrAlreadyExists)

	next := deleted.DeepCopy()
	next.Finalizers = next.Finalizers[1:]
	next.DeletionTimestamp = nil // cannot be taken back
	next = f.update(next, store.Spec).DeepCopyObject().(*serving.ConfigMap)
	if next.DeletionTimestamp == nil {
		t.Fatal("an update took the deletion back")
	}
	next.Finalizers = nil
	f.update(next, store.Spec)
	_, err = f.store.Get(t.Context(), serving.KindConfigMap, "default", "settings")
	f.wantError(err, store.ErrNotFound)
	f.expect(w, "MODIFIED settings", "MODIFIED settings", "DELETED settings")
}

func deleteCascades(t *testing.T, f *fixture) {
	service := f.create(service("hello"))
	owned := f.create(ownedBy(configMap("owned", "1"), service))
	inner := f.create(ownedBy(configMap("inner", "1"), owned))
	f.create(configMap("free", "1"))
	f.delete(service, "")
	f.waitGone(service)
	f.waitGone(owned)
	f.waitGone(inner)
	f.get(serving.KindConfigMap, "free")
}

func dependentStaysForItsLastOwner(t *testing.T, f *fixture) {
	first, second := f.create(service("first")), f.create(service("second"))
	owned := f.create(ownedBy(configMap("owned", "1"), first, second))
	w := f.watch(serving.KindConfigMap, owned.GetResourceVersion())
	f.delete(first, "")
	event := f.next(w)
	if left := event.Object.GetOwnerReferences(); event.Type != store.Modified || len(left) != 1 || left[0].UID != second.GetUID() {
		t.Errorf("got event %s with owners %v, want MODIFIED with the second alone", event.Type, left)
	}
	f.delete(second, "")
	f.expect(w, "DELETED owned")
}

func dependentOfAnOwnerThatIsGoneIsRemoved(t *testing.T, f *fixture) {
	owner := f.create(service("hello"))
	f.delete(owner, "")
	f.create(service("hello")) // another of the same name does not count
	created := f.create(ownedBy(configMap("late", "1"), owner))
	f.waitGone(created)

	updated := f.create(configMap("adopted", "1")).DeepCopyObject().(*serving.ConfigMap)
	f.update(ownedBy(updated, owner), store.Spec)
	f.waitGone(updated)

	// An owner in another namespace is none.
	f.create(&serving.Namespace{ObjectMeta: serving.ObjectMeta{Name: "other"}})
	elsewhere := configMap("elsewhere", "1")
	elsewhere.Namespace = "other"
	f.waitGone(f.create(ownedBy(configMap("strayed", "1"), f.create(elsewhere))))
}

func dependentOfAnUnknownKindOfOwnerStays(t *testing.T, f *fixture) {
	o := configMap("owned", "1")
	o.OwnerReferences = []serving.OwnerReference{{APIVersion: "apps/v1", Kind: "Deployment", Name: "hello", UID: "1-2-3"}}
	f.create(o)
	f.create(configMap("next", "1"))
	f.get(serving.KindConfigMap, "owned")
}

func orphanedDependentsStay(t *testing.T, f *fixture) {
	owner := f.create(service("hello"))
	other := f.create(service("other"))
	owned := f.create(ownedBy(configMap("owned", "1"), owner, other))
	w := f.watch(serving.KindConfigMap, owned.GetResourceVersion())
	f.delete(owner, v1.DeletePropagationOrphan)
	f.waitGone(owner)
	event := f.next(w)
	if left := event.Object.GetOwnerReferences(); event.Type != store.Modified || len(left) != 1 || left[0].UID != other.GetUID() {
		t.Errorf("got event %s with owners %v, want MODIFIED with the other alone", event.Type, left)
	}
	f.get(serving.KindConfigMap, "owned")
}

func foregroundDeletionWaitsForBlockingDependents(t *testing.T, f *fixture) {
	owner := f.create(service("hello"))
	held := ownedBy(configMap("held", "1"), owner)
	held.Finalizers = []string{"example.com/hold"}
	f.create(held)
	inner := f.create(ownedBy(configMap("inner", "1"), f.get(serving.KindConfigMap, "held")))
	w := f.watch(serving.KindService, owner.GetResourceVersion())

	deleted := f.delete(owner, v1.DeletePropagationForeground)
	if finalizers := deleted.GetFinalizers(); deleted.GetDeletionTimestamp() == nil || len(finalizers) != 1 || finalizers[0] != v1.FinalizerDeleteDependents {
		t.Fatalf("got deletionTimestamp %v and finalizers %v, want one that is set, and %s",
			deleted.GetDeletionTimestamp(), finalizers, v1.FinalizerDeleteDependents)
	}
	f.expect(w, "MODIFIED hello")
	f.waitGone(inner)
	f.get(serving.KindService, "hello") // its dependent is still there

	stored := f.get(serving.KindConfigMap, "held").DeepCopyObject().(*serving.ConfigMap)
	stored.Finalizers = nil
	f.update(stored, store.Spec)
	f.waitGone(stored)
	f.expect(w, "DELETED hello")
}

func foregroundDeletionOfACycleEnds(t *testing.T, f *fixture) {
	a := f.create(configMap("a", "1"))
	b := f.create(ownedBy(configMap("b", "1"), a))
	f.update(ownedBy(a.DeepCopyObject().(*serving.ConfigMap), b), store.Spec)
	f.delete(a, v1.DeletePropagationForeground)
	f.waitGone(a)
	f.waitGone(b)
}

func deletingANamespaceEmptiesItFirst(t *testing.T, f *fixture) {
	namespace := f.create(&serving.Namespace{ObjectMeta: serving.ObjectMeta{Name: "team"}})
	held := configMap("held", "1")
	held.Namespace, held.Finalizers = "team", []string{"example.com/hold"}
	f.create(held)
	free := configMap("free", "1")
	free.Namespace = "team"
	gone := f.create(free)
	f.create(configMap("elsewhere", "1"))
	w := f.watch(serving.KindNamespace, namespace.GetResourceVersion())

	deleted := f.delete(namespace, "").(*serving.Namespace)
	if deleted.DeletionTimestamp == nil || deleted.Status.Phase != serving.NamespaceTerminating {
		t.Errorf("got deletionTimestamp %v and phase %q, want one that is set, and Terminating", deleted.DeletionTimestamp, deleted.Status.Phase)
	}
	f.waitGone(gone)
	late := configMap("late", "1")
	late.Namespace = "team"
	_, err := f.store.Create(t.Context(), late)
	f.wantError(err, store.ErrTerminating)

	stored, err := f.store.Get(t.Context(), serving.KindConfigMap, "team", "held")
	if err != nil {
		t.Fatal(err)
	}
	if stored.GetDeletionTimestamp() == nil {
		t.Fatal("what is held is not being deleted")
	}
	released := stored.DeepCopyObject().(*serving.ConfigMap)
	released.Finalizers = nil
	f.update(released, store.Spec)
	f.expect(w, "MODIFIED team", "DELETED team")
	_, err = f.store.Create(t.Context(), late)
	f.wantError(err, store.ErrNotFound)
	f.get(serving.KindConfigMap, "elsewhere")
}

func deletingALargeNamespaceEnds(t *testing.T, f *fixture) {
	namespace := f.create(&serving.Namespace{ObjectMeta: serving.ObjectMeta{Name: "team"}})
	w := f.watch(serving.KindNamespace, namespace.GetResourceVersion())
	var group sync.WaitGroup
	for writer := range 8 {
		group.Go(func() {
			for i := range 90 {
				o := configMap(fmt.Sprintf("o-%d-%d", writer, i), "1")
				o.Namespace = "team"
				if _, err := f.store.Create(t.Context(), o); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	f.delete(namespace, "")
	f.expect(w, "MODIFIED team", "DELETED team")
	objects, _, err := f.store.List(t.Context(), serving.KindConfigMap, "team")
	if err != nil || len(objects) != 0 {
		t.Errorf("%d objects are left, error %v", len(objects), err)
	}
}
