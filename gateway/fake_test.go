package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berth-run/berth/engine"
)

// fakeInstance is an engine.Instance whose user code is a listener of the test's.
type fakeInstance struct {
	id      string
	address string
	dials   atomic.Int64
	wrap    func(*net.TCPConn) net.Conn // nil, or what becomes of a new connection

	mu     sync.Mutex
	conns  []net.Conn
	exited chan struct{}
	exit   engine.Exit

	frozen         atomic.Bool
	freezes, thaws atomic.Int64
	onFreeze       func() error // nil, or what Freeze does before it takes effect
	onThaw         func() error // the same for Thaw
}

func newFakeInstance(id, address string) *fakeInstance {
	return &fakeInstance{id: id, address: address, exited: make(chan struct{})}
}

func (f *fakeInstance) ID() string                  { return f.id }
func (f *fakeInstance) Start(context.Context) error { return nil }
func (f *fakeInstance) Stop(time.Duration)          { f.kill(engine.Exit{}) }
func (f *fakeInstance) Exited() <-chan struct{}     { return f.exited }
func (f *fakeInstance) Exit() engine.Exit           { return f.exit }
func (f *fakeInstance) Stages() []engine.Stage      { return nil }

func (f *fakeInstance) Dial(ctx context.Context) (net.Conn, error) {
	f.dials.Add(1)
	if hasExited(f) {
		return nil, fmt.Errorf("dialing %s: %w", f.id, errors.New("connection refused"))
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", f.address)
	if err != nil {
		return nil, err
	}
	if f.wrap != nil {
		return f.wrap(c.(*net.TCPConn)), nil
	}
	return c, nil
}

// accepted notes a connection that the user code has.
func (f *fakeInstance) accepted(c net.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.conns = append(f.conns, c)
}

// kill is the end of the user code: its connections break, then its end is known.
func (f *fakeInstance) kill(exit engine.Exit) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if hasExited(f) {
		return
	}
	for _, c := range f.conns {
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
	f.exit = exit
	close(f.exited)
}

// serveInstance starts an instance that runs handler.
func serveInstance(t testing.TB, id string, handler http.HandlerFunc) *fakeInstance {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server.Config.Protocols = &protocols
	instance := newFakeInstance(id, server.Listener.Addr().String())
	server.Config.ConnState = func(c net.Conn, state http.ConnState) {
		if state == http.StateNew {
			instance.accepted(c)
		}
	}
	server.Start()
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return instance
}

// rawInstance starts an instance that hands each connection to serve.
func rawInstance(t testing.TB, id string, serve func(net.Conn)) *fakeInstance {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var open sync.WaitGroup
	var conns []net.Conn
	accepted := make(chan struct{}) // closed when no more are
	t.Cleanup(func() {
		listener.Close()
		<-accepted
		for _, c := range conns {
			c.Close()
		}
		open.Wait()
	})
	instance := newFakeInstance(id, listener.Addr().String())
	go func() {
		defer close(accepted)
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			conns = append(conns, c)
			instance.accepted(c)
			open.Go(func() {
				defer c.Close()
				serve(c)
			})
		}
	}()
	return instance
}

// startGateway serves a gateway whose host hello.test leads to activator, and returns its address.
func startGateway(t testing.TB, config Config, activator *Activator) (*Gateway, string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveGateway(t, config, activator, listener)
}

// serveGateway is startGateway with a listener of the test's.
func serveGateway(t testing.TB, config Config, activator *Activator, listener net.Listener) (*Gateway, string) {
	t.Helper()
	g := New(config)
	if activator != nil {
		err := g.SetHosts("default/hello", map[string]*Route{"hello.test": {Splits: []Split{{Activator: activator}}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- g.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return g, listener.Addr().String()
}

func testRevision() Revision {
	return Revision{Namespace: "default", Service: "hello", Configuration: "hello", Name: "hello-00001", Timeout: 10 * time.Second}
}

// newRequest is a request to the gateway at address for hello.test.
func newRequest(t testing.TB, method, address, path string, body string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://"+address+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body == "" {
		r.Body = http.NoBody
	}
	r.Host = "hello.test"
	return r
}

// waitFor waits until the activator's counters are as wanted.
func waitForLoad(t testing.TB, a *Activator, inFlight, waiting int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; {
		load := a.Load()
		if load.InFlight == inFlight && load.Waiting == waiting {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("load is %+v, want %d in flight and %d waiting", load, inFlight, waiting)
		}
		time.Sleep(time.Millisecond)
	}
}

func (*fakeInstance) Readiness() <-chan bool { return nil }

func (*fakeInstance) DialPort(context.Context, int) (net.Conn, error) {
	return nil, errors.ErrUnsupported
}

func (*fakeInstance) Exec(context.Context, engine.Command) (int, error) {
	return 0, errors.ErrUnsupported
}

func (*fakeInstance) Containers() []engine.ContainerStatus { return nil }

func (f *fakeInstance) Freeze() error {
	f.freezes.Add(1)
	if f.onFreeze != nil {
		if err := f.onFreeze(); err != nil {
			return err
		}
	}
	f.frozen.Store(true)
	return nil
}

func (f *fakeInstance) Thaw() error {
	f.thaws.Add(1)
	if f.onThaw != nil {
		if err := f.onThaw(); err != nil {
			return err
		}
	}
	f.frozen.Store(false)
	return nil
}

func (f *fakeInstance) Frozen() bool { return f.frozen.Load() }

func (*fakeInstance) Reclaim() (int64, error) { return 0, errors.ErrUnsupported }

func (*fakeInstance) Usage() (engine.Usage, error) { return engine.Usage{}, errors.ErrUnsupported }
