package gateway

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/gateway/http1"
)

// client is a connection from a client that speaks HTTP/1.1 without TLS, on its loop. It is always in one state, and has
// one request at a time: those that it sends ahead stay in the socket, or in held.
//
// All its work is done by run, which is called whenever something has changed, and which takes steps until it must wait.
type client struct {
	socket
	loop    *loop
	address string // its IP address
	origin  netip.Addr
	trusted bool // it is a proxy whose X-Forwarded-… fields count
	state   clientState
	queued  bool // in loop.again
	timer   timer

	held     []byte // what was read and is not used yet
	searched int    // how far held was searched for the end of a head
	fresh    bool   // held is behind the end of a request: the next one may be in it
	out      outbox
	stalled  time.Duration // when the client last took a byte of what was written
	untaken  int           // bytes that the kernel had for it then, while out is not empty
	since    time.Duration // when its state began; in reading, when the first byte of a request came
	partial  bool          // a part of a request's head has come
	served   bool          // it has had a request
	last     bool          // it ends when the request that it is on has ended
	unread   bool          // it may be sending what nobody will read
	fin      time.Duration // when it was seen that it ended its half; 0 when it has not
	probed   bool          // it was written to since, and takes it

	relay relay
}

// clientState is what a client waits for.
type clientState int

const (
	stateReading   clientState = iota // a request, or the rest of its head
	stateHolding                      // an instance, a connection to one, or the reason why one broke
	stateRelaying                     // bytes of either side
	stateTunneling                    // the same, after a change of protocol
	stateFlushing                     // room for the last bytes of a response
	stateLingering                    // the client's end, after its last response
	stateClosed                       // nothing more
)

// A client that has ended its half may still read; one that is gone looks the same, until it is written to. So one that
// waits for its response is written to after probeWait. In a response there is nothing to say: when that is silent for
// silenceWait the client is taken to be gone, as proxies do at once.
const (
	probeWait   = 100 * time.Millisecond
	silenceWait = time.Second
)

// drainGrace is how long a client that was heard a moment ago may send its next request to a server that stops. The
// response tells it that the connection ends; without that the request would be lost.
const drainGrace = 500 * time.Millisecond

const probe = "HTTP/1.1 100 Continue\r\n\r\n" // which clients ignore (RFC 9110, 15.2)

// serveClient takes a connection that was accepted.
func (l *loop) serveClient(fd int, from netip.Addr) {
	c := &client{loop: l, origin: from, address: from.String(), since: l.tick}
	c.trusted = containsAddr(l.gateway.config.TrustForwarded, from)
	c.timer.owner = c
	if refused := l.gateway.clients.enter(from); refused != nil {
		unix.Write(fd, refused.appendResponse(nil)) // a new connection has room for this; whether it is read is the client's matter
		unix.Close(fd)
		return
	}
	if err := l.add(&c.socket, fd, c); err != nil {
		l.logger.Warn("accepting a connection", "error", err)
		l.gateway.clients.leave(from)
		unix.Close(fd)
		return
	}
	l.clients[c] = struct{}{}
	c.readable = true // most have sent their request already
	c.run()
}

// run takes steps until the client must wait, or has had its turn.
func (c *client) run() {
	if c.queued { // its turn comes
		return
	}
	defer c.guard()
	for range maxTurn {
		if c.fd < 0 {
			return
		}
		if !c.step() {
			c.arm()
			return
		}
	}
	if c.fd >= 0 {
		c.queued = true
		c.loop.again = append(c.loop.again, c)
	}
	c.arm()
}

// step does what can be done next; false when there is nothing.
func (c *client) step() bool {
	if !c.out.empty() {
		n, err := c.loop.flush(&c.socket, &c.out)
		if err != nil {
			c.gone()
			return false
		}
		if n > 0 {
			c.stalled, c.untaken = c.loop.tick, c.unacknowledged()
			c.relay.heard = c.loop.tick // the instance was not listened to
		}
	}
	if c.broken {
		c.gone()
		return false
	}
	switch c.state {
	case stateReading:
		return c.out.empty() && c.read()
	case stateHolding:
		c.watch()
		return c.readAhead()
	case stateRelaying:
		c.watch()
		return c.relayStep()
	case stateTunneling:
		return c.tunnelStep()
	case stateFlushing:
		if c.out.empty() {
			c.hangUp()
			return true
		}
	case stateLingering:
		return c.linger()
	}
	return false
}

// watch sees when a client has ended its half of the connection while its request is worked on: it may still read, or
// be gone. The deadlines that follow find out.
func (c *client) watch() {
	if c.ended && c.fin == 0 && c.relay.upDone {
		c.fin = c.loop.tick
	}
}

// read reads the next request, or more of it.
func (c *client) read() bool {
	l := c.loop
	var p []byte
	var err error
	if c.fresh {
		c.fresh = false
		p = l.in[:copy(l.in, c.held)]
	} else if p, err = l.fill(&c.socket, c.held, requestSize); err == errAgain {
		return false
	}
	if n := http1.EmptyLines(p); n > 0 {
		p, c.searched = p[n:], 0
	}
	end := 0
	if len(p) > 0 {
		if end, c.searched = http1.FindEnd(p, c.searched); end == 0 && (p[0] <= ' ' || p[0] >= 0x7f) && string(p) != "\r" {
			end = len(p) // no request begins like this: its parser says so
		}
	}
	switch {
	case end > 0:
		c.searched, c.partial = 0, false
		c.since = l.tick
		return c.begin(p, end)
	case err != nil: // in the middle of a head too: nobody waits for an answer
		c.close()
		return false
	}
	if wrong := l.gateway.limits.Exceeded(p); wrong != nil {
		c.relay.reset(l.now)
		c.refuseMalformed(wrong)
		return true
	}
	if len(p) > 0 && !c.partial {
		c.partial, c.since = true, l.tick
	}
	c.held = l.hold(c.held, p)
	return c.readable
}

// handOver gives the connection to net/http, before the request that was read.
func (c *client) handOver(read []byte) {
	l := c.loop
	l.remove(&c.socket)
	handed, err := newHandedConn(c.fd, read)
	c.fd, c.state = -1, stateClosed
	c.forget()
	if err != nil {
		l.gateway.clients.leave(c.origin)
		l.logger.Warn("a connection was lost", "error", err)
		return
	}
	conn := newClientConn(handed, l.gateway.config.WriteTimeout)
	from := c.origin
	conn.left = func() { l.gateway.clients.leave(from) } // it keeps its place until it is closed
	l.handOff(conn)
}

// hangUp ends the connection after its last response. A close would be a reset if the client had sent what nobody
// read, and a reset can overtake the response.
func (c *client) hangUp() {
	if !c.unread && !c.readable {
		c.close()
		return
	}
	c.shutdownWrite()
	c.state, c.since = stateLingering, c.loop.tick
	c.loop.release(c.held)
	c.held = nil
}

// linger reads off what the client still sends.
func (c *client) linger() bool {
	_, err := c.loop.fill(&c.socket, nil, readSize)
	if err == nil {
		return true
	}
	if !errors.Is(err, errAgain) {
		c.close()
	}
	return false
}

// gone ends everything: the client is not there any more, or does not take what it is sent.
func (c *client) gone() {
	x := &c.relay
	if c.state == stateHolding || c.state == stateRelaying || c.state == stateTunneling {
		if !x.begun {
			x.status = statusClientGone
		}
		whole := x.answered != 0 && c.out.empty() // it has all of the response
		x.cut = c.state != stateTunneling && !whole
		x.keep = false
		c.endRequest()
	}
	c.close()
}

// close closes the connection and forgets the client. Its request must have ended.
func (c *client) close() {
	if c.fd < 0 {
		return
	}
	c.endRequest()
	c.loop.close(&c.socket)
	c.state = stateClosed
	c.forget()
	c.loop.gateway.clients.leave(c.origin)
}

func (c *client) forget() {
	l := c.loop
	l.timers.remove(&c.timer)
	l.release(c.held)
	c.held = nil
	l.drop(&c.out)
	delete(l.clients, c)
}

// deadline is what a client's timer is set for.
type deadline int

const (
	deadlineStall    deadline = iota // the client takes no bytes
	deadlineIdle                     // no request comes, or no end of one's head
	deadlineProbe                    // see whether the client still reads
	deadlineGone                     // it does not, it seems
	deadlineRequest                  // the response does not begin, or is silent
	deadlineContinue                 // the instance does not say that it wants the body
	deadlineFate                     // nothing proves that the instance took nothing
	deadlineUpload                   // the response has ended, the request's body has not
	deadlineTunnel                   // one side has ended, the other does not
	deadlineLinger                   // the client does not end
)

// due is the next deadline; at is 0 when there is none.
func (c *client) due() (at time.Duration, what deadline) {
	config := &c.loop.gateway.config
	sooner := func(t time.Duration, w deadline) {
		if at == 0 || t < at {
			at, what = t, w
		}
	}
	if !c.out.empty() {
		sooner(c.stalled+config.WriteTimeout, deadlineStall)
	}
	x := &c.relay
	switch c.state {
	case stateReading:
		if c.loop.draining && c.waits() {
			sooner(c.since+drainGrace, deadlineIdle)
		}
		if c.partial || !c.served {
			sooner(c.since+config.ReadHeaderTimeout, deadlineIdle)
		} else {
			sooner(c.since+config.IdleTimeout, deadlineIdle)
		}
	case stateHolding, stateRelaying:
		if c.fin != 0 && !c.probed {
			if x.begun {
				sooner(max(c.fin, x.heard)+silenceWait, deadlineGone)
			} else {
				sooner(c.fin+probeWait, deadlineProbe)
			}
		}
		if c.state == stateHolding {
			break
		}
		switch {
		case x.doubt != 0:
			sooner(x.doubt+fateWait, deadlineFate)
		case x.answered != 0:
			sooner(x.answered+uploadGrace, deadlineUpload)
		case !x.begun && x.waits:
			sooner(x.heard+continueWait, deadlineContinue)
			fallthrough
		case !x.begun:
			if x.limit != 0 {
				sooner(x.limit, deadlineRequest)
			}
		case x.begun && x.idle != 0 && c.out.empty():
			sooner(x.heard+x.idle, deadlineRequest)
		}
	case stateTunneling:
		if x.half != 0 {
			sooner(x.half+halfCloseWait, deadlineTunnel)
		}
	case stateLingering:
		sooner(c.since+uploadLinger, deadlineLinger)
	}
	return at, what
}

func (c *client) arm() {
	if c.fd >= 0 {
		at, _ := c.due()
		c.loop.timers.set(&c.timer, at)
	}
}

// expire is called when the timer's time has come.
func (c *client) expire() {
	defer c.guard()
	at, what := c.due()
	if at == 0 || at > c.loop.tick {
		c.arm()
		return
	}
	if (what == deadlineIdle || what == deadlineRequest) && !c.late(what) {
		return
	}
	switch what {
	case deadlineStall:
		if untaken := c.unacknowledged(); untaken < c.untaken { // slowly, but it reads: the kernel waits for more room than that
			c.stalled, c.untaken = c.loop.tick, untaken
			break
		}
		c.reset()
		c.gone()
	case deadlineGone:
		c.gone()
	case deadlineProbe:
		c.probed = true
		if c.out.empty() && c.send([]byte(probe)) != nil {
			return
		}
	case deadlineContinue:
		c.relay.waits = false
		if c.send([]byte(probe)) != nil {
			return
		}
	case deadlineRequest:
		c.fail(errTimeout)
	case deadlineUpload:
		c.abandonUpload()
	case deadlineFate:
		c.unanswered(io.EOF)
	case deadlineTunnel, deadlineIdle, deadlineLinger:
		c.close()
	}
	c.run()
}

// late tells whether a deadline has passed even so when all is read that has come: where the loop itself was late, it may
// not have been told of it.
func (c *client) late(what deadline) bool {
	c.readable = true
	if conn := c.relay.conn; conn != nil {
		conn.readable = true
	}
	c.run()
	if c.fd < 0 || c.queued {
		return false
	}
	at, now := c.due()
	return now == what && at != 0 && at <= c.loop.tick
}

// guard is deferred wherever the work of a client begins: a fault in our code costs one connection, not the server.
func (c *client) guard() {
	fault := recover()
	if fault == nil {
		return
	}
	c.loop.logger.Error("a connection was given up after a fault of the gateway", "fault", fault, "stack", string(debug.Stack()))
	defer func() { recover() }() // of what is left there is nothing more to say
	x := &c.relay
	x.keep, x.cut = false, true
	c.close()
}

// shutdown lets the client end: with the request that it has, which may have come and not have been read yet, or where
// its response has not said that it is the last, with the next one. One that had a request a moment ago may be sending
// the next one: it gets drainGrace for that. All others end at once.
func (c *client) shutdown() {
	if !c.waits() {
		c.last = c.last || !c.relay.begun
		return
	}
	c.readable = true // nobody may have looked
	c.run()
	if c.waits() && c.loop.tick-c.since >= drainGrace {
		c.close()
	}
}

// cutOff ends the client at once. When it waits for a response it is told why there is none.
func (c *client) cutOff() {
	if (c.state == stateHolding || c.state == stateRelaying) && !c.relay.begun {
		c.refuse(&refusal{http.StatusServiceUnavailable, "The server stops, and the request has not been answered in time. Try again."})
	}
	c.gone()
}

// waits tells whether the client has no request, nor a part of one, nor anything of a response to come.
func (c *client) waits() bool {
	return c.fd >= 0 && c.state == stateReading && !c.partial && c.out.empty()
}

// isHTTP2 tells whether a head is the preface of HTTP/2 (RFC 9113, 3.4).
func isHTTP2(head []byte) bool { return bytes.HasPrefix(head, []byte("PRI * HTTP/2.0\r\n")) }
