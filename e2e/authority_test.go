package e2e

import (
	"crypto/x509"
	"encoding/pem"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
	"github.com/miekg/dns"
)

// authority is Pebble, Let's Encrypt's small certificate authority for tests, in this process. All names lead to this
// machine for it. It loses its answers now and then, as it does for all its clients.
type authority struct {
	t      *testing.T
	log    lockedBuffer
	url    string // of its directory
	caFile string // what signs its own certificate
	store  *db.MemoryStore
	ca     *ca.CAImpl
	names  string // address of its DNS server

	mu     sync.Mutex
	handle http.Handler
	orders int
}

// pebbleSettings are read by Pebble when it is made: it does not wait before it checks a host, and checks it anew for
// every order.
var pebbleSettings = sync.OnceFunc(func() {
	os.Setenv("PEBBLE_VA_NOSLEEP", "1")
	os.Setenv("PEBBLE_AUTHZREUSE", "0")
})

// startAuthority starts an authority whose certificates are valid for some seconds. It answers as soon as reach says
// where hosts are.
func startAuthority(t *testing.T, valid uint64) *authority {
	t.Helper()
	pebbleSettings()
	a := &authority{t: t, store: db.NewMemoryStore()}
	logger := log.New(&a.log, "", 0)
	a.ca = ca.New(logger, a.store, "", "ecdsa", 0, 1, map[string]ca.Profile{"default": {Description: "for tests", ValidityPeriod: valid}})

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a.names = listener.Addr().String()
	resolver := &dns.Server{Listener: listener, Handler: dns.HandlerFunc(here)}
	go resolver.ActivateAndServe()
	t.Cleanup(func() { resolver.Shutdown() })

	front := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		handle := a.handle
		if r.URL.Path == "/order-plz" {
			a.orders++
		}
		a.mu.Unlock()
		if handle == nil {
			http.Error(w, "not yet", http.StatusServiceUnavailable)
			return
		}
		handle.ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)
	a.url = front.URL + wfe.DirectoryPath
	a.caFile = filepath.Join(t.TempDir(), "authority.pem")
	if err := os.WriteFile(a.caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: front.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the authority's log:\n%s", a.log.String())
		}
	})
	return a
}

// here answers every question for an address with this machine's.
func here(w dns.ResponseWriter, question *dns.Msg) {
	answer := new(dns.Msg).SetReply(question)
	for _, q := range question.Question {
		if q.Qtype == dns.TypeA {
			answer.Answer = append(answer.Answer, &dns.A{
				Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}, A: net.IPv4(127, 0, 0, 1),
			})
		}
	}
	w.WriteMsg(answer)
}

// nowhere is a port that nobody listens on.
const nowhere = "127.0.0.1:1"

// reach makes the authority check hosts at the addresses of a gateway: with HTTP-01 at one, with TLS-ALPN-01 at the other.
func (a *authority) reach(plain, secure string) {
	a.t.Helper()
	port := func(address string) int {
		n, err := strconv.Atoi(address[strings.LastIndexByte(address, ':')+1:])
		if err != nil {
			a.t.Fatal(err)
		}
		return n
	}
	logger := log.New(&a.log, "", 0)
	checks := va.New(logger, port(plain), port(secure), true, a.names, a.store)
	front := wfe.New(logger, a.store, checks, a.ca, []string{"authority.test"}, true, false, 1, 1)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.handle = front.Handler()
}

// ordered is how many orders the authority has got.
func (a *authority) ordered() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.orders
}

// trust is what clients trust that trust the authority, and the same as a file.
func (a *authority) trust() (*x509.CertPool, string) {
	a.t.Helper()
	root := a.ca.GetRootCert(0)
	roots := x509.NewCertPool()
	roots.AddCert(root.Cert)
	file := filepath.Join(a.t.TempDir(), "root.pem")
	if err := os.WriteFile(file, root.PEM(), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return roots, file
}
