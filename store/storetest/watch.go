package storetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

func watchStartsWithWhatThereIs(t *testing.T, f *fixture) {
	f.create(&serving.Namespace{ObjectMeta: serving.ObjectMeta{Name: "other"}})
	f.create(configMap("b", "1"))
	f.create(configMap("a", "1"))
	elsewhere := configMap("elsewhere", "1")
	elsewhere.Namespace = "other"
	f.create(elsewhere)
	f.create(service("another-kind"))

	w := f.watch(serving.KindConfigMap, "")
	f.expect(w, "ADDED a", "ADDED b", "ADDED elsewhere")
	one, err := f.store.Watch(t.Context(), serving.KindConfigMap, "default", "")
	if err != nil {
		t.Fatal(err)
	}
	defer one.Stop()
	f.expect(one, "ADDED a", "ADDED b")

	elsewhere.Name = "elsewhere-2"
	f.create(elsewhere)
	f.create(configMap("c", "1"))
	f.expect(w, "ADDED elsewhere-2", "ADDED c")
	f.expect(one, "ADDED c")
}

func watchReplaysThenFollows(t *testing.T, f *fixture) {
	first := f.create(configMap("a", "1")).(*serving.ConfigMap)
	next := first.DeepCopy()
	next.Data["key"] = "2"
	second := f.update(next, store.Spec)
	for i := range 30 {
		f.create(configMap(fmt.Sprint("more-", i), "1"))
	}
	f.delete(second, "")

	w := f.watch(serving.KindConfigMap, first.ResourceVersion)
	event := f.next(w)
	if diff := cmp.Diff(second, event.Object); event.Type != store.Modified || diff != "" {
		t.Errorf("the replayed event %s is not what Update returned:\n%s", event.Type, diff)
	}
	for i := range 30 {
		f.expect(w, fmt.Sprint("ADDED more-", i))
	}
	f.expect(w, "DELETED a")
	f.create(configMap("follow", "1"))
	f.expect(w, "ADDED follow")

	_, version, err := f.store.List(t.Context(), serving.KindConfigMap, "")
	if err != nil {
		t.Fatal(err)
	}
	w = f.watch(serving.KindConfigMap, version)
	f.create(configMap("after-the-list", "1"))
	f.expect(w, "ADDED after-the-list")
}

func watchOfATooOldVersionIsGone(t *testing.T, f *fixture) {
	first := f.create(configMap("busy", "0"))
	// Writes until the store has forgotten the first version, or has remembered far more than it should.
	for round := range 40 {
		var group sync.WaitGroup
		for writer := range 50 {
			group.Go(func() {
				for i := range 10 {
					o := configMap("busy", fmt.Sprint(round, writer, i))
					if _, err := f.store.Update(t.Context(), o, store.Spec); err != nil {
						t.Error(err)
					}
				}
			})
		}
		group.Wait()
		w, err := f.store.Watch(t.Context(), serving.KindConfigMap, "", first.GetResourceVersion())
		if err != nil {
			f.wantError(err, store.ErrGone)
			return
		}
		w.Stop()
	}
	t.Error("after 20,000 events the first is still remembered")
}

func watchOfAFutureVersionIsGone(t *testing.T, f *fixture) {
	_, err := f.store.Watch(t.Context(), serving.KindConfigMap, "", "4000000000")
	f.wantError(err, store.ErrGone)
	if _, err = f.store.Watch(t.Context(), serving.KindConfigMap, "", "new"); err == nil || errors.Is(err, store.ErrGone) || !strings.Contains(err.Error(), `"new"`) {
		t.Errorf("got error %v, want one that names the version", err)
	}
}

func watchEndsWithItsContextAndStop(t *testing.T, f *fixture) {
	ctx, cancel := context.WithCancel(t.Context())
	first, err := f.store.Watch(ctx, serving.KindConfigMap, "", "")
	if err != nil {
		t.Fatal(err)
	}
	second := f.watch(serving.KindConfigMap, "")
	cancel()
	second.Stop()
	second.Stop()
	for _, w := range []store.Watch{first, second} {
		if event, open := <-w.Events(); open {
			t.Errorf("got event %s, want the end", event.Type)
		}
	}
	f.create(configMap("after", "1"))
}

func watchOfASlowReaderEnds(t *testing.T, f *fixture) {
	slow := f.watch(serving.KindConfigMap, "")
	f.create(configMap("busy", "0"))
	// The reader reads nothing. Writers are not held up; the watch ends, and what it still gives has no gap.
	var group sync.WaitGroup
	const writers, each = 50, 60
	for writer := range writers {
		group.Go(func() {
			for i := range each {
				if _, err := f.store.Update(t.Context(), configMap("busy", fmt.Sprint(writer, i)), store.Spec); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	var last uint64
	n := 0
	for event := range slow.Events() {
		if version := f.version(event.Object); last != 0 && version != last+1 {
			t.Errorf("version %d follows %d", version, last)
		}
		last = f.version(event.Object)
		n++
	}
	if n > writers*each {
		t.Errorf("got all %d events", n)
	}
}

// seen is an event as the invariants need it.
type seen struct {
	version uint64
	what    string
}

func watchesSeeEveryChangeOnceInOrder(t *testing.T, f *fixture) {
	const writers, each = 6, 60
	reference := f.watch(serving.KindConfigMap, "")
	follow := func(w store.Watch) []seen {
		var events []seen
		for event := range w.Events() {
			o := event.Object.(*serving.ConfigMap)
			events = append(events, seen{f.version(o), fmt.Sprint(event.Type, " ", o.Name, " ", o.Data["key"])})
			if o.Name == "end" {
				return events
			}
		}
		t.Error("a watch ended early")
		return nil
	}

	var watchers, writing sync.WaitGroup
	var mu sync.Mutex
	streams := make(map[uint64][][]seen) // by the version they started after
	for range writers {
		writing.Go(func() {
			for range each {
				f.randomWrite(rand.IntN(10), rand.IntN(3))
				if rand.IntN(4) > 0 {
					continue
				}
				// Before the end is written, which they wait for.
				_, version, err := f.store.List(t.Context(), serving.KindConfigMap, "")
				if err != nil {
					t.Error(err)
					return
				}
				w, err := f.store.Watch(t.Context(), serving.KindConfigMap, "", version)
				if err != nil {
					t.Error(err)
					return
				}
				watchers.Go(func() {
					defer w.Stop()
					events := follow(w)
					from, _ := strconv.ParseUint(version, 10, 64)
					mu.Lock()
					defer mu.Unlock()
					streams[from] = append(streams[from], events)
				})
			}
		})
	}
	writing.Wait()
	f.create(configMap("end", ""))
	watchers.Wait()

	all := follow(reference)
	for i := range all[1:] {
		if all[i+1].version <= all[i].version {
			t.Errorf("version %d follows %d", all[i+1].version, all[i].version)
		}
	}
	for from, events := range streams {
		first := slices.IndexFunc(all, func(e seen) bool { return e.version > from })
		for _, got := range events {
			if !slices.Equal(got, all[first:]) {
				t.Errorf("a watch from version %d saw %d events, the one from the start %d after it; want the same", from, len(got), len(all)-first)
			}
		}
	}
}

// randomWrite creates, updates or deletes one of a few ConfigMaps; whether it is there is left to chance.
func (f *fixture) randomWrite(object, operation int) {
	o := configMap(fmt.Sprint("o-", object), fmt.Sprint(rand.Int()))
	var err error
	switch operation {
	case 0:
		_, err = f.store.Create(f.Context(), o)
	case 1:
		_, err = f.store.Update(f.Context(), o, store.Spec)
	default:
		_, err = f.store.Delete(f.Context(), serving.KindConfigMap, "default", o.Name, serving.DeleteOptions{})
	}
	if err != nil && !errors.Is(err, store.ErrNotFound) && !errors.Is(err, store.ErrAlreadyExists) {
		f.Error(err)
	}
}

// model is what a store should hold: the value of each object.
type model map[string]string

func storeAgreesWithAModel(t *testing.T, f *fixture) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	want := make(model)
	var log []string
	_, start, err := f.store.List(t.Context(), serving.KindConfigMap, "")
	if err != nil {
		t.Fatal(err)
	}
	for step := range 300 {
		name, value := fmt.Sprint("o-", random.IntN(8)), fmt.Sprint(random.IntN(3))
		stored, exists := want[name]
		var err, wantErr error
		switch random.IntN(3) {
		case 0:
			if exists {
				wantErr = store.ErrAlreadyExists
			} else {
				want[name] = value
				log = append(log, fmt.Sprint("ADDED ", name, " ", value))
			}
			_, err = f.store.Create(t.Context(), configMap(name, value))
		case 1:
			if !exists {
				wantErr = store.ErrNotFound
			} else if stored != value {
				want[name] = value
				log = append(log, fmt.Sprint("MODIFIED ", name, " ", value))
			}
			_, err = f.store.Update(t.Context(), configMap(name, value), store.Spec)
		default:
			if !exists {
				wantErr = store.ErrNotFound
			} else {
				delete(want, name)
				log = append(log, fmt.Sprint("DELETED ", name, " ", stored))
			}
			_, err = f.store.Delete(t.Context(), serving.KindConfigMap, "default", name, serving.DeleteOptions{})
		}
		if !errors.Is(err, wantErr) {
			t.Fatalf("seed %d, step %d, %s: got error %v, want %v", seed, step, name, err, wantErr)
		}
		got := make(model)
		objects, _, err := f.store.List(t.Context(), serving.KindConfigMap, "")
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects {
			got[o.GetName()] = o.(*serving.ConfigMap).Data["key"]
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("seed %d, step %d, %s: the store differs from the model:\n%s", seed, step, name, diff)
		}
	}
	w := f.watch(serving.KindConfigMap, start)
	for i, want := range log {
		event := f.next(w)
		if got := fmt.Sprint(event.Type, " ", event.Object.GetName(), " ", event.Object.(*serving.ConfigMap).Data["key"]); got != want {
			t.Fatalf("seed %d: event %d is %q, want %q", seed, i, got, want)
		}
	}
}
