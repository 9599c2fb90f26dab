package storetest

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

func createSetsTheMetadata(t *testing.T, f *fixture) {
	given := service("hello")
	given.UID, given.ResourceVersion, given.Generation = "mine", "7", 3
	given.DeletionTimestamp = &serving.Time{Time: time.Now()}
	before := time.Now().Truncate(time.Second)
	created := f.create(given)
	second := f.create(service("second"))

	uuid := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	if uid := created.GetUID(); !uuid.MatchString(string(uid)) || uid == second.GetUID() {
		t.Errorf("got uids %s and %s, want two different UUIDs of version 4", uid, second.GetUID())
	}
	if created.GetGeneration() != 1 {
		t.Errorf("got generation %d, want 1", created.GetGeneration())
	}
	if at := created.GetCreationTimestamp(); at.Time.Before(before) || at.Time.After(time.Now()) {
		t.Errorf("got creationTimestamp %s, want the time of the call", at)
	}
	if created.GetDeletionTimestamp() != nil {
		t.Error("a new object has a deletionTimestamp")
	}
	if f.version(second) <= f.version(created) {
		t.Errorf("resourceVersion went from %d to %d, want it to increase", f.version(created), f.version(second))
	}
	gvk := created.GetObjectKind().GroupVersionKind()
	if gvk.GroupVersion() != serving.KindService.GroupVersion() || gvk.Kind != "Service" {
		t.Errorf("got %s, want the service's apiVersion and kind", gvk)
	}
	if diff := cmp.Diff(created, f.get(serving.KindService, "hello")); diff != "" {
		t.Errorf("Create and Get differ:\n%s", diff)
	}
}

func createMakesANameFromGenerateName(t *testing.T, f *fixture) {
	long := strings.Repeat("x", 70)
	for _, prefix := range []string{"hello-", long} {
		o := configMap("", "1")
		o.GenerateName = prefix
		created := f.create(o)
		want := regexp.MustCompile("^" + prefix[:min(len(prefix), 58)] + "[bcdfghjklmnpqrstvwxz2456789]{5}$")
		if !want.MatchString(created.GetName()) {
			t.Errorf("got name %q, want one that matches %s", created.GetName(), want)
		}
		if created.GetGenerateName() != prefix {
			t.Errorf("got generateName %q, want %q", created.GetGenerateName(), prefix)
		}
		f.get(serving.KindConfigMap, created.GetName())
	}
}

func createRefusesATakenName(t *testing.T, f *fixture) {
	f.create(service("hello"))
	_, err := f.store.Create(t.Context(), service("hello"))
	f.wantError(err, store.ErrAlreadyExists)
	if want := `services.serving.knative.dev "hello": already exists`; err.Error() != want {
		t.Errorf("got error %q, want %q", err, want)
	}
	f.create(configMap("hello", "another kind"))
}

func createRefusesAMissingNamespace(t *testing.T, f *fixture) {
	o := service("hello")
	o.Namespace = "nowhere"
	_, err := f.store.Create(t.Context(), o)
	f.wantError(err, store.ErrNotFound)
	if want := `namespaces "nowhere": not found`; err.Error() != want {
		t.Errorf("got error %q, want %q", err, want)
	}
}

func createRefusesWhatHasNoName(t *testing.T, f *fixture) {
	if _, err := f.store.Create(t.Context(), service("")); err == nil || !strings.Contains(err.Error(), "metadata.name") {
		t.Errorf("got error %v, want one that names metadata.name", err)
	}
	namespace := &serving.Namespace{ObjectMeta: serving.ObjectMeta{Name: "inner", Namespace: "default"}}
	if _, err := f.store.Create(t.Context(), namespace); err == nil || !strings.Contains(err.Error(), "metadata.namespace") {
		t.Errorf("got error %v, want one that names metadata.namespace", err)
	}
	owned := ownedBy(configMap("owned", "1"), &serving.Service{ObjectMeta: serving.ObjectMeta{Name: "hello"}})
	if _, err := f.store.Create(t.Context(), owned); err == nil || !strings.Contains(err.Error(), "ownerReferences[0].uid") {
		t.Errorf("got error %v, want one that names ownerReferences[0].uid", err)
	}
}

func objectsGivenAreCopied(t *testing.T, f *fixture) {
	given := configMap("settings", "1")
	created := f.create(given)
	given.Data["key"] = "changed by the caller"
	given = created.DeepCopyObject().(*serving.ConfigMap)
	given.Data["key"] = "2"
	f.update(given, store.Spec)
	given.Data["key"] = "changed by the caller"
	if got := f.get(serving.KindConfigMap, "settings").(*serving.ConfigMap).Data["key"]; got != "2" {
		t.Errorf("got %q, want 2", got)
	}
	if got := created.(*serving.ConfigMap).Data["key"]; got != "1" {
		t.Errorf("an object returned earlier changed to %q", got)
	}
}

func getOfNothingIsNotFound(t *testing.T, f *fixture) {
	_, err := f.store.Get(t.Context(), serving.KindService, "default", "hello")
	f.wantError(err, store.ErrNotFound)
	if want := `services.serving.knative.dev "hello": not found`; err.Error() != want {
		t.Errorf("got error %q, want %q", err, want)
	}
	_, err = f.store.Update(t.Context(), service("hello"), store.Spec)
	f.wantError(err, store.ErrNotFound)
	_, err = f.store.Delete(t.Context(), serving.KindService, "default", "hello", serving.DeleteOptions{})
	f.wantError(err, store.ErrNotFound)
}

func listIsOrderedByNamespaceAndName(t *testing.T, f *fixture) {
	for _, namespace := range []string{"a", "a-b", "a.b"} {
		f.create(&serving.Namespace{ObjectMeta: serving.ObjectMeta{Name: namespace}})
	}
	for _, at := range []string{"a/z", "a-b/a", "a/a-b", "a.b/m", "a/a", "default/b"} {
		o := configMap("", "1")
		o.Namespace, o.Name, _ = strings.Cut(at, "/")
		f.create(o)
	}
	list := func(namespace string) string {
		objects, version, err := f.store.List(t.Context(), serving.KindConfigMap, namespace)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, o := range objects {
			names = append(names, o.GetNamespace()+"/"+o.GetName())
			if f.version(o) > f.number(version) {
				t.Errorf("the list's version %s is older than %s's, %s", version, o.GetName(), o.GetResourceVersion())
			}
		}
		return strings.Join(names, " ")
	}
	if diff := cmp.Diff("a/a a/a-b a/z a-b/a a.b/m default/b", list("")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff("a/a a/a-b a/z", list("a")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff("", list("nowhere")); diff != "" {
		t.Error(diff)
	}
}

func updateOfSpecCountsGenerations(t *testing.T, f *fixture) {
	created := f.create(service("hello"))
	changed := created.DeepCopyObject().(*serving.Service)
	changed.Labels = map[string]string{"team": "blue"}
	labelled := f.update(changed, store.Spec)
	if labelled.GetGeneration() != 1 || labelled.GetLabels()["team"] != "blue" {
		t.Errorf("after a change of labels: got generation %d and labels %v, want 1 and team=blue", labelled.GetGeneration(), labelled.GetLabels())
	}
	if f.version(labelled) <= f.version(created) {
		t.Errorf("resourceVersion went from %d to %d, want it to increase", f.version(created), f.version(labelled))
	}
	changed = labelled.DeepCopyObject().(*serving.Service)
	changed.Spec.Template.Spec.Containers[0].Image = "example.com/hello:2"
	if got := f.update(changed, store.Spec).GetGeneration(); got != 2 {
		t.Errorf("after a change of the image: got generation %d, want 2", got)
	}
}

func updateOfSpecKeepsTheStatus(t *testing.T, f *fixture) {
	o := f.create(service("hello")).DeepCopyObject().(*serving.Service)
	o.Status.LatestReadyRevisionName = "hello-00001"
	o = f.update(o, store.Status).DeepCopyObject().(*serving.Service)
	o.Status.LatestReadyRevisionName = "forged"
	o.Spec.Template.Spec.Containers[0].Image = "example.com/hello:2"
	o = f.update(o, store.Spec).(*serving.Service)
	if o.Status.LatestReadyRevisionName != "hello-00001" || o.Spec.Template.Spec.Containers[0].Image != "example.com/hello:2" {
		t.Errorf("got status %q and image %q, want the stored status and the new image",
			o.Status.LatestReadyRevisionName, o.Spec.Template.Spec.Containers[0].Image)
	}
}

func updateOfStatusChangesNothingElse(t *testing.T, f *fixture) {
	created := f.create(service("hello")).(*serving.Service)
	o := created.DeepCopy()
	o.Spec.Template.Spec.Containers[0].Image = "example.com/forged"
	o.Labels = map[string]string{"forged": "yes"}
	o.Status.LatestReadyRevisionName = "hello-00001"
	got := f.update(o, store.Status).(*serving.Service)
	want := created.DeepCopy()
	want.Status.LatestReadyRevisionName = "hello-00001"
	want.ResourceVersion = got.ResourceVersion
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func updateThatChangesNothingMakesNoVersion(t *testing.T, f *fixture) {
	created := f.create(service("hello")).(*serving.Service)
	w := f.watch(serving.KindService, created.ResourceVersion)
	same := created.DeepCopy()
	same.ResourceVersion = ""
	same.Labels = map[string]string{} // empty and absent are the same in JSON
	for _, part := range []store.Part{store.Spec, store.Status} {
		if got := f.update(same, part); got.GetResourceVersion() != created.ResourceVersion {
			t.Errorf("the version went from %s to %s, want it to stay", created.ResourceVersion, got.GetResourceVersion())
		}
	}
	f.create(service("next"))
	f.expect(w, "ADDED next")
}

func updateOfDataCountsGenerations(t *testing.T, f *fixture) {
	o := f.create(configMap("settings", "1")).DeepCopyObject().(*serving.ConfigMap)
	o.Data["key"] = "2"
	if got := f.update(o, store.Spec).GetGeneration(); got != 2 {
		t.Errorf("got generation %d, want 2", got)
	}
	secret := &serving.Secret{ObjectMeta: serving.ObjectMeta{Namespace: "default", Name: "key"}, Data: map[string][]byte{"k": {1}}}
	secret = f.create(secret).DeepCopyObject().(*serving.Secret)
	secret.Data["k"] = []byte{2}
	if got := f.update(secret, store.Spec).GetGeneration(); got != 2 {
		t.Errorf("got generation %d, want 2", got)
	}
}

func updateKeepsWhatTheStoreSet(t *testing.T, f *fixture) {
	created := f.create(service("hello"))
	o := service("hello") // as a client writes that never read the object
	o.CreationTimestamp = serving.Time{Time: time.Unix(1, 0)}
	o.DeletionTimestamp = &serving.Time{Time: time.Unix(1, 0)}
	o.Generation = 12
	o.Labels = map[string]string{"team": "blue"}
	got := f.update(o, store.Spec)
	if got.GetUID() != created.GetUID() || !got.GetCreationTimestamp().Time.Equal(created.GetCreationTimestamp().Time) ||
		got.GetDeletionTimestamp() != nil || got.GetGeneration() != 1 {
		t.Errorf("got uid %s, creationTimestamp %s, deletionTimestamp %s, generation %d, want those of the creation",
			got.GetUID(), got.GetCreationTimestamp(), got.GetDeletionTimestamp(), got.GetGeneration())
	}
}

func updateOfAnOldVersionIsAConflict(t *testing.T, f *fixture) {
	created := f.create(configMap("settings", "1")).(*serving.ConfigMap)
	first, second := created.DeepCopy(), created.DeepCopy()
	first.Data["key"], second.Data["key"] = "first", "second"
	f.update(first, store.Spec)
	_, err := f.store.Update(t.Context(), second, store.Spec)
	f.wantError(err, store.ErrConflict)
	if !strings.Contains(err.Error(), `configmaps "settings"`) {
		t.Errorf("error %q does not name the object", err)
	}
	if got := f.get(serving.KindConfigMap, "settings").(*serving.ConfigMap).Data["key"]; got != "first" {
		t.Errorf("got %q, want first", got)
	}
}

func updateOfAReplacedObjectIsAConflict(t *testing.T, f *fixture) {
	old := f.create(configMap("settings", "1")).DeepCopyObject().(*serving.ConfigMap)
	f.delete(old, "")
	f.create(configMap("settings", "2"))
	old.ResourceVersion = ""
	old.Data["key"] = "3"
	_, err := f.store.Update(t.Context(), old, store.Spec)
	f.wantError(err, store.ErrConflict)
}

func sixteenWritersLoseNoUpdate(t *testing.T, f *fixture) {
	const writers, each = 16, 20
	f.create(configMap("counter", ""))
	var group sync.WaitGroup
	for range writers {
		group.Go(func() {
			for done := 0; done < each; {
				stored, err := f.store.Get(t.Context(), serving.KindConfigMap, "default", "counter")
				if err != nil {
					t.Error(err)
					return
				}
				next := stored.DeepCopyObject().(*serving.ConfigMap)
				next.Data["key"] += "x"
				switch _, err := f.store.Update(t.Context(), next, store.Spec); {
				case err == nil:
					done++
				case !errors.Is(err, store.ErrConflict):
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	counter := f.get(serving.KindConfigMap, "counter").(*serving.ConfigMap)
	if got := len(counter.Data["key"]); got != writers*each || counter.Generation != int64(writers*each+1) {
		t.Errorf("got %d updates and generation %d, want %d and %d", got, counter.Generation, writers*each, writers*each+1)
	}
}

func canceledWritesDoNotHappen(t *testing.T, f *fixture) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for i := range 20 {
		name := fmt.Sprint("canceled-", i)
		_, err := f.store.Create(ctx, configMap(name, "1"))
		f.wantError(err, context.Canceled)
		_, err = f.store.Get(t.Context(), serving.KindConfigMap, "default", name)
		f.wantError(err, store.ErrNotFound)
	}
}
