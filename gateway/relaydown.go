package gateway

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/gateway/http1"
)

// relayDown passes the response on.
func (c *client) relayDown() bool {
	l, x := c.loop, &c.relay
	conn := x.conn
	if x.answered != 0 {
		switch {
		case x.upBroken:
			c.abandonUpload()
		case x.upDone && conn.out.empty():
			c.finish()
		default:
			return false
		}
		return true
	}
	if !c.out.empty() || !conn.readable && !conn.broken {
		return false
	}
	p, err := l.fill(&conn.socket, conn.held, readSize)
	switch {
	case err == errAgain && !conn.broken:
		return false
	case err != nil:
		c.instanceEnded(err)
		return x.doubt == 0
	}
	x.agent = true
	x.heard = l.tick
	if !x.begun {
		c.readHead(p)
	} else {
		c.passBody(nil, p)
	}
	return true
}

// readHead reads the heads of interim responses, and that of the final one. p is what was read of the instance.
func (c *client) readHead(p []byte) {
	l, x := c.loop, &c.relay
	conn := x.conn
	for {
		end := 0
		if end, conn.searched = http1.FindEnd(p, conn.searched); end == 0 || end > maxResponseHead {
			if len(p) > maxResponseHead {
				c.fail(fmt.Errorf("%w: its head is longer than %d bytes", errMalformed, maxResponseHead))
				return
			}
			conn.held = l.hold(conn.held, p)
			return
		}
		r := &l.response
		if err := r.Parse(p[:end]); err != nil {
			c.fail(fmt.Errorf("%w: %w", errMalformed, err))
			return
		}
		p = p[end:]
		switch {
		case r.Status == http.StatusSwitchingProtocols:
			if !x.upgrades {
				c.fail(fmt.Errorf("%w: 101 Switching Protocols to a request that did not ask for it", errMalformed))
				return
			}
			c.tunnel(r, p)
			return
		case r.Status == http.StatusContinue && !x.waits: // it has got one, or asked for none
			continue
		case r.Status < 200:
			x.waits = x.waits && r.Status != http.StatusContinue
			l.head = appendInterim(l.head[:0], r)
			if c.send(l.head) != nil {
				return
			}
			continue
		}
		c.beginResponse(r, p)
		return
	}
}

// beginResponse gives the client the response's head, with what there is of its body.
func (c *client) beginResponse(r *http1.Response, p []byte) {
	l, x := c.loop, &c.relay
	x.timing.lapNow(stageAnswer)
	x.downLeft = r.Body
	x.keep = !r.Close && r.Body != http1.UntilClose
	none := x.isHead || r.Status == http.StatusNoContent || r.Status == http.StatusNotModified
	if none {
		comes := r.Status == http.StatusNoContent && (r.Body > 0 || r.Body == http1.Chunked) // a body, all the same
		x.keep = !r.Close && !comes
	}
	x.begun, x.status = true, r.Status
	c.last = c.last || !x.upDone // what comes after it would have to be told from the rest of the body
	l.head = c.appendHead(l.head[:0], r, none)
	if none || r.Body == 0 {
		x.conn.held = l.hold(x.conn.held, p) // there should be nothing
		c.sendLast(l.head)
		return
	}
	c.passBody(l.head, p)
}

// passBody passes p, what was read of the response's body, on to the client, behind its head or nil.
func (c *client) passBody(head, p []byte) {
	l, x := c.loop, &c.relay
	conn := x.conn
	body, done := p, false
	var before, after []byte
	switch x.downLeft {
	case http1.Chunked:
		out, consumed, ended, err := x.downChunks.Normalize(p, http1.Limits{Head: maxResponseHead})
		if err != nil {
			if head != nil && c.send(head) != nil {
				return
			}
			c.fail(fmt.Errorf("%w: %w", errMalformed, err))
			return
		}
		conn.held = l.hold(conn.held, p[consumed:])
		body, done = p[:out], ended
		x.sent = x.downChunks.Data()
	case http1.UntilClose:
		if len(p) > 0 {
			before = append(strconv.AppendInt(before, int64(len(p)), 16), "\r\n"...)
			after = []byte("\r\n")
		}
		conn.held = l.hold(conn.held, nil)
		x.sent += int64(len(p))
	default:
		if int64(len(p)) >= x.downLeft {
			body, done = p[:x.downLeft], true
		}
		conn.held = l.hold(conn.held, p[len(body):])
		x.downLeft -= int64(len(body))
		x.sent += int64(len(body))
	}
	if done {
		c.sendLast(head, before, body, after)
	} else {
		c.send(head, before, body, after)
	}
}

// sendLast writes the last of a response to the client. What the request has is given back before: when the client has
// its response, its slot is free.
func (c *client) sendLast(pieces ...[]byte) {
	x := &c.relay
	switch {
	case x.upDone && x.conn.out.empty():
		c.endRequest()
		if c.send(pieces...) == nil {
			c.next()
		}
	case c.send(pieces...) != nil:
	case x.upBroken:
		c.abandonUpload()
	default:
		x.answered = c.loop.tick // both connections can be used again if the body ends soon
	}
}

// send writes to the client. When that fails the client is gone, and all is done.
func (c *client) send(pieces ...[]byte) error {
	err := c.loop.send(&c.socket, &c.out, pieces...)
	if err != nil {
		c.gone()
		return err
	}
	if !c.out.empty() {
		c.stalled, c.untaken = c.loop.tick, c.unacknowledged()
	}
	return nil
}

// instanceEnded is called when nothing more comes from the instance.
func (c *client) instanceEnded(err error) {
	x := &c.relay
	switch {
	case !x.agent:
		c.unanswered(err)
	case !x.begun:
		c.fail(fmt.Errorf("%w: in the middle of its head: %w", errMalformed, io.ErrUnexpectedEOF))
	case x.downLeft == http1.UntilClose && err == io.EOF && !errors.Is(x.conn.sendErr, unix.ECONNRESET): // else a write was told of the reset
		c.sendLast([]byte("0\r\n\r\n"))
	default:
		c.fail(fmt.Errorf("%w: %w", errTruncated, err))
	}
}

// unanswered is called when a connection ended before anything of an answer came. Only a request that the instance's
// TCP has provably not taken goes to it again, or to another one; until that is decided this is called again.
func (c *client) unanswered(err error) {
	x := &c.relay
	conn := x.conn
	if conn.used {
		conn.pool.conns.habit.ended(conn.idle)
	}
	if err == io.EOF && x.repeat {
		switch fateOf(conn.fd, conn.accepted, conn.sendErr) {
		case untaken:
			reused := conn.used
			c.dropConn()
			if reused { // it closed it for its idleness: a new one will do
				c.dial()
			} else {
				c.unreachable(err)
			}
			return
		case undecided:
			if x.doubt == 0 {
				x.doubt = c.loop.tick
			}
			if c.loop.tick-x.doubt < fateWait {
				return
			}
		}
	}
	c.fail(fmt.Errorf("%w: %w", errUnanswered, err))
}
