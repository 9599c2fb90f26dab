package gateway

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The tests whose names begin with TestWire look at the gateway from outside: raw sockets or real clients before
// it, raw sockets or real servers behind it.

// wirePatience is how long a test waits for bytes that must come.
const wirePatience = 10 * time.Second

// wire is one end of a connection whose bytes a test says and hears itself.
type wire struct {
	net.Conn
	reader *bufio.Reader
	client bool                             // else it is an instance's
	fail   func(format string, args ...any) // ends the goroutine
}

// dialWire connects a client to the gateway.
func dialWire(t testing.TB, address string) *wire {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &wire{c, bufio.NewReader(c), true, t.Fatalf}
}

// wireInstance starts an instance that hands each connection to serve. A connection that ends where a message could begin
// ends serve silently; the test itself notices what it misses.
func wireInstance(t testing.TB, id string, serve func(in *wire)) *fakeInstance {
	t.Helper()
	return rawInstance(t, id, func(c net.Conn) {
		serve(&wire{c, bufio.NewReader(c), false, func(format string, args ...any) {
			t.Errorf("instance "+id+": "+format, args...)
			runtime.Goexit()
		}})
	})
}

func (w *wire) say(text string) {
	if _, err := io.WriteString(w, text); err != nil {
		w.fail("writing %.80q: %v", text, err)
	}
}

// head is the start line and the fields of a message, as they came.
type head struct {
	line   string
	fields [][2]string
}

// values are those of the fields of a name, in order.
func (h head) values(name string) []string {
	var all []string
	for _, f := range h.fields {
		if strings.EqualFold(f[0], name) {
			all = append(all, f[1])
		}
	}
	return all
}

// value is that of the only field of a name; empty when there is none.
func (h head) value(name string) string { return strings.Join(h.values(name), " | ") }

// head reads the next head. It ends the goroutine when the connection ends before it.
func (w *wire) head() head {
	w.SetReadDeadline(time.Now().Add(wirePatience))
	if _, err := w.reader.Peek(1); err != nil {
		if w.client {
			w.fail("waiting for a response: %v", err)
		}
		runtime.Goexit()
	}
	h := head{line: w.line()}
	for {
		line := w.line()
		if line == "" {
			return h
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			w.fail("header line %q", line)
		}
		h.fields = append(h.fields, [2]string{name, strings.Trim(value, " \t")})
	}
}

// line reads a line without its end.
func (w *wire) line() string {
	w.SetReadDeadline(time.Now().Add(wirePatience))
	line, err := w.reader.ReadString('\n')
	if err != nil {
		w.fail("reading a line: %q, then %v", line, err)
	}
	if !strings.HasSuffix(line, "\r\n") {
		w.fail("a line ends without CR: %q", line)
	}
	return strings.TrimSuffix(line, "\r\n")
}

// bytes reads n bytes.
func (w *wire) bytes(n int) string {
	w.SetReadDeadline(time.Now().Add(wirePatience))
	b := make([]byte, n)
	if n, err := io.ReadFull(w.reader, b); err != nil {
		w.fail("reading %d bytes: %q, then %v", len(b), b[:n], err)
	}
	return string(b)
}

// body reads the body of a request, or of a response that may have one and does not go to the connection's end, and
// its trailer.
func (w *wire) body(h head) (data string, trailer head) {
	if h.value("Transfer-Encoding") == "" {
		n, _ := strconv.Atoi(h.value("Content-Length"))
		return w.bytes(n), trailer
	}
	var all strings.Builder
	for {
		size, err := strconv.ParseUint(strings.Split(w.line(), ";")[0], 16, 31)
		if err != nil {
			w.fail("chunk size: %v", err)
		}
		if size == 0 {
			for {
				line := w.line()
				if line == "" {
					return all.String(), trailer
				}
				name, value, _ := strings.Cut(line, ":")
				trailer.fields = append(trailer.fields, [2]string{name, strings.Trim(value, " \t")})
			}
		}
		all.WriteString(w.bytes(int(size)))
		if end := w.line(); end != "" {
			w.fail("after a chunk: %q", end)
		}
	}
}

// response reads a response with its body, which has a length or chunks.
func (w *wire) response() (h head, body string) {
	h = w.head()
	body, _ = w.body(h)
	return h, body
}

// expect reads a response and compares its status and body.
func (w *wire) expect(status int, body string) head {
	h, got := w.response()
	if !strings.HasPrefix(h.line, fmt.Sprintf("HTTP/1.1 %d ", status)) || got != body {
		w.fail("got %q with %.200q, want %d with %.200q", h.line, got, status, body)
	}
	return h
}

// rest reads to the end of the connection.
func (w *wire) rest() string {
	w.SetReadDeadline(time.Now().Add(wirePatience))
	b, err := io.ReadAll(w.reader)
	if err != nil {
		w.fail("reading to the end: %.200q, then %v", b, err)
	}
	return string(b)
}

// ends checks that nothing more comes, and that the connection ends.
func (w *wire) ends() {
	if rest := w.rest(); rest != "" {
		w.fail("after the last message: %.200q", rest)
	}
}

// silent checks that no byte has come yet.
func (w *wire) silent() {
	w.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if b, err := w.reader.Peek(1); err == nil {
		w.fail("nothing was to come yet, but %q did", b)
	}
}

// request makes the text of a request for hello.test from its method and path, and lines of its header.
func request(methodPath string, lines ...string) string {
	text := methodPath + " HTTP/1.1\r\nHost: hello.test\r\n"
	for _, line := range lines {
		text += line + "\r\n"
	}
	return text + "\r\n"
}

// A serveFunc serves a gateway whose host hello.test leads to these instances of a revision, and returns its address.
type serveFunc func(config Config, revision Revision, instances ...*fakeInstance) (*Activator, string)

// onEveryFront runs a test of plain HTTP/1.1 once for each way in which the gateway reads it: by its own loop, which takes
// TCP connections, and by the standard library, which takes what else a listener may give.
func onEveryFront(t *testing.T, test func(t *testing.T, serve serveFunc)) {
	t.Parallel()
	for name, wrap := range map[string]func(net.Listener) net.Listener{
		"TCP":   func(l net.Listener) net.Listener { return l },
		"other": func(l net.Listener) net.Listener { return opaqueListener{l} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, func(config Config, revision Revision, instances ...*fakeInstance) (*Activator, string) {
				a := NewActivator(revision)
				for _, instance := range instances {
					a.Add(instance)
				}
				listener, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				_, address := serveGateway(t, config, a, wrap(listener))
				return a, address
			})
		})
	}
}

// opaqueListener's connections do not show what they are.
type opaqueListener struct{ net.Listener }

func (l opaqueListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return opaqueConn{c, c.(*net.TCPConn).CloseWrite}, nil
}

type opaqueConn struct {
	net.Conn
	closeWrite func() error
}

func (c opaqueConn) CloseWrite() error { return c.closeWrite() }

// echoHead is an instance's connection that answers each request with its head as it came, without what the gateway adds
// to every request.
func echoHead(in *wire) {
	for {
		h := in.head()
		in.body(h)
		var text strings.Builder
		text.WriteString(h.line + "\n")
		for _, f := range h.fields {
			switch http.CanonicalHeaderKey(f[0]) {
			case "Forwarded", "X-Forwarded-For", "X-Forwarded-Proto", "Traceparent", "X-Cloud-Trace-Context":
				continue
			}
			text.WriteString(f[0] + ": " + f[1] + "\n")
		}
		in.say(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", text.Len(), text.String()))
	}
}
