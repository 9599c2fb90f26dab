package gateway

import (
	"context"
	"time"

	"golang.org/x/sys/unix"
)

// instanceConn is an HTTP/1.1 connection to an instance, on a loop. One request uses it at a time.
type instanceConn struct {
	socket
	pool      *instanceConns
	client    *client // whose request is on it; nil while it is idle
	held      []byte  // what was read and is not used yet
	searched  int     // how far held was searched for the end of a head
	out       outbox
	used      bool // a request before this one ended well on it
	idleSince time.Duration
	idle      time.Duration // how long it was idle before it was taken last
	era       uint32        // connections.era when it became idle
}

// instanceConns are a loop's connections to one instance. Each loop has its own, so that taking one needs no lock.
type instanceConns struct {
	loop    *loop
	conns   *connections
	idle    []*instanceConn // last used last
	open    int             // idle and used ones
	closing bool            // the instance is draining: keep nothing
	timer   timer
}

// conns are the loop's connections to an instance.
func (l *loop) conns(m *member) *instanceConns {
	pool := l.instances[m.conns]
	if pool == nil {
		pool = &instanceConns{loop: l, conns: m.conns}
		pool.timer.owner = pool
		pool.closing = !m.conns.join(l)
		l.instances[m.conns] = pool
	}
	return pool
}

// take returns an idle connection that nothing is known to be wrong with, and that its instance is not about to close;
// nil when there is none.
func (p *instanceConns) take() *instanceConn {
	n := len(p.idle)
	if n == 0 {
		return nil
	}
	c := p.idle[n-1]
	if c.idle = p.loop.tick - c.idleSince; !p.conns.habit.usable(c.idle) || c.era != p.conns.era.Load() {
		return nil // nor are those that were used before it
	}
	p.idle[n-1] = nil
	p.idle = p.idle[:n-1]
	return c
}

// takeFor is take for a request that is all there and can be sent again, or for one that cannot: then it looks whether the
// instance has closed the connection, which the loop may not have heard of yet.
func (p *instanceConns) takeFor(repeatable bool) *instanceConn {
	c := p.take()
	for !repeatable && c != nil && !c.quiet() {
		p.close(c)
		c = p.take()
	}
	return c
}

// put keeps a connection whose response was read to its end.
func (p *instanceConns) put(c *instanceConn) {
	c.client = nil
	if p.closing || len(p.idle) >= maxIdleConns || len(c.held) > 0 || c.broken || c.ended || c.readable && !c.quiet() {
		p.close(c)
		return
	}
	c.used, c.idleSince, c.era = true, p.loop.tick, p.conns.era.Load()
	p.idle = append(p.idle, c)
	if p.timer.at == 0 {
		p.loop.timers.set(&p.timer, p.loop.tick+idleConnAge)
	}
}

// quiet looks whether a connection that may have something to read has not.
func (c *instanceConn) quiet() bool {
	var b [1]byte
	_, err := c.read(b[:])
	return err == errAgain
}

// close closes a connection that is not among the idle ones.
func (p *instanceConns) close(c *instanceConn) {
	l := p.loop
	c.client = nil
	l.close(&c.socket)
	l.release(c.held)
	c.held = nil
	l.drop(&c.out)
	p.open--
	p.end()
}

// end forgets the connections to an instance that takes no more requests, when the last one is closed.
func (p *instanceConns) end() {
	if p.closing && p.open == 0 && p.loop.instances[p.conns] == p {
		p.loop.timers.remove(&p.timer)
		p.conns.leave(p.loop)
		delete(p.loop.instances, p.conns)
	}
}

// run is called when a connection has changed.
func (c *instanceConn) run() {
	if c.client != nil {
		c.client.run()
		return
	}
	if c.fd < 0 || !c.readable && !c.ended && !c.broken {
		return
	}
	// The instance has closed an idle connection, or says what nobody asked for.
	idle := c.pool.idle
	for i := range idle {
		if idle[i] == c {
			c.pool.conns.habit.ended(c.pool.loop.tick - c.idleSince)
			c.pool.idle = append(idle[:i], idle[i+1:]...)
			c.pool.close(c)
			return
		}
	}
}

// expire closes the connections that have been idle for long.
func (p *instanceConns) expire() {
	n := 0
	for n < len(p.idle) && p.idle[n].idleSince+idleConnAge <= p.loop.tick {
		n++
	}
	old := append([]*instanceConn(nil), p.idle[:n]...)
	p.idle = append(p.idle[:0], p.idle[n:]...)
	for _, c := range old {
		p.close(c)
	}
	if len(p.idle) > 0 {
		p.loop.timers.set(&p.timer, p.idle[0].idleSince+idleConnAge)
	}
}

// closeIdle closes the idle connections, and from now on each one whose request ends.
func (p *instanceConns) closeIdle() {
	p.closing = true
	idle := p.idle
	p.idle = nil
	for _, c := range idle {
		p.close(c)
	}
	p.end()
}

// closeAll is for the end of the loop.
func (p *instanceConns) closeAll() {
	for _, c := range p.idle {
		p.loop.close(&c.socket)
	}
	p.idle = nil
}

// adopt makes a connection of a socket.
func (p *instanceConns) adopt(fd int) (*instanceConn, error) {
	c := &instanceConn{pool: p}
	if err := p.loop.add(&c.socket, fd, c); err != nil {
		unix.Close(fd)
		return nil, err
	}
	p.open++
	return c, nil
}

// dialSocket opens a connection to the instance. It waits, and is not for a loop's goroutine. at is zero for no limit.
func (p *connections) dialSocket(ctx context.Context, at time.Time) (int, error) {
	if !at.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, at)
		defer cancel()
	}
	conn, err := p.instance.Dial(ctx)
	if err != nil {
		return -1, err
	}
	return takeSocket(conn)
}

// join tells the connections of a loop that has some too; false when the instance takes no more requests.
func (p *connections) join(l *loop) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.loops = append(p.loops, l)
	return !p.closing
}

func (p *connections) leave(l *loop) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.loops {
		if p.loops[i] == l {
			p.loops = append(p.loops[:i], p.loops[i+1:]...)
			return
		}
	}
}

// closeInstance is posted when an instance takes no more requests.
func (l *loop) closeInstance(p *connections) {
	if pool := l.instances[p]; pool != nil {
		pool.closeIdle()
	}
}
