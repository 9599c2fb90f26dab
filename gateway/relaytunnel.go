package gateway

import (
	"io"
	"slices"

	"github.com/berth-run/berth/gateway/http1"
)

// tunnel gives the client the 101, then carries bytes both ways until one side ends. It holds the request's slot for as
// long (contract C24).
func (c *client) tunnel(r *http1.Response, p []byte) {
	l, x := c.loop, &c.relay
	c.state = stateTunneling
	x.begun, x.status, c.last = true, r.Status, true
	x.timing.lapNow(stageAnswer)
	l.head = c.appendSwitch(l.head[:0], r)
	x.conn.held = l.hold(x.conn.held, nil)
	x.sent += int64(len(p))
	// It may last for long: only what the log will say of the request is kept.
	head := x.head
	x.head = nil
	if l.gateway.log != nil {
		x.head = slices.Clone(head[:x.method+1+x.target+len(headHost)+x.host])
	}
	l.release(head)
	c.send(l.head, p)
}

// tunnelStep passes on what there is of either side. When one has ended its half the other may still speak.
func (c *client) tunnelStep() bool {
	l, x := c.loop, &c.relay
	conn := x.conn
	if !conn.out.empty() {
		if _, err := l.flush(&conn.socket, &conn.out); err != nil {
			c.endTunnel()
			return true
		}
	}
	progress := false
	if conn.out.empty() && !x.clientEnded && (c.readable || len(c.held) > 0) {
		p, err := l.fill(&c.socket, c.held, readSize)
		c.held = l.hold(c.held, nil)
		if len(p) > 0 && l.send(&conn.socket, &conn.out, p) != nil {
			c.endTunnel()
			return true
		}
		progress = err == nil || len(p) > 0
		switch {
		case err == io.EOF && conn.out.empty(): // else it is found again when all before it is sent
			x.clientEnded = true
			conn.shutdownWrite()
		case err != nil && err != errAgain && err != io.EOF:
			c.endTunnel()
			return true
		}
	}
	if c.out.empty() && !x.instanceEnded && conn.readable {
		p, err := l.fill(&conn.socket, nil, readSize)
		x.sent += int64(len(p))
		if len(p) > 0 && c.send(p) != nil {
			return true
		}
		progress = progress || err == nil
		switch {
		case err == io.EOF:
			x.instanceEnded = true
			c.shutdownWrite()
		case err != nil && err != errAgain:
			c.endTunnel()
			return true
		}
	}
	switch {
	case x.clientEnded && x.instanceEnded:
		c.endTunnel()
		return true
	case x.half == 0 && (x.clientEnded || x.instanceEnded):
		x.half = l.tick
	}
	return progress
}

func (c *client) endTunnel() {
	c.relay.keep = false
	c.finish()
}
