package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// loopOf is the loop that has sent requests to an instance, which it is the only one to have done.
func loopOf(t *testing.T, a *Activator, instance string) *loop {
	t.Helper()
	a.mu.Lock()
	conns := a.members[instance].conns
	a.mu.Unlock()
	conns.mu.Lock()
	defer conns.mu.Unlock()
	if len(conns.loops) != 1 {
		t.Fatalf("%d loops have connections to %s", len(conns.loops), instance)
	}
	return conns.loops[0]
}

// pause lets a loop do nothing until goOn is called.
func (l *loop) pause() (goOn func()) {
	busy, more := make(chan struct{}), make(chan struct{})
	l.post(func() { close(busy); <-more })
	<-busy
	return func() { close(more) }
}

// untilPosted waits until something is posted to a loop that is paused.
func (l *loop) untilPosted(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(wirePatience); ; time.Sleep(time.Millisecond) {
		l.mu.Lock()
		n := len(l.posted)
		l.mu.Unlock()
		if n > 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatal("nothing was posted")
		}
	}
}

// What has come when the gateway ends is answered, and logged: on connections that were idle, on those that nobody has
// accepted yet, and from clients that the standard library serves.
func TestServe_AnswersWhatHasComeBeforeItEnds(t *testing.T) {
	t.Parallel()
	const unaccepted = 3 * acceptBatch
	var out lockedBuffer
	a := NewActivator(testRevision())
	slowly := make(chan struct{})
	finish := sync.OnceFunc(func() { close(slowly) })
	a.Add(wireInstance(t, "a", func(in *wire) {
		for {
			h := in.head()
			path := strings.Fields(h.line)[1]
			if path == "/slow" {
				<-slowly
			}
			in.say(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(path), path))
		}
	}))
	t.Cleanup(finish)
	g := New(Config{AccessLog: &out})
	if err := g.SetHosts("default/hello", map[string]*Route{"hello.test": toActivator(a)}); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	served := make(chan error, 1)
	go func() { served <- g.Serve(ctx, listener) }()

	address := listener.Addr().String()
	idle, silent := dialWire(t, address), dialWire(t, address)
	idle.say(request("GET /first"))
	idle.expect(200, "/first")
	l := loopOf(t, a, "a")
	slow := dialWire(t, address)
	slow.say(request("GET /slow"))
	waitForLoad(t, a, 1, 0)

	goOn := l.pause()
	cancel()
	l.untilPosted(t)
	idle.say(request("GET /idle"))
	old := dialWire(t, address)
	old.say("GET /old HTTP/1.0\r\nHost: hello.test\r\n\r\n")
	var others []*wire
	for range unaccepted {
		c := dialWire(t, address)
		c.say(request("GET /other"))
		others = append(others, c)
	}
	goOn()
	if h := idle.expect(200, "/idle"); h.value("Connection") != "close" {
		t.Errorf("the connection ends, and the response does not say so: %v", h)
	}
	idle.ends()
	silent.ends()
	if h, body := old.response(); !strings.Contains(h.line, " 200 ") || body != "/old" {
		t.Errorf("by HTTP/1.0: got %v %q", h, body)
	}
	for _, c := range others {
		c.expect(200, "/other")
		c.ends()
	}
	finish()
	slow.expect(200, "/slow")
	slow.ends()
	if err := <-served; err != nil {
		t.Error(err)
	}
	for path, want := range map[string]int{"/first": 1, "/idle": 1, "/old": 1, "/other": unaccepted, "/slow": 1} {
		if n := strings.Count(out.b.String(), fmt.Sprintf(`"path":%q,"status":200`, path)); n != want {
			t.Errorf("the log has %d requests for %s, want %d", n, path, want)
		}
	}
}

// What a client has sent ahead of the responses to it is answered too: they have not said that they are the last.
func TestServe_AnswersWhatWasSentAheadBeforeItEnds(t *testing.T) {
	t.Parallel()
	a := NewActivator(testRevision())
	begun, rest := make(chan struct{}), make(chan struct{})
	finish := sync.OnceFunc(func() { close(rest) })
	a.Add(wireInstance(t, "a", func(in *wire) {
		for {
			if h := in.head(); strings.HasPrefix(h.line, "GET /1 ") {
				in.say("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha")
				close(begun)
				<-rest
				in.say("lf")
			} else {
				in.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			}
		}
	}))
	t.Cleanup(finish)
	g := New(Config{})
	if err := g.SetHosts("default/hello", map[string]*Route{"hello.test": toActivator(a)}); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	served := make(chan error, 1)
	go func() { served <- g.Serve(ctx, listener) }()

	c := dialWire(t, listener.Addr().String())
	c.say(request("GET /1") + request("GET /2"))
	<-begun
	first := c.head()
	c.bytes(2)
	l := loopOf(t, a, "a")
	goOn := l.pause()
	cancel()
	l.untilPosted(t)
	goOn()
	l.pause()() // it has learned that it ends
	finish()
	c.bytes(2)
	if first.value("Connection") == "" {
		if h := c.expect(200, "ok"); h.value("Connection") != "close" {
			t.Errorf("the last response does not say so: %v", h)
		}
	}
	c.ends()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// A request that no response has come for when the time is over is told so, and logged as what it was told.
func TestServe_AnswersWhatDoesNotEndInTime(t *testing.T) {
	t.Parallel()
	var out lockedBuffer
	a := NewActivator(testRevision())
	a.Add(wireInstance(t, "a", func(in *wire) {
		in.head()
		in.gone()
	}))
	g := New(Config{AccessLog: &out, ShutdownTimeout: 20 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
	if err := g.SetHosts("default/hello", map[string]*Route{"hello.test": toActivator(a)}); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	served := make(chan error, 1)
	go func() { served <- g.Serve(ctx, listener) }()
	c := dialWire(t, listener.Addr().String())
	c.say(request("GET /"))
	waitForLoad(t, a, 1, 0)
	cancel()
	if h, body := c.response(); !strings.HasPrefix(h.line, "HTTP/1.1 503 ") || h.value("Connection") != "close" {
		t.Errorf("got %v with %q", h, body)
	}
	c.ends()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if !strings.Contains(out.b.String(), `"status":503`) {
		t.Errorf("the log is %s", out.b.String())
	}
	waitForLoad(t, a, 0, 0)
}
