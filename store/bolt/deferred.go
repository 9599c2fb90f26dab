package bolt

import (
	"context"
	"time"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

const (
	// deferTime is how long a write may be visible before it is on disk: about as long as a deploy takes, whose many
	// small writes then share one commit.
	deferTime = 100 * time.Millisecond
	// deferAgain is the pause after the disk has refused what was put off.
	deferAgain = time.Second
	// deferMost is how many objects may wait for the disk.
	deferMost = 4096
)

// durability is what a write has to wait for.
type durability int

const (
	onDisk durability = iota
	soon              // visible at once, on disk within deferTime
)

// deferral is what has been answered and is not on disk yet. It belongs to the committing goroutine.
//
// Every save writes it before anything else, so the file always holds a state that the store was in: a crash takes
// back the newest of these writes, never one that a later write on disk was based on.
type deferral struct {
	dirty  map[key][]byte // the newest JSON, nil of an object that is gone
	timer  *time.Timer
	behind bool  // the disk has refused it: no more is put off until it is there
	last   error // of the flush when the store was closed
}

func newDeferral() deferral {
	d := deferral{dirty: make(map[key][]byte), timer: time.NewTimer(time.Hour)}
	d.timer.Stop()
	return d
}

// Deferred returns the store for a writer that can make all its writes again from what others wrote: what it writes is
// visible to everybody when a write returns, and is on disk with the next write that is not deferred, or soon after.
// A crash may take it back. It never waits for the disk, unless the disk refuses what was deferred before: then its
// writes return that error, too.
func (s *Store) Deferred() store.Store { return deferred{s} }

type deferred struct{ *Store }

// Create implements [store.Store].
func (d deferred) Create(ctx context.Context, object serving.Object) (serving.Object, error) {
	return d.create(ctx, object, soon)
}

// Update implements [store.Store].
func (d deferred) Update(ctx context.Context, object serving.Object, part store.Part) (serving.Object, error) {
	return d.update(ctx, object, part, soon)
}

// Delete implements [store.Store].
func (d deferred) Delete(ctx context.Context, kind serving.Kind, namespace, name string, options serving.DeleteOptions) (serving.Object, error) {
	return d.delete(ctx, kind, namespace, name, options, soon)
}

// mayDefer tells whether changes may be answered before they are on disk: their versions must be reserved there.
func (s *Store) mayDefer() bool {
	return !s.deferral.behind && s.last < s.reserved && len(s.deferral.dirty) < deferMost
}

// putOff notes changes for the next save.
func (s *Store) putOff(changes []change) {
	d := &s.deferral
	before := len(d.dirty)
	for _, c := range changes {
		if c.durable() {
			d.dirty[c.key] = c.stored()
		}
	}
	if before == 0 && len(d.dirty) > 0 {
		d.timer.Reset(deferTime)
	}
}

// flush saves what was put off.
func (s *Store) flush() error {
	if len(s.deferral.dirty) == 0 {
		return nil
	}
	err := s.fault
	if err == nil {
		err = s.save(nil)
	}
	if err != nil {
		s.logger.Error("writing what was put off; it is tried again", "error", err)
	}
	return err
}

// saved notes how a save went.
func (s *Store) saved(err error) {
	d := &s.deferral
	switch {
	case err == nil:
		clear(d.dirty)
		d.timer.Stop()
		d.behind = false
	case len(d.dirty) > 0:
		d.behind = true
		d.timer.Reset(deferAgain)
	}
}
