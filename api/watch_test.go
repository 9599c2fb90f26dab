package api_test

import (
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-run/berth/api"
	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store/bolt"
)

func (s *server) label(name, labels string) {
	s.t.Helper()
	s.do("PATCH", services+"/"+name, `{"metadata":{"labels":`+labels+`}}`, "Content-Type", "application/merge-patch+json").want(s.t, 200)
}

func TestWatch_SendsWhatIsThereAndThenEachChange(t *testing.T) {
	s := newServer(t)
	s.created(services, hello("one"))
	w := s.watch(services + "?watch=true")
	w.want("ADDED", "one")
	s.created(services, hello("two"))
	if e := w.want("ADDED", "two"); e.Object.Kind != "Service" || e.Object.APIVersion != "serving.knative.dev/v1" {
		t.Errorf("got %+v", e.Object.TypeMeta)
	}
	s.label("one", `{"a":"b"}`)
	w.want("MODIFIED", "one")
	s.do("DELETE", services+"/one", "").want(t, 200)
	w.want("DELETED", "one")
}

func TestWatch_GoesOnFromAVersionWithNothingMissingOrDoubled(t *testing.T) {
	s := newServer(t)
	s.created(services, hello("one"))
	_, meta := s.names(services)
	s.created(services, hello("two"))
	w := s.watch(services + "?watch=true&resourceVersion=" + meta.ResourceVersion)
	two := w.want("ADDED", "two")
	s.created(services, hello("three"))
	w.want("ADDED", "three")
	again := s.watch(services + "?watch=true&resourceVersion=" + two.Object.Metadata.ResourceVersion)
	again.want("ADDED", "three")
}

func TestWatch_OfOneNameSeesThatNameOnly(t *testing.T) {
	s := newServer(t)
	w := s.watch(services + "?watch=true&fieldSelector=metadata.name%3Dtwo")
	s.created(services, hello("one"))
	s.created(services, hello("two"))
	w.want("ADDED", "two")
}

func TestWatch_WithALabelSelectorSeesObjectsComeAndGo(t *testing.T) {
	s := newServer(t)
	s.created(services, hello("one"))
	w := s.watch(services + "?watch=true&labelSelector=tier")
	s.label("one", `{"tier":"x"}`)
	e := w.next()
	if e.Type != "ADDED" || e.Object.Metadata.Labels["tier"] != "x" {
		t.Fatalf("got %+v, want it to appear", e)
	}
	s.label("one", `{"tier":"y"}`)
	w.want("MODIFIED", "one")
	s.label("one", `{"tier":null}`)
	w.want("DELETED", "one")
	s.label("one", `{"tier":"z"}`)
	w.want("ADDED", "one")
	s.do("DELETE", services+"/one", "").want(t, 200)
	w.want("DELETED", "one")
}

func TestWatch_WithALabelSelectorSaysNothingOfOthers(t *testing.T) {
	s := newServer(t)
	s.created(services, hello("other"))
	s.created(services, hello("one"))
	s.label("one", `{"tier":"x"}`)
	_, meta := s.names(services)
	w := s.watch(services + "?watch=true&labelSelector=tier&resourceVersion=" + meta.ResourceVersion)
	s.label("other", `{"a":"b"}`) // neither before nor after is it selected
	s.label("one", `{"a":"b"}`)
	w.want("MODIFIED", "one")
	s.label("other", `{"tier":"y"}`)
	w.want("ADDED", "other")
	s.label("other", `{"tier":null}`)
	w.want("DELETED", "other")
	s.label("other", `{"a":"c"}`)
	s.do("DELETE", services+"/other", "").want(t, 200)
	s.label("one", `{"tier":null}`)
	w.want("DELETED", "one")
}

func TestWatch_WithALabelSelectorTellsWhatWentBeforeItBegan(t *testing.T) {
	s := newServer(t)
	for _, name := range []string{"changed", "deleted", "kept", "relabelled"} {
		s.created(services, hello(name))
		s.label(name, `{"tier":"x"}`)
	}
	_, meta := s.names(services)
	s.label("changed", `{"tier":null}`)
	s.label("relabelled", `{"tier":null}`)
	s.do("DELETE", services+"/relabelled", "").want(t, 200)
	s.do("DELETE", services+"/deleted", "").want(t, 200)
	s.label("changed", `{"a":"b"}`)
	w := s.watch(services + "?watch=true&labelSelector=tier&resourceVersion=" + meta.ResourceVersion)
	w.want("DELETED", "changed")
	w.want("DELETED", "relabelled")
	w.want("DELETED", "deleted")
	s.label("kept", `{"tier":null}`)
	w.want("DELETED", "kept")
}

func TestWatch_MarksTheEndOfInitialEventsAndOfItsTime(t *testing.T) {
	s := newServer(t)
	s.created(services, hello("one"))
	w := s.watch(services + "?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1")
	w.want("ADDED", "one")
	e := w.want("BOOKMARK", "")
	if e.Object.Metadata.Annotations[v1.InitialEventsAnnotationKey] != "true" || e.Object.Metadata.ResourceVersion == "" || e.Object.Kind != "Service" {
		t.Errorf("got %+v", e.Object)
	}
	last := w.want("BOOKMARK", "")
	if len(last.Object.Metadata.Annotations) != 0 {
		t.Errorf("got %+v", last.Object.Metadata)
	}
	if w.scanner.Scan() {
		t.Errorf("the watch goes on: %s", w.scanner.Text())
	}
}

func TestWatch_TakesATimeLongerThanCanBeCounted(t *testing.T) {
	s := newServer(t)
	w := s.watch(services + "?watch=true&timeoutSeconds=10000000000") // in nanoseconds, more than 64 bits hold
	s.created(services, hello("one"))
	w.want("ADDED", "one")
	s.do("GET", services+"?watch=true&timeoutSeconds=99999999999999999999", "").refused(t, 400, v1.StatusReasonBadRequest, "timeoutSeconds")
}

func TestWatch_SendsTables(t *testing.T) {
	s := newServer(t)
	w := s.watch(services+"?watch=true", "Accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
	s.created(services, hello("one"))
	if e := w.next(); e.Object.Kind != "Table" || len(e.Object.Rows) != 1 || e.Object.Rows[0].Cells[0] != "one" {
		t.Errorf("got %+v", e)
	}
}

func TestWatch_SaysGoneWhenTheVersionIsTooOld(t *testing.T) {
	objects, err := bolt.Open(filepath.Join(t.TempDir(), "objects"), bolt.Options{History: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { objects.Close() })
	for _, name := range []string{"default", "a", "b", "c", "d"} {
		if _, err := objects.Create(t.Context(), &serving.Namespace{ObjectMeta: serving.ObjectMeta{Name: name}}); err != nil {
			t.Fatal(err)
		}
	}
	s := newServer(t, func(c *api.Config) { c.Store = objects })
	s.do("GET", "/api/v1/namespaces?watch=true&resourceVersion=1", "").refused(t, 410, v1.StatusReasonExpired, "list again")
}

func TestWatch_RefusesMoreThanMayBeOpen(t *testing.T) {
	s := newServer(t, func(c *api.Config) { c.MaxWatches = 1 })
	first := s.open("GET", services+"?watch=true", "")
	a := s.do("GET", services+"?watch=true", "")
	a.refused(t, 429, v1.StatusReasonTooManyRequests, "1 watches")
	if a.header.Get("Retry-After") == "" {
		t.Error("no Retry-After header")
	}
	first.Body.Close()
	// The place is free as soon as the server saw the client go.
	for deadline := time.Now().Add(10 * time.Second); ; {
		again := s.open("GET", services+"?watch=true&timeoutSeconds=1", "")
		again.Body.Close()
		if again.StatusCode == 200 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the place of a closed watch was not given back")
		}
	}
}

func TestWatch_EndsWhenTheServerStops(t *testing.T) {
	s := newServer(t)
	resp := s.open("GET", services+"?watch=true", "")
	defer resp.Body.Close()
	s.stop()
	body, err := io.ReadAll(resp.Body)
	if err != nil || strings.TrimSpace(string(body)) != "" {
		t.Errorf("got %q, %v; want a clean end", body, err)
	}
}
