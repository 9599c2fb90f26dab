package gateway

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-run/berth/gateway/http1"
	"github.com/berth-run/berth/gateway/http1/http1test"
)

// recorder is an instance that answers each whole request, and keeps it. It reads with the strictest of parsers: what
// is ambiguous is an error.
type recorder struct {
	mu       sync.Mutex
	requests []http1test.Request // guarded by mu, as all that follow
	heads    []string
	wrong    []string
}

// take returns what came since the last time.
func (r *recorder) take() (requests []http1test.Request, heads, wrong []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	requests, heads, wrong = r.requests, r.heads, r.wrong
	r.requests, r.heads, r.wrong = nil, nil, nil
	return requests, heads, wrong
}

func (r *recorder) serve(c net.Conn) {
	reader := bufio.NewReader(c)
	for {
		var head []byte
		for !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
			b, err := reader.ReadByte()
			if err != nil {
				if len(head) > 0 {
					r.complain(fmt.Sprintf("a head that breaks off: %q", head))
				}
				return
			}
			head = append(head, b)
		}
		var parsed http1.Request
		if err := parsed.Parse(head, http1.Limits{}); err != nil {
			r.complain(fmt.Sprintf("%q: %v", head, err))
			return
		}
		body, err := r.body(c, reader, &parsed)
		if err != nil {
			return // the gateway ended it: what it was sent is no request
		}
		r.mu.Lock()
		r.requests = append(r.requests, http1test.Request{Method: string(parsed.Method), Target: string(parsed.Target), Body: string(body)})
		r.heads = append(r.heads, strings.ToLower(string(head)))
		r.mu.Unlock()
		answer := "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
		if string(parsed.Method) == http.MethodHead {
			answer = strings.TrimSuffix(answer, "ok")
		}
		io.WriteString(c, answer)
	}
}

// body reads a request's body and trailer.
func (r *recorder) body(c net.Conn, reader *bufio.Reader, parsed *http1.Request) ([]byte, error) {
	if parsed.Continue {
		io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
	}
	if parsed.Body != http1.Chunked {
		body := make([]byte, parsed.Body)
		_, err := io.ReadFull(reader, body)
		return body, err
	}
	body, err := io.ReadAll(httputil.NewChunkedReader(reader))
	for line := "-"; err == nil && line != "\r\n"; {
		if line, err = reader.ReadString('\n'); err == nil && !strings.HasSuffix(line, "\r\n") {
			r.complain(fmt.Sprintf("trailer line %q", line))
		}
		for _, name := range []string{"content-length", "transfer-encoding", "host", "x-forwarded-for"} {
			if strings.HasPrefix(strings.ToLower(line), name+":") {
				r.complain(fmt.Sprintf("trailer line %q", line))
			}
		}
	}
	return body, err
}

func (r *recorder) complain(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wrong = append(r.wrong, text)
}

func TestWire_ForwardsRequestsInOneWayOrRefusesThem(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		var instance recorder
		_, address := serve(Config{}, testRevision(), rawInstance(t, "hello-00001-a", instance.serve))
		checkSmuggling(t, &instance, func() (net.Conn, error) { return net.Dial("tcp", address) })
	})
}

func TestServeTLS_ForwardsRequestsInOneWayOrRefusesThem(t *testing.T) {
	t.Parallel()
	var instance recorder
	a := NewActivator(testRevision())
	a.Add(rawInstance(t, "hello-00001-a", instance.serve))
	address, config, _, _ := startTLS(t, Config{}, a)
	checkSmuggling(t, &instance, func() (net.Conn, error) { return tls.Dial("tcp", address, config) })
}

// checkSmuggling goes through the corpus.
func checkSmuggling(t *testing.T, instance *recorder, dial func() (net.Conn, error)) {
	t.Helper()
	for _, c := range http1test.Smuggling() {
		client, err := dial()
		if err != nil {
			t.Fatal(err)
		}
		statuses, err := converse(client, &c)
		requests, heads, wrong := instance.take()
		fail := func(format string, args ...any) {
			t.Helper()
			t.Errorf("%s: %s\nsent %.300q\nanswers %v, error %v\nthe instance got %q", c.Name, fmt.Sprintf(format, args...), c.Sent, statuses, err, requests)
		}
		var want []int
		for range c.Forwarded {
			want = append(want, 200)
		}
		forwarded := c.Forwarded
		switch {
		case c.Refused != 0:
			want = append(want, c.Refused)
			if n := len(want); c.Name == "a trailer of 100 KiB" && len(statuses) == n && statuses[n-1] == 400 {
				want[n-1] = 400 // the standard library does not tell who reads the body why it breaks off
			}
		case !c.Closes:
			want = append(want, 200)
			forwarded = append(forwarded[:len(forwarded):len(forwarded)], http1test.Request{Method: "GET", Target: "/last"})
		}
		if err != nil {
			fail("the connection does not end")
		}
		if diff := cmp.Diff(want, statuses); diff != "" {
			fail("answers: %s", diff)
		}
		if diff := cmp.Diff(forwarded, requests); diff != "" {
			fail("forwarded: %s", diff)
		}
		for _, text := range wrong {
			fail("the instance got %s", text)
		}
		for _, head := range heads {
			for _, text := range c.Absent {
				if strings.Contains(head, text) && !strings.HasPrefix(head, "get /last ") {
					fail("%q reached the instance: %q", text, head)
				}
			}
		}
	}
}

// converse sends what a case says, and one more request where one may follow. It returns the statuses of the answers
// up to the connection's end.
func converse(client net.Conn, c *http1test.Case) (statuses []int, err error) {
	defer client.Close()
	client.SetDeadline(time.Now().Add(wirePatience))
	sent := c.Sent
	if c.Refused == 0 && !c.Closes {
		sent += "GET /last HTTP/1.1\r\nHost: " + http1test.Host + "\r\nConnection: close\r\n\r\n"
	}
	go io.WriteString(client, sent) // what is refused may not be read to its end
	reader := bufio.NewReader(client)
	for {
		if _, err := reader.Peek(1); err == io.EOF {
			return statuses, nil
		}
		method := http.MethodGet
		if len(statuses) < len(c.Forwarded) {
			method = c.Forwarded[len(statuses)].Method
		}
		response, err := http.ReadResponse(reader, &http.Request{Method: method})
		if err != nil {
			return statuses, err
		}
		if response.StatusCode == http.StatusContinue {
			continue
		}
		statuses = append(statuses, response.StatusCode)
		if _, err := io.Copy(io.Discard, response.Body); err != nil {
			return statuses, err
		}
	}
}
