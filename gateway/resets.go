package gateway

import (
	"context"
	"net"
	"sync"
	"time"
)

// A client of HTTP/2 can ask for requests and take them back at once, without reading anything. Package net/http runs
// no more of a connection's requests at a time than Config.MaxStreams, however many are taken back, and ends a
// connection that has asked for four times as many more meanwhile. But each one that ran has cost an instance work.
// So the connection of a client that goes on like this is closed.

// resetWindow is the time in which Config.MaxResets are too many.
const resetWindow = 10 * time.Second

// resets counts the requests of one connection that were taken back before their responses began.
type resets struct {
	conn net.Conn

	mu    sync.Mutex
	since time.Time // the window's begin; guarded by mu
	count int       // in the window; guarded by mu
}

// add counts one more, and tells whether that is one too many.
func (r *resets) add(now time.Time, most int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Sub(r.since) >= resetWindow {
		r.since, r.count = now, 0
	}
	r.count++
	return r.count > most
}

// resetsKey is the key of a connection's resets in the contexts of its requests.
type resetsKey struct{}

// withResets is the context of a connection's requests.
func withResets(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, resetsKey{}, &resets{conn: c})
}

// countReset counts a request whose client took it back, where others may go on over the same connection. Proxies that
// are trusted carry the requests of many clients: they are not counted.
func (x *exchange) countReset() {
	if x.request.ProtoMajor != 2 || x.origin.trusted {
		return
	}
	r, ok := x.request.Context().Value(resetsKey{}).(*resets)
	if !ok || !r.add(time.Now(), x.gateway.config.MaxResets) {
		return
	}
	x.gateway.config.Logger.Warn("connection closed: its client takes back requests as fast as it makes them",
		"client", x.origin.address, "requests", x.gateway.config.MaxResets, "within", resetWindow)
	r.conn.Close()
}
