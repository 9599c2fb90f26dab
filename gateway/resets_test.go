package gateway

import (
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// priorHTTP2 opens a connection of HTTP/2 with prior knowledge.
func priorHTTP2(t testing.TB, address string) *frames {
	t.Helper()
	c := dialRaw(t, address)
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	f := newFrames(c, c)
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return f
}

// rapidReset asks for requests and takes each back at once, until there have been so many or the gateway ends the
// connection. It returns how many were made.
func rapidReset(t testing.TB, address string, most int) int {
	t.Helper()
	f := priorHTTP2(t, address)
	go io.Copy(io.Discard, f.conn) // so that the gateway is never held up
	for n := range most {
		f.block.Reset()
		stream := uint32(2*n + 1)
		f.get(silent{t}, stream, "/")
		if err := f.WriteRSTStream(stream, http2.ErrCodeCancel); err != nil {
			return n
		}
	}
	return most
}

// silent is a test that goes on when a connection has ended.
type silent struct{ testing.TB }

func (silent) Fatal(...any) {}
func (silent) Helper()      {}

// hangingInstance is an instance that does not answer before its client leaves. It counts requests.
func hangingInstance(t testing.TB) (instance *fakeInstance, requests *atomic.Int64) {
	requests = new(atomic.Int64)
	return serveInstance(t, "a", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/answered" {
			return
		}
		requests.Add(1)
		<-r.Context().Done()
	}), requests
}

func TestGateway_EndsTheConnectionOfAClientThatTakesItsRequestsBack(t *testing.T) {
	revision := testRevision()
	revision.HTTP2 = true // the instance learns of each end at once
	instance, requests := hangingInstance(t)
	a := NewActivator(revision)
	a.Add(instance)
	_, address := startGateway(t, Config{MaxResets: 100, MaxStreams: 20}, a)
	made := rapidReset(t, address, 1_000_000)
	if made == 1_000_000 {
		t.Error("the connection took a million")
	}
	waitForLoad(t, a, 0, 0)
	// Those that run at the same moment may be beyond.
	if n := requests.Load(); n > 100+20 {
		t.Errorf("%d requests reached the instance", n)
	}
	if response, _ := fetch(t, newRequest(t, "GET", address, "/answered", "")); response.StatusCode != http.StatusOK {
		t.Errorf("another client got %d", response.StatusCode)
	}
}

func TestGateway_RunsNoMoreRequestsAtOnceThanAConnectionMayHaveStreams(t *testing.T) {
	for name, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			revision := testRevision()
			revision.HTTP2 = http2
			instance, _ := hangingInstance(t)
			a := NewActivator(revision)
			a.Add(instance)
			highest := 0
			stop, stopped := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(stopped)
				for {
					select {
					case <-stop:
						return
					default:
						highest = max(highest, a.Load().InFlight)
					}
				}
			}()
			_, address := startGateway(t, Config{MaxResets: 1 << 30, MaxStreams: 20}, a)
			made := rapidReset(t, address, 10_000)
			waitForLoad(t, a, 0, 0)
			close(stop)
			<-stopped
			if highest > 20 {
				t.Errorf("%d requests had slots at the same time", highest)
			}
			t.Logf("%d were made, %d had slots at the same time", made, highest)
		})
	}
}

func TestGateway_LetsATrustedProxyTakeBackWhatItsClientsDo(t *testing.T) {
	instance, requests := hangingInstance(t)
	a := NewActivator(testRevision())
	a.Add(instance)
	_, address := startGateway(t, Config{MaxResets: 1, TrustForwarded: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}, a)
	f := priorHTTP2(t, address)
	for stream := uint32(1); stream < 20; stream += 2 {
		f.get(t, stream, "/")
		waitForLoad(t, a, 1, 0)
		f.WriteRSTStream(stream, http2.ErrCodeCancel)
		waitForLoad(t, a, 0, 0)
	}
	f.get(t, 21, "/answered")
	if status, _ := f.response(t, 21); status != "200" {
		t.Errorf("got %s; %d requests were taken back", status, requests.Load())
	}
}

func TestResets_AreCountedWithinAWindow(t *testing.T) {
	var c net.Conn
	r := resets{conn: c}
	now := time.Now()
	for i := range 3 {
		if r.add(now.Add(time.Duration(i)*time.Second), 3) {
			t.Errorf("reset %d is one too many", i+1)
		}
	}
	if !r.add(now.Add(resetWindow-1), 3) {
		t.Error("the fourth within the window is not too many")
	}
	if r.add(now.Add(resetWindow), 3) {
		t.Error("the first of the next window is too many")
	}
}
