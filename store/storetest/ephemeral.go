package storetest

import (
	"testing"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

func pod(name string, owner serving.Object) *serving.Pod {
	p := &serving.Pod{ObjectMeta: serving.ObjectMeta{Namespace: "default", Name: name}}
	p.OwnerReferences = ownedBy(&serving.ConfigMap{}, owner).OwnerReferences
	return p
}

// ephemeralObjectsAreAsOthers: while the store lives, nothing tells an object that is in memory only from others.
func ephemeralObjectsAreAsOthers(t *testing.T, f *fixture) {
	owner := f.create(configMap("owner", "1"))
	w := f.watch(serving.KindPod, owner.GetResourceVersion())
	made := f.create(pod("a", owner)).(*serving.Pod)
	if made.UID == "" || made.Generation != 1 || f.version(made) <= f.version(owner) {
		t.Errorf("the pod was made with metadata %+v", made.ObjectMeta)
	}
	next := made.DeepCopy()
	next.Status.Phase = "Running"
	running := f.update(next, store.Status)
	after := f.create(configMap("after", "1"))
	if f.version(running) <= f.version(made) || f.version(after) <= f.version(running) {
		t.Errorf("versions %s, %s, %s do not rise", made.ResourceVersion, running.GetResourceVersion(), after.GetResourceVersion())
	}
	_, err := f.store.Update(t.Context(), next, store.Status)
	f.wantError(err, store.ErrConflict)
	f.create(pod("b", owner))
	objects, _, err := f.store.List(t.Context(), serving.KindPod, "default")
	if err != nil || len(objects) != 2 {
		t.Errorf("got %d pods and error %v, want 2", len(objects), err)
	}
	f.expect(w, "ADDED a", "MODIFIED a", "ADDED b")

	f.delete(owner, "")
	f.expect(w, "DELETED a", "DELETED b")
	f.delete(f.create(&serving.Namespace{ObjectMeta: serving.ObjectMeta{Name: "other"}}), "")
	elsewhere := pod("c", after)
	elsewhere.Namespace = "other"
	_, err = f.store.Create(t.Context(), elsewhere)
	f.wantError(err, store.ErrNotFound)
}
