package gateway

import (
	"errors"
	"io"
	"sync"
)

// bodyPump reads a client's body for HTTP/2 transports. A transport tells of the end of a response, or of its connection, only
// when it reads no more of the request's body, and net/http takes it for the client's end when a read is ended by a
// deadline. So each read has a goroutine of its own, which a transport need not wait for.
type bodyPump struct {
	body io.Reader

	mu      sync.Mutex
	changed sync.Cond
	reading bool   // a goroutine waits for the client; it has the buffer then
	buffer  []byte // nil before the first read
	data    []byte // the part of buffer that has been read and not been taken
	err     error  // what comes after data; nil for more of the body
}

// pumpBufferSize is how much is read at once: as much as an HTTP/2 frame has.
const pumpBufferSize = 16 << 10

// errBodyClosed is what a read that waits is ended with by Close.
var errBodyClosed = errors.New("the request's body is not wanted any more")

func newBodyPump(body io.Reader) *bodyPump {
	p := &bodyPump{body: body}
	p.changed.L = &p.mu
	return p
}

func (p *bodyPump) fill() {
	if p.buffer == nil {
		p.buffer = make([]byte, pumpBufferSize)
	}
	n, err := p.body.Read(p.buffer)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.data, p.err, p.reading = p.buffer[:n], err, false
	p.changed.Broadcast()
}

// pumpedBody is a client's body as one transport gets it. After a failed dial it goes to another, with what has been read: that
// closes its own only.
type pumpedBody struct {
	pump   *bodyPump
	closed bool // guarded by the pump's mu
}

func (b *pumpedBody) Read(to []byte) (int, error) {
	p := b.pump
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.data) == 0 && p.err == nil && !b.closed {
		if !p.reading {
			p.reading = true
			go p.fill()
		}
		p.changed.Wait()
	}
	if b.closed {
		return 0, errBodyClosed
	}
	n := copy(to, p.data)
	if p.data = p.data[n:]; len(p.data) > 0 {
		return n, nil
	}
	return n, p.err
}

// Close ends a Read at once, although the client may be silent for ever.
func (b *pumpedBody) Close() error {
	b.pump.mu.Lock()
	defer b.pump.mu.Unlock()
	b.closed = true
	b.pump.changed.Broadcast()
	return nil
}
