package gateway

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// gate is what stands before a program that may be frozen: nothing of it goes on while it is shut.
type gate struct {
	mu   sync.Mutex
	open chan struct{} // closed while it may go on
}

func newGate() *gate {
	g := &gate{open: make(chan struct{})}
	close(g.open)
	return g
}

func (g *gate) pass() {
	g.mu.Lock()
	open := g.open
	g.mu.Unlock()
	<-open
}

// set opens the gate, or shuts it. Setting it to what it is does nothing.
func (g *gate) set(open bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.open:
		if !open {
			g.open = make(chan struct{})
		}
	default:
		if open {
			close(g.open)
		}
	}
	return nil
}

// gatedListener is a listener of a program that may be frozen.
type gatedListener struct {
	net.Listener
	gate *gate
}

func (l *gatedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	l.gate.pass()
	if err != nil {
		return nil, err
	}
	return &gatedConn{c, l.gate}, nil
}

// gatedConn is a connection of such a program: what comes in reaches it only while the gate is open.
type gatedConn struct {
	net.Conn
	gate *gate
}

func (c *gatedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.gate.pass()
	return n, err
}

func (c *gatedConn) Write(p []byte) (int, error) {
	c.gate.pass()
	return c.Conn.Write(p)
}

// gatedInstance starts an instance that answers only while it is not frozen: it gives the body back, some of it late.
// On /upgrade it becomes a tunnel that gives lines back.
func gatedInstance(t *testing.T, id string) *fakeInstance {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gate := newGate()
	server := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/upgrade" {
			w.Header().Set("Connection", "Upgrade")
			w.Header().Set("Upgrade", "lines")
			w.WriteHeader(http.StatusSwitchingProtocols)
			conn, buffered, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer conn.Close()
			for {
				line, err := buffered.ReadString('\n')
				if err != nil {
					return
				}
				gate.pass()
				io.WriteString(conn, line)
			}
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		wait, _ := time.ParseDuration(r.FormValue("wait"))
		time.Sleep(wait)
		gate.pass()
		if r.FormValue("end") != "" && r.ProtoMajor == 1 { // of HTTP/2 it would end the connection of others too
			w.Header().Set("Connection", "close")
		}
		w.Write(body)
	})}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	instance := newFakeInstance(id, listener.Addr().String())
	instance.onFreeze = func() error { return gate.set(false) }
	instance.onThaw = func() error { return gate.set(true) }
	served := make(chan struct{})
	go func() { defer close(served); server.Serve(&gatedListener{listener, gate}) }()
	t.Cleanup(func() {
		gate.set(true)
		server.Close()
		<-served
	})
	return instance
}

// Requests of all kinds come at all moments around that of freezing, while instances come and go and turn unready. Each
// gets its answer: none is sent to an instance that stays frozen, and none is frozen with a request.
func TestGateway_NoRequestWaitsAtAFrozenInstance(t *testing.T) {
	const delay = 2 * time.Millisecond
	for name, set := range map[string]func(*Revision){
		"HTTP/1.1":    func(*Revision) {},
		"HTTP/2":      func(r *Revision) { r.HTTP2 = true },
		"affinity":    func(r *Revision) { r.Affinity = true },
		"one at once": func(r *Revision) { r.Concurrency = 1 },
		"with room":   func(r *Revision) { r.Concurrency, r.Room = 8, 4 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			revision := throttled()
			revision.IdleDelay, revision.Timeout = delay, 20*time.Second
			set(&revision)
			a := NewActivator(revision)
			_, address := startGateway(t, Config{}, a)
			var freezes, tunnels atomic.Int64
			over := make(chan struct{})
			var beside, clients sync.WaitGroup
			for n := range 2 { // instances come and go, and turn unready
				beside.Go(func() {
					for round := 0; !isClosed(over); round++ {
						one := gatedInstance(t, fmt.Sprintf("%d-%d", n, round))
						a.Add(one)
						for range 20 {
							time.Sleep(time.Duration(rand.IntN(int(4 * delay))))
							a.Suspend(one)
							time.Sleep(time.Duration(rand.IntN(int(delay))))
							a.Resume(one)
						}
						<-a.Remove(one)
						one.Thaw() // as its end does
						freezes.Add(one.freezes.Load())
					}
				})
			}
			for n := range 6 {
				clients.Go(func() {
					transport := &http.Transport{}
					if n%3 == 2 {
						transport.Protocols = new(http.Protocols)
						transport.Protocols.SetUnencryptedHTTP2(true)
					}
					client := &http.Client{Transport: transport}
					defer client.CloseIdleConnections()
					var cookie string
					for round := range 150 {
						time.Sleep(time.Duration(rand.IntN(int(2 * delay))))
						if n == 0 && round%10 == 0 && !revision.HTTP2 {
							if err := tunnelLines(t.Context(), address, 4, delay); err != nil {
								t.Errorf("a tunnel: %v", err)
								return
							}
							tunnels.Add(1)
							continue
						}
						ctx, cancel := context.WithCancel(t.Context())
						body, query := strings.Repeat("x", rand.IntN(3)*4000), ""
						switch round % 5 {
						case 0:
							query = "?wait=" + (2 * delay).String()
						case 1:
							query = "?end=1"
						case 2:
							if round%2 == 0 { // who does not wait for the answer
								time.AfterFunc(time.Duration(rand.IntN(int(delay))), cancel)
							}
						}
						r := newRequest(t, "POST", address, "/"+query, body).WithContext(ctx)
						if cookie != "" {
							r.Header.Set("Cookie", cookie)
						}
						response, err := client.Do(r)
						var got []byte
						if err == nil {
							got, err = io.ReadAll(response.Body)
							response.Body.Close()
						}
						left := ctx.Err() != nil
						cancel()
						switch {
						case left:
						case err != nil:
							t.Errorf("client %d, round %d: %v", n, round, err)
							return
						case response.StatusCode != http.StatusOK || string(got) != body:
							t.Errorf("client %d, round %d: answer %d, %d bytes, want %d: %.200s", n, round, response.StatusCode, len(got), len(body), got)
							return
						default:
							if set := response.Header.Get("Set-Cookie"); set != "" {
								cookie = set
							}
						}
					}
				})
			}
			clients.Wait()
			close(over)
			beside.Wait()
			if freezes.Load() == 0 || tunnels.Load() == 0 && !revision.HTTP2 {
				t.Errorf("%d freezes and %d tunnels: it proves nothing", freezes.Load(), tunnels.Load())
			}
			waitForLoad(t, a, 0, 0)
			t.Logf("%d freezes", freezes.Load())
		})
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// tunnelLines sends lines through a tunnel, with pauses longer than an instance may be idle, and wants them back.
func tunnelLines(ctx context.Context, address string, lines int, pause time.Duration) error {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, "GET /upgrade HTTP/1.1\r\nHost: hello.test\r\nConnection: Upgrade\r\nUpgrade: lines\r\n\r\n"); err != nil {
		return err
	}
	reader := bufio.NewReader(conn)
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusSwitchingProtocols {
		return fmt.Errorf("answer %d", response.StatusCode)
	}
	for range lines {
		time.Sleep(2 * pause)
		if _, err := io.WriteString(conn, "line\n"); err != nil {
			return err
		}
		if line, err := reader.ReadString('\n'); err != nil || line != "line\n" {
			return fmt.Errorf("line %q: %w", line, err)
		}
	}
	return nil
}
