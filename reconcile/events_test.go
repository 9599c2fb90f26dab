package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store/bolt"
)

// events returns the events there are about a service, by reason and message, and how often each happened.
func (h *house) events(name string) map[string]int32 {
	h.t.Helper()
	objects, _, err := h.store.List(h.t.Context(), serving.KindEvent, "default")
	if err != nil {
		h.t.Fatal(err)
	}
	found := map[string]int32{}
	for _, o := range objects {
		if e := o.(*serving.Event); e.InvolvedObject.Kind == "Service" && e.InvolvedObject.Name == name {
			found[e.Type+" "+e.Reason+": "+e.Message] = e.Count
		}
	}
	return found
}

// awaitEvents waits until there is an event with each beginning.
func (h *house) awaitEvents(name string, beginnings ...string) {
	h.t.Helper()
	h.await(func() error {
		found := slices.Sorted(maps.Keys(h.events(name)))
		for _, want := range beginnings {
			if !slices.ContainsFunc(found, func(s string) bool { return strings.HasPrefix(s, want) }) {
				return fmt.Errorf("no event begins with %q; there are:\n%s", want, strings.Join(found, "\n"))
			}
		}
		return nil
	})
}

func TestEvents_TellADeployToWhoReadsTheService(t *testing.T) {
	h := newHouse(t, t.TempDir())
	s := h.declare("hello", "registry/hello", "")
	h.settle("hello", ready)
	h.awaitEvents("hello",
		`Normal Created: Created Configuration "hello"`, `Normal Created: Created Route "hello"`, `Normal Created: Created Revision "hello-00001"`,
		`Normal ImagePulled: Revision "hello-00001" has its image`, `Normal InstanceStarted: Started an instance of revision "hello-00001" in `,
		`Normal TrafficChanged: Requests go to hello-00001 (100%)`)
	objects, _, err := h.store.List(t.Context(), serving.KindEvent, "default")
	if err != nil {
		t.Fatal(err)
	}
	about := serving.ObjectReference{APIVersion: "serving.knative.dev/v1", Kind: "Service", Namespace: "default", Name: "hello", UID: s.UID}
	for _, o := range objects {
		e := o.(*serving.Event)
		if diff := cmp.Diff(about, e.InvolvedObject); diff != "" {
			t.Errorf("event %s is about (-want +got):\n%s", e.Reason, diff)
		}
		if e.FirstTimestamp.IsZero() || e.LastTimestamp.IsZero() || e.Source.Component != "berth" {
			t.Errorf("event %s: first %v, last %v, source %q", e.Reason, e.FirstTimestamp, e.LastTimestamp, e.Source.Component)
		}
	}

	h.declare("hello", "registry/broken", "")
	h.settle("hello", failed)
	h.awaitEvents("hello", `Warning InstanceNotStarted: An instance of revision "hello-00002" did not start: the container exited with code 3`)
	h.declare("hello", "registry/missing", "")
	h.awaitEvents("hello", `Warning ImagePullFailed: Revision "hello-00003" does not get its image: `)
}

// aRecorder is a recorder that runs over an empty store in a bubble of its own time.
func aRecorder(t *testing.T) (*recorder, *bolt.Store, func()) {
	t.Helper()
	objects, err := bolt.Open(t.TempDir()+"/objects.db", bolt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"default", "other"} {
		if _, err := objects.Create(t.Context(), &serving.Namespace{ObjectMeta: serving.ObjectMeta{Name: name}}); err != nil {
			t.Fatal(err)
		}
	}
	r := newRecorder(objects, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { r.run(ctx) })
	return r, objects, func() {
		cancel()
		running.Wait()
		objects.Close() // may be done again
	}
}

func listEvents(t *testing.T, objects *bolt.Store, namespace string) []*serving.Event {
	t.Helper()
	found, _, err := objects.List(t.Context(), serving.KindEvent, namespace)
	if err != nil {
		t.Fatal(err)
	}
	var events []*serving.Event
	for _, o := range found {
		events = append(events, o.(*serving.Event))
	}
	return events
}

func about(namespace, name string) serving.ObjectReference {
	return serving.ObjectReference{APIVersion: "serving.knative.dev/v1", Kind: "Service", Namespace: namespace, Name: name, UID: "u"}
}

func TestRecorder_CountsWhatHappensAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, objects, stop := aRecorder(t)
		defer stop()
		begun := time.Now()
		for i := range 100 {
			r.note(about("default", "hello"), eventNormal, "Again", "", fmt.Sprint("for the ", i))
		}
		time.Sleep(2 * eventsEvery)
		first := listEvents(t, objects, "default")
		if len(first) != 1 || first[0].Count != 100 || first[0].Message != "for the 99" {
			t.Fatalf("got %+v, want one event that counts 100", first)
		}
		time.Sleep(time.Minute)
		r.note(about("default", "hello"), eventNormal, "Again", "", "for the last")
		r.note(about("default", "hello"), eventNormal, "Again", "another topic", "for the first")
		time.Sleep(2 * eventsEvery)
		events := listEvents(t, objects, "default")
		if len(events) != 2 {
			t.Fatalf("got %d events, want 2", len(events))
		}
		for _, e := range events {
			if e.Message == "for the last" && (e.Count != 101 || e.FirstTimestamp.Sub(begun) > time.Second || e.LastTimestamp.Sub(begun) < time.Minute) {
				t.Errorf("got count %d from %v to %v", e.Count, e.FirstTimestamp, e.LastTimestamp)
			}
		}
	})
}

func TestRecorder_ForgetsAfterAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, objects, stop := aRecorder(t)
		defer stop()
		r.note(about("default", "old"), eventNormal, "Once", "", "x")
		r.note(about("default", "seen-again"), eventNormal, "Once", "", "x")
		time.Sleep(keepEvents / 2)
		r.note(about("default", "seen-again"), eventNormal, "Once", "", "x")
		time.Sleep(keepEvents/2 + time.Minute)
		if events := listEvents(t, objects, ""); len(events) != 1 || events[0].InvolvedObject.Name != "seen-again" {
			t.Errorf("after an hour there are %d events", len(events))
		}
		time.Sleep(keepEvents)
		if events := listEvents(t, objects, ""); len(events) != 0 {
			t.Errorf("after two hours there are %d events", len(events))
		}
		r.note(about("default", "late"), eventNormal, "Once", "", "x")
		time.Sleep(keepEvents + time.Minute)
		if events := listEvents(t, objects, ""); len(events) != 0 {
			t.Errorf("one that came late stays")
		}
		stop()
		if r.written.Len()+len(r.index)+len(r.counts) != 0 {
			t.Errorf("of events that are gone, %d are remembered", len(r.index))
		}
	})
}

func TestRecorder_KeepsTheNewestOfANamespace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, objects, stop := aRecorder(t)
		defer stop()
		r.note(about("other", "quiet"), eventNormal, "Once", "", "x")
		const many = maxEventsOfNamespace + 200
		for i := range many {
			r.note(about("default", fmt.Sprint("s-", i)), eventNormal, "Once", "", "x")
			if i%100 == 99 {
				time.Sleep(2 * eventsEvery)
			}
		}
		time.Sleep(2 * eventsEvery)
		events := listEvents(t, objects, "default")
		names := map[string]bool{}
		for _, e := range events {
			names[e.InvolvedObject.Name] = true
		}
		if len(events) != maxEventsOfNamespace || names["s-0"] || !names[fmt.Sprint("s-", many-1)] {
			t.Errorf("%d events are kept, the oldest: %t", len(events), names["s-0"])
		}
		if len(listEvents(t, objects, "other")) != 1 {
			t.Error("one namespace's events pushed out another's")
		}
	})
}

func TestRecorder_TakesNoMoreThanItCanHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, objects, stop := aRecorder(t)
		defer stop()
		for i := range 3 * maxNotes {
			r.note(about("default", fmt.Sprint("s-", i)), eventWarning, "Once", "", strings.Repeat("é", 2000))
		}
		time.Sleep(2 * eventsEvery)
		events := listEvents(t, objects, "")
		synctest.Wait()
		r.mu.Lock()
		left := len(r.notes)
		r.mu.Unlock()
		if len(events) != maxEventsOfNamespace || left != 0 {
			t.Fatalf("%d events, %d notes", len(events), left)
		}
		if n := len(events[0].Message); n > maxEventMessage || n < maxEventMessage-4 {
			t.Errorf("a long message has %d bytes", n)
		}
	})
}
