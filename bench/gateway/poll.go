package main

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// poll waits for many sockets. They are not blocking, and each is told of once for each change: who is told reads
// and writes as much as there is.
type poll struct {
	fd     int
	events []unix.EpollEvent
	to     unix.SockaddrInet4
	name   string // of the address, for errors
}

func newPoll(address string) (*poll, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making an epoll: %w", err)
	}
	return &poll{
		fd:     fd,
		events: make([]unix.EpollEvent, 256),
		to:     unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())},
		name:   address,
	}, nil
}

// connect begins a connection whose events bear a number.
func (p *poll) connect(number int) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("making a socket: %w", err)
	}
	err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if err == nil {
		event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET, Fd: int32(number)}
		err = unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, fd, &event)
	}
	if err == nil {
		if err = unix.Connect(fd, &p.to); errors.Is(err, unix.EINPROGRESS) {
			err = nil
		}
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("connecting to %s: %w", p.name, err)
	}
	return fd, nil
}

// wait returns what has happened, at least one event. Nothing for ten seconds is an error.
func (p *poll) wait() ([]unix.EpollEvent, error) {
	for {
		n, err := unix.EpollWait(p.fd, p.events, 10_000)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, err
		case n == 0:
			return nil, fmt.Errorf("%s did not answer for 10 s", p.name)
		default:
			return p.events[:n], nil
		}
	}
}

// write writes what the socket takes and returns the rest.
func (p *poll) write(fd int, data []byte) ([]byte, error) {
	for len(data) > 0 {
		n, err := unix.Write(fd, data)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOTCONN): // a connection that is not made yet
			return data, nil
		case err != nil:
			return nil, fmt.Errorf("writing to %s: %w", p.name, err)
		}
		data = data[n:]
	}
	return nil, nil
}

// read reads what there is. Nothing now is 0 bytes; the connection's end is ended.
func (p *poll) read(fd int, buffer []byte) (n int, ended bool, err error) {
	for {
		n, err = unix.Read(fd, buffer)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return 0, false, nil
		case err != nil:
			return 0, false, fmt.Errorf("reading from %s: %w", p.name, err)
		}
		return n, n == 0, nil
	}
}

// reset closes a connection so that neither side keeps anything of it (TIME_WAIT): many a second would leave no
// free ports.
func reset(fd int) {
	unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	unix.Close(fd)
}
