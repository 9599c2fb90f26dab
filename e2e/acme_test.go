package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"io/fs"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-run/berth/server"
	"github.com/berth-run/berth/serving"
)

// orderFrom makes a server order certificates from an authority.
func orderFrom(a *authority) func(*server.Config) {
	return func(c *server.Config) {
		c.TLS.Address = "127.0.0.1:0"
		c.TLS.ACME, c.TLS.ACMEDirectory, c.TLS.ACMECA, c.TLS.ACMEEmail = true, a.url, a.caFile, "ops@berth.test"
		c.TLS.ACMERenewCheck = time.Second
	}
}

// shown is the certificate that the gateway shows to a client that asks for a host, after the client has checked it.
func (p *platform) shown(host string, roots *x509.CertPool) (*x509.Certificate, error) {
	c, err := tls.Dial("tcp", p.addresses.GatewayTLS, &tls.Config{ServerName: host, RootCAs: roots})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0], nil
}

func TestACME_MappedHostGetsACertificateThatOutlivesRestarts(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("kubectl"); err != nil {
		t.Skip("kubectl is not installed: it is what this test runs")
	}
	const host = "shop.example.com"
	a := startAuthority(t, 3600)
	roots, rootFile := a.trust()
	p := start(t, orderFrom(a))
	a.reach(p.addresses.Gateway, nowhere) // HTTP-01
	p.deploy(service("hello", program(t, "echo")))
	if n := a.ordered(); n != 0 {
		t.Errorf("%d orders for %s, which no authority knows", n, "hello.default.localhost")
	}

	manifest := "apiVersion: serving.knative.dev/v1beta1\nkind: DomainMapping\nmetadata: {name: " + host + ", annotations: {networking.knative.dev/http-protocol: Redirected}}\n" +
		"spec: {ref: {name: hello, kind: Service, apiVersion: serving.knative.dev/v1}}\n"
	p.kubectl(manifest, "apply", "-f", "-")
	p.kubectl("", "wait", "--for=condition=CertificateProvisioned", "dm/"+host, "--timeout=60s")
	p.kubectl("", "wait", "--for=condition=Ready", "dm/"+host, "--timeout=60s")
	url := p.kubectl("", "get", "dm", host, "-o", "jsonpath={.status.url}")
	if want := "https://" + host + p.addresses.GatewayTLS[strings.LastIndexByte(p.addresses.GatewayTLS, ':'):]; url != want {
		t.Errorf("URL %s, want %s", url, want)
	}
	if out, code := p.curl(url, "--cacert", rootFile); code != 0 || !strings.Contains(out, `"hello-00001"`) {
		t.Errorf("exit %d\n%s", code, out)
	}
	plain := "http://" + host + p.addresses.Gateway[strings.LastIndexByte(p.addresses.Gateway, ':'):]
	if out, _ := p.curl(plain+"/a", "-o", "/dev/null", "-w", "%{http_code} %{redirect_url}"); out != "302 "+url+"/a" {
		t.Errorf("without TLS: %q, want a redirect to %s", out, url)
	}
	first, err := p.shown(host, roots)
	if err != nil {
		t.Fatal(err)
	}

	// Strangers cause no order.
	orders := a.ordered()
	for _, name := range []string{"stranger.example.com", "hello.default.localhost", "www." + host} {
		if _, err := p.shown(name, roots); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
			t.Errorf("a handshake for %s: %v", name, err)
		}
	}

	if err := filepath.WalkDir(filepath.Join(p.dir, "certificates"), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	}); err != nil {
		t.Error(err)
	}

	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	p = startIn(t, p.dir, orderFrom(a))
	again, err := p.shown(host, roots) // at once: the server is ready when its certificates are
	if err != nil || !again.Equal(first) {
		t.Errorf("after a restart another certificate is shown (%v)", err)
	}
	if n := a.ordered(); n != orders {
		t.Errorf("%d orders, %d before the strangers and the restart", n, orders)
	}

	if err := p.DomainMappings("default").Delete(t.Context(), host, serving.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	p.await("the certificate to be shown no more", func() error {
		_, err := p.shown(host, roots)
		return errorUnless(err != nil, "it is shown")
	})
}

func TestACME_HostsOfServicesGetCertificatesThatAreRenewed(t *testing.T) {
	t.Parallel()
	const host = "hello.default.run.example.com"
	a := startAuthority(t, 30)
	roots, _ := a.trust()
	p := start(t, func(c *server.Config) {
		orderFrom(a)(c)
		c.Domain = "run.example.com"
	})
	a.reach(nowhere, p.addresses.GatewayTLS) // TLS-ALPN-01
	s := p.deploy(service("hello", program(t, "echo")))
	if got := s.Status.URL.String(); !strings.HasSuffix(got, "://"+host+portOf(s.Status.URL.Scheme, p.addresses)) {
		t.Errorf("URL %s", got)
	}
	p.await("the URL to be https", func() error {
		s, err := p.Services("default").Get(t.Context(), "hello")
		if err != nil {
			return err
		}
		return errorUnless(s.Status.URL.Scheme == "https", "%s", s.Status.URL)
	})
	first, err := p.shown(host, roots)
	if err != nil {
		t.Fatal(err)
	}
	p.await("the certificate to be renewed", func() error {
		next, err := p.shown(host, roots)
		if err != nil {
			return err // a busy machine may be late for a life of seconds
		}
		return errorUnless(!next.Equal(first), "it is the first one, until %v", first.NotAfter)
	})
}

func TestACME_SaysWhyThereIsNoCertificate(t *testing.T) {
	t.Parallel()
	const host = "unreachable.example.com"
	a := startAuthority(t, 3600)
	p := start(t, orderFrom(a))
	a.reach(nowhere, nowhere)
	p.deploy(service("hello", program(t, "echo")))
	p.mapHost("default", host, "hello")
	var m *serving.DomainMapping
	p.await("the reason to be told", func() (err error) {
		if m, err = p.DomainMappings("default").Get(t.Context(), host); err != nil {
			return err
		}
		c := m.Status.GetCondition(serving.CertificateProvisioned)
		return errorUnless(c != nil && strings.Contains(c.Message, "connection refused"), "%v", c)
	})
	// The host is reached without TLS meanwhile, as Knative has it.
	if c := m.Status.GetCondition(serving.CertificateProvisioned); !m.IsReady() || m.Status.URL.Scheme != "http" || c.Reason != "HTTPDowngrade" {
		t.Errorf("ready %v, URL %s, %v", m.IsReady(), m.Status.URL, c)
	}
	m.Annotations = map[string]string{"networking.knative.dev/http-protocol": "redirected"}
	if _, _, err := p.DomainMappings("default").Apply(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	m = p.mapping("default", host, serving.CertificateProvisioned, "False")
	if c := m.Status.GetCondition(serving.CertificateProvisioned); c.Reason != "CertificateProvisionFailed" || !strings.Contains(c.Message, "connection refused") {
		t.Errorf("%v", c)
	}
}

// portOf is the gateway's port for a scheme, with its colon.
func portOf(scheme string, addresses server.Addresses) string {
	address := addresses.Gateway
	if scheme == "https" {
		address = addresses.GatewayTLS
	}
	_, port, _ := net.SplitHostPort(address)
	return ":" + port
}
