package gateway

import (
	"context"
	"net/http"
	"time"

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
	timing    *timing   // nil for a request that has not waited

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
	var conn *instanceConn
	if !activator.mustWake(m) { // else dial does
		conn = l.conns(m).takeFor(x.upDone && len(first) <= maxRepeat)
	}
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

// deadline is when the response must have begun; zero for never.
func (x *relay) deadline() time.Time {
	return x.activator.revision.deadline(x.arrived, x.claimed)
}

// forward sends the request on a connection: its head, and what is known of its body.
func (c *client) forward(conn *instanceConn, body []byte) {
	l, x := c.loop, &c.relay
	c.state = stateRelaying
	x.timing.lapNow(stageConnect)
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
	p, err := l.fill(&c.socket, c.held, readSize)
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
