package bolt

import (
	"context"
	"encoding/json"
	"fmt"
	"sort"
	"strconv"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

const (
	// watchBuffer is how many events a watch's reader may lag behind before the watch ends.
	watchBuffer = 1024
	// historyBytes bounds the JSON kept for watches that start at an older version.
	historyBytes = 512 << 10
	// replayLocked is how many old events are decoded while readers and writers wait.
	replayLocked = 16
)

// history is the newest events, oldest first. It keeps the objects as JSON, which is a fraction of their size.
type history struct {
	limit   int
	records []record
	bytes   int
	floor   uint64 // every event after this version is here
}

type record struct {
	version   uint64
	kind      int
	namespace string
	event     store.EventType
	data      []byte
}

func (h *history) add(r record) {
	h.records = append(h.records, r)
	h.bytes += len(r.data)
	for len(h.records) > h.limit || h.bytes > historyBytes {
		h.floor = h.records[0].version
		h.bytes -= len(h.records[0].data)
		h.records[0] = record{}
		h.records = h.records[1:]
	}
}

// after returns the events after a version that concern a kind in a namespace ("" is all).
func (h *history) after(version uint64, kind int, namespace string) ([]record, error) {
	if version < h.floor {
		return nil, fmt.Errorf("%w: %d (%d)", store.ErrGone, version, h.floor)
	}
	first := sort.Search(len(h.records), func(i int) bool { return h.records[i].version > version })
	var found []record
	for _, r := range h.records[first:] {
		if r.kind == kind && (namespace == "" || r.namespace == namespace) {
			found = append(found, r)
		}
	}
	return found, nil
}

// watch is one reader's stream. The committing goroutine sends to it without waiting, so it needs no goroutine.
type watch struct {
	store     *Store
	kind      int
	namespace string
	events    chan store.Event
	release   func() bool // lets go of the context
}

// Events implements [store.Watch].
func (w *watch) Events() <-chan store.Event { return w.events }

// Stop implements [store.Watch].
func (w *watch) Stop() {
	w.release()
	w.end()
}

func (w *watch) end() {
	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	w.store.drop(w)
}

// Watch implements [store.Store]. Version "0" is as "". A version that was not given out yet is ErrGone too: the
// reader has seen a store that this one, restored from a backup, knows nothing of.
func (s *Store) Watch(ctx context.Context, kind serving.Kind, namespace, version string) (store.Watch, error) {
	k, err := keyOf(kind, namespace, "")
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	w := &watch{store: s, kind: k.kind, namespace: k.namespace}
	if version == "" || version == "0" {
		err = s.watchAll(w)
	} else {
		err = s.watchAfter(w, version)
	}
	if err != nil {
		return nil, fmt.Errorf("watching %s: %w", kind, err)
	}
	w.release = context.AfterFunc(ctx, w.end)
	return w, nil
}

// watchAll starts a watch with what there is.
func (s *Store) watchAll(w *watch) (err error) {
	defer catch(&err)
	s.mu.Lock()
	defer s.mu.Unlock()
	var events []store.Event
	for _, o := range s.tables[w.kind].read(s.tables[w.kind].in(w.namespace)) {
		events = append(events, store.Event{Type: store.Added, Object: o})
	}
	return s.attach(w, events)
}

// watchAfter starts a watch with what happened after a version. Most of that is decoded without holding the lock;
// what comes in meanwhile is found in the next round.
func (s *Store) watchAfter(w *watch, version string) error {
	from, err := strconv.ParseUint(version, 10, 64)
	if err != nil {
		return fmt.Errorf("resourceVersion %q is not a number; use one that a list or an event gave", version)
	}
	var events []store.Event
	for {
		s.mu.RLock()
		current := s.version
		records, err := s.history.after(from, w.kind, w.namespace)
		s.mu.RUnlock()
		if err == nil && from > current {
			err = fmt.Errorf("%w: %d is newer than the newest, %d", store.ErrGone, from, current)
		}
		if err != nil {
			return err
		}
		if events, err = decode(events, records); err != nil {
			return err
		}
		from = current
		if len(records) <= replayLocked {
			break
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	records, err := s.history.after(from, w.kind, w.namespace)
	if err != nil {
		return err
	}
	if events, err = decode(events, records); err != nil {
		return err
	}
	return s.attach(w, events)
}

// decode appends the events that records stand for.
func decode(events []store.Event, records []record) ([]store.Event, error) {
	for _, r := range records {
		o := serving.Kinds[r.kind].New()
		if err := json.Unmarshal(r.data, o); err != nil {
			return nil, fmt.Errorf("reading version %d: %w", r.version, err)
		}
		events = append(events, store.Event{Type: r.event, Object: o})
	}
	return events, nil
}

// attach makes a watch follow from here on. The caller holds s.mu.
func (s *Store) attach(w *watch, events []store.Event) error {
	if s.closed {
		return ErrClosed
	}
	w.events = make(chan store.Event, len(events)+watchBuffer)
	for _, event := range events {
		w.events <- event
	}
	s.watches[w] = struct{}{}
	return nil
}

// drop ends a watch. The caller holds s.mu.
func (s *Store) drop(w *watch) {
	if _, ok := s.watches[w]; ok {
		delete(s.watches, w)
		close(w.events)
	}
}

// notify sends a change to the watches it concerns, and ends those whose reader is too slow. The caller holds s.mu.
func (s *Store) notify(c change) {
	for w := range s.watches {
		if w.kind != c.key.kind || w.namespace != "" && w.namespace != c.key.namespace {
			continue
		}
		select {
		case w.events <- store.Event{Type: c.event, Object: c.last}:
		default:
			s.drop(w)
		}
	}
}
