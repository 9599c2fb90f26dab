package gateway

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
)

// lateConn is a connection whose reader learns of its end only when it is told to.
type lateConn struct {
	*net.TCPConn
	over    chan struct{} // has a value for each end that a read has found
	release chan struct{} // closed to let readers know
}

func (c *lateConn) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	if err != nil {
		c.over <- struct{}{}
		<-c.release
	}
	return n, err
}

func TestProxy_SendsNothingOverASharedConnectionThatTheInstanceHasEnded(t *testing.T) {
	for name, body := range map[string]string{"without a body": "", "with a body": "of the request"} {
		t.Run(name, func(t *testing.T) {
			var served atomic.Int64
			var protocols http.Protocols
			protocols.SetUnencryptedHTTP2(true)
			ending := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { served.Add(1) }))
			ending.Config.Protocols = &protocols
			ending.Start()
			defer ending.Close()
			first := newFakeInstance("first", ending.Listener.Addr().String())
			late := &lateConn{over: make(chan struct{}, 1), release: make(chan struct{})}
			first.wrap = func(c *net.TCPConn) net.Conn {
				late.TCPConn = c
				return late
			}
			second := serveInstance(t, "second", func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })

			revision := testRevision()
			revision.HTTP2 = true
			a := NewActivator(revision)
			a.Add(second)
			a.Add(first) // the one that is asked
			_, address := startGateway(t, Config{}, a)
			defer close(late.release)
			ask := func(method string) (int, string) {
				t.Helper()
				response, err := http.DefaultClient.Do(newRequest(t, method, address, "/", body))
				if err != nil {
					t.Fatal(err)
				}
				defer response.Body.Close()
				got, err := io.ReadAll(response.Body)
				if err != nil {
					t.Fatal(err)
				}
				return response.StatusCode, string(got)
			}
			if status, _ := ask(http.MethodPost); status != http.StatusOK || served.Load() != 1 {
				t.Fatalf("the first instance answers %d", status)
			}
			ending.Listener.Close()
			ending.CloseClientConnections()
			<-late.over // the gateway's socket knows, its transport does not

			if status, got := ask(http.MethodPost); status != http.StatusOK || got != body {
				t.Errorf("got %d %q, want the body from the other instance", status, got)
			}
			if n := served.Load(); n != 1 {
				t.Errorf("the first instance was asked %d times", n)
			}
			waitForLoad(t, a, 0, 0)
		})
	}
}
