package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-run/berth/client"
	"github.com/berth-run/berth/serving"
)

func TestWatch_YieldsTheStateAndThenChanges(t *testing.T) {
	maps := newServer(t).ConfigMaps("default")
	ctx := t.Context()
	if _, err := maps.Create(ctx, configMap("one", "a")); err != nil {
		t.Fatal(err)
	}
	if _, err := maps.Create(ctx, configMap("other", "a")); err != nil {
		t.Fatal(err)
	}
	var seen []string
	for event, err := range maps.Watch(ctx, client.Selector{Name: "one"}) {
		if err != nil {
			t.Fatal(err)
		}
		word := string(event.Type)
		if event.Object != nil {
			word += " " + event.Object.Name + "=" + event.Object.Data["key"]
		}
		seen = append(seen, word)
		switch event.Type {
		case client.Listed:
			_, err = maps.Modify(ctx, "one", func(m *serving.ConfigMap) error { m.Data["key"] = "b"; return nil })
		case client.Modified:
			err = maps.Delete(ctx, "one", serving.DeleteOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
		if event.Type == client.Deleted {
			break
		}
	}
	if diff := cmp.Diff([]string{"ADDED one=a", "LISTED", "MODIFIED one=b", "DELETED one=b"}, seen); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestWatch_EndsWithItsContext(t *testing.T) {
	maps := newServer(t).ConfigMaps("default")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var last error
	for event, err := range maps.Watch(ctx, client.Selector{}) {
		if event.Type == client.Listed {
			cancel()
		}
		last = err
	}
	if !errors.Is(last, context.Canceled) {
		t.Errorf("the last error is %v", last)
	}
}

// script is a server that plays a part for each list and each watch; what it does after the last is fail.
type script struct {
	lists   []string // bodies
	watches []string // bodies; "410" is a status
	mu      sync.Mutex
	asked   []string // resourceVersion of each watch
}

func (s *script) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	part := &s.lists
	if r.URL.Query().Get("watch") == "true" {
		s.asked = append(s.asked, r.URL.Query().Get("resourceVersion"))
		part = &s.watches
	}
	if len(*part) == 0 {
		w.WriteHeader(http.StatusForbidden)
		io.WriteString(w, `{"kind":"Status","code":403,"message":"the script has ended"}`)
		return
	}
	body := (*part)[0]
	*part = (*part)[1:]
	if body == "410" {
		w.WriteHeader(http.StatusGone)
		body = `{"kind":"Status","code":410,"reason":"Expired","message":"too old"}`
	}
	io.WriteString(w, body)
}

func item(name, uid, version string) string {
	return fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":%q,"namespace":"default","uid":%q,"resourceVersion":%q}}`, name, uid, version)
}

func list(version string, items ...string) string {
	return fmt.Sprintf(`{"metadata":{"resourceVersion":%q},"items":[%s]}`, version, strings.Join(items, ","))
}

// play watches a script to its end and returns the events as words, and the last error.
func play(t *testing.T, s *script) (events []string, last error) {
	t.Helper()
	web := httptest.NewServer(s)
	defer web.Close()
	for event, err := range newClient(t, web.URL).ConfigMaps("default").Watch(t.Context(), client.Selector{}) {
		if err != nil {
			return events, err
		}
		word := string(event.Type)
		if event.Object != nil {
			word += " " + event.Object.Name + "@" + event.Object.ResourceVersion
		}
		events = append(events, word)
	}
	return events, nil
}

func TestWatch_GoesOnWhereAStreamEnded(t *testing.T) {
	s := &script{
		lists: []string{list("5", item("a", "1", "3"))},
		watches: []string{
			`{"type":"MODIFIED","object":` + item("a", "1", "6") + "}\n" + `{"type":"BOOKMARK","object":{"kind":"ConfigMap","metadata":{"resourceVersion":"9"}}}` + "\n",
			`{"type":"MODIFIED","object":` + item("a", "1", "10") + "}\n" + `{"type":"MODI`, // cut off
		},
	}
	events, err := play(t, s)
	if diff := cmp.Diff([]string{"ADDED a@3", "LISTED", "MODIFIED a@6", "MODIFIED a@10"}, events); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"5", "9", "10"}, s.asked); diff != "" {
		t.Errorf("versions watched from (-want +got):\n%s", diff)
	}
	if err == nil || err.Error() != "the script has ended" {
		t.Errorf("error %v, want what the server said", err)
	}
}

func TestWatch_YieldsTheDifferenceWhenItsVersionIsTooOld(t *testing.T) {
	for name, gone := range map[string]string{
		"as a status":          "410",
		"as an event":          `{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old"}}` + "\n",
		"as an event, no kind": `{"type":"ERROR","object":{"code":410}}` + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			s := &script{
				lists: []string{
					list("5", item("kept", "1", "1"), item("changed", "2", "2"), item("gone", "3", "3"), item("remade", "4", "4")),
					list("20", item("kept", "1", "1"), item("changed", "2", "12"), item("remade", "9", "14"), item("new", "8", "15")),
				},
				watches: []string{gone},
			}
			events, _ := play(t, s)
			want := []string{
				"ADDED kept@1", "ADDED changed@2", "ADDED gone@3", "ADDED remade@4", "LISTED",
				"MODIFIED changed@12", "DELETED remade@4", "ADDED remade@14", "ADDED new@15", "DELETED gone@3",
			}
			if diff := cmp.Diff(want, events); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if diff := cmp.Diff([]string{"5", "20"}, s.asked); diff != "" {
				t.Errorf("versions watched from (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWatch_CallsNobodyWhoBrokeOffEvenWhenItsContextEnds(t *testing.T) {
	maps := newServer(t).ConfigMaps("default")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for event := range maps.Watch(ctx, client.Selector{}) {
		if event.Type == client.Listed {
			cancel()
			break // the iterator panics when it goes on
		}
	}
}
