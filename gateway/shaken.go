package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// shakenListener is a listener of connections that have shaken hands: the server gets those with HTTP/2 as they are, and
// those with HTTP/1.1 strict, which it could not be told to make them itself.
type shakenListener struct {
	net.Listener
	gateway *Gateway
	config  *tls.Config
	judge   *judge

	shaken  chan shaken
	once    sync.Once
	closed  chan struct{}
	settled atomic.Bool
}

// shaken is what Accept returns.
type shaken struct {
	conn net.Conn
	err  error
}

func newShakenListener(g *Gateway, listener net.Listener, config *tls.Config) *shakenListener {
	l := &shakenListener{Listener: listener, gateway: g, config: config, judge: g.newJudge(), shaken: make(chan shaken), closed: make(chan struct{})}
	go l.listen()
	return l
}

// listen lets each connection shake hands in a goroutine of its own, which ends within Config.ReadHeaderTimeout.
func (l *shakenListener) listen() {
	for {
		c, err := l.Listener.Accept()
		if err == nil {
			go l.shake(c)
			continue
		}
		if l.settled.Load() || !l.give(shaken{err: err}) || errors.Is(err, net.ErrClosed) {
			return
		}
	}
}

// give hands over to Accept; false when nobody accepts any more.
func (l *shakenListener) give(s shaken) bool {
	select {
	case l.shaken <- s:
		return true
	case <-l.closed:
		return false
	}
}

func (l *shakenListener) shake(c net.Conn) {
	c.SetDeadline(time.Now().Add(l.gateway.config.ReadHeaderTimeout)) // fails only on a closed connection, as what follows
	conn := tls.Server(c, l.config)
	if err := conn.Handshake(); err != nil {
		var plain tls.RecordHeaderError
		if errors.As(err, &plain) && plain.Conn != nil && beginsLikeHTTP(plain.RecordHeader) {
			c.Write((&refusal{status: http.StatusBadRequest, text: "The request came without TLS; this port is for https URLs."}).appendResponse(nil))
		}
		l.gateway.config.Logger.Debug("a TLS handshake failed", "client", c.RemoteAddr(), "error", err)
		c.Close()
		return
	}
	c.SetDeadline(time.Time{})
	var ready net.Conn = conn
	if conn.ConnectionState().NegotiatedProtocol != "h2" {
		ready = newStrictConn(conn, l.judge)
	}
	if !l.give(shaken{conn: ready}) {
		c.Close()
	}
}

// beginsLikeHTTP tells whether what came in place of a handshake is a request.
func beginsLikeHTTP(begin [5]byte) bool {
	switch string(begin[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO", "PATCH", "DELET":
		return true
	}
	return false
}

// Accept returns the next connection that has shaken hands.
func (l *shakenListener) Accept() (net.Conn, error) {
	select {
	case s := <-l.shaken:
		return s.conn, s.err
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// settle lets no more connections come. Accept still returns those that have, when they have shaken hands.
func (l *shakenListener) settle() {
	l.settled.Store(true)
	l.Listener.Close() // nothing is lost with it that could be kept
}

// Close ends Accept.
func (l *shakenListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	if l.settled.Load() {
		return nil
	}
	return l.Listener.Close()
}

// tlsState is the key of what a connection's handshake came to, in the context of its requests.
type tlsState struct{}

// withTLS keeps the state of a strict connection for its requests; the server sees to that of others.
func withTLS(ctx context.Context, c net.Conn) context.Context {
	ctx = withResets(ctx, c)
	if strict, ok := c.(*strictConn); ok {
		if conn, ok := strict.Conn.(*tls.Conn); ok {
			state := conn.ConnectionState()
			return context.WithValue(ctx, tlsState{}, &state)
		}
	}
	return ctx
}

// serveShaken is ServeHTTP for requests that came with TLS.
func (g *Gateway) serveShaken(w http.ResponseWriter, r *http.Request) {
	if r.TLS == nil {
		r.TLS, _ = r.Context().Value(tlsState{}).(*tls.ConnectionState)
	}
	g.ServeHTTP(w, r)
}
