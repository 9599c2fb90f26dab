package gateway

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// flood is an instance's response that never ends, and that no buffer can hold.
func flood(w http.ResponseWriter, r *http.Request) {
	piece := make([]byte, 64<<10)
	for r.Context().Err() == nil {
		w.Write(piece)
	}
}

func TestGateway_AClientThatStopsReadingLosesItsSlot(t *testing.T) {
	const timeout = 100 * time.Millisecond
	for name, http2 := range map[string]bool{"instance speaks HTTP/1.1": false, "instance speaks HTTP/2": true} {
		revision := testRevision()
		revision.HTTP2 = http2
		start := func(t *testing.T) (*Activator, string) {
			a := NewActivator(revision)
			a.Add(serveInstance(t, "a", flood))
			_, address := startGateway(t, Config{WriteTimeout: timeout}, a)
			return a, address
		}
		t.Run(name+", client HTTP/1.1", func(t *testing.T) {
			a, address := start(t)
			c, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: hello.test\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			if _, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil { // it reads the beginning
				t.Fatal(err)
			}
			waitForLoad(t, a, 0, 0)
		})
		t.Run(name+", client HTTP/2", func(t *testing.T) {
			a, address := start(t)
			client := http2Client(t)
			response, err := client.Do(newRequest(t, "GET", address, "/", ""))
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			waitForLoad(t, a, 0, 0) // its window is full, and the connection lives
			again, err := client.Do(newRequest(t, "GET", address, "/", ""))
			if err != nil {
				t.Fatalf("another request on the connection: %v", err)
			}
			again.Body.Close()
		})
	}
}

func TestGateway_AClientOfATunnelThatStopsReadingLosesItsSlot(t *testing.T) {
	a := NewActivator(testRevision())
	a.Add(rawInstance(t, "a", func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
		piece := make([]byte, 64<<10)
		for {
			if _, err := c.Write(piece); err != nil {
				return
			}
		}
	}))
	_, address := startGateway(t, Config{WriteTimeout: 100 * time.Millisecond}, a)
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: hello.test\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if response, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || response.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("got %v, %v", response, err)
	}
	waitForLoad(t, a, 0, 0)
}

func TestGateway_AResponseMayBeSilentForLongerThanTheWriteTimeout(t *testing.T) {
	const timeout = 20 * time.Millisecond
	for _, http2 := range []bool{false, true} {
		revision := testRevision()
		revision.HTTP2 = http2
		a := NewActivator(revision)
		a.Add(serveInstance(t, "a", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Trailer", "X-End")
			for range 3 {
				io.WriteString(w, "part")
				http.NewResponseController(w).Flush()
				time.Sleep(5 * timeout)
			}
			w.Header().Set("X-End", "yes")
		}))
		_, address := startGateway(t, Config{WriteTimeout: timeout}, a)
		for _, client := range []*http.Client{http.DefaultClient, http2Client(t)} {
			for range 2 { // the connection can be used again
				response, body := fetchBy(t, client, newRequest(t, "GET", address, "/", ""))
				if body != "partpartpart" || response.Trailer.Get("X-End") != "yes" {
					t.Errorf("%s: got %q, trailer %v", response.Proto, body, response.Trailer)
				}
			}
		}
	}
}

func TestClientConn_GivesEachWriteTheWholeTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		c := newClientConn(near, time.Minute)
		go io.CopyN(io.Discard, far, 5)
		if _, err := io.WriteString(c, "first"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second)
		began := time.Now()
		n, err := io.WriteString(c, "second")
		if took := time.Since(began); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) || took != time.Minute {
			t.Errorf("writing to a client that does not read any more: %d bytes, %v after %s; want none and an error after a minute", n, err, took)
		}
	})
}

func TestClientConn_IsClosedOnlyWhenNoByteIsTakenInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		c := newClientConn(near, time.Minute)
		text := "read slowly, one byte after the other"
		written := make(chan error, 1)
		go func() {
			_, err := io.WriteString(c, text)
			written <- err
		}()
		var got []byte
		for range text {
			time.Sleep(59 * time.Second)
			var b [1]byte
			if _, err := io.ReadFull(far, b[:]); err != nil {
				t.Fatal(err)
			}
			got = append(got, b[0])
		}
		if err := <-written; err != nil || string(got) != text {
			t.Fatalf("got %q, %v", got, err)
		}

		time.Sleep(25 * time.Second) // the deadline of the last write is half over
		if err := c.SetDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		n, err := io.WriteString(c, text)
		if took := time.Since(began); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) || took != time.Minute {
			t.Errorf("writing to a client that does not read: %d bytes, %v after %s; want none and an error after a minute", n, err, took)
		}
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("the connection is not closed: %v", err)
		}
	})
}

func TestGateway_AClientThatReadsSlowlyKeepsItsResponse(t *testing.T) {
	t.Parallel()
	const timeout = 300 * time.Millisecond
	a := NewActivator(testRevision())
	a.Add(serveInstance(t, "a", func(w http.ResponseWriter, r *http.Request) {
		for chunk := make([]byte, 64<<10); r.Context().Err() == nil; {
			w.Write(chunk)
		}
	}))
	_, address := startGateway(t, Config{WriteTimeout: timeout}, a)
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.(*net.TCPConn).SetReadBuffer(16 << 10)
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: hello.test\r\n\r\n")
	// Slower than the kernel makes room for more in that time, and for much longer than it.
	buffer := make([]byte, 8<<10)
	for end := time.Now().Add(5 * timeout); time.Now().Before(end); time.Sleep(timeout / 10) {
		if _, err := io.ReadFull(c, buffer); err != nil {
			t.Fatal(err)
		}
	}
}
