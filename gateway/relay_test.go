package gateway

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

func TestRelay_SendsNoLargeBodyOverAConnectionThatTheInstanceHasEnded(t *testing.T) {
	for name, framing := range map[string]string{
		"of known length": "Content-Length: 100000\r\n\r\n" + strings.Repeat("x", 100_000),
		"chunked":         "Transfer-Encoding: chunked\r\n\r\n" + strings.Repeat("c350\r\n"+strings.Repeat("x", 50_000)+"\r\n", 2) + "0\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			end, ended := make(chan struct{}), make(chan struct{})
			once := make(chan struct{}, 1)
			once <- struct{}{}
			_, a, address := throughRaw(t, testRevision(), func(c net.Conn) {
				reader := bufio.NewReader(c)
				for {
					r, err := http.ReadRequest(reader)
					if err != nil {
						return
					}
					n, err := io.Copy(io.Discard, r.Body)
					if err != nil {
						return
					}
					length := fmt.Sprint(n)
					fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(length), length)
					select {
					case <-once: // the first connection ends when it is told to
						<-end
						c.Close()
						close(ended)
						return
					default:
					}
				}
			})
			client, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			client.SetDeadline(time.Now().Add(10 * time.Second))
			answers := bufio.NewReader(client)
			answer := func() (int, string) {
				t.Helper()
				response, err := http.ReadResponse(answers, nil)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(response.Body)
				if err != nil {
					t.Fatal(err)
				}
				return response.StatusCode, string(body)
			}
			io.WriteString(client, "GET / HTTP/1.1\r\nHost: hello.test\r\n\r\n")
			if status, body := answer(); status != 200 {
				t.Fatalf("got %d %q", status, body)
			}

			// The loop learns of the request and of the connection's end at the same time, of the request first.
			busy, goOn := make(chan struct{}), make(chan struct{})
			a.mu.Lock()
			conns := a.members["hello-00001-a"].conns
			a.mu.Unlock()
			conns.mu.Lock()
			loop := conns.loops[0]
			conns.mu.Unlock()
			loop.post(func() { close(busy); <-goOn })
			<-busy
			sent := make(chan error, 1)
			request := "POST / HTTP/1.1\r\nHost: hello.test\r\n" + framing
			if _, err := io.WriteString(client, request[:2*maxRepeat]); err != nil {
				t.Fatal(err)
			}
			go func() {
				_, err := io.WriteString(client, request[2*maxRepeat:])
				sent <- err
			}()
			close(end)
			<-ended
			close(goOn)
			if status, body := answer(); status != 200 || body != "100000" {
				t.Errorf("got %d %q", status, body)
			}
			if err := <-sent; err != nil {
				t.Error(err)
			}
		})
	}
}

// The end of a connection ends a response without a length, but a reset of it does not, whoever learns of it first.
func TestRelay_AResetIsNotTheEndOfAResponse(t *testing.T) {
	t.Parallel()
	began, reset, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	_, a, address := throughRaw(t, testRevision(), func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\npart")
		close(began)
		<-reset
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
		close(done)
	})
	c := dialWire(t, address)
	c.say(request("POST /", "Transfer-Encoding: chunked") + "1\r\nx\r\n")
	<-began
	if h := c.head(); h.value("Transfer-Encoding") != "chunked" {
		t.Fatalf("got %v", h)
	}
	if got := c.bytes(len("4\r\npart\r\n")); got != "4\r\npart\r\n" {
		t.Fatalf("got %q", got)
	}
	goOn := loopOf(t, a, "hello-00001-a").pause()
	c.say("1\r\ny\r\n") // of which the loop learns first: it writes to a connection that is reset
	close(reset)
	<-done
	goOn()
	c.SetReadDeadline(time.Now().Add(wirePatience))
	if rest, err := io.ReadAll(c.reader); len(rest) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the response goes on with %q, then %v", rest, err)
	}
	waitForLoad(t, a, 0, 0)
}

// What an instance sends behind a response that has no body would be taken for the next response. One that says that there is
// a body will send it, sooner or later.
func TestRelay_UsesNoConnectionAgainOnWhichABodyMayCome(t *testing.T) {
	t.Parallel()
	for _, framing := range []string{"Content-Length: 5", "Transfer-Encoding: chunked"} {
		first := make(chan struct{}, 1)
		first <- struct{}{}
		_, _, address := throughRaw(t, testRevision(), func(conn net.Conn) {
			in := &wire{conn, bufio.NewReader(conn), false, t.Errorf}
			select {
			case <-first:
				in.head()
				in.say("HTTP/1.1 204 No Content\r\n" + framing + "\r\n\r\n")
				in.SetReadDeadline(time.Now().Add(wirePatience))
				if line, err := in.reader.ReadString('\n'); err != io.EOF {
					t.Errorf("%s: the connection got %q, %v, want its end", framing, line, err)
				}
			default:
				answering(nil)(in)
			}
		})
		c := dialWire(t, address)
		c.say(request("GET /1"))
		if h := c.head(); !strings.HasPrefix(h.line, "HTTP/1.1 204 ") {
			t.Errorf("got %v", h)
		}
		c.say(request("GET /2"))
		c.expect(200, "/2")
	}
}
