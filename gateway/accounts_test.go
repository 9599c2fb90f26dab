package gateway

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

func TestGateway_CountsRequestsThatNoServiceGets(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		registry := prometheus.NewRegistry()
		_, address := serve(Config{Registerer: registry}, testRevision(), idleInstance("a"))
		for _, text := range []string{
			"GET / HTTP/1.1\r\nHost: unknown.test\r\nConnection: close\r\n\r\n",
			"GET / HTTP/1.0\r\n\r\n",
			"GET / HTTP/1.1\r\nHost : hello.test\r\n\r\n",
			"TRACE / HTTP/1.1\r\nHost: hello.test\r\nConnection: close\r\n\r\n",
		} {
			exchangeRaw(t, address, text)
		}
		got := gather(t, registry)
		for code, want := range map[int]float64{404: 2, 400: 1, 405: 1} {
			if n := got[fmt.Sprintf("berth_requests_unrouted_total %d", code)]; n != want {
				t.Errorf("%v requests were counted with %d, want %v: %v", n, code, want, got)
			}
		}
	})
}

func TestAccessLog_CountsTheBytesOfABodyAndNotItsChunks(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		got := logged(t, serve, func(address string) {
			exchangeRaw(t, address, "GET / HTTP/1.1\r\nHost: hello.test\r\nConnection: close\r\n\r\n")
		}, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n6\r\n world\r\n0\r\nT: v\r\n\r\n")
		if diff := cmp.Diff(line{Status: 200, Bytes: 11}, got); diff != "" {
			t.Errorf("the line (-want +got):\n%s", diff)
		}
	})
}

func TestAccessLog_DoesNotCallAResponseCutThatTheClientHasWhole(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		got := logged(t, serve, func(address string) {
			c := dialClient(t, address)
			io.WriteString(c, "POST / HTTP/1.1\r\nHost: hello.test\r\nContent-Length: 100\r\n\r\n")
			readUntil(t, c, "no")
			c.Close()
		}, "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
		if diff := cmp.Diff(line{Status: 403, Bytes: 2}, got); diff != "" {
			t.Errorf("the line (-want +got):\n%s", diff)
		}
	})
}

// line is what these tests look at of a line of the log.
type line struct {
	Status, Bytes int
	Cut           bool
}

// logged returns the access log's line of the one request that talk makes, to an instance that answers with this text
// when it has read a head.
func logged(t *testing.T, serve serveFunc, talk func(address string), answer string) line {
	t.Helper()
	out, written := io.Pipe()
	t.Cleanup(func() { out.Close() })
	_, address := serve(Config{AccessLog: written}, testRevision(), rawInstance(t, "a", func(c net.Conn) {
		in := bufio.NewReader(c)
		if _, err := http.ReadRequest(in); err != nil {
			return
		}
		io.WriteString(c, answer)
		io.Copy(io.Discard, in)
	}))
	talk(address)
	var got line
	if err := json.NewDecoder(bufio.NewReader(out)).Decode(&got); err != nil {
		t.Fatal(err)
	}
	go io.Copy(io.Discard, out)
	return got
}

func TestGateway_SaysThatARequestNamesNoHost(t *testing.T) {
	_, address := through(t, testRevision(), func(w http.ResponseWriter, r *http.Request) {})
	if got := exchangeRaw(t, address, "GET / HTTP/1.0\r\n\r\n"); !strings.Contains(got, "404 Not Found") || !strings.Contains(got, "names no host") {
		t.Errorf("got %q", got)
	}
}

func TestServeTLS_SpeaksHTTP10WithAClientThatOffersNothingElse(t *testing.T) {
	a := NewActivator(testRevision())
	a.Add(serveInstance(t, "hello-00001-a", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") }))
	address, config, _, _ := startTLS(t, Config{}, a)
	config.NextProtos = []string{"http/1.0"}
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", address, config)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(c, "GET / HTTP/1.0\r\nHost: hello.test\r\n\r\n")
	if got, err := io.ReadAll(c); err != nil || !strings.HasPrefix(string(got), "HTTP/1.0 200 ") || !strings.HasSuffix(string(got), "hello") {
		t.Errorf("got %q, %v", got, err)
	}
}
