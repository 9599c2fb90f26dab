package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"
)

// streamsPerConnection is how many requests of a client with many are on one connection of HTTP/2.
const streamsPerConnection = 8

// wideWindow is what a server may send before it hears from us: more than it does in one measurement of a tiny
// body. Half of it is given back at a time.
const wideWindow = 1 << 30

// http2Client asks over connections of HTTP/2 without TLS, as one that knows beforehand that they are (RFC 9113,
// section 3.3).
type http2Client struct {
	poll   *poll
	want   int    // bytes of each answer's body
	first  []byte // the header block of a connection's first request
	later  []byte // of those after it, which refer to what the first one said
	buffer []byte
	open   []*http2Conn
}

// http2Conn is one connection with a request on each of its streams, always.
type http2Conn struct {
	fd       int
	out      bytes.Buffer // frames to send
	in       []byte       // what has arrived of a frame that is not complete
	frame    *bytes.Reader
	framer   *http2.Framer
	decoder  *hpack.Decoder
	status   string // that the block just decoded told
	next     uint32 // the next stream's number
	streams  []http2Stream
	consumed uint32 // bytes of bodies that the server has not been told of
}

// http2Stream is a request under way.
type http2Stream struct {
	id   uint32 // 0 when there is none
	sent time.Time
	got  int // bytes of the answer's body
	ok   bool
}

func newHTTP2Client(address string, requests int, v *variant) (*http2Client, error) {
	p, err := newPoll(address)
	if err != nil {
		return nil, err
	}
	c := &http2Client{poll: p, want: v.body, buffer: make([]byte, 128<<10)}
	c.first, c.later = headerBlocks(v)
	for requests > 0 {
		n := min(requests, streamsPerConnection)
		requests -= n
		conn := &http2Conn{next: 1, streams: make([]http2Stream, n), frame: bytes.NewReader(nil)}
		conn.framer = http2.NewFramer(&conn.out, conn.frame)
		conn.framer.SetReuseFrames()
		conn.decoder = hpack.NewDecoder(4096, func(f hpack.HeaderField) {
			if f.Name == ":status" {
				conn.status = f.Value
			}
		})
		if conn.fd, err = p.connect(len(c.open)); err != nil {
			c.close()
			return nil, err
		}
		c.open = append(c.open, conn)
		conn.out.WriteString(http2.ClientPreface)
		err = errors.Join(
			conn.framer.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 0}),
			conn.framer.WriteWindowUpdate(0, wideWindow),
		)
		if err != nil {
			c.close()
			return nil, err
		}
	}
	return c, nil
}

// headerBlocks are the encoded header of a connection's first request and of the others: as a browser's, they name
// in the table of the connection what is the same for all.
func headerBlocks(v *variant) (first, later []byte) {
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	encode := func() []byte {
		block.Reset()
		for _, f := range []hpack.HeaderField{
			{Name: ":method", Value: "GET"},
			{Name: ":scheme", Value: "http"},
			{Name: ":authority", Value: host},
			{Name: ":path", Value: v.path},
			{Name: "user-agent", Value: "bench"},
			{Name: "accept", Value: "*/*"},
		} {
			encoder.WriteField(f) // a buffer takes all
		}
		return bytes.Clone(block.Bytes())
	}
	return encode(), encode()
}

// run asks for a time and returns how long each answer took. It ends when the last request is answered.
func (c *http2Client) run(length time.Duration) ([]time.Duration, error) {
	latencies := make([]time.Duration, 0, 1<<16)
	end := time.Now().Add(length)
	waiting := 0
	for _, conn := range c.open {
		for i := range conn.streams {
			if err := c.begin(conn, &conn.streams[i], time.Now()); err != nil {
				return nil, err
			}
			waiting++
		}
		if err := c.flush(conn); err != nil {
			return nil, err
		}
	}
	for waiting > 0 {
		events, err := c.poll.wait()
		if err != nil {
			return nil, err
		}
		for i := range events {
			conn := c.open[events[i].Fd]
			err := c.advance(conn, func(s *http2Stream) error {
				now := time.Now()
				latencies = append(latencies, now.Sub(s.sent))
				if now.After(end) {
					waiting--
					return nil
				}
				return c.begin(conn, s, now)
			})
			if err != nil {
				return nil, fmt.Errorf("%s: %w", c.poll.name, err)
			}
		}
	}
	return latencies, nil
}

// begin puts a request on a new stream into what is to be sent.
func (c *http2Client) begin(conn *http2Conn, s *http2Stream, now time.Time) error {
	*s = http2Stream{id: conn.next, sent: now}
	block := c.later
	if conn.next == 1 {
		block = c.first
	}
	conn.next += 2
	return conn.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: s.id, BlockFragment: block, EndHeaders: true, EndStream: true})
}

// flush sends what the socket takes.
func (c *http2Client) flush(conn *http2Conn) error {
	rest, err := c.poll.write(conn.fd, conn.out.Bytes())
	conn.out.Next(conn.out.Len() - len(rest))
	return err
}

// advance reads what has arrived, calls done for each stream whose answer is complete, and sends what there is.
func (c *http2Client) advance(conn *http2Conn, done func(*http2Stream) error) error {
	for {
		n, ended, err := c.poll.read(conn.fd, c.buffer)
		if err != nil {
			return err
		}
		if ended {
			return errors.New("the server ended a connection")
		}
		data := c.buffer[:n]
		if len(conn.in) > 0 {
			conn.in = append(conn.in, data...)
			data = conn.in
		}
		for len(data) >= 9 {
			size := 9 + int(binary.BigEndian.Uint32(data)>>8) // a frame's header begins with its length, 3 bytes
			if len(data) < size {
				break
			}
			conn.frame.Reset(data[:size])
			frame, err := conn.framer.ReadFrame()
			if err != nil {
				return err
			}
			if err := c.take(conn, frame, done); err != nil {
				return err
			}
			data = data[size:]
		}
		conn.in = append(conn.in[:0], data...)
		if n < len(c.buffer) {
			return c.flush(conn)
		}
	}
}

// take does what a frame asks for.
func (c *http2Client) take(conn *http2Conn, frame http2.Frame, done func(*http2Stream) error) error {
	switch f := frame.(type) {
	case *http2.SettingsFrame:
		if !f.IsAck() {
			return conn.framer.WriteSettingsAck()
		}
	case *http2.PingFrame:
		if !f.IsAck() {
			return conn.framer.WritePing(true, f.Data)
		}
	case *http2.HeadersFrame:
		if !f.HeadersEnded() {
			return errors.New("an answer's header in more than one frame")
		}
		conn.status = ""
		if _, err := conn.decoder.Write(f.HeaderBlockFragment()); err != nil {
			return err
		}
		if err := conn.decoder.Close(); err != nil {
			return err
		}
		if conn.status != "200" {
			return fmt.Errorf("unexpected status %q", conn.status)
		}
		return c.progress(conn, f.StreamID, 0, true, f.StreamEnded(), done)
	case *http2.DataFrame:
		if conn.consumed += f.Length; conn.consumed > wideWindow/2 {
			if err := conn.framer.WriteWindowUpdate(0, conn.consumed); err != nil {
				return err
			}
			conn.consumed = 0
		}
		return c.progress(conn, f.StreamID, len(f.Data()), false, f.StreamEnded(), done)
	case *http2.RSTStreamFrame:
		return fmt.Errorf("the server reset a stream: %s", f.ErrCode)
	case *http2.GoAwayFrame:
		return fmt.Errorf("the server ends a connection: %s %q", f.ErrCode, f.DebugData())
	}
	return nil
}

// progress counts what has arrived for a stream.
func (c *http2Client) progress(conn *http2Conn, id uint32, n int, header, ended bool, done func(*http2Stream) error) error {
	for i := range conn.streams {
		s := &conn.streams[i]
		if s.id != id {
			continue
		}
		s.got += n
		s.ok = s.ok || header
		if !ended {
			return nil
		}
		if !s.ok || s.got != c.want {
			return fmt.Errorf("an answer of %d bytes, not %d", s.got, c.want)
		}
		s.id = 0
		return done(s)
	}
	return fmt.Errorf("a frame for stream %d, which is not open", id)
}

func (c *http2Client) close() {
	for _, conn := range c.open {
		unix.Close(conn.fd)
	}
	unix.Close(c.poll.fd)
}
