package gateway

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// endings are ways in which an instance's connection can end around a request that is on its way. before is done when
// the gateway has found the connection alive and writes the request; after, when it has been written.
var endings = []struct {
	name          string
	before, after func(c *net.TCPConn)
	want          fate
	// bodiless says that a body, which is a write of its own, would cause a reset where there is none else, and so fake
	// the proof: what fateOf says is left.
	bodiless bool
}{
	{name: "closed before the request", before: closeConn, want: untaken},
	{name: "shut down both ways before the request", before: shutDown, want: untaken},
	{name: "closed with the request unread", after: closeConn, want: taken},
	{name: "closed with the request read", after: func(c *net.TCPConn) { readRequest(c); c.Close() }, want: taken},
	{name: "broken off with the request read", after: func(c *net.TCPConn) { readRequest(c); c.SetLinger(0); c.Close() }, want: taken},
	{name: "half-closed, the request unread", before: closeWrite, after: func(c *net.TCPConn) {}, want: taken},
	{name: "half-closed, closed with the request read", before: closeWrite, after: func(c *net.TCPConn) { readRequest(c); c.Close() }, want: taken, bodiless: true},
	{name: "half-closed with the request read", after: func(c *net.TCPConn) { readRequest(c); c.CloseWrite() }, want: taken},
	{name: "half-closed with the request unread", after: closeWrite, want: taken},
}

func closeConn(c *net.TCPConn)  { c.Close() }
func closeWrite(c *net.TCPConn) { c.CloseWrite() }
func shutDown(c *net.TCPConn)   { c.CloseWrite(); c.CloseRead() }

func readRequest(c *net.TCPConn) { c.Read(make([]byte, 64<<10)) }

// connPair is a connection as an instance's request loop leaves it: both ends have answered each other a few times.
func connPair(t *testing.T) (*conn, *net.TCPConn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	dialed, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialed.Close(); accepted.Close() })
	b := make([]byte, 100)
	for range 20 {
		for _, pair := range [][2]net.Conn{{dialed, accepted}, {accepted, dialed}} {
			if _, err := pair[0].Write(b); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(pair[1], b); err != nil {
				t.Fatal(err)
			}
		}
	}
	return newConn(dialed), accepted.(*net.TCPConn)
}

// awaitEnd waits until the end of the stream, or a reset, has arrived.
func awaitEnd(t *testing.T, c *conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if err := c.raw.Read(func(fd uintptr) bool {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) // a read would take the error
		return err != nil || info.State != unix.BPF_TCP_ESTABLISHED
	}); err != nil {
		t.Errorf("waiting for the end of the connection: %v", err)
	}
}

func TestFateOf_IsUntakenOnlyWhenTheInstanceTookNothing(t *testing.T) {
	for _, ending := range endings {
		t.Run(ending.name, func(t *testing.T) {
			c, instance := connPair(t)
			c.begin()
			if ending.before != nil {
				ending.before(instance)
			}
			if n, err := c.Write(make([]byte, 180)); n != 180 || err != nil {
				t.Fatalf("wrote %d bytes: %v", n, err)
			}
			if ending.after != nil {
				ending.after(instance)
			}
			_, err := c.reader.ReadByte()
			got := taken
			if err == io.EOF && c.untaken(time.Time{}) {
				got = untaken
			}
			if got != ending.want {
				t.Errorf("fate is %d, want %d; reading had said %v", got, ending.want, err)
			}
		})
	}
}

func TestFateOf_AWriteMayHaveTakenTheErrorOfTheSocket(t *testing.T) {
	for name, test := range map[string]struct {
		end  func(*net.TCPConn)
		want bool
	}{
		"the end, then a reset": {closeConn, true},
		// The write takes the error and the read finds the end of the stream, as if there had been one.
		"a reset alone": {func(c *net.TCPConn) { readRequest(c); c.SetLinger(0); c.Close() }, false},
	} {
		c, instance := connPair(t)
		c.begin()
		if !test.want {
			c.Write([]byte("the head"))
		}
		test.end(instance)
		awaitEnd(t, c)
		for c.sendErr == nil {
			c.Write([]byte("a part of the body"))
		}
		if _, err := c.reader.ReadByte(); err != io.EOF {
			t.Fatalf("%s: reading: %v", name, err)
		}
		if got := c.untaken(time.Time{}); got != test.want {
			t.Errorf("%s: untaken is %t after the write ended with %v", name, got, c.sendErr)
		}
	}
}

// racingConn is a gateway's connection whose other end does something just when a request is being written.
type racingConn struct {
	*net.TCPConn
	writes        int
	before, after func()
}

func (c *racingConn) Write(p []byte) (int, error) {
	c.writes++
	if c.writes != 2 { // the first request makes the connection a used one
		return c.TCPConn.Write(p)
	}
	c.before()
	n, err := c.TCPConn.Write(p)
	c.after()
	return n, err
}

func TestProxy_RepeatsARequestOnlyWhenTheInstanceTookNothingOfIt(t *testing.T) {
	requests := []struct{ method, body string }{{"GET", ""}, {"POST", ""}, {"POST", "body"}, {"POST", strings.Repeat("x", copyBufferSize/2)}, {"PATCH", "chunked"}}
	for _, ending := range endings {
		for _, request := range requests {
			if ending.bodiless && request.body != "" {
				continue
			}
			t.Run(fmt.Sprintf("%s, %s with %d bytes", ending.name, request.method, len(request.body)), func(t *testing.T) {
				var executed, other atomic.Int64
				served := make(chan *net.TCPConn, 1)
				var connections atomic.Int64
				a := NewActivator(testRevision())
				instance := rawInstance(t, "hello-00001-a", func(c net.Conn) {
					reader := bufio.NewReader(c)
					first := connections.Add(1) == 1
					for {
						r, err := http.ReadRequest(reader)
						if err != nil {
							return
						}
						body, _ := io.ReadAll(r.Body)
						if r.URL.Path == "/second" {
							executed.Add(1)
							if string(body) != request.body {
								other.Add(1)
							}
						}
						io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
						if first {
							served <- c.(*net.TCPConn)
							<-t.Context().Done() // the racing connection has it
							return
						}
					}
				})
				a.Add(instance)
				listener, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				_, address := serveGateway(t, Config{}, a, opaqueListener{listener}) // a loop takes the socket out of what wrap gives it
				instance.wrap = func(c *net.TCPConn) net.Conn {
					if instance.dials.Load() > 1 {
						return c
					}
					var theirs *net.TCPConn
					return &racingConn{TCPConn: c,
						before: func() {
							theirs = <-served
							if ending.before != nil {
								ending.before(theirs)
							}
						},
						after: func() {
							if ending.after != nil {
								ending.after(theirs)
							}
						}}
				}
				fetch(t, newRequest(t, "GET", address, "/first", ""))
				waitForLoad(t, a, 0, 0)
				r := newRequest(t, request.method, address, "/second", request.body)
				if request.body == "chunked" {
					r.ContentLength = -1
				}
				response, _ := fetch(t, r)
				want, runs := 200, int64(1)
				if ending.want == taken {
					want, runs = 503, 0
				}
				if response.StatusCode != want || executed.Load() != runs || other.Load() != 0 {
					t.Errorf("got %d, executed %d times, %d with another body; want %d and %d", response.StatusCode, executed.Load(), other.Load(), want, runs)
				}
				waitForLoad(t, a, 0, 0)
			})
		}
	}
}

func TestProxy_TriesAgainWhenAnInstanceHasClosedANewConnection(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		for _, body := range []string{"", "body"} {
			var accepted, executed atomic.Int64
			instance := rawInstance(t, "a", func(c net.Conn) {
				if accepted.Add(1) <= 2 {
					return
				}
				r, err := http.ReadRequest(bufio.NewReader(c))
				if err != nil {
					t.Error(err)
					return
				}
				if got, _ := io.ReadAll(r.Body); string(got) != body {
					t.Errorf("the body is %q, want %q", got, body)
				}
				executed.Add(1)
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			})
			instance.wrap = func(c *net.TCPConn) net.Conn {
				if instance.dials.Load() <= 2 {
					awaitEnd(t, newConn(c))
					c.SetReadDeadline(time.Time{})
				}
				return c
			}
			_, address := serve(Config{}, testRevision(), instance)
			response, _ := fetch(t, newRequest(t, "POST", address, "/", body))
			if response.StatusCode != 200 || executed.Load() != 1 || instance.dials.Load() != 3 {
				t.Errorf("got %d, executed %d times, %d connections; want 200, once, 3", response.StatusCode, executed.Load(), instance.dials.Load())
			}
		}
	})
}
