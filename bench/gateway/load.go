package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// load asks an address over kept connections for a time, one request at a time on each, and returns how long
// each answer took, in nanoseconds. One thread waits for all connections with epoll, so that the load takes as
// little as it can of a machine that it shares with what it measures.
func load(address string, connections int, length time.Duration) ([]int64, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	request := []byte("GET / HTTP/1.1\r\nHost: " + host + "\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making an epoll: %w", err)
	}
	defer unix.Close(poll)

	type connection struct {
		sent time.Time
		got  []byte
	}
	open := make(map[int]*connection, connections)
	defer func() {
		for fd := range open {
			unix.Close(fd)
		}
	}()
	for range connections {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("making a socket: %w", err)
		}
		open[fd] = &connection{}
		if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}); err != nil {
			return nil, fmt.Errorf("connecting to %s: %w", address, err)
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
			return nil, err
		}
		event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
		if err := unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
			return nil, err
		}
	}

	latencies := make([]int64, 0, 1<<18)
	events := make([]unix.EpollEvent, connections)
	buffer := make([]byte, 16<<10)
	end := time.Now().Add(length)
	for fd, c := range open {
		c.sent = time.Now()
		if _, err := unix.Write(fd, request); err != nil {
			return nil, err
		}
	}
	for waiting := connections; waiting > 0; {
		n, err := unix.EpollWait(poll, events, 10_000)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return nil, fmt.Errorf("%s did not answer for 10 s", address)
		}
		for _, event := range events[:n] {
			fd := int(event.Fd)
			c := open[fd]
			n, err := unix.Read(fd, buffer)
			if err != nil || n == 0 {
				return nil, fmt.Errorf("%s ended a connection: %v", address, err)
			}
			c.got = append(c.got, buffer[:n]...)
			whole, err := isWhole(c.got)
			if err != nil {
				return nil, err
			}
			if !whole {
				continue
			}
			now := time.Now()
			latencies = append(latencies, int64(now.Sub(c.sent)))
			c.got = c.got[:0]
			if now.After(end) {
				waiting--
				continue
			}
			c.sent = now
			if _, err := unix.Write(fd, request); err != nil {
				return nil, err
			}
		}
	}
	return latencies, nil
}

// isWhole tells whether a response with a Content-Length is complete. Anything but 200 is an error: a fast wrong
// answer is not a result.
func isWhole(response []byte) (bool, error) {
	head, body, found := bytes.Cut(response, []byte("\r\n\r\n"))
	if !found {
		return false, nil
	}
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 200")) {
		return false, fmt.Errorf("unexpected answer %.200q", response)
	}
	_, length, found := bytes.Cut(head, []byte("\r\nContent-Length: "))
	if !found {
		return false, fmt.Errorf("an answer without Content-Length: %.200q", response)
	}
	want := 0
	for _, c := range length {
		if c < '0' || c > '9' {
			break
		}
		want = want*10 + int(c-'0')
	}
	return len(body) >= want, nil
}
