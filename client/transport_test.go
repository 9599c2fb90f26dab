package client

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// vanishing is a connection to a machine that may vanish: nothing comes from it then, and nothing arrives there.
type vanishing struct {
	net.Conn
	gone   *atomic.Bool
	closed chan struct{}
}

func (v vanishing) Read(p []byte) (int, error) {
	n, err := v.Conn.Read(p)
	if v.gone.Load() {
		<-v.closed
		return 0, net.ErrClosed
	}
	return n, err
}

func (v vanishing) Write(p []byte) (int, error) {
	if v.gone.Load() {
		return len(p), nil
	}
	return v.Conn.Write(p)
}

func (v vanishing) Close() error {
	close(v.closed)
	return v.Conn.Close()
}

// pipes is a listener of connections in memory.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	conn, ok := <-p
	if !ok {
		return nil, net.ErrClosed
	}
	return conn, nil
}

func (p pipes) Close() error {
	close(p)
	return nil
}

func (p pipes) Addr() net.Addr { return &net.UnixAddr{Name: "memory"} }

func TestTransport_EndsAStreamFromAMachineThatVanished(t *testing.T) {
	certificate := httptest.NewUnstartedServer(nil)
	certificate.StartTLS()
	defer certificate.Close()
	synctest.Test(t, func(t *testing.T) {
		listener := make(pipes)
		server := &http.Server{
			TLSConfig: &tls.Config{Certificates: certificate.TLS.Certificates},
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				io.WriteString(w, "first\n")
				http.NewResponseController(w).Flush()
				<-r.Context().Done()
			}),
		}
		served := make(chan error)
		go func() { served <- server.ServeTLS(listener, "", "") }()

		c, err := New(Config{Server: "https://berth.test", Insecure: true})
		if err != nil {
			t.Fatal(err)
		}
		var gone atomic.Bool
		c.http.Transport.(transport).DialContext = func(context.Context, string, string) (net.Conn, error) {
			here, there := net.Pipe()
			listener <- there
			return vanishing{here, &gone, make(chan struct{})}, nil
		}
		reply, err := c.send(t.Context(), request{method: http.MethodGet, path: "/"})
		if err != nil {
			t.Fatal(err)
		}
		if reply.ProtoMajor != 2 {
			t.Errorf("the server speaks %s, want HTTP/2", reply.Proto)
		}
		var first [6]byte
		if _, err := io.ReadFull(reply.Body, first[:]); err != nil {
			t.Fatal(err)
		}
		// A stream without bytes is none that ended.
		ended := make(chan error, 1)
		go func() { _, err := reply.Body.Read(first[:]); ended <- err }()
		time.Sleep(10 * silence)
		select {
		case err := <-ended:
			t.Fatalf("the quiet stream ended with %v", err)
		default:
		}
		gone.Store(true)
		begun := time.Now()
		if err := <-ended; err == nil || errors.Is(err, io.EOF) {
			t.Errorf("the stream ended with %v", err)
		}
		if took := time.Since(begun); took > silence+pingTimeout {
			t.Errorf("it ended after %s, want at most %s", took, silence+pingTimeout)
		}
		reply.Body.Close()
		server.Close()
		<-served
	})
}
