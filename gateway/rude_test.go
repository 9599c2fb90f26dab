package gateway

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// reset breaks a connection off.
func (w *wire) reset() {
	w.Conn.(*net.TCPConn).SetLinger(0)
	w.Close()
}

// rudeInstance is an instance's connection on which anything happens. It names each request that it answers by its path.
func rudeInstance(in *wire) {
	for {
		in.SetDeadline(time.Now().Add(wirePatience))
		r, err := http.ReadRequest(in.reader)
		if err != nil {
			return
		}
		path := r.URL.Path
		early := rand.IntN(8) == 0
		if !early {
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				return
			}
		}
		length := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(path), path)
		chunks := fmt.Sprintf("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", len(path), path)
		if r.Method == http.MethodHead {
			length, chunks = fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-Path: %s\r\n\r\n", len(path), path), "HTTP/1.1 200 OK\r\n\r\n"
		}
		if r.Header.Get("Upgrade") != "" && rand.IntN(4) > 0 {
			io.WriteString(in, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: test\r\n\r\n")
			switch rand.IntN(4) {
			case 0:
				in.reset()
			case 1:
				in.CloseWrite()
				io.Copy(io.Discard, in.reader)
			default:
				io.Copy(in, in.reader)
			}
			return
		}
		text, last := length, early
		switch rand.IntN(24) {
		case 0: // takes it, and says nothing
			in.reset()
			return
		case 1:
			return
		case 2: // never answers
			io.Copy(io.Discard, in.reader)
			return
		case 3:
			text, last = length[:len(length)-1], true
		case 4:
			io.WriteString(in, length[:len(length)-1])
			in.reset()
			return
		case 5:
			text, last = chunks, true
		case 6:
			text, last = "HTTP/1.1 200 OK\r\n\r\n"+path, true
		case 7:
			text = length + "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstray!" // to nobody
		case 8:
			text, last = "HTTP/9 nonsense\r\n\r\n", true
		case 9:
			text = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + length
		case 10:
			text = "HTTP/1.1 100 Continue\r\n\r\n" + length
		case 11:
			text, last = "HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n"+path+strings.Repeat("x", 1<<20), true
		case 12, 13, 14:
			if text = chunks; r.Method != http.MethodHead {
				text += "0\r\n\r\n"
			}
		case 15:
			for i := range text {
				if _, err := io.WriteString(in, text[i:i+1]); err != nil {
					return
				}
			}
			text = ""
		}
		if _, err := io.WriteString(in, text); err != nil || last {
			return
		}
	}
}

func (w *wire) CloseWrite() error { return w.Conn.(*net.TCPConn).CloseWrite() }

// rudeClient makes a connection, sends something and breaks off somehow. It checks that what it gets is the answer to what
// it asked for.
func rudeClient(t *testing.T, address string, names *atomic.Int64) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Error(err)
		return
	}
	w := &wire{c, bufio.NewReader(c), true, t.Errorf}
	defer w.Close()
	w.SetDeadline(time.Now().Add(wirePatience))
	name := func() string { return fmt.Sprintf("/n%d/", names.Add(1)) }

	var asked []*http.Request
	ask := func(method, lines, body string) string {
		path := name()
		asked = append(asked, &http.Request{Method: method, RequestURI: path})
		return request(method+" "+path, strings.Split(lines, "\r\n")...) + body
	}
	long := strings.Repeat("b", rand.IntN(3*maxRepeat))
	framed := fmt.Sprintf("Content-Length: %d", len(long))
	chunked := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(long)+1, long+"b")
	var text string
	whole := true
	switch rand.IntN(9) {
	case 0:
		text = ask("POST", framed, long)
	case 1:
		text = ask("POST", "Transfer-Encoding: chunked", chunked)
	case 2:
		text = ask("POST", "Transfer-Encoding: chunked", chunked[:len(chunked)/2])
		whole = false
	case 3:
		text = ask("GET", "Connection: Upgrade\r\nUpgrade: test", "hello")
	case 4:
		text = fmt.Sprintf("GET %s HTTP/1.0\r\nHost: hello.test\r\n\r\n", name()) // is handed over
	case 5:
		text = ask("GET", "X-A: b", "")
		text, whole = text[:rand.IntN(len(text))], false
	case 6:
		text = ask("POST", "Expect: 100-continue\r\n"+framed, "")
		whole = false
	default:
		for range 1 + rand.IntN(8) {
			text += ask("GET", "X-A: b", "") + ask("HEAD", "X-A: b", "") + ask("POST", framed, long)
		}
	}
	if _, err := io.WriteString(w, text); err != nil {
		return
	}
	if !whole {
		w.SetReadDeadline(time.Now().Add(50 * time.Millisecond)) // there may be no answer
	}
	switch rand.IntN(8) {
	case 0:
		w.reset()
		return
	case 1:
		return
	case 2:
		w.CloseWrite()
	case 3: // reads nothing
		time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
		w.reset()
		return
	case 4:
		w.reader.Peek(1 + rand.IntN(20))
		w.reset()
		return
	}
	for _, r := range asked {
		response, err := http.ReadResponse(w.reader, r)
		for err == nil && response.StatusCode < 200 && response.StatusCode != http.StatusSwitchingProtocols {
			response, err = http.ReadResponse(w.reader, r)
		}
		if err != nil {
			if whole && errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s %s is not answered", r.Method, r.RequestURI)
			}
			return
		}
		if response.StatusCode == http.StatusSwitchingProtocols {
			return
		}
		body, err := io.ReadAll(response.Body)
		if path := response.Header.Get("X-Path"); path != "" {
			body = []byte(path)
		}
		part := min(len(body), len(r.RequestURI))
		if response.StatusCode == 200 && string(body[:part]) != r.RequestURI[:part] {
			t.Errorf("%s %s was answered with %.100q", r.Method, r.RequestURI, body)
		}
		if err != nil || response.Close {
			return
		}
	}
}

// openFiles is how many file descriptors this process has.
func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// eventually waits until a check says nothing any more.
func eventually(t *testing.T, check func() string) {
	t.Helper()
	for end := time.Now().Add(wirePatience); ; time.Sleep(time.Millisecond) {
		wrong := check()
		if wrong == "" {
			return
		}
		if time.Now().After(end) {
			t.Error(wrong)
			return
		}
	}
}

// inventory says what is wrong with what a loop has, when it has no request.
func (l *loop) inventory() string {
	answer := make(chan string)
	if !l.post(func() {
		sockets, open, idle := 0, 0, 0
		for _, s := range l.sockets {
			if s != nil {
				sockets++
			}
		}
		for _, pool := range l.instances {
			open += pool.open
			idle += len(pool.idle)
		}
		if len(l.clients) > 0 || sockets != idle || open != idle || len(l.again) > 0 || len(l.timers) > len(l.instances) {
			answer <- fmt.Sprintf("the loop has %d clients, %d sockets, %d connections to instances of which %d are idle, %d turns and %d timers for %d instances",
				len(l.clients), sockets, open, idle, len(l.again), len(l.timers), len(l.instances))
			return
		}
		answer <- ""
	}) {
		return ""
	}
	return <-answer
}

// Whatever clients and instances do, each response goes to the request that it answers, every request ends, and nothing
// is left of it: no slot, no connection, no file descriptor, no goroutine, no timer. It is not parallel: it counts
// those of the process.
func TestLoop_RudeClientsAndInstancesLeaveNothingBehind(t *testing.T) {
	const clients, duration = 32, 2 * time.Second
	files, goroutines := openFiles(t), runtime.NumGoroutine()
	t.Run("serve", func(t *testing.T) {
		revision := testRevision()
		revision.Concurrency, revision.Timeout, revision.Idle = 8, 300*time.Millisecond, 300*time.Millisecond
		a := NewActivator(revision)
		for i := range 3 {
			a.Add(wireInstance(t, fmt.Sprint("i", i), rudeInstance))
		}
		g, address := startGateway(t, Config{Logger: slog.New(slog.DiscardHandler), AccessLog: io.Discard}, a)
		var names atomic.Int64
		var work sync.WaitGroup
		end := time.Now().Add(duration)
		for range clients {
			work.Go(func() {
				for time.Now().Before(end) && !t.Failed() {
					rudeClient(t, address, &names)
				}
			})
		}
		work.Wait()
		waitForLoad(t, a, 0, 0)
		eventually(t, func() string {
			if n := g.clients.count(); n > 0 {
				return fmt.Sprintf("%d connections are counted", n)
			}
			return ""
		})
		for i := range 3 {
			a.mu.Lock()
			conns := a.members[fmt.Sprint("i", i)].conns
			a.mu.Unlock()
			conns.mu.Lock()
			loops := append([]*loop(nil), conns.loops...)
			conns.mu.Unlock()
			for _, l := range loops {
				eventually(t, l.inventory)
			}
		}
		t.Logf("%d requests", names.Load())
	})
	eventually(t, func() string {
		runtime.Gosched()
		if n, m := openFiles(t), runtime.NumGoroutine(); n > files || m > goroutines {
			return fmt.Sprintf("%d file descriptors and %d goroutines are left of it", n-files, m-goroutines)
		}
		return ""
	})
}
