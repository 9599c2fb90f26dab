package gateway

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

func TestAdmission_CountsConnectionsOfEachClient(t *testing.T) {
	a := admission{mostPerClient: 2, trusted: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}
	enter := func(from string) bool { return a.enter(netip.MustParseAddr(from)) == nil }
	for _, from := range []string{
		"198.51.100.1", "198.51.100.1", "198.51.100.2", // two addresses
		"::ffff:198.51.100.2",          // the same as IPv4
		"2001:db8::1", "2001:db8::2:1", // one network
		"2001:db8:0:1::1",                     // another
		"127.0.0.1", "127.0.0.1", "127.0.0.1", // the machine itself
		"192.0.2.7", "192.0.2.7", "192.0.2.7", // a trusted proxy
		"::1", "::1", "::1", "::ffff:192.0.2.7%x", // the same in other words
	} {
		if !enter(from) {
			t.Errorf("%s was refused", from)
		}
	}
	for _, from := range []string{"198.51.100.1", "198.51.100.2", "::ffff:198.51.100.1", "2001:db8::9", "2001:db8:0:0:ffff::"} {
		refused := a.enter(netip.MustParseAddr(from))
		if refused == nil || refused.status != http.StatusTooManyRequests {
			t.Errorf("%s: got %+v", from, refused)
		}
	}
	if n := a.refusedClient.Load(); n != 5 {
		t.Errorf("%d were counted as refused", n)
	}
	a.leave(netip.MustParseAddr("2001:db8::2:1"))
	if !enter("2001:db8::9") || enter("2001:db8::9") {
		t.Error("the place that one left was not given to one other")
	}
}

func TestAdmission_KeepsNothingOfClientsThatLeft(t *testing.T) {
	a := admission{most: 3, mostPerClient: 3}
	addresses := []string{"198.51.100.1", "198.51.100.1", "2001:db8::1"}
	for _, from := range addresses {
		a.enter(netip.MustParseAddr(from))
	}
	if refused := a.enter(netip.MustParseAddr("127.0.0.1")); refused == nil || refused.status != http.StatusServiceUnavailable {
		t.Errorf("the fourth connection got %+v", refused)
	}
	for _, from := range addresses {
		a.leave(netip.MustParseAddr(from))
	}
	if a.count() != 0 || len(a.clients) != 0 {
		t.Errorf("left are %d connections of %v", a.count(), a.clients)
	}
}

func TestServe_RefusesOneConnectionMoreThanThereMayBe(t *testing.T) {
	a := NewActivator(testRevision())
	a.Add(serveInstance(t, "a", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") }))
	g, address := startGateway(t, Config{MaxConnections: 2}, a)
	var kept []net.Conn
	for range 2 {
		c := dialRaw(t, address)
		kept = append(kept, c)
		if response := requestOn(t, c, "GET / HTTP/1.1\r\nHost: hello.test\r\n\r\n"); response.StatusCode != http.StatusOK {
			t.Fatalf("got %d", response.StatusCode)
		}
	}
	third := dialRaw(t, address)
	response, err := http.ReadResponse(bufio.NewReader(third), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	if response.StatusCode != http.StatusServiceUnavailable || !response.Close || err != nil || len(body) == 0 {
		t.Errorf("got %d %q, %v, close %t", response.StatusCode, body, err, response.Close)
	}
	if n, err := third.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("after the refusal there are %d bytes more, %v", n, err)
	}

	kept[0].Close()
	for end := time.Now().Add(10 * time.Second); g.clients.count() > 1; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d connections are counted", g.clients.count())
		}
	}
	if response := requestOn(t, dialRaw(t, address), "GET / HTTP/1.1\r\nHost: hello.test\r\n\r\n"); response.StatusCode != http.StatusOK {
		t.Errorf("got %d", response.StatusCode)
	}
}

func TestServe_KeepsThePlaceOfAConnectionThatChangesItsProtocol(t *testing.T) {
	a := NewActivator(testRevision())
	a.Add(serveInstance(t, "a", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") }))
	g, address := startGateway(t, Config{MaxConnections: 1}, a)
	for name, open := range map[string]func() (net.Conn, *frames){
		"prior knowledge": func() (net.Conn, *frames) {
			f := priorHTTP2(t, address)
			f.get(t, 1, "/")
			return f.conn, f
		},
		"upgrade": func() (net.Conn, *frames) {
			c, reader, _ := upgradeRaw(t, address, "GET / HTTP/1.1\r\n")
			io.WriteString(c, http2.ClientPreface)
			f := newFrames(c, reader)
			f.WriteSettings()
			return c, f
		},
	} {
		c, f := open()
		if status, body := f.response(t, 1); status != "200" || body != "hello" {
			t.Errorf("%s: got %s %q", name, status, body)
		}
		if n := g.clients.count(); n != 1 {
			t.Errorf("%s: %d connections are counted", name, n)
		}
		c.Close()
		for end := time.Now().Add(10 * time.Second); g.clients.count() > 0; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: %d connections are counted after it was closed", name, g.clients.count())
			}
		}
	}
}

func dialRaw(t testing.TB, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

// requestOn sends a request as it is and reads its whole response.
func requestOn(t testing.TB, c net.Conn, text string) *http.Response {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		t.Fatal(err)
	}
	return response
}
