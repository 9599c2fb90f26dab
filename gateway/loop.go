package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/gateway/http1"
)

// loop serves connections in one goroutine, without one for each: it waits for whatever of them can go on (epoll), and
// lets them go on as far as they can without waiting. What waits (for an instance, for a connection to one) waits in a
// goroutine of its own and posts its end to the loop.
//
// Everything that a loop owns is touched by its goroutine alone, so there are no locks but the one around what is
// posted. DESIGN.md has the rules about its buffers.
type loop struct {
	gateway *Gateway
	logger  *slog.Logger
	handOff func(conn net.Conn) // gives a connection to net/http
	ctx     context.Context     // of everything that waits; ends with the loop. Never passed to a request as it is.

	epoll   int
	wakeup  int // an eventfd: something was posted
	events  [128]unix.EpollEvent
	busy    bool      // events came in a batch: more may be there when these are worked on
	sockets []*socket // by file descriptor
	gens    int32

	began  time.Time
	now    time.Time     // when the events that are being worked on were learned of
	tick   time.Duration // the same, on the loop's clock; never 0
	timers timers
	again  []*client // those that can go on at once, but have had their turn; each is there once

	in       []byte // what was just read, of whatever socket
	head     []byte // a head that is being made for a client
	request  http1.Request
	response http1.Response
	buffers  [][]byte // of bufferSize, not used

	listener  int // -1 when it takes no more connections
	clients   map[*client]struct{}
	instances map[*connections]*instanceConns
	draining  bool // no new requests: connections end with the request that they are on

	mu     sync.Mutex
	posted []func() // guarded by mu
	ended  bool     // nothing can be posted any more; guarded by mu
}

const (
	// readSize is how much one read takes at most: a read and a write of it cost about as much again as the system calls
	// themselves.
	readSize = 128 << 10
	// requestSize is how much is read at most with a request's head, or while a request waits: that much a request that
	// waits can hold, and that much is copied when a client sends requests ahead.
	requestSize = 32 << 10
	// bufferSize is the size of the buffers that hold what waits. One that had to grow beyond keepSize is not kept.
	bufferSize = 4 << 10
	keepSize   = 64 << 10
	// busyBatch is how many events at once make a loop busy.
	busyBatch = 4
	// keptBuffers is how many unused buffers a loop keeps.
	keptBuffers = 1024
	// maxTurn is how many steps one connection takes before it is the others' turn.
	maxTurn = 16
)

func newLoop(g *Gateway, listener int, handOff func(net.Conn)) (*loop, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making an epoll: %w", err)
	}
	wakeup, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(epoll)
		return nil, fmt.Errorf("making an eventfd: %w", err)
	}
	l := &loop{
		gateway: g, logger: g.config.Logger, handOff: handOff,
		epoll: epoll, wakeup: wakeup, listener: -1,
		began:     time.Now().Add(-time.Second), // so that its clock is never at 0
		in:        make([]byte, readSize),
		clients:   make(map[*client]struct{}),
		instances: make(map[*connections]*instanceConns),
	}
	l.setTime(time.Now())
	err = unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, wakeup, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(wakeup)})
	if err == nil {
		l.listener = listener
		err = l.listen()
	}
	if err != nil {
		unix.Close(epoll)
		unix.Close(wakeup)
		return nil, fmt.Errorf("watching the listener: %w", err)
	}
	return l, nil
}

func (l *loop) setTime(now time.Time) {
	l.now, l.tick = now, now.Sub(l.began)
}

// add gives a socket to the loop. What it can do is learned from the first event.
func (l *loop) add(s *socket, fd int, runner runner) error {
	l.gens++
	s.fd, s.gen, s.runner = fd, l.gens, runner
	s.writable = true
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | epollET, Fd: int32(fd), Pad: s.gen}
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
		return fmt.Errorf("watching a connection: %w", err)
	}
	for len(l.sockets) <= fd {
		l.sockets = append(l.sockets, nil)
	}
	l.sockets[fd] = s
	return nil
}

const epollET = 1 << 31 // unix.EPOLLET is negative where the field is not

// remove takes a socket out of the loop; its file descriptor is the caller's.
func (l *loop) remove(s *socket) {
	l.sockets[s.fd] = nil
	unix.EpollCtl(l.epoll, unix.EPOLL_CTL_DEL, s.fd, nil) // fails only for one that is not there
}

// close closes a socket of the loop.
func (l *loop) close(s *socket) {
	if s.fd < 0 {
		return
	}
	l.sockets[s.fd] = nil
	unix.Close(s.fd) // which takes it out of the epoll
	s.fd = -1
}

// post lets the loop's goroutine call f, soon. It is false, and f is never called, when the loop has ended.
func (l *loop) post(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return false
	}
	l.posted = append(l.posted, f)
	if len(l.posted) == 1 {
		unix.Write(l.wakeup, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // fails only when it is full: it is awake, then
	}
	return true
}

// serve runs the loop until it drains and its last connection has ended.
func (l *loop) serve(ctx context.Context) error {
	var cancel context.CancelFunc
	l.ctx, cancel = context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer l.end()
	for !l.draining || len(l.clients) > 0 {
		n, err := l.wait()
		if err != nil {
			return fmt.Errorf("waiting for connections: %w", err)
		}
		l.setTime(time.Now())
		for i := range l.events[:n] {
			l.handle(&l.events[i])
		}
		again := l.again
		l.again = nil
		for _, c := range again {
			c.queued = false
			c.run()
		}
		l.timers.fire(l.tick)
	}
	return nil
}

// wait waits until a connection can go on, or the next timer's time comes.
func (l *loop) wait() (int, error) {
	if l.busy || len(l.again) > 0 { // else there is probably nothing yet, and a look would be a system call for nothing
		n, err := l.poll()
		l.busy = n >= busyBatch
		if n != 0 || err != nil || len(l.again) > 0 {
			return n, err
		}
	}
	timeout := -1
	if next := l.timers.next(); next > 0 {
		left := next - time.Since(l.began)
		if left <= 0 {
			return l.poll() // what has come counts before the deadline
		}
		timeout = int((left + time.Millisecond - 1) / time.Millisecond)
	}
	n, err := unix.EpollWait(l.epoll, l.events[:], timeout) // gives the processor to other goroutines meanwhile
	if errors.Is(err, unix.EINTR) {
		return 0, nil
	}
	l.busy = n >= busyBatch
	return n, err
}

// poll looks for events without waiting, and without a word to Go's scheduler.
func (l *loop) poll() (int, error) {
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(l.epoll), uintptr(unsafe.Pointer(&l.events[0])), uintptr(len(l.events)), 0, 0, 0)
	if errno != 0 && errno != syscall.EINTR {
		return 0, errno
	}
	if errno != 0 {
		return 0, nil
	}
	return int(n), nil
}

func (l *loop) handle(event *unix.EpollEvent) {
	fd := int(event.Fd)
	switch fd {
	case l.wakeup:
		l.takePosted()
		return
	case l.listener:
		l.accept(acceptBatch)
		return
	}
	if fd >= len(l.sockets) || l.sockets[fd] == nil || l.sockets[fd].gen != event.Pad {
		return // it was closed by what happened before in this batch
	}
	s := l.sockets[fd]
	if event.Events&unix.EPOLLIN != 0 {
		s.readable = true
	}
	if event.Events&unix.EPOLLOUT != 0 {
		s.writable = true
	}
	if event.Events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		s.readable, s.ended = true, true
	}
	if event.Events&unix.EPOLLERR != 0 {
		s.broken = true
	}
	s.runner.run()
}

func (l *loop) takePosted() {
	var count [8]byte
	unix.Read(l.wakeup, count[:]) // fails only when there is nothing, which is as good
	l.mu.Lock()
	posted := l.posted
	l.posted = nil
	l.mu.Unlock()
	for _, f := range posted {
		f()
	}
}

// end closes what is left.
func (l *loop) end() {
	l.mu.Lock()
	l.ended = true
	posted := l.posted
	l.posted = nil
	l.mu.Unlock()
	for _, f := range posted { // what they bring must be given back
		f()
	}
	for c := range l.clients {
		c.close()
	}
	for pool, conns := range l.instances {
		pool.leave(l)
		conns.closeAll()
	}
	l.stopListening()
	unix.Close(l.epoll)
	unix.Close(l.wakeup)
}

// fill reads from a socket, no more than most bytes, into the loop's buffer, behind what was held of it before. The
// result is valid until the next fill.
func (l *loop) fill(s *socket, held []byte, most int) ([]byte, error) {
	if len(l.in)-len(held) < readSize/2 {
		l.in = make([]byte, 2*len(l.in)) // as long as the longest head that the limits let through
	}
	n := copy(l.in, held)
	if !s.readable {
		return l.in[:n], errAgain
	}
	got, err := s.read(l.in[n:min(n+most, len(l.in))]) // no more than that, however long the buffer had to become
	return l.in[:n+got], err
}

// hold keeps bytes for later, in a buffer that is given back with release.
func (l *loop) hold(held, p []byte) []byte {
	if len(p) == 0 {
		l.release(held)
		return nil
	}
	if held == nil {
		held = l.buffer()
	}
	return append(held[:0], p...)
}

// buffer returns an empty buffer.
func (l *loop) buffer() []byte {
	if n := len(l.buffers); n > 0 {
		b := l.buffers[n-1]
		l.buffers = l.buffers[:n-1]
		return b
	}
	return make([]byte, 0, bufferSize)
}

// release gives a buffer back.
func (l *loop) release(b []byte) {
	if b != nil && cap(b) <= keepSize && len(l.buffers) < keptBuffers {
		l.buffers = append(l.buffers, b[:0])
	}
}

// outbox is what is to be written to a socket that had no room for it. Whoever writes into it stops reading until it is
// empty again: so a slow reader slows the writer down.
type outbox struct {
	buffer []byte
	sent   int
}

func (o *outbox) empty() bool { return o.buffer == nil }

// send writes pieces to a socket, behind what waits for it.
func (l *loop) send(s *socket, o *outbox, pieces ...[]byte) error {
	n := 0
	if o.empty() && s.writable {
		var err error
		if n, err = s.write(pieces); err != nil {
			return err
		}
	}
	for _, p := range pieces {
		if n >= len(p) {
			n -= len(p)
			continue
		}
		if o.buffer == nil {
			o.buffer, o.sent = l.buffer(), 0
		}
		o.buffer = append(o.buffer, p[n:]...)
		n = 0
	}
	return nil
}

// flush writes what waits, as far as there is room. It tells how much was written.
func (l *loop) flush(s *socket, o *outbox) (int, error) {
	if o.empty() || !s.writable {
		return 0, nil
	}
	n, err := s.write([][]byte{o.buffer[o.sent:]})
	o.sent += n
	if o.sent == len(o.buffer) {
		l.drop(o)
	}
	return n, err
}

// drop forgets what waits.
func (l *loop) drop(o *outbox) {
	l.release(o.buffer)
	o.buffer, o.sent = nil, 0
}
