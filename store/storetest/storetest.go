// Package storetest is the suite that every implementation of [store.Store] passes.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

// Run tests a store. open returns an empty one, which the test may use until it ends; it should remember at most
// 1,000 events for watches, or the test of ErrGone takes long.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	tests := []struct {
		name string
		run  func(*testing.T, *fixture)
	}{
		{"CreateSetsTheMetadata", createSetsTheMetadata},
		{"CreateMakesANameFromGenerateName", createMakesANameFromGenerateName},
		{"CreateRefusesATakenName", createRefusesATakenName},
		{"CreateRefusesAMissingNamespace", createRefusesAMissingNamespace},
		{"CreateRefusesWhatHasNoName", createRefusesWhatHasNoName},
		{"ObjectsGivenAreCopied", objectsGivenAreCopied},
		{"GetOfNothingIsNotFound", getOfNothingIsNotFound},
		{"ListIsOrderedByNamespaceAndName", listIsOrderedByNamespaceAndName},
		{"PagesAndNamesAreThoseOfTheList", pagesAndNamesAreThoseOfTheList},
		{"UpdateOfSpecCountsGenerations", updateOfSpecCountsGenerations},
		{"UpdateOfSpecKeepsTheStatus", updateOfSpecKeepsTheStatus},
		{"UpdateOfStatusChangesNothingElse", updateOfStatusChangesNothingElse},
		{"UpdateThatChangesNothingMakesNoVersion", updateThatChangesNothingMakesNoVersion},
		{"UpdateOfDataCountsGenerations", updateOfDataCountsGenerations},
		{"UpdateKeepsWhatTheStoreSet", updateKeepsWhatTheStoreSet},
		{"UpdateOfAnOldVersionIsAConflict", updateOfAnOldVersionIsAConflict},
		{"UpdateOfAReplacedObjectIsAConflict", updateOfAReplacedObjectIsAConflict},
		{"SixteenWritersLoseNoUpdate", sixteenWritersLoseNoUpdate},
		{"CanceledWritesDoNotHappen", canceledWritesDoNotHappen},

		{"DeleteChecksItsPreconditions", deleteChecksItsPreconditions},
		{"DeleteTakesAVersion", deleteTakesAVersion},
		{"FinalizersDelayADeletion", finalizersDelayADeletion},
		{"DeleteCascades", deleteCascades},
		{"DependentStaysForItsLastOwner", dependentStaysForItsLastOwner},
		{"DependentOfAnOwnerThatIsGoneIsRemoved", dependentOfAnOwnerThatIsGoneIsRemoved},
		{"DependentOfAnUnknownKindOfOwnerStays", dependentOfAnUnknownKindOfOwnerStays},
		{"OrphanedDependentsStay", orphanedDependentsStay},
		{"ForegroundDeletionWaitsForBlockingDependents", foregroundDeletionWaitsForBlockingDependents},
		{"ForegroundDeletionOfACycleEnds", foregroundDeletionOfACycleEnds},
		{"DeletingANamespaceEmptiesItFirst", deletingANamespaceEmptiesItFirst},
		{"DeletingALargeNamespaceEnds", deletingALargeNamespaceEnds},
		{"EphemeralObjectsAreAsOthers", ephemeralObjectsAreAsOthers},

		{"WatchStartsWithWhatThereIs", watchStartsWithWhatThereIs},
		{"WatchReplaysThenFollows", watchReplaysThenFollows},
		{"WatchOfATooOldVersionIsGone", watchOfATooOldVersionIsGone},
		{"WatchOfAFutureVersionIsGone", watchOfAFutureVersionIsGone},
		{"WatchEndsWithItsContextAndStop", watchEndsWithItsContextAndStop},
		{"WatchOfASlowReaderEnds", watchOfASlowReaderEnds},
		{"WatchesSeeEveryChangeOnceInOrder", watchesSeeEveryChangeOnceInOrder},
		{"StoreAgreesWithAModel", storeAgreesWithAModel},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := &fixture{T: t, store: open(t)}
			f.create(&serving.Namespace{ObjectMeta: serving.ObjectMeta{Name: "default"}})
			test.run(t, f)
		})
	}
}

// fixture is a store with a namespace "default", and shorthands that end the test at an error.
type fixture struct {
	*testing.T
	store store.Store
}

func service(name string) *serving.Service {
	s := &serving.Service{ObjectMeta: serving.ObjectMeta{Namespace: "default", Name: name}}
	s.Spec.Template.Spec.Containers = []serving.Container{{Image: "example.com/hello:1"}}
	return s
}

func configMap(name, value string) *serving.ConfigMap {
	return &serving.ConfigMap{
		ObjectMeta: serving.ObjectMeta{Namespace: "default", Name: name},
		Data:       map[string]string{"key": value},
	}
}

// ownedBy makes an object a dependent of owners, which it keeps from being deleted in the foreground.
func ownedBy(o *serving.ConfigMap, owners ...serving.Object) *serving.ConfigMap {
	for _, owner := range owners {
		kind, blocks := serving.KindOf(owner), true
		o.OwnerReferences = append(o.OwnerReferences, serving.OwnerReference{
			APIVersion: kind.APIVersion(), Kind: kind.Name, Name: owner.GetName(), UID: owner.GetUID(), BlockOwnerDeletion: &blocks,
		})
	}
	return o
}

func (f *fixture) create(o serving.Object) serving.Object {
	f.Helper()
	created, err := f.store.Create(f.Context(), o)
	if err != nil {
		f.Fatal(err)
	}
	return created
}

func (f *fixture) update(o serving.Object, part store.Part) serving.Object {
	f.Helper()
	updated, err := f.store.Update(f.Context(), o, part)
	if err != nil {
		f.Fatal(err)
	}
	return updated
}

func (f *fixture) get(kind serving.Kind, name string) serving.Object {
	f.Helper()
	o, err := f.store.Get(f.Context(), kind, "default", name)
	if err != nil {
		f.Fatal(err)
	}
	return o
}

func (f *fixture) delete(o serving.Object, policy v1.DeletionPropagation) serving.Object {
	f.Helper()
	options := serving.DeleteOptions{}
	if policy != "" {
		options.PropagationPolicy = &policy
	}
	deleted, err := f.store.Delete(f.Context(), serving.KindOf(o), o.GetNamespace(), o.GetName(), options)
	if err != nil {
		f.Fatal(err)
	}
	return deleted
}

func (f *fixture) watch(kind serving.Kind, version string) store.Watch {
	f.Helper()
	w, err := f.store.Watch(f.Context(), kind, "", version)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(w.Stop)
	return w
}

// next returns a watch's next event.
func (f *fixture) next(w store.Watch) store.Event {
	f.Helper()
	ctx, cancel := context.WithTimeout(f.Context(), 30*time.Second)
	defer cancel()
	select {
	case event, ok := <-w.Events():
		if !ok {
			f.Fatal("the watch ended")
		}
		return event
	case <-ctx.Done():
		f.Fatal("no event came")
	}
	panic("unreachable")
}

// expect checks a watch's next events, written like "ADDED a".
func (f *fixture) expect(w store.Watch, want ...string) {
	f.Helper()
	for _, want := range want {
		event := f.next(w)
		if got := fmt.Sprintf("%s %s", event.Type, event.Object.GetName()); got != want {
			f.Fatalf("got event %q, want %q", got, want)
		}
	}
}

// waitGone waits until an object is deleted, as far as a watch tells.
func (f *fixture) waitGone(o serving.Object) {
	f.Helper()
	w := f.watch(serving.KindOf(o), "")
	_, err := f.store.Get(f.Context(), serving.KindOf(o), o.GetNamespace(), o.GetName())
	for err == nil {
		event := f.next(w)
		if event.Type == store.Deleted && event.Object.GetUID() == o.GetUID() {
			break
		}
		if event.Type == store.Deleted {
			_, err = f.store.Get(f.Context(), serving.KindOf(o), o.GetNamespace(), o.GetName())
		}
	}
	_, err = f.store.Get(f.Context(), serving.KindOf(o), o.GetNamespace(), o.GetName())
	f.wantError(err, store.ErrNotFound)
}

func (f *fixture) wantError(err, want error) {
	f.Helper()
	if !errors.Is(err, want) {
		f.Fatalf("got error %v, want one that is %q", err, want)
	}
}

func (f *fixture) version(o serving.Object) uint64 {
	f.Helper()
	return f.number(o.GetResourceVersion())
}

func (f *fixture) number(version string) uint64 {
	f.Helper()
	n, err := strconv.ParseUint(version, 10, 64)
	if err != nil {
		f.Fatalf("resourceVersion %q is not a number", version)
	}
	return n
}

func uid(s string) *types.UID { u := types.UID(s); return &u }

func pagesAndNamesAreThoseOfTheList(t *testing.T, f *fixture) {
	f.create(&serving.Namespace{ObjectMeta: serving.ObjectMeta{Name: "other"}})
	for _, name := range []string{"other/a", "default/c", "default/a", "default/a-b", "other/b"} {
		namespace, name, _ := strings.Cut(name, "/")
		f.create(&serving.Service{ObjectMeta: serving.ObjectMeta{Namespace: namespace, Name: name}})
	}
	for _, namespace := range []string{"", "default", "other", "none"} {
		all, version, err := f.store.List(t.Context(), serving.KindService, namespace)
		if err != nil {
			t.Fatal(err)
		}
		var want []types.NamespacedName
		for _, o := range all {
			want = append(want, types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()})
		}
		names, at, err := f.store.Names(t.Context(), serving.KindService, namespace)
		if err != nil || at != version || !slices.Equal(names, want) {
			t.Errorf("the names in %q are %v at %s (%v), want %v at %s", namespace, names, at, err, want, version)
		}
		for limit := range 4 {
			for from := -1; from < len(want); from++ {
				var after types.NamespacedName
				if from >= 0 {
					after = want[from]
				}
				page, more, at, err := f.store.Page(t.Context(), serving.KindService, namespace, after, limit)
				left := all[from+1:]
				expect := left[:min(limit, len(left))]
				if err != nil || at != version || more != len(left)-len(expect) || !slices.EqualFunc(page, expect, sameObject) {
					t.Errorf("in %q after %q a page of %d has %v, and %d more, at %s (%v)", namespace, after, limit, page, more, at, err)
				}
			}
		}
	}
	// A page begins where its name would be when that has gone.
	page, more, _, err := f.store.Page(t.Context(), serving.KindService, "default", types.NamespacedName{Namespace: "default", Name: "a-a"}, 1)
	if err != nil || len(page) != 1 || page[0].GetName() != "a-b" || more != 1 {
		t.Errorf("after a name that is not there come %v and %d more (%v)", page, more, err)
	}
}

func sameObject(a, b serving.Object) bool { return a.GetUID() == b.GetUID() }
