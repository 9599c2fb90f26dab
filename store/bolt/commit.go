package bolt

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"syscall"

	"go.etcd.io/bbolt"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

// Bounds of one commit, so that no writer waits long behind others.
const (
	maxRequests = 512 // writes grouped into one commit
	maxCollect  = 256 // objects looked at for cascading deletion in one commit
)

// request is one write that waits for its commit.
type request struct {
	apply    func(*batch) (serving.Object, error)
	deferred bool        // it is answered before it is on disk: see deferred.go
	done     chan result // buffered
}

type result struct {
	object serving.Object
	err    error
}

// write hands a write to the committing goroutine and waits until it is answered: on disk, or visible if that is put
// off. Once begun it is not interrupted, so that the caller always knows whether it happened.
func (s *Store) write(ctx context.Context, when durability, apply func(*batch) (serving.Object, error)) (serving.Object, error) {
	r := &request{deferred: when == soon, done: make(chan result, 1)}
	r.apply = func(b *batch) (_ serving.Object, err error) {
		defer catch(&err)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		return apply(b)
	}
	select {
	case s.requests <- r:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.quit:
		return nil, ErrClosed
	}
	answer := <-r.done
	return answer.object, answer.err
}

// run commits writes until the store is closed. It owns the graph and is the only one to change the tables.
func (s *Store) run() {
	defer close(s.done)
	crowded, failed := false, false // how the last commit went
	for {
		var waiting []*request
		// Unfinished deletions go on at once, but after a failure not before somebody tries the disk again.
		if len(s.graph.unfinished) == 0 || failed {
			select {
			case r := <-s.requests:
				waiting = append(waiting, r)
			case <-s.deferral.timer.C:
				s.flush()
				continue
			case <-s.quit:
				s.deferral.last = s.flush()
				return // what is unfinished is found again at the next Open
			}
		}
		if crowded {
			// The writers that were just answered are about to come back. Letting them run first makes groups almost
			// twice as large; a writer that is alone does not pay for it.
			runtime.Gosched()
		}
		waiting = s.gather(waiting)
		err := s.commit(waiting)
		if err != nil && len(waiting) == 0 {
			s.logger.Error("removing what deleted objects owned; it is tried again with the next write", "error", err)
		}
		crowded, failed = len(waiting) > 1, err != nil
	}
}

// gather adds the requests that wait already.
func (s *Store) gather(waiting []*request) []*request {
	for len(waiting) < maxRequests {
		select {
		case r := <-s.requests:
			waiting = append(waiting, r)
		default:
			return waiting
		}
	}
	return waiting
}

// commit applies writes one after the other, brings them to disk together (or puts that off, when all of them may
// wait), makes them visible and answers them.
func (s *Store) commit(requests []*request) error {
	b := &batch{store: s, pending: make(map[key]serving.Object)}
	results := make([]result, len(requests))
	deferred := len(requests) > 0
	for i, r := range requests {
		deferred = deferred && r.deferred
		mark := len(b.changes)
		results[i].object, results[i].err = r.apply(b)
		if results[i].err != nil {
			b.undo(mark)
		}
	}
	collecting := b.collectUnfinished(maxCollect)

	err := s.fault
	if deferred = deferred && s.mayDefer(); err == nil && !deferred {
		err = s.save(b.changes)
	}
	if err != nil {
		b.undo(0)
		s.graph.later(collecting...)
		for i := range results {
			results[i] = result{err: err}
		}
	} else {
		if deferred {
			s.putOff(b.changes)
		}
		s.publish(b)
	}
	for i, r := range requests {
		r.done <- results[i]
	}
	return err
}

// save brings changes to disk, after those that were put off: the objects but those of ephemeral kinds, and the
// versions. After an error nothing of it is there, or s.fault is set.
func (s *Store) save(changes []change) error {
	durable := len(s.deferral.dirty) > 0 || slices.ContainsFunc(changes, change.durable)
	if !durable && (s.last < s.reserved || len(changes) == 0) {
		return nil
	}
	reserve := s.last + ahead
	err := s.db.Update(func(tx *bbolt.Tx) error {
		for k, data := range s.deferral.dirty {
			if err := saveObject(tx, k, data); err != nil {
				return err
			}
		}
		for _, c := range changes {
			if !c.durable() {
				continue
			}
			if err := saveObject(tx, c.key, c.stored()); err != nil {
				return err
			}
		}
		return tx.Bucket([]byte(metaBucket)).Put([]byte(versionKey), binary.BigEndian.AppendUint64(nil, reserve))
	})
	s.saved(err)
	if err == nil {
		s.reserved = reserve
		return nil
	}
	// bbolt writes the page that makes a commit count last. When that page is there although writing it reported
	// an error, the batch may or may not outlive a crash: only reading the file again can tell.
	saved, readErr := s.savedVersion()
	if readErr != nil || saved != s.reserved {
		s.fault = fmt.Errorf("writing %q failed and what it holds now is unknown; restart the server: %w",
			s.path, errors.Join(err, readErr))
		return s.fault
	}
	if errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("writing %q (nothing was changed): %w; free some space there and try again", s.path, err)
	}
	return fmt.Errorf("writing %q (nothing was changed): %w", s.path, err)
}

// saveObject writes one object's JSON, or removes it when data is nil.
func saveObject(tx *bbolt.Tx, k key, data []byte) error {
	bucket, err := tx.CreateBucketIfNotExists([]byte(bucketName(k.kind)))
	if err != nil {
		return err
	}
	if data == nil {
		return bucket.Delete(k.bytes())
	}
	return bucket.Put(k.bytes(), data)
}

// publish makes a batch visible to readers and watches.
func (s *Store) publish(b *batch) {
	if len(b.changes) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range b.changes {
		s.tables[c.key.kind].set(c.key.namespace, c.key.name, c.after, c.data)
		s.history.add(record{version: c.version, kind: c.key.kind, namespace: c.key.namespace, event: c.event, data: c.data})
		s.notify(c)
	}
	s.version = s.last
}

// batch is the writes of one commit. What they read is the tables as this batch's earlier writes leave them.
type batch struct {
	store   *Store
	changes []change
	pending map[key]serving.Object // the state after changes; nil when removed
}

// change is one new version of an object.
type change struct {
	key           key
	version       uint64
	event         store.EventType
	before, after serving.Object // nil when absent
	last          serving.Object // the event's object: after, or for Deleted the last state
	data          []byte         // JSON of last
}

// stored is the JSON that the file holds after a change, nil when the object is gone.
func (c change) stored() []byte {
	if c.after == nil {
		return nil
	}
	return c.data
}

// durable tells whether a change is to be on disk.
func (c change) durable() bool { return !serving.Kinds[c.key.kind].Ephemeral }

// get returns an object, or nil.
func (b *batch) get(k key) serving.Object {
	if o, ok := b.pending[k]; ok {
		return o
	}
	return b.store.tables[k.kind].get(k.namespace, k.name)
}

// has reports whether there is an object.
func (b *batch) has(k key) bool {
	if o, ok := b.pending[k]; ok {
		return o != nil
	}
	return b.store.tables[k.kind].has(k.namespace, k.name)
}

// put stores an object, which must not be changed afterwards, as a new version.
func (b *batch) put(k key, o serving.Object) error {
	before := b.get(k)
	event := store.Modified
	if before == nil {
		event = store.Added
	}
	return b.add(change{key: k, event: event, before: before, after: o, last: o})
}

// remove deletes an object. Its last state gets the version of the deletion.
func (b *batch) remove(k key, last serving.Object) error {
	return b.add(change{key: k, event: store.Deleted, before: b.get(k), last: last})
}

func (b *batch) add(c change) error {
	b.store.last++
	c.version = b.store.last
	c.last.SetResourceVersion(formatVersion(c.version))
	serving.Kinds[c.key.kind].Stamp(c.last)
	var err error
	if c.data, err = json.Marshal(c.last); err != nil {
		return c.key.error(fmt.Errorf("encoding it: %w", err))
	}
	b.changes = append(b.changes, c)
	b.pending[c.key] = c.after
	b.store.graph.replace(c.key, c.before, c.after)
	return nil
}

// undo takes back all changes but the first n.
func (b *batch) undo(n int) {
	for i := len(b.changes) - 1; i >= n; i-- {
		c := b.changes[i]
		b.pending[c.key] = c.before
		b.store.graph.replace(c.key, c.after, c.before)
	}
	b.changes = b.changes[:n]
}
