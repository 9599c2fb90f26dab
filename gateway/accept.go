package gateway

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	acceptBatch = 64                     // connections taken before those that are there have their turn
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

// accept takes the connections that have come.
func (l *loop) accept() {
	for range acceptBatch {
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
	conns   chan net.Conn
	closed  chan struct{}
	once    sync.Once
}

func newHandedListener(address net.Addr) *handedListener {
	return &handedListener{address: address, conns: make(chan net.Conn), closed: make(chan struct{})}
}

// give hands a connection over. It may wait a moment, so it is called in a goroutine of its own.
func (h *handedListener) give(c net.Conn) {
	select {
	case h.conns <- c:
	case <-h.closed:
		c.Close()
	}
}

func (h *handedListener) isClosed() bool {
	select {
	case <-h.closed:
		return true
	default:
		return false
	}
}

func (h *handedListener) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, io.EOF
	}
}

func (h *handedListener) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

func (h *handedListener) Addr() net.Addr { return h.address }
