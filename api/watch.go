package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

// bookmark is the type of an event that the store does not know: it only says how far the watch has come.
const bookmark store.EventType = "BOOKMARK"

// bookmarkPeriod is how often a watch that asks for bookmarks gets one, as in Kubernetes.
const bookmarkPeriod = time.Minute

// event is one line of a watch.
type event struct {
	Type   store.EventType `json:"type"`
	Object any             `json:"object"`
}

// watcher writes one watch.
type watcher struct {
	kind    serving.Kind
	view    view
	choose  selection
	request *http.Request
	lines   *lines
	// known are the objects that are selected: a change of labels makes an object appear or go. Those that changed
	// before listed and are not selected are in it too, as false. It is nil when no change of an object makes a difference.
	known map[string]bool
	// listed is the version from which on an object that is not known is surely not selected: see know.
	listed string
	last   string // version of the newest event
}

// watchOptions are the parameters of a watch.
type watchOptions struct {
	version   string // "" and "0": begin with what there is
	initial   bool   // begin with what there is, and a bookmark after it
	bookmarks bool
	timeout   time.Duration
}

func watchOptionsOf(r *http.Request) (o watchOptions, err error) {
	q := r.URL.Query()
	o.version = q.Get("resourceVersion")
	if o.version == "0" {
		o.version = ""
	}
	if o.bookmarks, err = boolean(r, "allowWatchBookmarks"); err != nil {
		return o, err
	}
	if o.initial, err = boolean(r, "sendInitialEvents"); err != nil {
		return o, err
	}
	if o.timeout, err = seconds(r, "timeoutSeconds"); err != nil {
		return o, err
	}
	if o.timeout <= 0 {
		// Spread over half an hour so that clients do not all come again at once, as Kubernetes does.
		o.timeout = 30*time.Minute + rand.N(30*time.Minute)
	}
	return o, nil
}

// watch writes events until the client goes, the time is up or the store ends the watch; the client then comes
// again from the last version it saw.
func (a *api) watch(w http.ResponseWriter, r *http.Request, kind serving.Kind, v view, s selection) error {
	options, err := watchOptionsOf(r)
	if err != nil {
		return err
	}
	release, err := a.stream()
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithTimeout(r.Context(), options.timeout)
	defer cancel()

	namespace := r.PathValue("namespace")
	var initial []serving.Object
	version := options.version
	if version == "" || options.initial {
		if initial, version, err = a.choose(r, kind, s); err != nil {
			return err
		}
	}
	events, err := a.Store.Watch(ctx, kind, namespace, version)
	if err != nil {
		return err // 410 when the version is too old, before anything is written
	}
	defer events.Stop()

	wr := &watcher{kind: kind, view: v, choose: s, request: r, lines: newLines(w), last: version, listed: version}
	if !s.constant() {
		selected := initial
		if selected == nil {
			if selected, wr.listed, err = a.choose(r, kind, s); err != nil {
				return err
			}
		}
		wr.know(selected, version)
	}
	if err := wr.lines.begin(); err != nil {
		return nil // the client is gone
	}
	if err := wr.run(ctx, events, initial, options); err != nil && ctx.Err() == nil {
		a.Logger.Debug("a watch ended", "kind", kind.String(), "error", err)
	}
	return nil
}

func (wr *watcher) run(ctx context.Context, events store.Watch, initial []serving.Object, options watchOptions) error {
	for _, o := range initial {
		if err := wr.write(store.Event{Type: store.Added, Object: o}); err != nil {
			return err
		}
	}
	if options.initial && options.bookmarks {
		if err := wr.bookmark(map[string]string{v1.InitialEventsAnnotationKey: "true"}); err != nil {
			return err
		}
	}
	if err := wr.lines.flush(); err != nil {
		return err
	}
	ticker := time.NewTicker(bookmarkPeriod)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			if options.bookmarks {
				return errors.Join(wr.bookmark(nil), wr.lines.flush())
			}
			return nil
		case e, ok := <-events.Events():
			if !ok {
				return nil
			}
			if err := wr.write(e); err != nil {
				return err
			}
			// What is there already goes out together.
			for more := true; more; {
				select {
				case e, ok := <-events.Events():
					if !ok {
						return wr.lines.flush()
					}
					if err := wr.write(e); err != nil {
						return err
					}
				default:
					more = false
				}
			}
		case <-ticker.C:
			if !options.bookmarks {
				continue
			}
			if err := wr.bookmark(nil); err != nil {
				return err
			}
		}
		if err := wr.lines.flush(); err != nil {
			return err
		}
	}
}

// write sends an event as the selectors make it look, or nothing.
func (wr *watcher) write(e store.Event) error {
	if version := e.Object.GetResourceVersion(); newer(version, wr.last) {
		wr.last = version
	}
	kind := wr.selected(e)
	if kind == "" {
		return nil
	}
	return wr.lines.write(event{kind, one(wr.view, wr.request, wr.kind, e.Object)})
}

// newer compares versions, which are decimal numbers without leading zeros.
func newer(version, than string) bool {
	return len(version) > len(than) || len(version) == len(than) && version > than
}

// know notes which objects are selected at the version that the watch begins from: of those selected at listed, or
// now, the ones that have not changed since. What changed in between is learned from its first event.
func (wr *watcher) know(selected []serving.Object, version string) {
	wr.known = map[string]bool{}
	for _, o := range selected {
		if !newer(o.GetResourceVersion(), version) {
			wr.known[nameOfObject(o)] = true
		}
	}
}

func nameOfObject(o serving.Object) string { return o.GetNamespace() + "/" + o.GetName() }

// selected is the event's type as one sees it who sees only what the selectors select; "" is no event.
func (wr *watcher) selected(e store.Event) store.EventType {
	matches := wr.choose.matches(e.Object)
	if wr.known == nil {
		if matches {
			return e.Type
		}
		return ""
	}
	key := nameOfObject(e.Object)
	was, seen := wr.known[key]
	late := newer(e.Object.GetResourceVersion(), wr.listed)
	unsure := !seen && !late // it may have been selected where the watch began
	if e.Type != store.Deleted && (matches || !late) {
		wr.known[key] = matches
	} else {
		delete(wr.known, key)
	}
	switch {
	case e.Type == store.Deleted && (matches || was):
		return store.Deleted
	case e.Type == store.Deleted:
		return ""
	case matches && (was || unsure):
		return e.Type
	case matches:
		return store.Added
	case was, unsure && e.Type == store.Modified:
		return store.Deleted // a client that does not have it takes no harm from that
	}
	return ""
}

// bookmark tells the client the version from which it may go on.
func (wr *watcher) bookmark(annotations map[string]string) error {
	o := wr.kind.New()
	wr.kind.Stamp(o)
	o.SetResourceVersion(wr.last)
	o.SetAnnotations(annotations)
	return wr.lines.write(event{bookmark, one(wr.view, wr.request, wr.kind, o)})
}

// lines is an answer of JSON lines that goes on.
type lines struct {
	writer     http.ResponseWriter
	controller *http.ResponseController
}

func newLines(w http.ResponseWriter) *lines {
	return &lines{w, http.NewResponseController(w)}
}

// begin sends the header, so that the client knows that the stream is open.
func (l *lines) begin() error { return l.beginAs("application/json") }

func (l *lines) beginAs(contentType string) error {
	l.writer.Header().Set("Content-Type", contentType)
	l.writer.Header().Set("Cache-Control", "no-cache, private")
	l.writer.WriteHeader(http.StatusOK)
	return l.flush()
}

// write sends one line; it is sure to be on its way after the next flush.
func (l *lines) write(line any) error {
	var b bytes.Buffer
	if err := json.NewEncoder(&b).Encode(line); err != nil {
		return fmt.Errorf("encoding a line: %w", err)
	}
	return l.writeRaw(b.Bytes())
}

// writeRaw is write for what is a line, or a part of one, already.
func (l *lines) writeRaw(data []byte) error {
	// A reader that does not read must not hold the stream for ever. Not every writer has deadlines.
	_ = l.controller.SetWriteDeadline(time.Now().Add(writeTimeout))
	_, err := l.writer.Write(data)
	return err
}

// flush sends what was written, and lifts the deadline: HTTP/2 would end an idle stream by it.
func (l *lines) flush() error {
	_ = l.controller.SetWriteDeadline(time.Now().Add(writeTimeout))
	err := l.controller.Flush()
	_ = l.controller.SetWriteDeadline(time.Time{})
	return err
}
