package gateway

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// give notes whose slot the request has now.
func (x *relay) give(m *member, now time.Time) {
	x.member, x.instance, x.claimed = m, m.id, now
}

// claim waits for a slot on an instance.
func (c *client) claim() {
	x := &c.relay
	ctx := c.wait()
	l, id, activator, arrived := c.loop, x.id, x.activator, x.arrived
	go func() {
		m, err := activator.claim(ctx, arrived)
		c.claimPosted(l, id, activator, m, err)
	}()
}

// claimAgain waits for another slot, for a request of which nothing has reached its instance.
func (c *client) claimAgain() {
	x := &c.relay
	unreachable := x.member
	x.member = nil // it is the goroutine's to give back
	ctx := c.wait()
	l, id, activator, arrived := c.loop, x.id, x.activator, x.arrived
	go func() {
		m, err := activator.claimAgain(ctx, unreachable, arrived)
		c.claimPosted(l, id, activator, m, err)
	}()
}

func (c *client) claimPosted(l *loop, id uint64, activator *Activator, m *member, err error) {
	taken := l.post(func() {
		defer c.guard()
		x := &c.relay
		if c.fd < 0 || x.id != id || c.state != stateHolding {
			if err == nil {
				activator.release(m, time.Now())
			}
			return
		}
		c.waited()
		if err != nil {
			c.fail(err)
		} else {
			x.give(m, time.Now())
			x.timing = x.timing.given(m, x.arrived)
			if conn := l.conns(m).takeFor(x.upDone); conn != nil {
				x.repeat = true
				c.forward(conn, nil)
			} else {
				c.dial()
			}
		}
		c.run()
	})
	if !taken && err == nil {
		activator.release(m, time.Now())
	}
}

// dial waits for a connection to the instance whose slot the request has, and before that until it has the CPU again, where
// it is withheld between requests: connections from before are not used then.
func (c *client) dial() {
	x := &c.relay
	ctx := c.wait()
	l, id, activator, m, at := c.loop, x.id, x.activator, x.member, x.deadline()
	go func() {
		woken := time.Time{} // when, if it had to be
		asleep := activator.mustWake(m)
		fd, err := -1, activator.wake(m)
		if asleep {
			woken = time.Now()
		}
		if err == nil {
			fd, err = m.conns.dialSocket(ctx, at)
		}
		taken := l.post(func() {
			defer c.guard()
			if c.fd < 0 || x.id != id || c.state != stateHolding {
				if err == nil {
					unix.Close(fd)
				}
				return
			}
			c.waited()
			if !woken.IsZero() {
				x.claimed = woken
				x.timing = x.timing.woken(m, x.arrived, woken)
			}
			c.dialed(fd, err)
			c.run()
		})
		if !taken && err == nil {
			unix.Close(fd)
		}
	}()
}

func (c *client) dialed(fd int, err error) {
	x := &c.relay
	var conn *instanceConn
	if err == nil {
		conn, err = c.loop.conns(x.member).adopt(fd)
	}
	switch {
	case err == nil:
		x.repeat = true
		c.forward(conn, nil)
	case errors.Is(err, context.DeadlineExceeded):
		c.fail(errTimeout)
	default:
		c.unreachable(err)
	}
}

// readAhead reads the request's body while the request waits, as much as is kept of it: so a client that leaves in
// the middle of it is noticed.
func (c *client) readAhead() bool {
	l, x := c.loop, &c.relay
	if x.upDone || x.failing || !c.readable || len(x.head) >= requestSize {
		return false
	}
	p, err := l.fill(&c.socket, c.held, requestSize)
	if err == errAgain {
		return false
	}
	if err != nil {
		c.gone()
		return true
	}
	body, rest, err := c.takeBody(p)
	if err != nil {
		c.waited()
		x.id++ // what it waited for comes too late
		c.failBody(err)
		return true
	}
	c.held = l.hold(c.held, rest)
	c.fresh = x.upDone && len(rest) > 0
	x.head = append(x.head, body...)
	return true
}

// unreachable is called when nothing of the request has reached the instance: another one may take it, or this one a
// little later.
func (c *client) unreachable(err error) {
	x := &c.relay
	if x.unreached.IsZero() {
		x.unreached = c.loop.now
	}
	if isHopeless(x.member, c.loop.now.Sub(x.unreached)) {
		c.fail(fmt.Errorf("%w: %w", errUnreachable, err))
		return
	}
	c.claimAgain()
}

// wait begins to wait for a goroutine, which may work until the context ends.
func (c *client) wait() context.Context {
	ctx, cancel := context.WithCancel(c.loop.ctx)
	c.relay.cancel = cancel
	c.state = stateHolding
	return ctx
}

func (c *client) waited() {
	if x := &c.relay; x.cancel != nil {
		x.cancel()
		x.cancel = nil
	}
}
