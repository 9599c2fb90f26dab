package gateway

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// startTLS serves a gateway over TLS, whose host hello.test leads to activator, and returns its address and a
// configuration for clients that trust it. ended gets what ServeTLS returns after stop.
func startTLS(t testing.TB, config Config, activator *Activator) (address string, client *tls.Config, stop func(), ended <-chan error) {
	t.Helper()
	g := New(config)
	if err := g.SetHosts("default/hello", map[string]*Route{"hello.test": {Splits: []Split{{Activator: activator}}}}); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	certificate, roots := selfSigned(t, "hello.test")
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		served <- g.ServeTLS(ctx, listener, &tls.Config{Certificates: []tls.Certificate{certificate}})
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return listener.Addr().String(), &tls.Config{RootCAs: roots, ServerName: "hello.test"}, cancel, served
}

// selfSigned makes a certificate for a host, and what trusts it.
func selfSigned(t testing.TB, host string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{host}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: key, Leaf: leaf}, roots
}

// seen is an instance that answers with how the request came to it.
func seen(t testing.TB) *Activator {
	a := NewActivator(testRevision())
	a.Add(serveInstance(t, "hello-00001-a", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.Method+" "+r.Host+" "+r.Header.Get("X-Forwarded-Proto")+" "+r.Header.Get("Forwarded"))
	}))
	return a
}

func TestServeTLS_SpeaksWhatTheClientOffers(t *testing.T) {
	address, config, _, _ := startTLS(t, Config{}, seen(t))
	for name, protocol := range map[string]struct {
		http2 bool
		major int
	}{"HTTP/1.1": {false, 1}, "HTTP/2": {true, 2}} {
		t.Run(name, func(t *testing.T) {
			transport := &http.Transport{TLSClientConfig: config.Clone(), ForceAttemptHTTP2: protocol.http2}
			defer transport.CloseIdleConnections()
			r := newRequest(t, "GET", address, "/", "")
			r.URL.Scheme = "https"
			response, body := fetchBy(t, &http.Client{Transport: transport}, r)
			if want := "GET hello.test https for=127.0.0.1;proto=https"; response.ProtoMajor != protocol.major || body != want {
				t.Errorf("HTTP/%d, %q; want HTTP/%d, %q", response.ProtoMajor, body, protocol.major, want)
			}
		})
	}
}

func TestServeTLS_CarriesUpgradedConnections(t *testing.T) {
	a := NewActivator(testRevision())
	a.Add(rawInstance(t, "hello-00001-a", func(c net.Conn) {
		reader := bufio.NewReader(c)
		if _, err := http.ReadRequest(reader); err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		io.Copy(c, reader)
	}))
	address, config, _, _ := startTLS(t, Config{}, a)
	c, err := tls.Dial("tcp", address, config)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: hello.test\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	reader := bufio.NewReader(c)
	response, err := http.ReadResponse(reader, nil)
	if err != nil || response.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v %v", response, err)
	}
	for _, line := range []string{"one\n", "two\n"} {
		io.WriteString(c, line)
		if got, err := reader.ReadString('\n'); got != line {
			t.Errorf("got %q (%v), want %q", got, err, line)
		}
	}
	c.CloseWrite()
	if rest, err := io.ReadAll(reader); len(rest) > 0 || err != nil {
		t.Errorf("after the end: %q %v", rest, err)
	}
}

func TestServeTLS_GivesUpAHandshakeThatDoesNotEnd(t *testing.T) {
	address, _, _, _ := startTLS(t, Config{ReadHeaderTimeout: 50 * time.Millisecond}, seen(t))
	for _, said := range []string{"", "\x16\x03\x01\x02\x00\x01"} {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, said)
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.ReadAll(c); err != nil {
			t.Errorf("after %q the connection stays: %v", said, err)
		}
	}
}

func TestServeTLS_LetsRequestsInFlightFinish(t *testing.T) {
	arrived, finish := make(chan struct{}), make(chan struct{})
	a := NewActivator(testRevision())
	a.Add(serveInstance(t, "hello-00001-a", func(w http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-finish
		io.WriteString(w, "finished")
	}))
	address, config, stop, ended := startTLS(t, Config{}, a)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}}
	r := newRequest(t, "GET", address, "/", "")
	r.URL.Scheme = "https"
	answered := make(chan string, 1)
	go func() {
		response, err := client.Do(r)
		if err != nil {
			answered <- err.Error()
			return
		}
		defer response.Body.Close()
		body, _ := io.ReadAll(response.Body)
		answered <- string(body)
	}()
	<-arrived
	stop()
	close(finish)
	if got := <-answered; got != "finished" {
		t.Errorf("got %q", got)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestRedirect_NamesTheSameURLWithHTTPS(t *testing.T) {
	a := NewActivator(testRevision())
	g := New(Config{})
	if _, ok := g.redirect("hello.test", "/"); ok || g.intercepts() {
		t.Error("redirects before a route does")
	}
	splits := []Split{{Activator: a}}
	err := g.SetHosts("default/hello", map[string]*Route{
		"hello.test": {Splits: splits, Redirect: 443}, "other.test": {Splits: splits, Redirect: 8443}, "plain.test": {Splits: splits},
	})
	if err != nil {
		t.Fatal(err)
	}
	err = g.SetHosts("mapping", map[string]*Route{"mapped.test": {Follow: "plain.test", Redirect: 443}, "plainmapped.test": {Follow: "hello.test"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ host, target, want string }{
		{"hello.test", "/", "https://hello.test/"},
		{"HELLO.test.:8080", "/a%2Fb?q=1&r=%20", "https://hello.test/a%2Fb?q=1&r=%20"},
		{"hello.test", "//evil.test/", "https://hello.test//evil.test/"},
		{"hello.test", "http://evil.test/a?b", "https://hello.test/a?b"},
		{"hello.test", "http://hello.test", "https://hello.test/"},
		{"hello.test", "http://hello.test?q", "https://hello.test/?q"},
		{"other.test:8080", "/a", "https://other.test:8443/a"},
		{"mapped.test", "/a", "https://mapped.test/a"},
		{"plainmapped.test", "/a", ""},
		{"plain.test", "/", ""},
		{"unknown.test", "/", ""},
		{"hello.test", "*", ""},
		{"hello.test:port", "/", ""},
	} {
		got, ok := g.redirect(c.host, c.target)
		if got != c.want || ok != (c.want != "") {
			t.Errorf("%s %s: %q, want %q", c.host, c.target, got, c.want)
		}
	}
}

func TestRedirect_SparesTrustedProxiesThatSpeakTLSAndChallenges(t *testing.T) {
	config := Config{
		TrustForwarded: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		Challenge: func(host, token string) (string, bool) {
			return "token.thumbprint", host == "hello.test" && token == "token"
		},
	}
	a := seen(t)
	g, address := startGateway(t, config, a)
	if err := g.SetHosts("default/hello", map[string]*Route{"hello.test": {Splits: []Split{{Activator: a}}, Redirect: 443}}); err != nil {
		t.Fatal(err)
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	ask := func(path, proto string) (*http.Response, string) {
		r := newRequest(t, "GET", address, path, "")
		if proto != "" {
			r.Header.Set("X-Forwarded-Proto", proto)
		}
		return fetchBy(t, client, r)
	}
	response, body := ask("/a?b", "")
	if response.StatusCode != 302 || response.Header.Get("Location") != "https://hello.test/a?b" || !strings.Contains(body, "https://hello.test/a?b") {
		t.Errorf("got %d, %q %q", response.StatusCode, response.Header.Get("Location"), body)
	}
	if response, _ := ask("/", "http"); response.StatusCode != 302 {
		t.Errorf("a proxy that was asked without TLS: %d", response.StatusCode)
	}
	if response, body := ask("/", "https"); response.StatusCode != 200 || !strings.HasPrefix(body, "GET hello.test https") {
		t.Errorf("a proxy that was asked with TLS: %d %q", response.StatusCode, body)
	}
	if response, body := ask("/.well-known/acme-challenge/token", ""); response.StatusCode != 200 || strings.TrimSpace(body) != "token.thumbprint" {
		t.Errorf("a challenge: %d %q", response.StatusCode, body)
	}
	if response, body := ask("/.well-known/acme-challenge/another", ""); response.StatusCode != 200 || !strings.HasPrefix(body, "GET hello.test") {
		t.Errorf("a challenge of the service's own: %d %q", response.StatusCode, body)
	}
}

func TestServeTLS_HoldsClientsToTheLimits(t *testing.T) {
	address, config, _, _ := startTLS(t, Config{MaxConnections: 1}, seen(t))
	first, err := tls.Dial("tcp", address, config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tls.Dial("tcp", address, config); err == nil {
		t.Error("there are more connections than there may be")
	}
	first.Close()
	for end := time.Now().Add(20 * time.Second); ; {
		c, err := tls.Dial("tcp", address, config)
		if err == nil {
			c.Close()
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the place of a connection that ended is not given to another: %v", err)
		}
	}
}

func TestServeTLS_LetsGoOfClientsThatStopReading(t *testing.T) {
	for name, protocols := range map[string][]string{"HTTP/1.1": nil, "HTTP/2": {"h2"}} {
		t.Run(name, func(t *testing.T) {
			arrived := make(chan struct{})
			a := NewActivator(testRevision())
			a.Add(serveInstance(t, "hello-00001-a", func(w http.ResponseWriter, r *http.Request) {
				close(arrived)
				for r.Context().Err() == nil {
					if _, err := w.Write(make([]byte, 64<<10)); err != nil {
						return
					}
				}
			}))
			address, config, _, _ := startTLS(t, Config{WriteTimeout: 200 * time.Millisecond}, a)
			config.NextProtos = protocols
			c, err := tls.Dial("tcp", address, config)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if protocols == nil {
				io.WriteString(c, "GET / HTTP/1.1\r\nHost: hello.test\r\n\r\n")
			} else {
				transport := &http2.Transport{}
				cc, err := transport.NewClientConn(c)
				if err != nil {
					t.Fatal(err)
				}
				r := newRequest(t, "GET", address, "/", "")
				r.URL.Scheme = "https"
				response, err := cc.RoundTrip(r)
				if err != nil {
					t.Fatal(err)
				}
				defer response.Body.Close() // not read
			}
			<-arrived
			waitForLoad(t, a, 0, 0)
		})
	}
}
