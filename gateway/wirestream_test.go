package gateway

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// betweenProtocols runs a test for both protocols of clients and both of instances.
func betweenProtocols(t *testing.T, test func(t *testing.T, revision Revision, client *http.Client)) {
	t.Parallel()
	for _, name := range []string{"HTTP/1.1 to HTTP/1.1", "HTTP/2 to HTTP/1.1", "HTTP/1.1 to HTTP/2", "HTTP/2 to HTTP/2"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			revision := testRevision()
			revision.HTTP2 = strings.HasSuffix(name, " HTTP/2")
			client := http2Client(t)
			if strings.HasPrefix(name, "HTTP/1.1 ") {
				transport := &http.Transport{}
				t.Cleanup(transport.CloseIdleConnections)
				client = &http.Client{Transport: transport}
			}
			defer client.CloseIdleConnections() // before the gateway's end, which would wait for an HTTP/2 client to go
			test(t, revision, client)
		})
	}
}

func TestWire_EachEventArrivesBeforeTheNextIsSent(t *testing.T) {
	betweenProtocols(t, func(t *testing.T, revision Revision, client *http.Client) {
		seen := make(chan struct{})
		a, address := through(t, revision, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			w.WriteHeader(http.StatusOK)
			out := http.NewResponseController(w)
			for i := range 5 {
				out.Flush() // first the head alone
				select {
				case <-seen:
				case <-r.Context().Done():
					t.Errorf("event %d: the client is gone", i)
					return
				}
				fmt.Fprintf(w, "data: %d\n\n", i)
			}
		})
		response, err := client.Do(newRequest(t, "GET", address, "/", ""))
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		seen <- struct{}{}
		lines := bufio.NewScanner(response.Body)
		for i := range 5 {
			if !lines.Scan() || lines.Text() != fmt.Sprintf("data: %d", i) || !lines.Scan() {
				t.Fatalf("event %d: got %q, %v", i, lines.Text(), lines.Err())
			}
			if i < 4 {
				seen <- struct{}{}
			}
		}
		if lines.Scan() || lines.Err() != nil {
			t.Errorf("the end is %q, %v", lines.Text(), lines.Err())
		}
		waitForLoad(t, a, 0, 0)
	})
}

func TestWire_ALongPollIsAnsweredWhenTheInstanceDoes(t *testing.T) {
	betweenProtocols(t, func(t *testing.T, revision Revision, client *http.Client) {
		posted := make(chan string)
		a, address := through(t, revision, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				body, _ := io.ReadAll(r.Body)
				posted <- string(body)
				return
			}
			io.WriteString(w, <-posted)
		})
		got := make(chan string, 1)
		go func() {
			response, err := client.Do(newRequest(t, "GET", address, "/", ""))
			if err != nil {
				got <- err.Error()
				return
			}
			defer response.Body.Close()
			body, _ := io.ReadAll(response.Body)
			got <- string(body)
		}()
		waitForLoad(t, a, 1, 0)
		fetchBy(t, client, newRequest(t, "POST", address, "/", "news"))
		if text := <-got; text != "news" {
			t.Errorf("got %q", text)
		}
	})
}

// mostInFlight bounds what the buffers between two sides hold that are a gateway apart. It is above all what the kernel lets
// two sockets' buffers grow to on both ways, by its usual limits (net.ipv4.tcp_wmem, tcp_rmem).
const mostInFlight = 80 << 20

// stalls waits until a count stands still, and returns it.
func stalls(t *testing.T, count *atomic.Int64) int64 {
	t.Helper()
	still := 0
	for last := int64(-1); ; time.Sleep(20 * time.Millisecond) {
		n := count.Load()
		if n > mostInFlight {
			t.Fatalf("%d bytes were taken although nobody reads them", n)
		}
		if n != last || n == 0 {
			last, still = n, 0
		} else if still++; still == 10 {
			return n
		}
	}
}

// advances waits until a count is larger than it was.
func advances(t *testing.T, count *atomic.Int64, was int64) {
	t.Helper()
	for end := time.Now().Add(wirePatience); count.Load() == was; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it stands still after %d bytes", was)
		}
	}
}

func TestWire_AClientThatReadsSlowlySlowsTheInstanceDown(t *testing.T) {
	betweenProtocols(t, func(t *testing.T, revision Revision, client *http.Client) {
		var written atomic.Int64
		a, address := through(t, revision, func(w http.ResponseWriter, r *http.Request) {
			for piece := make([]byte, 32<<10); ; {
				n, err := w.Write(piece)
				written.Add(int64(n))
				if err != nil {
					return
				}
			}
		})
		ctx, leave := context.WithCancel(t.Context())
		response, err := client.Do(newRequest(t, "GET", address, "/", "").WithContext(ctx))
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			n := stalls(t, &written)
			if _, err := io.CopyN(io.Discard, response.Body, n); err != nil {
				t.Fatal(err)
			}
			advances(t, &written, n)
			written.Add(-n)
		}
		leave()
		response.Body.Close()
		waitForLoad(t, a, 0, 0)
	})
}

// endless is a body that counts what is taken of it.
type endless struct{ taken atomic.Int64 }

func (e *endless) Read(p []byte) (int, error) {
	e.taken.Add(int64(len(p)))
	return len(p), nil
}

func TestWire_AnInstanceThatReadsSlowlySlowsTheClientDown(t *testing.T) {
	betweenProtocols(t, func(t *testing.T, revision Revision, client *http.Client) {
		read, over := make(chan int64), make(chan struct{})
		finish := sync.OnceFunc(func() { close(over) })
		defer finish()
		a, address := through(t, revision, func(w http.ResponseWriter, r *http.Request) {
			for {
				select {
				case n := <-read:
					if _, err := io.CopyN(io.Discard, r.Body, n); err != nil {
						t.Errorf("reading %d bytes: %v", n, err)
					}
				case <-over:
					return
				}
			}
		})
		var body endless
		ctx, leave := context.WithCancel(t.Context())
		r := newRequest(t, "POST", address, "/", "").WithContext(ctx)
		r.Body, r.ContentLength = io.NopCloser(&body), -1
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			if response, err := client.Do(r); err == nil {
				response.Body.Close()
			}
		}()
		for range 2 {
			n := stalls(t, &body.taken)
			read <- n / 2
			advances(t, &body.taken, n)
			body.taken.Add(-n / 2)
		}
		leave()
		<-ended
		finish() // over HTTP/1.1 the client's end comes behind its bytes, for which there is no room: nobody can see it yet
		waitForLoad(t, a, 0, 0)
	})
}

// heapInUse is how many bytes of memory objects have, dead ones too.
func heapInUse() int64 {
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}

// TestWire_BodiesOfAnySizeTakeConstantMemory does not run beside others: it looks at the memory of all.
func TestWire_BodiesOfAnySizeTakeConstantMemory(t *testing.T) {
	const most, long = 32 << 20, 1500 * time.Millisecond // as much as goes through in this time, at least four times most
	piece := bytes.Repeat([]byte("0123456789abcdef"), 1<<14)
	chunk := fmt.Appendf(nil, "%x\r\n%s\r\n", len(piece), piece)
	revision := testRevision()
	revision.Timeout = time.Minute
	a, address := through(t, revision, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			for r.Context().Err() == nil {
				w.Write(piece)
			}
			return
		}
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, r.Body, make([]byte, 256<<10))
		fmt.Fprint(w, n, " ", err)
	})
	c := dialWire(t, address)
	pass := func(one func()) (done int) {
		before := heapInUse()
		for end := time.Now().Add(long); time.Now().Before(end) || done < 4*most; done += len(piece) {
			one()
			if done%(16<<20) == 0 && heapInUse() > before+most {
				t.Fatalf("after %d bytes of a body %d bytes of memory are in use, %d before it", done, heapInUse(), before)
			}
		}
		return done
	}
	c.say(request("POST /", "Transfer-Encoding: chunked"))
	sent := pass(func() {
		if _, err := c.Write(chunk); err != nil {
			t.Fatal(err)
		}
	})
	c.say("0\r\n\r\n")
	c.expect(200, fmt.Sprint(sent, " <nil>"))

	c.say(request("GET /"))
	c.head()
	buffer := make([]byte, len(piece))
	read := pass(func() {
		c.SetReadDeadline(time.Now().Add(wirePatience))
		if _, err := io.ReadFull(c.reader, buffer); err != nil {
			t.Fatal(err)
		}
	})
	c.Close()
	waitForLoad(t, a, 0, 0)
	t.Logf("%d MiB sent, %d MiB read", sent>>20, read>>20)
}

func TestWire_AResponseThatComesSlowlyIsPassedOnByteByByte(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		next := make(chan struct{})
		text := "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
		_, address := serve(Config{}, testRevision(), wireInstance(t, "a", func(in *wire) {
			in.head()
			in.say(text[:len(text)-5])
			for _, b := range "hello" {
				in.say(string(b))
				<-next
			}
		}))
		c := dialWire(t, address)
		c.say(request("GET /"))
		c.head()
		for _, b := range "hello" {
			if got := c.bytes(1); got != string(b) {
				t.Fatalf("got %q, want %q", got, b)
			}
			next <- struct{}{}
		}
	})
}

func TestWire_ABodyThatComesSlowlyIsPassedOnAsItComes(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		pieces := make(chan string)
		_, address := serve(Config{}, testRevision(), wireInstance(t, "a", func(in *wire) {
			h := in.head()
			chunked := h.value("Transfer-Encoding") != ""
			for range 5 {
				if chunked {
					if size := in.line(); size != "1" {
						in.fail("a chunk of %s", size)
					}
				}
				piece := in.bytes(1)
				if chunked {
					in.line()
				}
				pieces <- piece
			}
			if chunked {
				in.line()
				in.line()
			}
			in.say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		}))
		c := dialWire(t, address)
		if err := c.Conn.(*net.TCPConn).SetNoDelay(true); err != nil {
			t.Fatal(err)
		}
		for _, chunked := range []bool{false, true} {
			framing, format, end := "Content-Length: 5", "%s", ""
			if chunked {
				framing, format, end = "Transfer-Encoding: chunked", "1\r\n%s\r\n", "0\r\n\r\n"
			}
			c.say(request("POST /", framing))
			for _, b := range "hello" {
				c.say(fmt.Sprintf(format, string(b)))
				if got := <-pieces; got != string(b) {
					t.Fatalf("the instance got %q, want %q", got, b)
				}
			}
			c.say(end)
			c.expect(200, "")
		}
	})
}
