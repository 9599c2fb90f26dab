package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-run/berth/server"
	"github.com/berth-run/berth/serving"
)

// certify writes a certificate for hosts that signs itself, and its key, into a directory.
func certify(t *testing.T, dir, name string, hosts ...string) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: hosts, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	leaf, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	certificate, key = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	for path, block := range map[string]*pem.Block{key: {Type: "PRIVATE KEY", Bytes: secret}, certificate: {Type: "CERTIFICATE", Bytes: leaf}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certificate, key
}

// curl asks a URL with curl, with the gateway where the name leads, and returns what it printed and its exit code.
func (p *platform) curl(rawURL string, args ...string) (string, int) {
	p.t.Helper()
	u, err := url.Parse(rawURL)
	if err != nil {
		p.t.Fatal(err)
	}
	address := p.addresses.Gateway
	if u.Scheme == "https" {
		address = p.addresses.GatewayTLS
	}
	host, _, _ := net.SplitHostPort(address)
	args = append([]string{"-sS", "--resolve", u.Hostname() + ":" + u.Port() + ":" + host, rawURL}, args...)
	command := exec.CommandContext(p.t.Context(), "curl", args...)
	out, err := command.CombinedOutput()
	if err != nil && command.ProcessState == nil {
		p.t.Fatalf("curl: %v", err)
	}
	return string(out), command.ProcessState.ExitCode()
}

func TestTLS_CertificatesOfFilesAreShownRedirectedToAndReadAgain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	wild, wildKey := certify(t, dir, "wild", "*.default.run.test")
	mapped, mappedKey := certify(t, dir, "mapped", "mapped.test")
	p := start(t, func(c *server.Config) {
		c.Domain = "run.test"
		c.TLS.Address = "127.0.0.1:0"
		c.TLS.Certificates, c.TLS.Keys = []string{wild, mapped}, []string{wildKey, mappedKey}
		c.TLS.Redirect = true
	})
	_, port, _ := net.SplitHostPort(p.addresses.GatewayTLS)
	s := service("hello", program(t, "echo"))
	latest, all := true, int64(100)
	s.Spec.Traffic = []serving.TrafficTarget{{LatestRevision: &latest, Percent: &all, Tag: "now"}}
	deployed := p.deploy(s)
	secure := "https://hello.default.run.test:" + port
	if got := deployed.Status.URL.String(); got != secure || deployed.Status.Address.URL.String() != secure {
		t.Errorf("URL %s, address %s, want %s", got, deployed.Status.Address.URL, secure)
	}
	if got := deployed.Status.Traffic[0].URL.String(); got != "https://now-hello.default.run.test:"+port {
		t.Errorf("the tag's URL is %s", got)
	}
	if out := p.mustBerth("services", "list"); !strings.Contains(out, secure) {
		t.Errorf("berth services list:\n%s", out)
	}
	route, err := p.Routes("default").Get(t.Context(), "hello")
	if err != nil {
		t.Fatal(err)
	}
	if c := route.Status.GetCondition(serving.CertificateProvisioned); !c.IsTrue() || c.Reason != "" {
		t.Errorf("the route's condition: %v", c)
	}
	for _, protocol := range []string{"--http1.1", "--http2"} {
		if out, code := p.curl(secure+"/", "--cacert", wild, protocol); code != 0 || !strings.Contains(out, `"hello-00001"`) {
			t.Errorf("%s: exit %d\n%s", protocol, code, out)
		}
	}
	plain := "http://hello.default.run.test:" + p.addresses.Gateway[strings.LastIndexByte(p.addresses.Gateway, ':')+1:]
	if out, _ := p.curl(plain+"/a?b", "-o", "/dev/null", "-w", "%{http_code} %{redirect_url}"); out != "302 "+secure+"/a?b" {
		t.Errorf("without TLS: %q", out)
	}

	// Mapped hosts: one that has a certificate, whose owner wants no redirect, and one that has none.
	m := &serving.DomainMapping{}
	m.Namespace, m.Name, m.Annotations = "default", "mapped.test", map[string]string{"networking.knative.dev/http-protocol": "Enabled"}
	m.Spec.Ref.APIVersion, m.Spec.Ref.Kind, m.Spec.Ref.Name = serving.KindService.APIVersion(), serving.KindService.Name, "hello"
	if _, err := p.DomainMappings("default").Create(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	p.mapHost("default", "later.test", "hello")
	got := p.mapping("default", "mapped.test", serving.DomainMappingReady, "True")
	if got.Status.URL.String() != "https://mapped.test:"+port {
		t.Errorf("the mapped host's URL is %s", got.Status.URL)
	}
	if out, code := p.curl(got.Status.URL.String(), "--cacert", mapped); code != 0 || !strings.Contains(out, `"hello-00001"`) {
		t.Errorf("the mapped host: exit %d\n%s", code, out)
	}
	plainPort := p.addresses.Gateway[strings.LastIndexByte(p.addresses.Gateway, ':')+1:]
	if out, _ := p.curl("http://mapped.test:"+plainPort, "-o", "/dev/null", "-w", "%{http_code}"); out != "200" {
		t.Errorf("the mapped host without TLS: %q", out)
	}
	later := p.mapping("default", "later.test", serving.DomainMappingReady, "True")
	if c := later.Status.GetCondition(serving.CertificateProvisioned); later.Status.URL.Scheme != "http" || c.Reason != "TLSNotEnabled" || !strings.Contains(c.Message, "later.test") {
		t.Errorf("a host without certificate: %s, %v", later.Status.URL, c)
	}
	if out, _ := p.curl("http://later.test:"+plainPort, "-o", "/dev/null", "-w", "%{http_code}"); out != "200" {
		t.Errorf("a host without certificate, without TLS: %q", out)
	}

	// A new certificate is taken while the server runs, and its hosts' URLs follow.
	certify(t, dir, "mapped", "mapped.test", "later.test")
	p.await("the new certificate to be shown", func() error {
		out, code := p.curl("https://later.test:"+port, "--cacert", mapped)
		return errorUnless(code == 0 && strings.Contains(out, `"hello-00001"`), "exit %d: %s", code, out)
	})
	p.await("the URL to follow", func() error {
		m, err := p.DomainMappings("default").Get(t.Context(), "later.test")
		if err != nil {
			return err
		}
		return errorUnless(m.Status.URL.Scheme == "https", "%s", m.Status.URL)
	})
	if out, _ := p.curl("http://later.test:"+plainPort, "-o", "/dev/null", "-w", "%{http_code}"); out != "302" {
		t.Errorf("once there is a certificate, without TLS: %q", out)
	}
}
