package gateway

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stoppedLoop makes a loop that nobody runs, so that a test decides what it sees when. Its clients are connected.
func stoppedLoop(t *testing.T, clients int) (*loop, []net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	socket, err := listenerSocket(listener.(*net.TCPListener))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(socket) })
	l, err := newLoop(New(Config{}), socket, func(c net.Conn) { c.Close() })
	if err != nil {
		t.Fatal(err)
	}
	var conns []net.Conn
	for range clients {
		conns = append(conns, dialClient(t, listener.Addr().String()))
	}
	l.accept(acceptBatch)
	if len(l.clients) != clients {
		t.Fatalf("%d clients were accepted, want %d", len(l.clients), clients)
	}
	return l, conns
}

const unknownRequest = "GET / HTTP/1.1\r\nHost: unknown.test\r\n\r\n"

// wantLast reads an answer that says that it is the last one, up to the connection's end.
func wantLast(t *testing.T, c net.Conn) {
	t.Helper()
	answer, err := io.ReadAll(c)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 404 ") || !strings.Contains(string(answer), "\r\nConnection: close\r\n") {
		t.Errorf("got %q, %v, want one answer, with Connection: close", answer, err)
	}
	c.Close()
}

func TestLoop_DrainsWithTheRequestsThatHaveComeUnread(t *testing.T) {
	l, conns := stoppedLoop(t, 2)
	io.WriteString(conns[0], unknownRequest)
	l.setTime(time.Now().Add(drainGrace)) // both have been idle for long
	l.drain()
	if left := len(l.clients); left > 1 {
		t.Errorf("%d clients are left, one of them idle", left)
	}
	if rest, err := io.ReadAll(conns[1]); len(rest) > 0 || err != nil {
		t.Errorf("the idle client got %q, %v, want the end", rest, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- l.serve(t.Context()) }()
	wantLast(t, conns[0])
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestLoop_DrainsWithTheNextRequestOfAClientThatWasHeardAMomentAgo(t *testing.T) {
	l, conns := stoppedLoop(t, 2)
	l.drain()
	if left := len(l.clients); left != 2 {
		t.Fatalf("%d clients are left, want both", left)
	}
	io.WriteString(conns[0], unknownRequest)
	ended := make(chan error, 1)
	go func() { ended <- l.serve(t.Context()) }()
	wantLast(t, conns[0])
	if rest, err := io.ReadAll(conns[1]); len(rest) > 0 || err != nil {
		t.Errorf("the client that said nothing got %q, %v, want the end", rest, err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestServeTLS_AnswersTheNextRequestOfAClientThatWasHeardAMomentAgo(t *testing.T) {
	a := NewActivator(testRevision())
	a.Add(serveInstance(t, "hello-00001-a", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") }))
	address, config, stop, ended := startTLS(t, Config{}, a)
	c, err := tls.Dial("tcp", address, config)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	in := bufio.NewReader(c)
	for requests := 0; ; requests++ { // the server ends at some moment between two of them
		if requests == 1 {
			stop()
		}
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: hello.test\r\n\r\n")
		response, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatalf("after %d responses that did not say that they were the last: %v", requests, err)
		}
		body, err := io.ReadAll(response.Body)
		if err != nil || string(body) != "hello" {
			t.Fatalf("got %q, %v", body, err)
		}
		if response.Close {
			break
		}
	}
	if rest, err := io.ReadAll(in); len(rest) > 0 || err != nil {
		t.Errorf("after the last response: %q, %v", rest, err)
	}
	if other, err := net.Dial("tcp", address); err == nil {
		other.Close()
		t.Error("a server that ends takes new connections")
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A loop that is late learns of a deadline and of what has come before it at the same time.
func TestLoop_WhatHasComeBeforeADeadlineCounts(t *testing.T) {
	t.Parallel()
	l, conns := stoppedLoop(t, 2)
	io.WriteString(conns[0], "GET / HTTP/1.1\r\nHost: unknown.test\r\nConnection: close\r\n\r\n")
	l.setTime(time.Now().Add(l.gateway.config.ReadHeaderTimeout))
	l.timers.fire(l.tick)
	wantLast(t, conns[0])
	if rest, err := io.ReadAll(conns[1]); len(rest) > 0 || err != nil {
		t.Errorf("the client that said nothing got %q, %v, want the end", rest, err)
	}
	if len(l.clients) > 0 {
		t.Errorf("%d clients are left", len(l.clients))
	}
	l.end()
}
