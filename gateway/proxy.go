package gateway

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	copyBufferSize = 32 << 10
	// continueWait is how long a body waits for the instance's "100 Continue" before it is sent anyway.
	continueWait = time.Second
)

// forward sends the request to an instance and its response to the client. When it returns errUnreachable no
// byte of the request has been taken by the instance. The client's error responses are the caller's.
func (x *exchange) forward(m *member) error {
	upgrade := upgradeOf(x.request)
	if upgrade == "" && (x.activator.revision.HTTP2 || isGRPC(x.request)) {
		return x.forwardHTTP2(m)
	}
	return x.forwardHTTP1(m, upgrade)
}

func (x *exchange) forwardHTTP1(m *member, upgrade string) error {
	c, err := m.conns.get(x.request.Context(), x.deadline())
	if err != nil {
		return x.unreachable(err)
	}
	reused := c.used // another request may have the connection after this one
	err = x.forwardOn(c, m, upgrade)
	if reused && errors.Is(err, errUnanswered) {
		m.conns.habit.ended(c.idle)
	}
	if reused && errors.Is(err, errUnreachable) {
		// The instance closed it for its idleness, at the moment that the request was sent.
		if c, err = m.conns.dial(x.request.Context(), x.deadline()); err != nil {
			return x.unreachable(err)
		}
		return x.forwardOn(c, m, upgrade)
	}
	return err
}

// forwardOn sends the request over a connection and its response to the client, and gives the connection back.
// When it returns errUnreachable the instance has taken nothing of the request, and all of it can be sent again.
func (x *exchange) forwardOn(c *conn, m *member, upgrade string) error {
	x.timing.lapNow(stageConnect)
	unwatch := context.AfterFunc(x.request.Context(), c.abort) // a client that goes away ends the instance's work
	c.head = x.appendHead(c.head[:0], upgrade)
	c.begin()
	if n, err := c.Write(c.head); err != nil && n == 0 {
		unwatch()
		c.abort()
		return x.unreachable(fmt.Errorf("%w: %w", errUnanswered, err))
	} // else an instance that has read enough may have answered: its response decides

	body := x.startUpload(c)
	head, err := x.readResponse(c, body, upgrade)
	if err == nil && head.status == http.StatusSwitchingProtocols {
		unwatch()
		return x.tunnel(c, head)
	}
	if err == nil {
		err = x.sendResponse(c, head)
	}

	body.unwanted()
	if errors.Is(err, errUnanswered) && errors.Is(err, io.EOF) && x.rewind(body) && c.untaken(x.deadline()) {
		unwatch()
		c.abort()
		return x.unreachable(err)
	}
	reuse := err == nil && !head.close
	if body != nil && !x.endUpload(body, c) {
		reuse = false
		if body.clientErr != nil && !x.began {
			err = bodyError(body.clientErr)
		}
	}
	x.kept.release()
	if !unwatch() {
		reuse = false
	}
	if reuse {
		m.conns.put(c)
	} else {
		c.abort()
	}
	return err
}

// unreachable wraps an error that came before any byte was taken. It is no reason to try elsewhere when the client
// is gone.
func (x *exchange) unreachable(err error) error {
	if x.request.Context().Err() != nil {
		return errClientGone
	}
	return fmt.Errorf("%w: %w", errUnreachable, err)
}

// appendHead appends the request's head as the instance gets it.
func (x *exchange) appendHead(b []byte, upgrade string) []byte {
	r, o := x.request, &x.origin
	target := originForm(r.Method, r.RequestURI)
	b = append(append(append(b, r.Method...), ' '), target...)
	b = append(append(b, " HTTP/1.1\r\nHost: "...), r.Host...)
	b = append(b, "\r\n"...)

	ends := connectionTokens(r.Header)
	for key, values := range r.Header {
		if o.stripped(key) || len(ends) > 0 && slices.Contains(ends, key) {
			continue
		}
		for _, value := range values {
			b = appendLine(b, key, value)
		}
	}
	if upgrade != "" {
		b = append(b, "Connection: Upgrade\r\n"...)
		b = appendLine(b, "Upgrade", upgrade)
	}
	if acceptsTrailers(r.Header) {
		b = append(b, "Te: trailers\r\n"...)
	}

	switch {
	case !hasBody(r):
		if r.Method == http.MethodPost || r.Method == http.MethodPut || r.Method == http.MethodPatch {
			b = append(b, "Content-Length: 0\r\n"...)
		}
	case r.ContentLength > 0:
		b = append(b, "Content-Length: "...)
		b = append(strconv.AppendInt(b, r.ContentLength, 10), "\r\n"...)
	default:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
		for key := range r.Trailer {
			b = appendLine(b, "Trailer", key)
		}
	}
	if expectsContinue(r) {
		b = append(b, "Expect: 100-continue\r\n"...)
	}

	b = append(b, "X-Forwarded-For: "...)
	b = append(o.appendForwardedFor(b, r.Header), "\r\nForwarded: "...)
	b = append(o.appendForwarded(b, r.Header), "\r\n"...)
	b = appendLine(b, "X-Forwarded-Proto", o.forwardedProto(r.Header))
	b = append(b, "Traceparent: "...)
	b = append(o.trace.appendTraceparent(b), "\r\n"...)
	if o.trace.made || len(r.Header["X-Cloud-Trace-Context"]) == 0 {
		b = append(b, "X-Cloud-Trace-Context: "...)
		b = append(o.trace.appendCloud(b), "\r\n"...)
	}
	return append(b, "\r\n"...)
}

func appendLine(b []byte, key, value string) []byte {
	b = append(append(b, key...), ": "...)
	return append(append(b, value...), "\r\n"...)
}

// readResponse reads up to the head of the final response, or of a 101, into the client's header. It passes on
// interim responses.
func (x *exchange) readResponse(c *conn, body *upload, upgrade string) (responseHead, error) {
	header := x.writer.Header()
	answered := false
	for {
		head, err := c.readHead(header)
		switch {
		case err == nil:
			answered = true
		case !answered && len(c.head) == 0 && (err == io.EOF || errors.Is(err, syscall.ECONNRESET)):
			return head, fmt.Errorf("%w: %w", errUnanswered, err)
		default:
			return head, err
		}
		switch {
		case head.status == http.StatusSwitchingProtocols:
			if upgrade == "" {
				return head, fmt.Errorf("%w: 101 Switching Protocols to a request that did not ask for it", errMalformed)
			}
			return head, nil
		case head.status == http.StatusContinue:
			body.proceed() // reading the body tells the client to send it
			clear(header)
		case head.status < 200:
			if x.request.ProtoAtLeast(1, 1) {
				x.writer.WriteHeader(head.status)
			}
			clear(header)
		default:
			return head, nil
		}
	}
}

// sendResponse gives the client the response whose head has been read. The deadline for its begin is over.
func (x *exchange) sendResponse(c *conn, head responseHead) error {
	x.begin(head.status)
	switch {
	case x.request.Method == http.MethodHead, head.status == http.StatusNoContent, head.status == http.StatusNotModified:
		return nil
	case head.length == 0:
		return nil
	case head.length > 0:
		if n := int(head.length); int64(n) == head.length && n <= c.reader.Buffered() {
			return x.sendBuffered(c, n) // all there: nothing to wait for, no deadline to change
		}
		return x.copyBody(c, plainReader{c.reader}, head.length)
	case head.chunked:
		if err := x.copyBody(c, &chunkReader{reader: c.reader}, -1); err != nil {
			return err
		}
		return x.sendTrailer(c)
	default: // to the end of the connection
		err := x.copyBody(c, plainReader{c.reader}, -1)
		if err == nil {
			c.abort()
		}
		return err
	}
}

// begin gives the client the response's head.
func (x *exchange) begin(status int) {
	header := x.writer.Header()
	x.setAffinity(header)
	x.setTiming(header)
	for _, key := range [...]string{"Date", "Content-Type"} { // what the instance did not say is not made up
		if _, ok := header[key]; !ok {
			header[key] = nil
		}
	}
	if x.gateway.config.PrivateCookies && len(header["Set-Cookie"]) > 0 {
		header["Cache-Control"] = []string{"private"}
	}
	x.endConnection()
	x.began, x.status = true, status
	x.writer.WriteHeader(status)
}

// setTiming tells where the time of a request that waited went, when that is asked for.
func (x *exchange) setTiming(header http.Header) {
	x.timing.lapNow(stageAnswer)
	if x.timing != nil && x.gateway.config.ServerTiming {
		header.Add("Server-Timing", string(x.timing.appendServerTiming(nil)))
	}
}

func (x *exchange) sendBuffered(c *conn, n int) error {
	p, err := c.reader.Peek(n)
	if err != nil {
		return fmt.Errorf("%w: %w", errTruncated, err)
	}
	if err := x.write(p); err != nil {
		return err
	}
	_, err = c.reader.Discard(n)
	return err
}

// source is the body of an instance's response.
type source interface {
	io.Reader
	// waits tells whether the next Read would wait for the instance.
	waits() bool
}

// plainReader is a body that is not chunked.
type plainReader struct{ *bufio.Reader }

func (r plainReader) waits() bool { return r.Buffered() == 0 }

// copyBody copies a body of left bytes, or to its end when left is -1. What has arrived is passed on before more
// is waited for; a client that reads slowly slows the instance down.
func (x *exchange) copyBody(c *conn, body source, left int64) error {
	buffer := x.gateway.buffers.Get().(*[]byte)
	defer x.gateway.buffers.Put(buffer)
	idle := x.activator.revision.Idle
	if idle == 0 {
		c.SetReadDeadline(time.Time{}) // fails only on a closed connection, as the next read does
	}
	for left != 0 {
		if body.waits() {
			if err := x.flush(); err != nil {
				return err
			}
			if idle > 0 {
				c.SetReadDeadline(time.Now().Add(idle))
			}
		}
		p := *buffer
		if left >= 0 && left < int64(len(p)) {
			p = p[:left]
		}
		n, err := body.Read(p)
		if n > 0 {
			if err := x.write(p[:n]); err != nil {
				return err
			}
			if left > 0 {
				left -= int64(n)
			}
		}
		switch {
		case err == io.EOF && left <= 0:
			return nil
		case err == io.EOF:
			return fmt.Errorf("%w: %d bytes are missing", errTruncated, left)
		case err != nil:
			return fmt.Errorf("%w: %w", errTruncated, err)
		}
	}
	return nil
}

func (x *exchange) sendTrailer(c *conn) error {
	trailer := make(http.Header)
	if err := c.readTrailer(trailer); err != nil {
		return fmt.Errorf("%w: reading its trailer: %w", errTruncated, err)
	}
	if len(trailer) > 0 {
		if err := x.flush(); err != nil { // a short response would get a length, which leaves no room for a trailer
			return err
		}
	}
	x.setTrailer(trailer)
	return nil
}

// setTrailer puts a trailer where net/http sends it from. It is called when the body has been written.
func (x *exchange) setTrailer(trailer http.Header) {
	if len(trailer) == 0 {
		return
	}
	header := x.writer.Header()
	var announced []string
	for _, value := range header["Trailer"] {
		for key := range strings.SplitSeq(value, ",") {
			announced = append(announced, http.CanonicalHeaderKey(strings.TrimSpace(key)))
		}
	}
	for key, values := range trailer {
		if !slices.Contains(announced, key) {
			key = http.TrailerPrefix + key
		}
		header[key] = values
	}
}

func (x *exchange) write(p []byte) error {
	x.guard.enter()
	n, err := x.writer.Write(p)
	x.guard.leave()
	x.sent += int64(n)
	if err != nil {
		return fmt.Errorf("%w: %w", errClientGone, err)
	}
	return nil
}

func (x *exchange) flush() error {
	x.guard.enter()
	defer x.guard.leave()
	if f, ok := x.writer.(interface{ FlushError() error }); ok {
		if err := f.FlushError(); err != nil {
			return fmt.Errorf("%w: %w", errClientGone, err)
		}
	} else if f, ok := x.writer.(http.Flusher); ok {
		f.Flush()
	}
	return nil
}

func hasBody(r *http.Request) bool {
	return r.ContentLength != 0 && r.Body != nil && r.Body != http.NoBody
}

// isGRPC tells whether a request is gRPC, which is never carried over HTTP/1.1 (contract C13).
func isGRPC(r *http.Request) bool {
	if r.ProtoMajor != 2 {
		return false
	}
	contentType := r.Header["Content-Type"]
	if len(contentType) != 1 {
		return false
	}
	rest, ok := strings.CutPrefix(contentType[0], "application/grpc")
	// "+proto" or a parameter may follow. gRPC-Web, which has a name of its own, is carried over HTTP/1.1 too.
	return ok && (rest == "" || rest[0] == '+' || rest[0] == ';')
}

// errUnanswered is wrapped around the end of a connection that came before any byte of a response.
var errUnanswered = errors.New("the instance closed the connection without an answer")

// errBadBody is wrapped around what was wrong with the body that a client sent.
var errBadBody = errors.New("reading the request's body")

// bodyError is what becomes of a request whose body broke off with err.
func bodyError(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) {
		return errClientGone
	}
	return fmt.Errorf("%w: %w", errBadBody, err)
}
