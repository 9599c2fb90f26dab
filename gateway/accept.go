package gateway

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	acceptBatch = 64                     // connections taken before those that are there have their turn
	acceptLast  = 1 << 16                // connections taken at the end: more than the kernel queues
	acceptPause = 100 * time.Millisecond // after the process ran out of file descriptors
)

// listen watches the listener. Loops share it: the kernel wakes one of them for a connection.
func (l *loop) listen() error {
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLEXCLUSIVE, Fd: int32(l.listener)}
	return unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, l.listener, &event)
}

// stopListening takes no more connections. The listener itself is closed by who made it.
func (l *loop) stopListening() {
	if l.listener >= 0 {
		unix.EpollCtl(l.epoll, unix.EPOLL_CTL_DEL, l.listener, nil)
		l.listener = -1
	}
}

// accept takes connections that have come, up to a number of them.
func (l *loop) accept(most int) {
	for range most {
		fd, from, err := unix.Accept4(l.listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		switch {
		case err == nil:
			l.serveClient(fd, addressOf(from))
		case errors.Is(err, unix.EAGAIN):
			return
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNABORTED):
		default: // no file descriptors, or no memory: the connections wait in the kernel
			l.logger.Warn("accepting a connection", "error", err)
			unix.EpollCtl(l.epoll, unix.EPOLL_CTL_DEL, l.listener, nil)
			l.timers.set(&timer{owner: resumer{l}}, l.tick+acceptPause)
			return
		}
	}
}

// resumer listens again.
type resumer struct{ *loop }

func (r resumer) expire() {
	if r.listener < 0 {
		return
	}
	if err := r.listen(); err != nil {
		r.logger.Error("watching the listener", "error", err)
	}
}

func addressOf(from unix.Sockaddr) netip.Addr {
	switch from := from.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(from.Addr)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(from.Addr).Unmap()
	}
	return netip.Addr{}
}

// listenerSocket takes a listener's socket out of package net. The sockets that it accepts inherit what is set here.
func listenerSocket(listener *net.TCPListener) (int, error) {
	fd, err := takeSocket(listener)
	if err != nil {
		return -1, err
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
		// As package net does: a client that is gone without a word is noticed.
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15),
	)
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("setting up the listener's socket: %w", err)
	}
	return fd, nil
}

// handedConn is a connection that a loop gives to net/http, before the request that it has read a part of.
type handedConn struct {
	net.Conn
	read []byte // what was read already
}

// newHandedConn makes a connection of package net of a socket, which it takes over.
func newHandedConn(fd int, read []byte) (*handedConn, error) {
	file := os.NewFile(uintptr(fd), "")
	defer file.Close() // net.FileConn has its own
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("handing a connection over: %w", err)
	}
	return &handedConn{conn, append([]byte(nil), read...)}, nil
}

func (c *handedConn) Read(p []byte) (int, error) {
	if len(c.read) > 0 {
		n := copy(p, c.read)
		if c.read = c.read[n:]; len(c.read) == 0 {
			c.read = nil
		}
		return n, nil
	}
	return c.Conn.Read(p)
}

// CloseWrite is what net/http ends a connection with, so that its last response arrives.
func (c *handedConn) CloseWrite() error { return c.Conn.(interface{ CloseWrite() error }).CloseWrite() }

// handedListener is the listener that net/http gets the connections from that loops hand over, and those that have
// changed to HTTP/2.
type handedListener struct {
	address net.Addr

	mu      sync.Mutex
	changed sync.Cond  // something of what follows
	conns   []net.Conn // given and not accepted; guarded by mu
	asked   bool       // Accept waits: the server knows of all connections before; guarded by mu
	closed  bool       // guarded by mu
}

func newHandedListener(address net.Addr) *handedListener {
	h := &handedListener{address: address}
	h.changed.L = &h.mu
	return h
}

// give hands a connection over.
func (h *handedListener) give(c net.Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		c.Close()
		return
	}
	h.conns = append(h.conns, c)
	h.changed.Broadcast()
}

// settle waits until the server has all connections that were given: what it has it serves, when it is shut down.
func (h *handedListener) settle() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for !h.closed && !(h.asked && len(h.conns) == 0) {
		h.changed.Wait()
	}
}

func (h *handedListener) isClosed() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.closed
}

func (h *handedListener) Accept() (net.Conn, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.asked = true
	h.changed.Broadcast()
	for !h.closed && len(h.conns) == 0 {
		h.changed.Wait()
	}
	h.asked = false
	if h.closed {
		return nil, net.ErrClosed
	}
	c := h.conns[0]
	h.conns[0] = nil
	h.conns = h.conns[1:]
	return c, nil
}

func (h *handedListener) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.conns {
		c.Close()
	}
	h.conns, h.closed = nil, true
	h.changed.Broadcast()
	return nil
}

func (h *handedListener) Addr() net.Addr { return h.address }
