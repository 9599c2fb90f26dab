package gateway

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// uploadGrace is how long a request's body may end after its response, so that both connections can be used
	// again.
	uploadGrace = 5 * time.Millisecond
	// uploadLinger is how long a client that still sends a body nobody reads is listened to, so that it gets the
	// response rather than a reset.
	uploadLinger = 500 * time.Millisecond
)

// upload is a request's body on its way to an instance, in a goroutine of its own: the response may come first.
// An upload that is nil is that of a request without body.
type upload struct {
	done    chan struct{} // closed when the goroutine has ended
	goAhead chan struct{} // nil, or closed when the instance wants the body
	stop    chan struct{} // closed when it does not
	waiting bool          // goAhead is not closed

	// Set before done is closed.
	complete  bool
	clientErr error // reading from the client
}

// clientBody is the body of a client's request while it is read.
type clientBody struct {
	body io.Reader
	end  atomic.Pointer[error] // what reading ended with; nil while it goes on
}

func (b *clientBody) Read(p []byte) (int, error) {
	n, err := b.body.Read(p)
	if err != nil {
		b.end.Store(&err)
	}
	return n, err
}

// whole tells whether the body was read to its end.
func (b *clientBody) whole() bool {
	end := b.end.Load()
	return end != nil && *end == io.EOF
}

// failure is what the body broke off with; nil when it has not.
func (b *clientBody) failure() error {
	if end := b.end.Load(); end != nil && *end != io.EOF {
		return *end
	}
	return nil
}

// endBody ends an exchange whose client's body was not read to its end: the connection has no next request. net/http would wait for the
// rest of the body, for as long as the client likes.
func (x *exchange) endBody() {
	r := x.request
	if r.ProtoMajor != 1 || !hasBody(r) || x.bodyEnded() {
		return
	}
	if r, ok := r.Context().Value(resetsKey{}).(*resets); ok {
		if c, ok := r.conn.(*strictConn); ok {
			c.endReading()
		}
	}
}

// bodyEnded tells whether the request's body was read to its end, by us or by net/http before a refusal.
func (x *exchange) bodyEnded() bool {
	r := x.request
	switch {
	case x.body != nil:
		return x.body.whole()
	case expectsContinue(r):
		return false
	}
	x.flush() // a client that is gone is no matter here
	body := r.Body
	if ahead, ok := body.(*aheadBody); ok {
		body = ahead.ReadCloser
	}
	_, err := body.Read(make([]byte, 1)) // within the time that the refusal has set
	return err == io.EOF || errors.Is(err, http.ErrBodyReadAfterClose)
}

// openBody lets a request's body be read while the response is written.
func (x *exchange) openBody() *clientBody {
	if x.body == nil {
		x.body = &clientBody{body: x.request.Body}
		if x.request.ProtoMajor == 1 {
			// Only says that the response does not wait for the body; all our writers can do it.
			http.NewResponseController(x.writer).EnableFullDuplex()
		}
	}
	return x.body
}

// endConnection lets a response that begins before the request's body has ended be the last of its connection, which is what it
// says then: what comes after it would have to be told from the rest of the body. After CONNECT come bytes for a tunnel.
// When the server ends, every response is the last.
func (x *exchange) endConnection() {
	r := x.request
	if r.ProtoMajor == 1 && (r.Method == http.MethodConnect || x.body != nil && !x.body.whole() || x.gateway.ending.Load() > 0) {
		x.writer.Header()["Connection"] = []string{"close"}
	}
}

// startUpload begins to copy the body to an instance; nil when there is none.
func (x *exchange) startUpload(c *conn) *upload {
	r := x.request
	if !hasBody(r) {
		return nil
	}
	if x.kept.source == nil {
		x.kept = keptBody{source: x.openBody(), buffers: &x.gateway.buffers, buffer: x.gateway.buffers.Get().(*[]byte)}
	}
	u := &upload{done: make(chan struct{}), stop: make(chan struct{})}
	if expectsContinue(r) {
		u.goAhead, u.waiting = make(chan struct{}), true
	}
	go func() {
		defer close(u.done)
		if !u.wanted() {
			return
		}
		buffer := x.gateway.buffers.Get().(*[]byte)
		defer x.gateway.buffers.Put(buffer)
		if r.ContentLength > 0 {
			u.copyPlain(c, &x.kept, *buffer, r.ContentLength)
		} else {
			u.copyChunked(c, &x.kept, r.Trailer, *buffer)
		}
		if u.clientErr != nil {
			c.abort() // the instance must not take half a body for a whole one
		}
	}()
	return u
}

// proceed lets a body go that waits for "100 Continue".
func (u *upload) proceed() {
	if u != nil && u.waiting {
		u.waiting = false
		close(u.goAhead)
	}
}

// wanted waits until the instance wants the body; false when it will not.
func (u *upload) wanted() bool {
	if u.goAhead == nil {
		return true
	}
	timer := time.NewTimer(continueWait)
	defer timer.Stop()
	select {
	case <-u.goAhead:
	case <-timer.C: // an instance that does not know of 100 waits for the body
	case <-u.stop:
		return false
	}
	return true
}

func (u *upload) copyPlain(w io.Writer, body io.Reader, buffer []byte, left int64) {
	for left > 0 {
		n, err := body.Read(buffer)
		if n > 0 {
			if _, err := w.Write(buffer[:n]); err != nil {
				return
			}
			left -= int64(n)
		}
		if err != nil && left > 0 {
			u.clientErr = err
			return
		}
	}
	u.complete = true
}

// copyChunked writes each piece of the body as one chunk, with one write.
func (u *upload) copyChunked(w io.Writer, body io.Reader, trailer http.Header, buffer []byte) {
	const room = 8 // for the size in hex and CRLF
	for {
		n, err := body.Read(buffer[room : len(buffer)-2])
		if n > 0 {
			var size [room]byte
			line := append(strconv.AppendInt(size[:0], int64(n), 16), "\r\n"...)
			start := room - len(line)
			copy(buffer[start:], line)
			chunk := append(buffer[start:room+n], "\r\n"...)
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			u.clientErr = err
			return
		}
	}
	end := append(buffer[:0], "0\r\n"...)
	for key, values := range trailer {
		for _, value := range values {
			end = appendLine(end, key, value)
		}
	}
	_, err := w.Write(append(end, "\r\n"...))
	u.complete = err == nil
}

// unwanted keeps a body back that still waits for "100 Continue".
func (u *upload) unwanted() {
	if u != nil {
		close(u.stop)
	}
}

// endUpload ends the upload, unwanted by now, of an exchange whose response is over, and tells whether the whole body was sent.
// No goroutine reads the body after it.
func (x *exchange) endUpload(u *upload, c *conn) bool {
	if u.endsWithin(uploadGrace) {
		if !u.complete {
			x.lingerForBody()
		}
		return u.complete
	}
	c.abort()
	if x.began {
		x.flush() // a client that is gone shows in the wait below
	}
	x.lingerForBody()
	<-u.done
	return false
}

func (u *upload) endsWithin(wait time.Duration) bool {
	select {
	case <-u.done:
		return true
	default:
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-u.done:
		return true
	case <-timer.C:
		return false
	}
}

// lingerForBody bounds how long net/http, and an upload, wait for what a client has yet to send of a body that nobody wants.
// It is not for a body that has been read: net/http listens for the client's end then, and would take the deadline for it.
func (x *exchange) lingerForBody() {
	if x.body != nil && x.body.whole() {
		return
	}
	http.NewResponseController(x.writer).SetReadDeadline(time.Now().Add(uploadLinger))
}

// keptBody is a request's body whose beginning is kept, so that it can be sent again as long as that is all of it
// that has been read. The zero value is no body.
type keptBody struct {
	source  io.Reader
	buffers *sync.Pool
	buffer  *[]byte // nil when more than it holds has been read
	kept    int     // bytes of the buffer
	next    int     // the first of them that is yet to be read, again
}

func (b *keptBody) Read(p []byte) (int, error) {
	if b.next < b.kept {
		n := copy(p, (*b.buffer)[b.next:b.kept])
		b.next += n
		return n, nil
	}
	n, err := b.source.Read(p)
	switch {
	case b.buffer == nil:
	case n > len(*b.buffer)-b.kept:
		b.release()
	default:
		copy((*b.buffer)[b.kept:], p[:n])
		b.kept += n
	}
	b.next = b.kept
	return n, err
}

// release gives the buffer back: the body is not sent again.
func (b *keptBody) release() {
	if b.buffer != nil {
		b.buffers.Put(b.buffer)
		b.buffer, b.kept, b.next = nil, 0, 0
	}
}

// rewind lets the body begin anew, after an upload that is unwanted; false when that upload does not end, or the
// client's part of it went wrong, or its beginning is not there any more. A request without body needs nothing.
func (x *exchange) rewind(u *upload) bool {
	if u == nil {
		return true
	}
	if !u.endsWithin(uploadGrace) || u.clientErr != nil || x.kept.buffer == nil {
		return false
	}
	x.kept.next = 0
	return true
}
