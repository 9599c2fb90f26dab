package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"slices"
	"sync"
	"time"
)

// forwardHTTP2 sends the request to an instance that speaks HTTP/2, over the connection that its requests share.
func (x *exchange) forwardHTTP2(m *member) error {
	ctx, cancel := context.WithCancelCause(x.request.Context())
	defer cancel(nil)
	var timer *time.Timer
	if deadline := x.deadline(); !deadline.IsZero() {
		timer = time.AfterFunc(time.Until(deadline), func() { cancel(errTimeout) })
		defer timer.Stop()
	}
	early := &interim{writer: x.writer}
	var sent sending
	request := x.http2Request(ctx, early, &sent)
	defer x.endHTTP2Body()
	response, err := m.conns.transport().RoundTrip(request)
	early.end()
	if err != nil {
		var dial *dialError
		switch {
		case context.Cause(ctx) == errTimeout:
			return errTimeout
		case errors.As(err, &dial), ctx.Err() == nil && sent.isLost():
			return x.unreachable(err)
		case x.body != nil && x.body.failure() != nil:
			return bodyError(x.body.failure())
		}
		return err
	}
	defer func() {
		cancel(nil) // else Close waits for a body that the client may never send
		response.Body.Close()
	}()
	if timer != nil && !timer.Stop() {
		return errTimeout
	}

	header := x.writer.Header()
	for key, values := range response.Header {
		switch key {
		case "Connection", "Keep-Alive", "Proxy-Connection", "Transfer-Encoding", "Upgrade":
			continue
		}
		header[key] = values
	}
	for key := range response.Trailer { // announced; net/http has taken the field away
		header["Trailer"] = append(header["Trailer"], key)
	}
	if len(response.Trailer) > 0 && x.request.ProtoMajor == 1 {
		delete(header, "Content-Length") // HTTP/1.1 has trailers only after chunks
	}
	x.begin(response.StatusCode)
	if err := x.copyHTTP2(response, cancel); err != nil {
		return err
	}
	x.setTrailer(response.Trailer)
	return nil
}

// http2Request is the request as the instance gets it. It shares the body and the header's values.
func (x *exchange) http2Request(ctx context.Context, early *interim, sent *sending) *http.Request {
	r, o := x.request, &x.origin
	header := make(http.Header, len(r.Header)+6)
	ends := connectionTokens(r.Header)
	for key, values := range r.Header {
		if !o.stripped(key) && !slices.Contains(ends, key) {
			header[key] = values
		}
	}
	if _, ok := header["User-Agent"]; !ok {
		header["User-Agent"] = nil // none is not made up
	}
	if acceptsTrailers(r.Header) {
		header["Te"] = []string{"trailers"}
	}
	if expectsContinue(r) {
		header["Expect"] = []string{"100-continue"}
	}
	header["X-Forwarded-For"] = []string{string(o.appendForwardedFor(nil, r.Header))}
	header["X-Forwarded-Proto"] = []string{o.forwardedProto(r.Header)}
	header["Forwarded"] = []string{string(o.appendForwarded(nil, r.Header))}
	header["Traceparent"] = []string{string(o.trace.appendTraceparent(nil))}
	if header["X-Cloud-Trace-Context"] == nil {
		header["X-Cloud-Trace-Context"] = []string{string(o.trace.appendCloud(nil))}
	}

	trace := &httptrace.ClientTrace{
		Got1xxResponse: func(code int, interim textproto.MIMEHeader) error {
			if code != http.StatusContinue && r.ProtoAtLeast(1, 1) {
				early.pass(code, http.Header(interim))
			}
			return nil
		},
	}
	sent.trace(trace)
	ctx = httptrace.WithClientTrace(ctx, trace)
	target := *r.URL
	target.Scheme, target.Host = "http", "instance" // the transport dials this one instance, whatever is here
	switch path := originForm(r.Method, r.RequestURI); {
	case path == target.RequestURI():
	case path == "*":
		target = url.URL{Scheme: "http", Host: "instance", Opaque: path}
	default: // a parsed URL does not keep every byte; the transport cuts off scheme and host
		target = url.URL{Scheme: "http", Host: "instance", Opaque: "//" + r.Host + path}
	}
	out := (&http.Request{
		Method: r.Method, URL: &target, Host: r.Host, Header: header,
		ContentLength: r.ContentLength, Trailer: r.Trailer,
		Proto: "HTTP/2.0", ProtoMajor: 2,
	}).WithContext(ctx)
	if hasBody(r) {
		if x.pump == nil {
			x.pump = newBodyPump(x.openBody())
		}
		out.Body = &pumpedBody{pump: x.pump}
	}
	return out
}

// interim passes interim responses on to a client. A transport tells of them in the goroutine that reads the
// connection, for all its requests, and even after RoundTrip has given up: so they are written by a goroutine of
// their own, and none is after end.
type interim struct {
	writer http.ResponseWriter

	mu      sync.Mutex
	over    bool
	pending chan interimResponse // nil until there is one
	written chan struct{}        // closed when the goroutine has ended
}

type interimResponse struct {
	code   int
	header http.Header
}

// interimsAhead is how many interim responses wait for a client that reads slowly; more are dropped.
const interimsAhead = 8

// pass returns at once.
func (i *interim) pass(code int, header http.Header) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.over {
		return
	}
	if i.pending == nil {
		i.pending, i.written = make(chan interimResponse, interimsAhead), make(chan struct{})
		go i.write()
	}
	select {
	case i.pending <- interimResponse{code, header}:
	default:
	}
}

func (i *interim) write() {
	defer close(i.written)
	header := i.writer.Header()
	for response := range i.pending {
		maps.Copy(header, response.header)
		i.writer.WriteHeader(response.code)
		clear(header)
	}
}

// end waits until what has been passed is written. The writer belongs to the caller again.
func (i *interim) end() {
	i.mu.Lock()
	i.over = true
	pending := i.pending
	i.mu.Unlock()
	if pending != nil {
		close(pending)
		<-i.written
	}
}

// endHTTP2Body bounds how long net/http can still wait for the client's body once the response is over.
func (x *exchange) endHTTP2Body() {
	// Of HTTP/2 the server ends the stream itself, in the frame that a response without body has to end with (gRPC's "trailers only").
	if x.body != nil && x.began && x.request.ProtoMajor == 1 && !x.body.whole() {
		x.flush() // a client that is gone is no matter here
		x.lingerForBody()
	}
}

// copyHTTP2 copies a response's body and passes on what has arrived before it waits for more.
func (x *exchange) copyHTTP2(response *http.Response, cancel context.CancelCauseFunc) error {
	buffer := x.gateway.buffers.Get().(*[]byte)
	defer x.gateway.buffers.Put(buffer)
	var silence *time.Timer
	idle := x.activator.revision.Idle
	if idle > 0 {
		silence = time.AfterFunc(idle, func() { cancel(errTimeout) })
		defer silence.Stop()
	}
	left := response.ContentLength
	if left != 0 && response.Body != http.NoBody {
		if err := x.flush(); err != nil {
			return err
		}
	}
	for {
		n, err := response.Body.Read(*buffer)
		if n > 0 {
			if err := x.write((*buffer)[:n]); err != nil {
				return err
			}
			left -= int64(n)
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("%w: %w", errTruncated, err)
		}
		if left != 0 { // more is to come, or may be
			if err := x.flush(); err != nil {
				return err
			}
		}
		if silence != nil {
			silence.Reset(idle)
		}
	}
}
