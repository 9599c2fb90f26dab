package gateway

import (
	"context"
	"io"
	"sync"
)

// readAheadSize is how much of a request's body is read while the request waits for an instance.
const readAheadSize = 4 << 10

// hold waits for a slot on an instance and sees a client leave meanwhile. net/http sees that only once the request's body
// has been read, so its beginning is; of a client that sends more than fits, or that waits to be asked for the body, the end is seen
// when an instance has the request.
func (x *exchange) hold() (*member, error) {
	if member := x.activator.tryClaim(x.arrived); member != nil {
		return x.woken(member)
	}
	member, err := x.wait()
	if err == nil {
		x.timing = x.timing.given(member, x.arrived)
	}
	return member, err
}

// woken gives the CPU back to an instance that was claimed, where that is withheld.
func (x *exchange) woken(m *member) (*member, error) {
	if !x.activator.mustWake(m) {
		return m, nil
	}
	m, err := x.activator.woken(m, nil)
	if err == nil {
		x.timing = x.timing.given(m, x.arrived)
	}
	return m, err
}

// wait claims a slot where there is none yet.
func (x *exchange) wait() (*member, error) {
	r := x.request
	if r.ProtoMajor != 1 || !hasBody(r) || expectsContinue(r) {
		return x.activator.claim(r.Context(), x.arrived)
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	ahead := &aheadBody{ReadCloser: r.Body, lost: cancel}
	ahead.changed.L = &ahead.mu
	r.Body = ahead
	go ahead.fill()
	member, err := x.activator.claim(ctx, x.arrived)
	if err != nil && ctx.Err() != nil && r.Context().Err() == nil {
		err = bodyError(context.Cause(ctx))
	}
	return member, err
}

// aheadBody is a body whose beginning is read before anyone asks for it.
type aheadBody struct {
	io.ReadCloser
	lost context.CancelCauseFunc // called with the error that the body broke off with

	mu      sync.Mutex
	changed sync.Cond
	asked   bool                // somebody reads: the goroutine is to read no more
	ended   bool                // the goroutine has
	data    [readAheadSize]byte // from used to filled it is still to be read
	used    int
	filled  int
	err     error // what comes after data; nil for more of the body
}

// fill reads until it has enough, or somebody else reads.
func (b *aheadBody) fill() {
	filled := 0
	for going := true; going; {
		n, err := b.ReadCloser.Read(b.data[filled:]) // nobody else looks behind filled
		filled += n
		if err != nil && err != io.EOF {
			b.lost(err)
		}
		b.mu.Lock()
		going = err == nil && !b.asked && filled < len(b.data)
		b.filled, b.err, b.ended = filled, err, !going
		b.changed.Broadcast()
		b.mu.Unlock()
	}
}

func (b *aheadBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	b.asked = true
	for b.used == b.filled && !b.ended {
		b.changed.Wait()
	}
	n := copy(p, b.data[b.used:b.filled])
	b.used += n
	more, err := b.used < b.filled || !b.ended, b.err
	b.mu.Unlock()
	switch {
	case n > 0 && (more || err == nil):
		return n, nil
	case err != nil:
		return n, err
	}
	return b.ReadCloser.Read(p)
}
