package reconcile

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-run/berth/certificate"
	"github.com/berth-run/berth/gateway"
	"github.com/berth-run/berth/serving"
)

// certificates opens a store that has a certificate of a file for given.example.com, and orders others from an authority
// that never answers.
func certificates(t *testing.T) *certificate.Store {
	t.Helper()
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"given.example.com"}, NotAfter: time.Now().Add(24 * time.Hour)}
	leaf, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := certificate.File{Certificate: filepath.Join(dir, "a.crt"), Key: filepath.Join(dir, "a.key")}
	for path, block := range map[string]*pem.Block{file.Certificate: {Type: "CERTIFICATE", Bytes: leaf}, file.Key: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	store, err := certificate.Open(certificate.Config{
		Files: []certificate.File{file}, Logger: slog.New(slog.DiscardHandler),
		ACME: &certificate.ACME{
			Directory: "https://192.0.2.1/directory", Dir: filepath.Join(dir, "acme"), HTTPAddress: "127.0.0.1:80", TLSAddress: "127.0.0.1:443",
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	return store
}

const (
	annotationProtocol = "networking.knative.dev/http-protocol"
	annotationDisable  = "networking.knative.dev/disable-external-domain-tls"
)

func TestLead_OrdersAndRedirectsAsTheAnnotationsSay(t *testing.T) {
	store := certificates(t)
	activator := gateway.NewActivator(gateway.Revision{Namespace: "default", Name: "hello-00001"})
	for what, c := range map[string]struct {
		redirect    bool // the server's setting
		host        string
		annotations map[string]string
		unready     string
		port        uint16
		state       certificate.State
	}{
		"a certificate is there":                    {redirect: true, host: "given.example.com", port: 8443, state: certificate.Given},
		"no redirect is wanted":                     {host: "given.example.com", state: certificate.Given},
		"a redirect is wanted here":                 {host: "given.example.com", annotations: map[string]string{annotationProtocol: "Redirected"}, port: 8443, state: certificate.Given},
		"no redirect is wanted here":                {redirect: true, host: "given.example.com", annotations: map[string]string{annotationProtocol: "enabled"}, state: certificate.Given},
		"a certificate is ordered":                  {redirect: true, host: "ordered.example.com", state: certificate.Ordered},
		"nothing is to be ordered here":             {redirect: true, host: "plain.example.com", annotations: map[string]string{annotationDisable: "true"}},
		"nothing is ordered before it was ready":    {redirect: true, host: "new.example.com", unready: "wait"},
		"no authority has certificates for such as": {redirect: true, host: "hello.default.localhost"},
	} {
		g := gateway.New(gateway.Config{})
		r := New(Config{Gateway: g, Certificates: store, TLSPort: 8443, Redirect: c.redirect})
		route := &gateway.Route{Splits: []gateway.Split{{Activator: activator}}}
		if c.unready != "" {
			route = &gateway.Route{Unready: c.unready}
		}
		if err := r.lead("owner", map[string]*gateway.Route{c.host: route}, c.annotations); err != nil {
			t.Fatal(err)
		}
		if got := store.Status(c.host).State; got != c.state || route.Redirect != c.port {
			t.Errorf("%s: state %v, redirect to port %d; want %v, %d", what, got, route.Redirect, c.state, c.port)
		}
		if err := r.lead("owner", nil, nil); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMarkCertificates_TellsOfTheOneWithWhichItStandsWorst(t *testing.T) {
	store := certificates(t)
	store.Want("owner", []string{"ordered.example.com"})
	redirected := map[string]string{annotationProtocol: "redirected"}
	for _, c := range []struct {
		store       *certificate.Store
		annotations map[string]string
		hosts       []string
		want        string
	}{
		{nil, nil, []string{"given.example.com"}, "True TLSNotEnabled external-domain-tls is not enabled"},
		{store, nil, []string{"given.example.com"}, "True  "},
		{store, nil, []string{"given.example.com", "tag.default.localhost"}, "True TLSNotEnabled the server has no certificate for tag.default.localhost"},
		{store, nil, []string{"given.example.com", "ordered.example.com"}, "True HTTPDowngrade Certificate ordered.example.com is not ready downgrade HTTP"},
		{store, redirected, []string{"ordered.example.com", "given.example.com"}, "Unknown CertificateNotReady Certificate ordered.example.com is not ready."},
	} {
		r := New(Config{Certificates: c.store})
		route := &serving.Route{}
		route.Status.InitializeConditions()
		r.markCertificates(route.GetConditionSet().Manage(&route.Status), c.annotations, c.hosts...)
		got := route.Status.GetCondition(serving.CertificateProvisioned)
		if text := strings.Join([]string{string(got.Status), got.Reason, got.Message}, " "); text != c.want {
			t.Errorf("%v: %q, want %q", c.hosts, text, c.want)
		}
	}
}
