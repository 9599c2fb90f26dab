package gateway

import (
	"context"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// farewell is how the standard library's server ends without losing a request: it closes connections as soon as they are
// idle, at a moment when a client of HTTP/1 may have sent its next request. So for drainGrace after the last one was
// heard, responses say that they are the last. Clients of HTTP/2 are told by the protocol itself.
type farewell struct {
	gateway *Gateway
	heard   atomic.Int64 // when a connection last got a request or became idle, in nanoseconds since 1970
}

// watch is the server's ConnState.
func (f *farewell) watch(c net.Conn, state http.ConnState) {
	if _, ok := c.(*strictConn); !ok { // HTTP/2 over TLS has none
		return
	}
	if state == http.StateActive || state == http.StateIdle { // a client may have its response before this is idle
		f.heard.Store(time.Now().UnixNano())
	}
}

// say lets responses say that they are the last, until there is nobody left to be told, or ctx ends.
func (f *farewell) say(ctx context.Context) {
	f.gateway.ending.Add(1)
	defer f.gateway.ending.Add(-1)
	left := drainGrace - time.Since(time.Unix(0, f.heard.Load()))
	if left <= 0 {
		return
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
