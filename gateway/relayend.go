package gateway

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/berth-run/berth/gateway/http1"
)

// abandonUpload ends a request whose response is over, and whose body is not.
func (c *client) abandonUpload() {
	c.relay.keep = false
	c.last, c.unread = true, true
	c.finish()
}

// finish ends a request, and goes on to the next one.
func (c *client) finish() {
	c.endRequest()
	c.next()
}

func (c *client) next() {
	if c.last {
		c.state = stateFlushing
		return
	}
	c.state, c.since = stateReading, c.loop.tick
	if c.loop.draining {
		c.readable = true // nobody may have looked
	}
}

// endRequest gives back all that the request has, and counts it. It does nothing when there is no request.
func (c *client) endRequest() {
	l, x := c.loop, &c.relay
	c.waited()
	if x.conn != nil {
		conn := x.conn
		x.conn = nil
		if x.keep && !x.cut && conn.out.empty() {
			conn.pool.put(conn)
		} else {
			conn.pool.close(conn)
		}
	}
	// Each is forgotten first: after a fault in what follows all this is done again (guard).
	activator := x.activator
	if m := x.member; m != nil {
		x.member = nil
		activator.release(m, l.now)
	}
	if activator != nil {
		x.activator = nil
		c.record(activator)
		x.timing = nil
	}
	l.release(x.head)
	x.head = nil
	x.id++
	c.fin, c.probed = 0, false
}

// dropConn ends the request's connection to its instance.
func (c *client) dropConn() {
	if x := &c.relay; x.conn != nil {
		x.conn.pool.close(x.conn)
		x.conn = nil
	}
}

// fail ends a request that went wrong: with a refusal while nothing was sent to the client, else with a cut.
func (c *client) fail(err error) {
	l, x := c.loop, &c.relay
	c.dropConn()
	if x.begun {
		l.logger.Warn(cutMessage(err), c.logFields(err)...)
		x.cut = true
		c.last = true
		c.finish()
		return
	}
	l.logger.Debug("request failed", c.logFields(err)...)
	m := x.member
	if m == nil || errors.Is(err, errTimeout) || errors.Is(err, errMalformed) {
		c.refuse(l.gateway.refusalOf(l.ctx, err, m))
		return
	}
	x.member = nil
	x.activator.release(m, l.now)
	x.failing = true
	ctx, id := c.wait(), x.id // it takes a moment until it is known whether the instance has ended
	go func() {
		with := l.gateway.refusalOf(ctx, err, m)
		l.post(func() {
			defer c.guard()
			if c.fd >= 0 && x.id == id && c.state == stateHolding {
				c.waited()
				c.refuse(with)
				c.run()
			}
		})
	}()
}

// failBody ends a request whose body is malformed, or too large.
func (c *client) failBody(err error) {
	x := &c.relay
	c.dropConn() // the instance must not take half a body for a whole one
	if x.begun {
		c.fail(fmt.Errorf("%w: %w", errBadBody, err))
		return
	}
	if errors.Is(err, errBodyTooLarge) {
		c.refuse(c.loop.gateway.refusalOf(c.loop.ctx, err, nil))
		return
	}
	c.refuseMalformed(err)
}

// refuseMalformed answers what is not HTTP, or not in one way only. What follows it is not known.
func (c *client) refuseMalformed(err error) {
	with := &refusal{http.StatusBadRequest, "The request is malformed."}
	var wrong *http1.Error
	if errors.As(err, &wrong) {
		with = &refusal{wrong.Status, wrong.Text}
	}
	c.unread = true
	c.refuse(with)
}

// refuse answers a request with a refusal. One whose end is not known ends the connection.
func (c *client) refuse(with *refusal) { c.redirect(with, "") }

// redirect answers a request with a refusal that names another URL, "" for none.
func (c *client) redirect(with *refusal, location string) {
	l, x := c.loop, &c.relay
	c.unread = c.unread || !x.upDone
	c.last = c.last || c.unread || l.draining
	c.dropConn()
	if x.activator == nil {
		l.gateway.metrics.unrouted(with.status)
	}
	x.begun, x.status = true, with.status
	l.head = appendRefusal(l.head[:0], with, location, l.now, c.last, x.isHead)
	if !x.isHead {
		x.sent = int64(len(with.text) + 1)
	}
	c.endRequest()
	if c.send(l.head) == nil {
		c.next()
	}
}

// logFields are what a log line says of a request.
func (c *client) logFields(err error) []any {
	x := &c.relay
	revision := &x.activator.revision
	return []any{"namespace", revision.Namespace, "service", revision.Service, "revision", revision.Name,
		"instance", x.instance, "error", err}
}
