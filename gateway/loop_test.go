package gateway

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A fault in our code must cost one connection, and leave nothing behind.
func TestLoop_AFaultEndsOneConnection(t *testing.T) {
	var logged lockedBuffer
	var armed atomic.Bool
	a := NewActivator(testRevision())
	a.Add(serveInstance(t, "a", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") }))
	g, address := startGateway(t, Config{Logger: slog.New(slog.NewTextHandler(&logged, nil)), Challenge: func(string, string) (string, bool) {
		if armed.Load() {
			panic("a fault of the test")
		}
		return "", false
	}}, a)
	other := dialClient(t, address)
	io.WriteString(other, "GET / HTTP/1.1\r\nHost: hello.test\r\n\r\n")
	readUntil(t, other, "hello")
	armed.Store(true)
	broken := dialClient(t, address)
	io.WriteString(broken, "GET "+challengePath+"x HTTP/1.1\r\nHost: hello.test\r\n\r\n")
	if rest, err := io.ReadAll(broken); len(rest) > 0 || err != nil && !errors.Is(err, net.ErrClosed) {
		t.Errorf("after a fault the client got %q, %v", rest, err)
	}
	io.WriteString(other, "GET / HTTP/1.1\r\nHost: hello.test\r\n\r\n")
	readUntil(t, other, "hello")
	waitForLoad(t, a, 0, 0)
	other.Close()
	for end := time.Now().Add(10 * time.Second); g.clients.count() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d connections are counted", g.clients.count())
		}
	}
	logged.mu.Lock()
	defer logged.mu.Unlock()
	if !strings.Contains(logged.b.String(), "a fault of the test") {
		t.Errorf("the log is %s", logged.b.String())
	}
}

func dialClient(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

func readUntil(t *testing.T, c net.Conn, end string) {
	t.Helper()
	var got []byte
	for buffer := make([]byte, 1024); !bytes.HasSuffix(got, []byte(end)); {
		n, err := c.Read(buffer)
		got = append(got, buffer[:n]...)
		if err != nil {
			t.Fatalf("waiting for %q: got %q, then %v", end, got, err)
		}
	}
}

// However busy a connection is, it has one turn and then the others have theirs.
func TestLoop_ABusyConnectionWaitsForItsTurnOnce(t *testing.T) {
	t.Parallel()
	a := NewActivator(testRevision())
	a.Add(serveInstance(t, "a", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") }))
	_, address := startGateway(t, Config{}, a)
	c := dialClient(t, address)
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: hello.test\r\n\r\n")
	readUntil(t, c, "hello")
	l := loopOf(t, a, "a")
	var work sync.WaitGroup
	work.Go(func() { io.Copy(io.Discard, c) })
	work.Go(func() {
		for requests := []byte(strings.Repeat("GET / HTTP/1.1\r\nHost: nobody.test\r\n\r\n", 10)); ; {
			if _, err := c.Write(requests); err != nil {
				return
			}
		}
	})
	busy := 0
	for end := time.Now().Add(wirePatience); busy < 100 && time.Now().Before(end); {
		waiting := make(chan int)
		l.post(func() { waiting <- len(l.again) })
		n := <-waiting
		if n > 1 {
			t.Errorf("one connection waits for %d turns", n)
			break
		}
		busy += n
	}
	if busy == 0 {
		t.Error("the connection was never busy")
	}
	c.Close()
	work.Wait()
}

// The empty line that some clients send behind a body is none of the next request's, in however many pieces it comes.
func TestLoop_AnEmptyLineBeforeARequestMayComeInPieces(t *testing.T) {
	t.Parallel()
	_, address := through(t, testRevision(), func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") })
	c := dialWire(t, address)
	for range 2 {
		c.say("\r")
		c.silent()
		c.say("\n" + request("GET /"))
		c.expect(200, "hello")
	}
	c.say("\rGET")
	if h, _ := c.response(); !strings.HasPrefix(h.line, "HTTP/1.1 400 ") {
		t.Errorf("got %v for CR alone", h)
	}
}
