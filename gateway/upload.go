package gateway

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
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

// startUpload begins to copy the body to an instance; nil when there is none.
func (x *exchange) startUpload(c *conn) *upload {
	r := x.request
	if !hasBody(r) {
		return nil
	}
	if r.ProtoMajor == 1 {
		// Only says that the response does not wait for the body; all our writers can do it.
		http.NewResponseController(x.writer).EnableFullDuplex()
	}
	u := &upload{done: make(chan struct{}), stop: make(chan struct{})}
	if expectsContinue(r.Header) {
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
			u.copyPlain(c, r.Body, *buffer, r.ContentLength)
		} else {
			u.copyChunked(c, r, *buffer)
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
func (u *upload) copyChunked(w io.Writer, r *http.Request, buffer []byte) {
	const room = 8 // for the size in hex and CRLF
	for {
		n, err := r.Body.Read(buffer[room : len(buffer)-2])
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
	for key, values := range r.Trailer {
		for _, value := range values {
			end = appendLine(end, key, value)
		}
	}
	_, err := w.Write(append(end, "\r\n"...))
	u.complete = err == nil
}

// endUpload ends the upload of an exchange whose response is over, and tells whether the whole body was sent.
// No goroutine reads the body after it.
func (x *exchange) endUpload(u *upload, c *conn) bool {
	close(u.stop)
	select {
	case <-u.done:
		return u.complete
	default:
	}
	timer := time.NewTimer(uploadGrace)
	defer timer.Stop()
	select {
	case <-u.done:
		return u.complete
	case <-timer.C:
	}
	c.abort()
	if x.began {
		x.flush() // a client that is gone shows in the wait below
	}
	http.NewResponseController(x.writer).SetReadDeadline(time.Now().Add(uploadLinger))
	<-u.done
	return false
}

// chunkReader reads the data of a chunked body. It ends with io.EOF before the trailer. Unlike the standard
// library's it never waits for the rest of a chunk when it has a part.
type chunkReader struct {
	reader interface {
		io.Reader
		ReadSlice(byte) ([]byte, error)
	}
	left  int64 // of this chunk
	begun bool  // a chunk has been read: its CRLF comes next
}

func (d *chunkReader) Read(p []byte) (int, error) {
	if d.left == 0 {
		if err := d.next(); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
		if d.left == 0 {
			return 0, io.EOF
		}
	}
	if int64(len(p)) > d.left {
		p = p[:d.left]
	}
	n, err := d.reader.Read(p)
	d.left -= int64(n)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// next reads the size line of the next chunk.
func (d *chunkReader) next() error {
	if d.begun {
		end, err := d.reader.ReadSlice('\n')
		if err != nil {
			return err
		}
		if string(end) != "\r\n" && string(end) != "\n" {
			return fmt.Errorf("%w: a chunk is longer than its size", errMalformed)
		}
	}
	line, err := d.reader.ReadSlice('\n')
	if err != nil {
		return err
	}
	digits := 0
	var size int64
	for _, c := range line {
		value := int64(-1)
		switch {
		case '0' <= c && c <= '9':
			value = int64(c - '0')
		case 'a' <= c && c <= 'f':
			value = int64(c-'a') + 10
		case 'A' <= c && c <= 'F':
			value = int64(c-'A') + 10
		}
		if value < 0 {
			break
		}
		size = size<<4 | value
		digits++
	}
	if rest := line[min(digits, len(line)):]; digits == 0 || digits > 15 || !isChunkEnd(rest) {
		return fmt.Errorf("%w: chunk size %.40q", errMalformed, line)
	}
	d.left, d.begun = size, true
	return nil
}

// isChunkEnd tells whether rest may follow a chunk's size: an extension, spaces, the line end.
func isChunkEnd(rest []byte) bool {
	switch rest[0] {
	case ';', ' ', '\t', '\r', '\n':
		return true
	}
	return false
}
