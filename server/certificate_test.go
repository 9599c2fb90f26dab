package server

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestCertificate_IsKeptWhileItServesAndMadeAnewOtherwise(t *testing.T) {
	path := filepath.Join(t.TempDir(), "certificate.pem")
	first, trusted, err := ensureCertificate(path, "127.0.0.1:8081")
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"localhost", "127.0.0.1", "::1"} {
		if err := first.Leaf.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("file mode %v %v, want 0600: it holds the private key", info.Mode(), err)
	}
	if bytes.Contains(trusted, []byte("PRIVATE")) {
		t.Error("what clients get holds the private key")
	}
	if _, again, err := ensureCertificate(path, "127.0.0.1:9999"); err != nil || !bytes.Equal(again, trusted) {
		t.Errorf("a certificate that serves was replaced (%v)", err)
	}
	other, _, err := ensureCertificate(path, "10.1.2.3:8081")
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Leaf.VerifyHostname("10.1.2.3"); err != nil {
		t.Error(err)
	}

	// Close to its end, and damaged.
	old, err := newCertificate(certificateNames("127.0.0.1:8081"), time.Now().Add(-certificateLife+certificateRest/2))
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"old": old, "damaged": []byte("nonsense")} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		made, _, err := ensureCertificate(path, "127.0.0.1:8081")
		if err != nil || made.Leaf.NotAfter.Before(time.Now().Add(certificateLife/2)) {
			t.Errorf("%s certificate: %v, ends %v", name, err, made.Leaf.NotAfter)
		}
	}
}
