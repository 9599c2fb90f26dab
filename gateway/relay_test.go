package gateway

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
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
