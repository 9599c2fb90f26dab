package server

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-run/berth/certificate"
)

func TestConfig_NamesEverySettingThatCannotWork(t *testing.T) {
	if err := DefaultConfig().check(); err != nil {
		t.Fatalf("the defaults: %v", err)
	}
	c := DefaultConfig()
	c.Domain = "http://example.com"
	c.StateDir = ""
	c.PullTimeout = 0
	c.MaxQueue = 0
	c.CPU, c.Memory = "-1", "much"
	c.InsecureRegistries = []string{"http://registry"}
	c.DockerConfig = "/does/not/exist"
	c.RevisionTimeout = 2 * c.MaxRevisionTimeout
	c.Issuer = "http://example.com/"
	err := c.check()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, flag := range []string{"issuer", "domain", "state-dir", "pull-timeout", "max-queue", "cpu", "memory", "insecure-registry", "docker-config", "revision-timeout"} {
		if !strings.Contains(err.Error(), "--"+flag+" ") {
			t.Errorf("--%s is not named in: %v", flag, err)
		}
	}
}

func TestPrefixes_TakesNetworksAndAddresses(t *testing.T) {
	got, err := prefixes("trust-forwarded", []string{"10.0.0.0/8", "192.0.2.7", "::1"})
	if err != nil || len(got) != 3 || got[0].String() != "10.0.0.0/8" || got[1].String() != "192.0.2.7/32" || got[2].String() != "::1/128" {
		t.Errorf("%v %v", got, err)
	}
	if _, err := prefixes("trust-forwarded", []string{"everybody"}); err == nil || !strings.Contains(err.Error(), `--trust-forwarded "everybody"`) {
		t.Errorf("error %v", err)
	}
}

func TestConfig_NamesWhatTLSLacks(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "text")
	if err := os.WriteFile(file, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	acme := TLS{Address: ":443", ACME: true, ACMEDirectory: certificate.LetsEncrypt}
	for _, c := range []struct {
		tls  TLS
		want []string
	}{
		{TLS{Certificates: []string{file}, Keys: []string{file}}, []string{"--tls-cert without --gateway-tls-address", "--tls-key without"}},
		{TLS{ACME: true, Redirect: true, ACMEDirectory: certificate.LetsEncrypt}, []string{"--acme without", "--https-redirect without"}},
		{TLS{Address: ":443"}, []string{`--gateway-tls-address ":443": it needs certificates`}},
		{TLS{Address: ":443", Certificates: []string{file}}, []string{"has no key"}},
		{TLS{Address: ":443", Certificates: []string{filepath.Join(dir, "gone")}}, []string{"gone\" is not there"}},
		{TLS{Address: ":443", Certificates: []string{dir}, ACMEEmail: "a@b.c", ACMECA: file}, []string{"--acme-email", "--acme-ca", "without --acme"}},
		{func() TLS { t := acme; t.ACMEDirectory = "http://ca"; return t }(), []string{"--acme-directory \"http://ca\""}},
		{func() TLS { t := acme; t.ACMEEmail = "nobody"; return t }(), []string{"--acme-email \"nobody\""}},
		{func() TLS { t := acme; t.ACMECA = file; return t }(), []string{"--acme-ca", "no certificate in PEM form"}},
		{func() TLS { t := acme; t.ACMECA = filepath.Join(dir, "gone"); return t }(), []string{"--acme-ca", "no such file"}},
		{acme, nil},
	} {
		config := DefaultConfig()
		config.TLS = c.tls
		err := config.check()
		if len(c.want) == 0 && err != nil {
			t.Errorf("%+v: %v", c.tls, err)
		}
		for _, want := range c.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%+v: %v; want %q", c.tls, err, want)
			}
		}
	}
}
