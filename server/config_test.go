package server

import (
	"strings"
	"testing"
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
