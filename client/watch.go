package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"net/http"
	"time"

	"github.com/berth-run/berth/serving"
)

// EventType is what happened to an object.
type EventType string

// The event types. Listed has no object: it says that the events before it were the state, and that those after
// it are changes.
const (
	Added    EventType = "ADDED"
	Modified EventType = "MODIFIED"
	Deleted  EventType = "DELETED"
	Listed   EventType = "LISTED"
)

// Event is one change to an object. Object is its state after the change, or its last one for Deleted.
type Event[T serving.Object] struct {
	Type   EventType
	Object T
}

// Pauses before a watch is tried again after the server went away.
const (
	firstPause = 100 * time.Millisecond
	longPause  = 5 * time.Second
)

// patience is how long a watch goes on trying to reach a server that has gone away: longer than a restart takes.
const patience = time.Minute

// Watch yields Added for every chosen object, Listed, and then each change as it comes, until ctx ends or the
// caller breaks off. It survives the server's restarts and versions that have become too old: it lists again and
// yields the difference, so changes in between may be seen as one. The first list's error, one that trying again
// does not mend, or a server that stays away for a minute, is yielded and ends it.
func (r Resource[T]) Watch(ctx context.Context, selector Selector) iter.Seq2[Event[T], error] {
	return func(yield func(Event[T], error) bool) {
		w := watcher[T]{resource: r, selector: selector, known: map[string]T{}, yield: yield}
		if err := w.run(ctx); err != nil && !errors.Is(err, errStopped) {
			yield(Event[T]{}, err)
		}
	}
}

// errStopped: the caller of an iterator broke off.
var errStopped = errors.New("stopped")

// watcher is one running Watch.
type watcher[T serving.Object] struct {
	resource Resource[T]
	selector Selector
	known    map[string]T // by namespace/name; what the caller believes there is
	version  string
	listed   bool
	yield    func(Event[T], error) bool
}

func (w *watcher[T]) run(ctx context.Context) error {
	pause := firstPause
	var lost time.Time // since when the server is away; zero while it is there
	for {
		before := w.version
		err := w.step(ctx)
		switch {
		case errors.Is(err, errStopped): // before ctx is asked: who broke off must not be called again
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case IsGone(err) && w.version != "":
			w.version = ""
			if err := sleep(ctx, firstPause); err != nil {
				return err
			}
			continue
		case err != nil && (!w.listed || !worthRetrying(err)):
			return err
		}
		if w.version != before { // it got somewhere
			pause, lost = firstPause, time.Time{}
			continue
		}
		switch {
		case err == nil:
			lost = time.Time{}
		case lost.IsZero():
			lost = time.Now()
		case time.Since(lost) > patience:
			return err
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
		pause = min(2*pause, longPause)
	}
}

// step lists when there is no version to watch from, and else watches until the stream ends.
func (w *watcher[T]) step(ctx context.Context) error {
	if w.version == "" {
		return w.list(ctx)
	}
	return w.stream(ctx)
}

// worthRetrying tells errors that a restart of the server explains from those that stay.
func worthRetrying(err error) bool {
	if status, ok := errors.AsType[*StatusError](err); ok {
		return status.Code >= 500 || status.Code == http.StatusTooManyRequests
	}
	_, unreachable := errors.AsType[*UnreachableError](err)
	return unreachable
}

// list reads the state and emits how it differs from what is known.
func (w *watcher[T]) list(ctx context.Context) error {
	objects, version, err := w.resource.List(ctx, w.selector)
	if err != nil {
		return err
	}
	gone := w.known
	w.known = make(map[string]T, len(objects))
	for _, object := range objects {
		key := object.GetNamespace() + "/" + object.GetName()
		old, had := gone[key]
		delete(gone, key)
		w.known[key] = object
		switch {
		case had && old.GetUID() != object.GetUID(): // deleted and made again while nobody looked
			if err := w.emit(Deleted, old); err != nil {
				return err
			}
			fallthrough
		case !had:
			if err := w.emit(Added, object); err != nil {
				return err
			}
		case old.GetResourceVersion() != object.GetResourceVersion():
			if err := w.emit(Modified, object); err != nil {
				return err
			}
		}
	}
	for _, object := range gone {
		if err := w.emit(Deleted, object); err != nil {
			return err
		}
	}
	w.version = version
	if !w.listed {
		w.listed = true
		return w.emit(Listed, *new(T))
	}
	return nil
}

// stream emits changes until the server ends the stream. An end without error is an end that is part of the
// protocol: the server closes watches after a time.
func (w *watcher[T]) stream(ctx context.Context) error {
	query := w.selector.query()
	query.Set("watch", "true")
	query.Set("allowWatchBookmarks", "true")
	query.Set("resourceVersion", w.version)
	reply, err := w.resource.client.send(ctx, request{
		method: http.MethodGet, path: collection(w.resource.kind, w.resource.namespace), query: query,
	})
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	decoder := json.NewDecoder(reply.Body)
	for {
		var line struct {
			Type   string          `json:"type"`
			Object json.RawMessage `json:"object"`
		}
		if err := decoder.Decode(&line); err != nil {
			if _, bad := errors.AsType[*json.SyntaxError](err); bad {
				return err
			}
			if errors.Is(err, io.EOF) {
				return nil
			}
			return &UnreachableError{Server: w.resource.client.Server(), Err: err} // cut off in a line: as good as closed
		}
		if line.Type == "ERROR" {
			failure := &StatusError{}
			if err := json.Unmarshal(line.Object, &failure.Status); err != nil {
				return err
			}
			return failure
		}
		object, err := w.resource.decode(line.Object)
		if err != nil {
			return err
		}
		w.version = object.GetResourceVersion()
		if line.Type == "BOOKMARK" {
			continue
		}
		key := object.GetNamespace() + "/" + object.GetName()
		if EventType(line.Type) == Deleted {
			delete(w.known, key)
		} else {
			w.known[key] = object
		}
		if err := w.emit(EventType(line.Type), object); err != nil {
			return err
		}
	}
}

func (w *watcher[T]) emit(kind EventType, object T) error {
	if !w.yield(Event[T]{Type: kind, Object: object}, nil) {
		return errStopped
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
