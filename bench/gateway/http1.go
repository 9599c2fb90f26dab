package main

import (
	"bytes"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// http1Client asks over connections of HTTP/1.1, one request at a time on each.
type http1Client struct {
	poll     *poll
	requests [][]byte // sent in turn
	next     int
	want     int  // bytes of each answer's body
	fresh    bool // a new connection for each request; the server ends it
	buffer   []byte
	open     []http1Conn
}

// http1Conn is one connection with at most one request.
type http1Conn struct {
	fd       int // -1 when there is none
	sent     time.Time
	rest     []byte // of the request, what the socket did not take yet
	head     []byte // of an answer whose head has not arrived as a whole
	left     int    // bytes of the answer's body that have not arrived
	headDone bool
}

func newHTTP1Client(address string, connections int, v *variant, requests [][]byte) (*http1Client, error) {
	p, err := newPoll(address)
	if err != nil {
		return nil, err
	}
	c := &http1Client{poll: p, requests: requests, want: v.body, fresh: v.fresh, buffer: make([]byte, 128<<10), open: make([]http1Conn, connections)}
	for i := range c.open {
		c.open[i].fd = -1
	}
	return c, nil
}

// run asks for a time and returns how long each answer took. It ends when the last request is answered.
func (c *http1Client) run(length time.Duration) ([]time.Duration, error) {
	latencies := make([]time.Duration, 0, 1<<16)
	end := time.Now().Add(length)
	for i := range c.open {
		if err := c.begin(i, time.Now()); err != nil {
			return nil, err
		}
	}
	for waiting := len(c.open); waiting > 0; {
		events, err := c.poll.wait()
		if err != nil {
			return nil, err
		}
		for i := range events {
			number := int(events[i].Fd)
			done, err := c.advance(&c.open[number], events[i].Events)
			if err != nil {
				return nil, err
			}
			if !done {
				continue
			}
			now := time.Now()
			latencies = append(latencies, now.Sub(c.open[number].sent))
			if now.After(end) {
				waiting--
			} else if err := c.begin(number, now); err != nil {
				return nil, err
			}
		}
	}
	return latencies, nil
}

// begin sends a request, over a new connection when there is none.
func (c *http1Client) begin(number int, now time.Time) (err error) {
	conn := &c.open[number]
	if conn.fd < 0 {
		if conn.fd, err = c.poll.connect(number); err != nil {
			return err
		}
	}
	request := c.requests[c.next]
	if c.next++; c.next == len(c.requests) {
		c.next = 0
	}
	conn.sent, conn.headDone, conn.head = now, false, conn.head[:0]
	conn.rest, err = c.poll.write(conn.fd, request)
	return err
}

// advance does what an event allows and tells whether the answer is complete.
func (c *http1Client) advance(conn *http1Conn, events uint32) (done bool, err error) {
	if len(conn.rest) > 0 && events&unix.EPOLLOUT != 0 {
		if conn.rest, err = c.poll.write(conn.fd, conn.rest); err != nil {
			return false, err
		}
	}
	if events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) == 0 {
		return false, nil
	}
	for {
		n, ended, err := c.poll.read(conn.fd, c.buffer)
		if err != nil {
			return false, err
		}
		if n > 0 {
			if err := conn.take(c.buffer[:n], c.want); err != nil {
				return false, fmt.Errorf("%s: %w", c.poll.name, err)
			}
		}
		whole := conn.headDone && conn.left == 0
		switch {
		case ended && whole && c.fresh:
			reset(conn.fd)
			conn.fd = -1
			return true, nil
		case ended:
			return false, fmt.Errorf("%s ended a connection within an answer or kept none", c.poll.name)
		case whole && !c.fresh:
			return true, nil
		case n == len(c.buffer), n > 0 && events&unix.EPOLLRDHUP != 0: // there may be more, and no event for it
		default:
			return false, nil
		}
	}
}

// take reads a piece of an answer whose body must have the wanted size.
func (c *http1Conn) take(data []byte, want int) error {
	if !c.headDone {
		if len(c.head) > 0 {
			c.head = append(c.head, data...)
			data = c.head
		}
		head, body, err := parseHead(data)
		if err != nil {
			return err
		}
		if head == 0 {
			if len(c.head) == 0 {
				c.head = append(c.head, data...)
			}
			return nil
		}
		if body != want {
			return fmt.Errorf("an answer of %d bytes, not %d: %.200q", body, want, data)
		}
		c.headDone, c.left = true, body
		data = data[head:]
	}
	if len(data) > c.left {
		return fmt.Errorf("an answer has more than its %d bytes: %.200q", want, data[c.left:])
	}
	c.left -= len(data)
	return nil
}

// parseHead returns the length of an answer's head, 0 while it is not complete, and that of its body. Anything but
// 200 with a Content-Length is an error.
func parseHead(data []byte) (head, body int, err error) {
	end := bytes.Index(data, []byte("\r\n\r\n"))
	if end < 0 {
		return 0, 0, nil
	}
	if !bytes.HasPrefix(data, []byte("HTTP/1.1 200")) {
		return 0, 0, fmt.Errorf("unexpected answer %.200q", data)
	}
	const name = "content-length: "
	for rest := data[:end]; ; {
		line, after, more := bytes.Cut(rest, []byte("\r\n"))
		if len(line) > len(name) && line[0]|0x20 == 'c' && bytes.EqualFold(line[:len(name)], []byte(name)) {
			for _, digit := range line[len(name):] {
				if digit < '0' || digit > '9' || body > 1<<30 {
					return 0, 0, fmt.Errorf("an answer with a wrong Content-Length: %.200q", data)
				}
				body = body*10 + int(digit-'0')
			}
			return end + 4, body, nil
		}
		if !more {
			return 0, 0, fmt.Errorf("an answer without Content-Length: %.200q", data)
		}
		rest = after
	}
}

func (c *http1Client) close() {
	for i := range c.open {
		if c.open[i].fd >= 0 {
			unix.Close(c.open[i].fd)
		}
	}
	unix.Close(c.poll.fd)
}
