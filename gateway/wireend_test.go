package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berth-run/berth/engine"
)

// gone waits until the other side has ended the connection, in whatever way.
func (w *wire) gone() {
	w.SetReadDeadline(time.Now().Add(wirePatience))
	if _, err := io.Copy(io.Discard, w.reader); errors.Is(err, os.ErrDeadlineExceeded) {
		w.fail("the connection goes on")
	}
}

// endHalf ends a client's sending side.
func (w *wire) endHalf() {
	if err := w.Conn.(*net.TCPConn).CloseWrite(); err != nil {
		w.fail("ending its half: %v", err)
	}
}

func TestWire_AClientThatLeavesWhileItsRequestWaitsIsForgotten(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		a, address := serve(Config{}, testRevision())
		for _, text := range []string{
			request("GET /"), request("POST /", "Content-Length: 100") + "part", request("POST /", "Content-Length: 4") + "body",
			request("POST /", "Transfer-Encoding: chunked") + "4\r\npart\r\n",
		} {
			c := dialWire(t, address)
			c.say(text)
			waitForLoad(t, a, 0, 1)
			c.Close()
			waitForLoad(t, a, 0, 0)
		}
		arrived := make(chan string, 3)
		a.Add(wireInstance(t, "a", func(in *wire) {
			for {
				h := in.head()
				arrived <- h.line
				in.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
			}
		}))
		c := dialWire(t, address)
		c.say(request("GET /last"))
		c.expect(200, "hi")
		if line := <-arrived; line != "GET /last HTTP/1.1" {
			t.Errorf("the instance got %q, whose client is gone", line)
		}
	})
}

func TestWire_AClientThatLeavesEndsTheInstancesWork(t *testing.T) {
	for name, text := range map[string]string{
		"before the head":    "",
		"before the length":  "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\npart",
		"between chunks":     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n",
		"before the end":     "HTTP/1.1 200 OK\r\n\r\npart",
		"after an interim":   "HTTP/1.1 103 Early Hints\r\n\r\n",
		"within a long body": "HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n" + strings.Repeat("part", 100_000),
	} {
		t.Run(name, func(t *testing.T) {
			onEveryFront(t, func(t *testing.T, serve serveFunc) {
				said, ended := make(chan struct{}), make(chan struct{})
				a, address := serve(Config{}, testRevision(), wireInstance(t, "a", func(in *wire) {
					in.head()
					in.say(text)
					close(said)
					in.gone()
					close(ended)
				}))
				c := dialWire(t, address)
				c.say(request("GET /"))
				<-said
				if text != "" {
					c.head()
				}
				c.Close()
				<-ended
				waitForLoad(t, a, 0, 0)
			})
		})
	}
}

func TestWire_AClientThatLeavesWhileItSendsLeavesNoWholeRequest(t *testing.T) {
	for name, text := range map[string]string{
		"length": request("POST /", "Content-Length: 10") + "half",
		"chunk":  request("POST /", "Transfer-Encoding: chunked") + "a\r\nhalf",
		"chunks": request("POST /", "Transfer-Encoding: chunked") + "4\r\nhalf\r\n",
		"end":    request("POST /", "Transfer-Encoding: chunked") + "4\r\nhalf\r\n0\r\n",
	} {
		for ending, end := range map[string]func(c *wire){
			"closes":        func(c *wire) { c.Close() },
			"resets":        func(c *wire) { c.Conn.(*net.TCPConn).SetLinger(0); c.Close() },
			"ends its half": func(c *wire) { c.endHalf() },
		} {
			t.Run(name+" "+ending, func(t *testing.T) {
				onEveryFront(t, func(t *testing.T, serve serveFunc) {
					began, got := make(chan struct{}), make(chan string, 1)
					a, address := serve(Config{}, testRevision(), wireInstance(t, "a", func(in *wire) {
						in.head()
						close(began)
						in.SetReadDeadline(time.Now().Add(wirePatience))
						rest, err := io.ReadAll(in.reader)
						if errors.Is(err, os.ErrDeadlineExceeded) {
							in.fail("its connection goes on after %q", rest)
						}
						got <- string(rest)
					}))
					c := dialWire(t, address)
					c.say(text)
					<-began
					end(c)
					if rest := <-got; strings.HasSuffix(rest, "0\r\n\r\n") || len(strings.TrimSpace(rest)) >= 10 && name == "length" {
						t.Errorf("the instance got a whole body: %q", rest)
					}
					waitForLoad(t, a, 0, 0)
				})
			})
		}
	}
}

func TestWire_AClientThatLeavesATunnelEndsIt(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		ended := make(chan struct{}, 1)
		a, address := serve(Config{}, testRevision(), wireInstance(t, "a", func(in *wire) {
			in.head()
			in.say("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nhello")
			in.gone()
			ended <- struct{}{}
		}))
		for _, linger := range []int{-1, 0} {
			c := dialWire(t, address)
			c.say(request("GET /", "Connection: Upgrade", "Upgrade: x"))
			c.head()
			c.bytes(5)
			c.Conn.(*net.TCPConn).SetLinger(linger)
			c.Close()
			<-ended
			waitForLoad(t, a, 0, 0)
		}
	})
}

func TestWire_AnInstanceThatLeavesATunnelEndsIt(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		instance := wireInstance(t, "a", func(in *wire) {
			in.head()
			in.say("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nlast words")
		})
		a, address := serve(Config{}, testRevision(), instance)
		c := dialWire(t, address)
		c.say(request("GET /", "Connection: Upgrade", "Upgrade: x"))
		c.head()
		if got := c.rest(); got != "last words" {
			t.Errorf("got %q", got)
		}
		c.Close()
		waitForLoad(t, a, 0, 0)
	})
}

func TestWire_EitherSideOfATunnelMayEndItsHalfFirst(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		a, address := serve(Config{}, testRevision(), wireInstance(t, "a", func(in *wire) {
			h := in.head()
			in.say("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
			if strings.HasPrefix(h.line, "GET /client ") {
				heard := in.rest()
				in.say("heard " + heard)
				return
			}
			in.say("first")
			in.endHalf()
			heard := in.rest()
			if heard != "after" {
				in.fail("got %q", heard)
			}
		}))
		c := dialWire(t, address)
		c.say(request("GET /client", "Connection: Upgrade", "Upgrade: x"))
		c.head()
		c.say("words")
		c.endHalf()
		if got := c.rest(); got != "heard words" {
			t.Errorf("got %q", got)
		}
		waitForLoad(t, a, 0, 0)

		c = dialWire(t, address)
		c.say(request("GET /instance", "Connection: Upgrade", "Upgrade: x"))
		c.head()
		if got := c.rest(); got != "first" {
			t.Errorf("got %q", got)
		}
		c.say("after")
		c.endHalf()
		waitForLoad(t, a, 0, 0)
	})
}

func TestWire_AClientThatEndedItsHalfGetsTheWholeAnswer(t *testing.T) {
	t.Parallel()
	// Only loops can tell it from a client that is gone: net/http takes the end of a client's half for the client's end.
	const pause = 200 * time.Millisecond // in which a client that is gone would have been found out
	want := strings.Repeat("0123456789abcdef", 1<<16)
	for _, path := range []string{"/at-once", "/late", "/parts", "/held"} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			later := make(chan struct{})
			instance := wireInstance(t, "a", func(in *wire) {
				for {
					in.head()
					if path != "/at-once" {
						<-later
					}
					in.say(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", len(want)))
					quarter := len(want) / 4
					for part := want; part != ""; part = part[quarter:] {
						if path == "/parts" {
							time.Sleep(pause / 4)
						}
						in.say(part[:quarter])
					}
				}
			})
			a := NewActivator(testRevision())
			if path != "/held" {
				a.Add(instance)
			}
			_, address := startGateway(t, Config{}, a)
			c := dialWire(t, address)
			c.say(request("GET "+path) + request("GET "+path)) // two, the second behind the first
			c.endHalf()
			time.AfterFunc(pause, func() {
				a.Add(instance)
				close(later)
			})
			for range 2 {
				h := c.head()
				for strings.HasPrefix(h.line, "HTTP/1.1 1") {
					h = c.head()
				}
				if body, _ := c.body(h); body != want {
					t.Fatalf("got %v with %d bytes, want %d", h, len(body), len(want))
				}
			}
			c.ends()
			waitForLoad(t, a, 0, 0)
		})
	}
}

func TestWire_AnEarlyResponseReachesAClientThatStillSends(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		a, address := serve(Config{}, testRevision(), wireInstance(t, "a", func(in *wire) {
			in.head()
			in.say("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
		}))
		for _, framing := range []string{"Content-Length: 1000000000000", "Transfer-Encoding: chunked"} {
			c := dialWire(t, address)
			c.say(request("POST /", framing))
			sent := make(chan error, 1)
			go func() { // until the gateway does not take any more
				piece := "10000\r\n" + strings.Repeat("x", 1<<16) + "\r\n"
				for {
					if _, err := io.WriteString(c, piece); err != nil {
						sent <- err
						return
					}
				}
			}()
			c.expect(403, "no")
			<-sent
			waitForLoad(t, a, 0, 0)
		}
	})
}

func TestWire_ABodyThatComesAfterItsResponseIsNoRequest(t *testing.T) {
	hidden := request("GET /hidden")
	for framing, body := range map[string]string{
		fmt.Sprintf("Content-Length: %d", len(hidden)): hidden,
		"Transfer-Encoding: chunked":                   fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(hidden), hidden),
		"Transfer-Encoding:  chunked":                  "malformed\r\n" + hidden,
	} {
		for name, host := range map[string]string{"answered early": "hello.test", "refused": "nobody.test"} {
			t.Run(framing+" "+name, func(t *testing.T) {
				onEveryFront(t, func(t *testing.T, serve serveFunc) {
					arrived := make(chan string, 10)
					a, address := serve(Config{}, testRevision(), wireInstance(t, "a", func(in *wire) {
						h := in.head()
						arrived <- h.line
						in.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
						in.gone()
					}))
					c := dialWire(t, address)
					c.say("POST / HTTP/1.1\r\nHost: " + host + "\r\n" + framing + "\r\n\r\n")
					h, _ := c.response()
					if strings.HasPrefix(h.line, "HTTP/1.1 200 ") != (host == "hello.test") {
						t.Errorf("got %v", h)
					}
					if strings.EqualFold(h.value("Connection"), "close") {
						c.gone() // it is not waited for long
					} else {
						c.say(body)
						if strings.HasPrefix(body, "malformed") {
							c.ends()
						} else {
							c.say(request("GET /next"))
							c.expect(200, "hi")
						}
					}
					c.Close()
					waitForLoad(t, a, 0, 0)
					close(arrived)
					for line := range arrived {
						if strings.Contains(line, "hidden") {
							t.Errorf("the instance got %q, which was a body", line)
						}
					}
				})
			})
		}
	}
}

func TestWire_AClientThatNeverSendsItsBodyGetsTheResponseAndTheEnd(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		instances := map[bool]*fakeInstance{
			false: wireInstance(t, "HTTP/1.1", func(in *wire) {
				if h := in.head(); strings.HasPrefix(h.line, "POST /cut ") {
					in.say("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nearly")
					return
				}
				in.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nearly\r\n0\r\n\r\n")
				in.gone()
			}),
			true: serveInstance(t, "HTTP/2", func(w http.ResponseWriter, r *http.Request) {
				io.WriteString(w, "early")
				http.NewResponseController(w).Flush()
				if r.URL.Path == "/cut" {
					panic(http.ErrAbortHandler)
				}
			}),
		}
		revision := testRevision()
		for _, revision.HTTP2 = range []bool{false, true} {
			a, address := serve(Config{}, revision, instances[revision.HTTP2])
			for _, path := range []string{"/whole", "/cut"} {
				for _, framing := range []string{"Content-Length: 1000", "Content-Length: 1000000000000", "Transfer-Encoding: chunked"} {
					c := dialWire(t, address)
					c.say(request("POST "+path, framing))
					got := c.rest()
					if !strings.HasPrefix(got, "HTTP/1.1 200 OK\r\n") || !strings.Contains(got, "early") || strings.HasSuffix(got, "0\r\n\r\n") != (path == "/whole") {
						t.Errorf("HTTP/2 %t, %s with %s: got %q", revision.HTTP2, path, framing, got)
					}
					waitForLoad(t, a, 0, 0)
				}
			}
		}
	})
}

func TestWire_NothingBehindAMalformedBodyIsARequest(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		var hidden atomic.Int64
		instance := serveInstance(t, "a", func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/hidden" {
				hidden.Add(1)
			}
			io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		})
		revision := testRevision()
		for _, revision.HTTP2 = range []bool{false, true} {
			a, address := serve(Config{}, revision, instance)
			for _, body := range []string{"zz\r\n", "4\r\nbodyandmore\r\n", "-1\r\n\r\n", "\r\n"} {
				c := dialWire(t, address)
				c.say(request("POST /", "Transfer-Encoding: chunked") + body + request("GET /hidden"))
				if h, _ := c.response(); !strings.HasPrefix(h.line, "HTTP/1.1 400 ") {
					t.Errorf("%q: got %v", body, h)
				}
				c.ends()
				waitForLoad(t, a, 0, 0)
			}
		}
		if hidden.Load() > 0 {
			t.Error("what followed a malformed body was a request")
		}
	})
}

func TestWire_ARefusalDoesNotWaitForTheBody(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		revision := testRevision()
		revision.MaxQueue = 1
		a, address := serve(Config{}, revision)
		first := dialWire(t, address)
		first.say(request("GET /"))
		waitForLoad(t, a, 0, 1)
		for host, want := range map[string]string{"hello.test": "429", "nobody.test": "404"} {
			for _, framing := range []string{"Content-Length: 1000", "Content-Length: 1000000000000", "Transfer-Encoding: chunked"} {
				c := dialWire(t, address)
				c.say("POST / HTTP/1.1\r\nHost: " + host + "\r\n" + framing + "\r\n\r\n")
				if h, _ := c.response(); strings.Fields(h.line)[1] != want {
					t.Errorf("%s %s: got %v", host, framing, h)
				}
				c.SetReadDeadline(time.Now().Add(wirePatience / 2))
				if _, err := c.reader.ReadByte(); err != io.EOF { // it is not waited for long
					t.Errorf("%s %s: after the refusal: %v", host, framing, err)
				}
			}
		}
	})
}

func TestWire_AnHTTP2ClientThatLeavesIsNoticedInEveryState(t *testing.T) {
	t.Parallel()
	for name, http2 := range map[string]bool{"instance speaks HTTP/1.1": false, "instance speaks HTTP/2": true} {
		for _, state := range []string{"/waiting", "/head", "/streaming", "/uploading"} {
			t.Run(name+" "+state, func(t *testing.T) {
				t.Parallel()
				revision := testRevision()
				revision.HTTP2 = http2
				began, ended := make(chan struct{}), make(chan error, 1)
				a := NewActivator(revision)
				instance := serveInstance(t, "a", func(w http.ResponseWriter, r *http.Request) {
					if state == "/streaming" {
						io.WriteString(w, "part")
						http.NewResponseController(w).Flush()
					}
					close(began)
					if state == "/uploading" {
						_, err := io.Copy(io.Discard, r.Body)
						ended <- err
						return
					}
					<-r.Context().Done()
					ended <- r.Context().Err()
				})
				_, address := startGateway(t, Config{}, a)
				ctx, leave := context.WithCancel(t.Context())
				method, body := "GET", io.Reader(http.NoBody)
				if state == "/uploading" {
					reader, writer := io.Pipe()
					defer writer.Close()
					method, body = "POST", reader
				}
				r, err := http.NewRequestWithContext(ctx, method, "http://"+address+state, body)
				if err != nil {
					t.Fatal(err)
				}
				r.Host = "hello.test"
				left := make(chan struct{})
				go func() {
					defer close(left)
					if response, err := http2Client(t).Do(r); err == nil {
						io.Copy(io.Discard, response.Body)
						response.Body.Close()
					}
				}()
				if state == "/waiting" {
					waitForLoad(t, a, 0, 1)
					leave()
					waitForLoad(t, a, 0, 0)
				} else {
					a.Add(instance)
					<-began
					leave()
					if err := <-ended; err == nil {
						t.Error("the instance took the body for a whole one")
					}
					waitForLoad(t, a, 0, 0)
				}
				<-left
			})
		}
	}
}

func TestWire_AnInstanceThatDiesWhileTheClientIsSilentCutsTheResponse(t *testing.T) {
	betweenProtocols(t, func(t *testing.T, revision Revision, client *http.Client) {
		a := NewActivator(revision)
		instance := serveInstance(t, "a", func(w http.ResponseWriter, r *http.Request) {
			http.NewResponseController(w).EnableFullDuplex()
			r.Body.Read(make([]byte, 10))
			io.WriteString(w, "part")
			http.NewResponseController(w).Flush()
			io.Copy(io.Discard, r.Body) // until the connection ends
		})
		a.Add(instance)
		_, address := startGateway(t, Config{}, a)
		body, more := io.Pipe()
		defer more.Close()
		go io.WriteString(more, "some")
		r := newRequest(t, "POST", address, "/", "")
		r.Body, r.ContentLength = body, -1
		response, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if _, err := io.ReadFull(response.Body, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		instance.kill(engine.Exit{Signal: 9})
		ended := make(chan error, 1)
		go func() {
			_, err := io.ReadAll(response.Body)
			ended <- err
		}()
		select {
		case err := <-ended:
			if err == nil {
				t.Error("the client took the response for a whole one")
			}
		case <-time.After(wirePatience):
			t.Error("the client was not told")
		}
		waitForLoad(t, a, 0, 0)
	})
}
