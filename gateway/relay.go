package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/gateway/http1"
)

// relay is one request and its response on a loop: what exchange is for net/http. A client has one, for one request after
// the other. Its begin, and all of the path of a request that finds a warm instance, is in client.begin.
type relay struct {
	id        uint64 // of the request; what a goroutine posts for another one comes too late
	activator *Activator
	member    *member // whose slot the request has; nil while it has none
	conn      *instanceConn
	cancel    context.CancelFunc // ends what is waited for; nil when nothing is
	tag       string
	instance  string // the last one that it was given to
	arrived   time.Time
	claimed   time.Time // when it was given to the instance; zero while it has none
	trace     traceContext
	affinity  affinity  // what the client's cookie says, where the route has affinity
	proto     string    // what the client speaks: http, or at a trusted proxy https
	unreached time.Time // when an instance first took no connection; zero while none has

	head    []byte // the request's head as the instance gets it, and what more may have to be sent again
	headEnd int    // of the head
	method  int    // its length: head begins with it
	target  int    // its length; it follows the method
	host    int    // its length; it follows " HTTP/1.1\r\nHost: "

	upLeft   int64        // of the request's body: bytes to come, or http1.Chunked
	upChunks http1.Chunks // of a body in chunks
	upDone   bool         // the whole body has been sent, or there is none
	upBroken bool         // the instance takes no more of it: its response decides
	repeat   bool         // head holds all that was sent

	isHead   bool          // the method is HEAD
	waits    bool          // the client waits for a 100 before it sends its body
	upgrades bool          // it asked for a change of protocol
	limit    time.Duration // when the response must have begun; 0 for never
	idle     time.Duration // longest silence of the instance within its response; 0 for no limit
	heard    time.Duration // when the instance was last heard
	doubt    time.Duration // when the connection ended without an answer, and without a proof that nothing was taken; or 0
	answered time.Duration // when the response ended before the request's body did; 0 when it has not
	half     time.Duration // when the first side of a tunnel ended its half; 0 when none has

	clientEnded, instanceEnded bool // its half of a tunnel
	failing                    bool // it is being found out what to answer

	begun      bool // the response's head has been given to the client: status is final
	cut        bool // the response ended early
	keep       bool // the instance's connection can be used again
	status     int
	sent       int64 // bytes of the response's body
	downLeft   int64 // of the response's body: bytes to come, http1.Chunked or http1.UntilClose
	downChunks http1.Chunks
	agent      bool // anything of an answer has come
}

// reset makes the relay ready for another request.
func (x *relay) reset(now time.Time) {
	*x = relay{id: x.id + 1, arrived: now, head: x.head[:0], upDone: true}
}

// begin takes a request whose head is p[:end]; behind it is what else was read. It finds the route, claims a slot
// on an instance and sends the request there, as ServeHTTP does for net/http, if nothing of that has to wait.
func (c *client) begin(p []byte, end int) bool {
	l, g, x, r := c.loop, c.loop.gateway, &c.relay, &c.loop.request
	if !c.served && isHTTP2(p[:end]) { // later it is a request like others, of a version that is not spoken
		c.handOver(p)
		return false
	}
	x.reset(l.now)
	if err := r.Parse(p[:end], g.limits); err != nil {
		g.requests.Add(1)
		c.refuseMalformed(err)
		return true
	}
	rest := p[end:]
	upgrade := passedUpgrade(r)
	if r.Minor == 0 || upgrade == "h2c" {
		c.handOver(p)
		return false
	}
	x.upLeft, x.upDone = r.Body, r.Body == 0
	x.isHead = string(r.Method) == http.MethodHead
	x.waits = r.Continue
	c.last = c.last || r.Close || l.draining
	c.served = true
	if x.upDone {
		c.held = l.hold(c.held, rest)
		c.fresh = len(rest) > 0
	} else {
		c.held = l.hold(c.held, nil)
	}

	if refused := refuseMethod(view(r.Method)); refused != nil {
		g.requests.Add(1)
		c.unread = string(r.Method) == http.MethodConnect // what follows is meant for a tunnel
		c.refuse(refused)
		return true
	}
	x.proto = c.protocol(r)
	if g.intercepts() && x.proto != "https" {
		if answer, location := g.intercept(view(r.Host), view(r.Target)); answer != nil {
			g.requests.Add(1)
			c.redirect(answer, location)
			return true
		}
	}
	route := g.table.lookup(view(r.Host))
	switch {
	case route == nil:
		g.requests.Add(1)
		c.refuse(unknownHost(string(r.Host)))
		return true
	case route.unready != "":
		g.requests.Add(1)
		c.refuse(&refusal{status: http.StatusServiceUnavailable, text: route.unready})
		return true
	}
	if refused := g.config.overLimit(0, 0, r.Body); refused != nil {
		g.requests.Add(1)
		c.refuse(refused)
		return true
	}
	var activator *Activator
	if route.affine {
		x.affinity = affinityOfFields(r.Fields)
		activator = route.prefer(x.affinity)
	}
	sticks := activator != nil
	if !sticks {
		activator = route.choose()
	}
	if activator.revision.HTTP2 {
		c.handOver(p)
		return false
	}
	g.requests.Add(1)
	x.activator, x.tag = activator, route.tag
	x.idle = activator.revision.Idle
	x.upgrades = upgrade != ""
	if x.head == nil {
		x.head = l.buffer()
	}
	c.writeHead(r, upgrade)
	x.headEnd = len(x.head)

	var first []byte
	if !x.upDone {
		var err error
		if first, rest, err = c.takeBody(rest); err != nil {
			c.failBody(err)
			return true
		}
		c.held = l.hold(c.held, rest)
		c.fresh = x.upDone && len(rest) > 0
	}

	var m *member
	if sticks {
		m = activator.claimMarked(x.affinity.instance, x.arrived)
	}
	if m == nil {
		m = activator.tryClaim(x.arrived)
	}
	if m == nil {
		x.head = append(x.head, first...)
		c.claim()
		return false
	}
	x.give(m, x.arrived)
	conn := l.conns(m).takeFor(x.upDone && len(first) <= maxRepeat)
	if conn == nil {
		x.head = append(x.head, first...)
		c.dial()
		return false
	}
	if x.repeat = len(first) <= maxRepeat; x.repeat && len(first) > 0 {
		x.head, first = append(x.head, first...), nil
	}
	c.forward(conn, first)
	return true
}

// maxRepeat is how much of a body is kept until the instance is known to have taken something.
const maxRepeat = 16 << 10

// takeBody takes from p what belongs to the request's body, as it is passed on. What is left is of the next request, or
// of a line that is not complete.
func (c *client) takeBody(p []byte) (body, rest []byte, err error) {
	x := &c.relay
	switch {
	case x.upLeft == http1.Chunked:
		out, consumed, done, err := x.upChunks.Normalize(p, c.loop.gateway.limits)
		if err != nil {
			return nil, nil, err
		}
		if most := c.loop.gateway.config.MaxBodyBytes; most > 0 && x.upChunks.Data() > most {
			return nil, nil, errBodyTooLarge
		}
		x.upDone = done
		return p[:out], p[consumed:], nil
	}
	n := len(p)
	if int64(n) >= x.upLeft {
		n = int(x.upLeft)
		x.upDone = true
	}
	x.upLeft -= int64(n)
	return p[:n], p[n:], nil
}

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

// dial waits for a connection to the instance whose slot the request has.
func (c *client) dial() {
	x := &c.relay
	ctx := c.wait()
	l, id, conns, at := c.loop, x.id, x.member.conns, x.deadline()
	go func() {
		fd, err := conns.dialSocket(ctx, at)
		taken := l.post(func() {
			defer c.guard()
			if c.fd < 0 || x.id != id || c.state != stateHolding {
				if err == nil {
					unix.Close(fd)
				}
				return
			}
			c.waited()
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
	if x.upDone || x.failing || !c.readable || len(x.head) >= keepSize/2 {
		return false
	}
	p, err := l.fill(&c.socket, c.held)
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

// deadline is when the response must have begun; zero for never.
func (x *relay) deadline() time.Time {
	return x.activator.revision.deadline(x.arrived, x.claimed)
}

// forward sends the request on a connection: its head, and what is known of its body.
func (c *client) forward(conn *instanceConn, body []byte) {
	l, x := c.loop, &c.relay
	c.state = stateRelaying
	x.conn, conn.client = conn, c
	conn.accepted = 0
	x.heard = l.tick
	x.limit, x.doubt, x.upBroken = 0, 0, false
	conn.searched = 0
	if at := x.deadline(); !at.IsZero() {
		x.limit = at.Sub(l.began)
	}
	if err := l.send(&conn.socket, &conn.out, x.head, body); err != nil {
		x.upBroken = true // an instance that has read enough may have answered
		l.drop(&conn.out)
		conn.readable = true
	}
}

// relayStep passes on what there is of either side.
func (c *client) relayStep() bool {
	up := c.relayUp()
	if c.state != stateRelaying {
		return true
	}
	return c.relayDown() || up
}

// relayUp passes the request's body on.
func (c *client) relayUp() bool {
	l, x := c.loop, &c.relay
	conn := x.conn
	if !conn.out.empty() {
		if _, err := l.flush(&conn.socket, &conn.out); err != nil {
			x.upBroken = true
			l.drop(&conn.out)
			conn.readable = true
		}
	}
	if x.upDone || x.upBroken || x.doubt != 0 || !conn.out.empty() || !c.readable {
		return false
	}
	p, err := l.fill(&c.socket, c.held)
	if err == errAgain {
		return false
	}
	if err != nil { // the body has not ended: what the instance has got of it must not be taken for all of it
		c.gone()
		return true
	}
	body, rest, err := c.takeBody(p)
	if err != nil {
		c.failBody(err)
		return true
	}
	c.held = l.hold(c.held, rest)
	c.fresh = x.upDone && len(rest) > 0
	x.waits = false
	if len(body) > 0 {
		if x.repeat = x.repeat && !x.agent && len(x.head)-x.headEnd+len(body) <= maxRepeat; x.repeat {
			x.head = append(x.head, body...)
		}
		if err := l.send(&conn.socket, &conn.out, body); err != nil {
			x.upBroken = true
			conn.readable = true
		}
	}
	return true
}

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
	p, err := l.fill(&conn.socket, conn.held)
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
		c.stalled = c.loop.tick
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

// tunnel gives the client the 101, then carries bytes both ways until one side ends. It holds the request's slot for as
// long (contract C24).
func (c *client) tunnel(r *http1.Response, p []byte) {
	l, x := c.loop, &c.relay
	c.state = stateTunneling
	x.begun, x.status, c.last = true, r.Status, true
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
		p, err := l.fill(&c.socket, c.held)
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
		p, err := l.fill(&conn.socket, nil)
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
