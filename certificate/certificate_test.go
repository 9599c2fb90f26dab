package certificate

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// write puts a new certificate for hosts, and its key, into files, and returns its serial number.
func write(t *testing.T, file File, expires time.Time, hosts ...string) *big.Int {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<60))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, DNSNames: hosts, NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: expires,
	}
	leaf, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	put(t, file.Key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
	put(t, file.Certificate, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf}))
	return serial
}

func put(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func inDir(dir, name string) File {
	return File{filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")}
}

var nextYear = time.Now().AddDate(1, 0, 0)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// shown is the serial number of the certificate that a client gets which asks for a host; nil when the handshake is
// refused.
func shown(t *testing.T, s *Store, host string) *big.Int {
	t.Helper()
	client, server := net.Pipe()
	defer client.Close()
	go func() {
		defer server.Close()
		tls.Server(server, s.TLSConfig()).Handshake()
	}()
	c := tls.Client(client, &tls.Config{ServerName: host, InsecureSkipVerify: true})
	if err := c.Handshake(); err != nil {
		if !strings.Contains(err.Error(), "unrecognized name") {
			t.Fatalf("handshake for %q: %v", host, err)
		}
		return nil
	}
	return c.ConnectionState().PeerCertificates[0].SerialNumber
}

func TestStore_ChoosesByTheNameTheClientAsksFor(t *testing.T) {
	dir := t.TempDir()
	first, wild, exact := inDir(dir, "first"), inDir(dir, "wild"), inDir(dir, "exact")
	want := map[string]*big.Int{
		"first": write(t, first, nextYear, "first.test", "Second.Test"),
		"wild":  write(t, wild, nextYear, "*.wild.test"),
		"exact": write(t, exact, nextYear, "exact.wild.test"),
	}
	s, err := Open(Config{Files: []File{first, wild, exact}, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	for host, name := range map[string]string{
		"first.test": "first", "second.test": "first", "FIRST.test": "first", "a.wild.test": "wild", "exact.wild.test": "exact",
		"a.b.wild.test": "first", "wild.test": "first", "unknown.test": "first", "": "first",
	} {
		if got := shown(t, s, host); got == nil || got.Cmp(want[name]) != 0 {
			t.Errorf("%q gets another certificate than %q", host, name)
		}
	}
	for host, state := range map[string]State{"first.test": Given, "A.wild.test.": Given, "unknown.test": Missing, "wild.test": Missing} {
		if got := s.Status(host); got.State != state || got.Serves() != (state == Given) {
			t.Errorf("status of %q is %v, want %v", host, got, state)
		}
	}
}

func TestStore_ShowsACertificateThatTheClientCanUse(t *testing.T) {
	dir := t.TempDir()
	a, b := inDir(dir, "a"), inDir(dir, "b")
	write(t, a, nextYear, "host.test")
	want := write(t, b, nextYear, "host.test")
	s, err := Open(Config{Files: []File{a, b}, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	// The key of the first is of a curve that the client does not know.
	hello := &tls.ClientHelloInfo{
		ServerName: "host.test", SupportedVersions: []uint16{tls.VersionTLS13}, CipherSuites: []uint16{tls.TLS_AES_128_GCM_SHA256},
		SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256}, SupportedCurves: []tls.CurveID{tls.CurveP256},
	}
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s.files.Load().byName["host.test"][0].PrivateKey = key
	if got, err := s.choose(hello); err != nil || got.Leaf.SerialNumber.Cmp(want) != 0 {
		t.Errorf("got the one it cannot use (%v)", err)
	}
}

func TestOpen_SaysWhatIsWrongWithAFile(t *testing.T) {
	dir := t.TempDir()
	a, b := inDir(dir, "a"), inDir(dir, "b")
	write(t, a, nextYear, "a.test")
	write(t, b, nextYear, "b.test")
	put(t, filepath.Join(dir, "text"), []byte("nothing of the kind"))
	empty, alone := filepath.Join(dir, "empty"), filepath.Join(dir, "alone")
	os.Mkdir(empty, 0o700)
	put(t, filepath.Join(alone, "x.key"), nil)
	for what, c := range map[string]struct {
		file File
		want string
	}{
		"another key":      {File{a.Certificate, b.Key}, "private key does not match public key"},
		"no certificate":   {File{filepath.Join(dir, "text"), b.Key}, "certificate"},
		"missing":          {File{filepath.Join(dir, "gone"), b.Key}, "no such file"},
		"missing key":      {File{a.Certificate, filepath.Join(dir, "gone")}, "no such file"},
		"empty directory":  {File{Certificate: empty}, "NAME.key"},
		"key alone":        {File{Certificate: alone}, "name it x.crt or x.pem"},
		"missing dir":      {File{Certificate: filepath.Join(dir, "gone")}, "no such file"},
		"nothing is given": {File{}, ""},
	} {
		files := []File{c.file}
		if c.file == (File{}) {
			files = nil
		}
		if _, err := Open(Config{Files: files, Logger: quiet()}); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.file.Certificate) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestOpen_ReadsDirectories(t *testing.T) {
	dir := t.TempDir()
	write(t, inDir(dir, "a"), nextYear, "a.test")
	write(t, File{filepath.Join(dir, "b.pem"), filepath.Join(dir, "b.key")}, nextYear, "b.test")
	write(t, File{filepath.Join(dir, "c", "fullchain.pem"), filepath.Join(dir, "c", "privkey.pem")}, nextYear, "c.test")
	put(t, filepath.Join(dir, "README"), []byte("about these"))
	s, err := Open(Config{Files: []File{{Certificate: dir}}, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"a.test", "b.test", "c.test"} {
		if s.Status(host).State != Given {
			t.Errorf("%s has no certificate", host)
		}
	}
}

// recorder is a log, and who was told of changes.
type recorder struct {
	mu    sync.Mutex
	text  strings.Builder
	told  []string
	event chan struct{} // gets a value with every line and change
}

func newRecorder() *recorder { return &recorder{event: make(chan struct{}, 1000)} }

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.event <- struct{}{}
	return r.text.Write(p)
}

func (r *recorder) changed(owner string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.event <- struct{}{}
	r.told = append(r.told, owner)
}

// await waits until something happened after which done is true.
func (r *recorder) await(t *testing.T, what string, done func(log string, told []string) bool) {
	t.Helper()
	patience := time.After(20 * time.Second)
	for {
		r.mu.Lock()
		log, told := r.text.String(), slices.Clone(r.told)
		r.mu.Unlock()
		if done(log, told) {
			return
		}
		select {
		case <-r.event:
		case <-patience:
			t.Fatalf("waited too long for %s; told %q, log:\n%s", what, told, log)
		}
	}
}

// run runs a store until the test ends.
func run(t *testing.T, s *Store) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		s.Close()
	})
}

func TestStore_ReadsFilesAgainWhenTheyChangeAndKeepsWhatCannotBeReplaced(t *testing.T) {
	dir := t.TempDir()
	file := inDir(dir, "a")
	first := write(t, file, nextYear, "a.test")
	log := newRecorder()
	s, err := Open(Config{Files: []File{{Certificate: dir}}, Logger: slog.New(slog.NewTextHandler(log, nil)), Changed: log.changed})
	if err != nil {
		t.Fatal(err)
	}
	s.Want("owner of b", []string{"b.test"})
	s.Want("owner of a", []string{"a.test"})
	run(t, s)

	put(t, file.Certificate, []byte("half a file"))
	log.await(t, "the bad file to be seen", func(text string, _ []string) bool { return strings.Contains(text, "cannot be used") })
	if got := shown(t, s, "a.test"); got.Cmp(first) != 0 {
		t.Error("a bad file replaced the good one")
	}
	second := write(t, file, nextYear, "a.test")
	log.await(t, "the new file to be read", func(string, []string) bool { return shown(t, s, "a.test").Cmp(second) == 0 })

	// Put in place by renaming a file, as most tools do; and one more in the directory.
	other := t.TempDir()
	third := write(t, inDir(other, "a"), nextYear, "a.test")
	for _, name := range []string{"a.key", "a.crt"} {
		if err := os.Rename(filepath.Join(other, name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	write(t, inDir(dir, "b"), nextYear, "b.test")
	log.await(t, "the owner of b to be told", func(_ string, told []string) bool { return slices.Contains(told, "owner of b") })
	if got := shown(t, s, "a.test"); got.Cmp(third) != 0 {
		t.Error("a file that was renamed into place is not read")
	}
	if s.Status("b.test").State != Given {
		t.Error("a file that was added is not read")
	}
	os.Remove(filepath.Join(dir, "a.key"))
	os.Remove(filepath.Join(dir, "a.crt"))
	log.await(t, "the owner of a to be told", func(_ string, told []string) bool { return slices.Contains(told, "owner of a") })
	if s.Status("a.test").State != Missing {
		t.Error("a certificate that was removed is shown")
	}
}

func TestStore_FollowsLinksThatChange(t *testing.T) {
	dir := t.TempDir()
	write(t, File{filepath.Join(dir, "1", "tls.crt"), filepath.Join(dir, "1", "tls.key")}, nextYear, "a.test")
	second := write(t, File{filepath.Join(dir, "2", "tls.crt"), filepath.Join(dir, "2", "tls.key")}, nextYear, "a.test")
	link := func(to string) {
		os.Symlink(to, filepath.Join(dir, "new"))
		if err := os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "current")); err != nil {
			t.Fatal(err)
		}
	}
	link("1")
	for _, name := range []string{"tls.crt", "tls.key"} {
		os.Symlink(filepath.Join("current", name), filepath.Join(dir, name))
	}
	log := newRecorder()
	s, err := Open(Config{Files: []File{inDir(dir, "tls")}, Logger: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	run(t, s)
	link("2")
	log.await(t, "the new certificate to be read", func(string, []string) bool { return shown(t, s, "a.test").Cmp(second) == 0 })
}

func TestStore_WarnsOfCertificatesThatClientsWillNotTake(t *testing.T) {
	dir := t.TempDir()
	write(t, inDir(dir, "old"), time.Now().Add(-time.Hour), "old.test")
	write(t, inDir(dir, "soon"), time.Now().Add(time.Hour), "soon.test", "*.soon.test")
	write(t, inDir(dir, "nameless"), nextYear)
	write(t, inDir(dir, "good"), nextYear, "good.test")
	log := newRecorder()
	s, err := Open(Config{Files: []File{{Certificate: dir}}, Logger: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	run(t, s)
	log.await(t, "the warnings", func(text string, _ []string) bool { return strings.Count(text, "WARN") >= 3 })
	text := log.text.String()
	for _, want := range []string{"it has expired", "hosts=old.test", "it expires soon", `hosts="soon.test *.soon.test"`, "no host names", "nameless.crt"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in the log:\n%s", want, text)
		}
	}
	if strings.Contains(text, "good.test") {
		t.Errorf("a good one is warned of:\n%s", text)
	}
}

func TestFiles_PairsCertificatesWithKeys(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a", "b"} {
		put(t, filepath.Join(dir, name), nil)
	}
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	got, err := Files([]string{a, dir, b}, []string{"a.key", "b.key"})
	if want := []File{{a, "a.key"}, {Certificate: dir}, {b, "b.key"}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v %v, want %v", got, err, want)
	}
	for want, c := range map[string][2][]string{
		a + `" has no key`:           {{a}, nil},
		`gone" is not there`:         {{filepath.Join(dir, "gone")}, nil},
		`"a.key" has no certificate`: {{dir}, {"a.key"}},
	} {
		if _, err := Files(c[0], c[1]); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", want, err)
		}
	}
}

func TestAuthority_IsAskedOnlyForHostsThatItCanHave(t *testing.T) {
	for host, want := range map[string][2]bool{ // of a public authority, and of a private one
		"shop.example.com": {true, true}, "a.b.c.example.co.uk": {true, true}, "hello.default.localhost": {false, false},
		"localhost": {false, false}, "shop": {false, false}, "192.0.2.1": {false, false}, "2001:db8::1": {false, false},
		"printer.local": {false, true}, "db.internal": {false, true}, "a b.example.com": {false, false},
	} {
		for i, public := range []bool{true, false} {
			a := &authority{public: public}
			if got := a.qualifies(host); got != want[i] {
				t.Errorf("%q, public %v: %v", host, public, got)
			}
		}
	}
}

func TestStore_AsksNoAuthorityForHostsThatNobodyWants(t *testing.T) {
	dir := t.TempDir()
	file := inDir(filepath.Join(dir, "given"), "given")
	write(t, file, nextYear, "given.example.com")
	s, err := Open(Config{
		Files: []File{file}, Logger: quiet(),
		ACME: &ACME{Directory: "https://127.0.0.1:1/directory", Dir: filepath.Join(dir, "acme"), HTTPAddress: "127.0.0.1:80", TLSAddress: "127.0.0.1:443"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, host := range []string{"stranger.example.com", "given.example.com", ""} {
		shown(t, s, host)
	}
	if _, ok := s.Challenge("stranger.example.com", "token"); ok {
		t.Error("a challenge of a host that nobody wants is answered")
	}
	s.Want("a", []string{"given.example.com", "hello.default.localhost"})
	if len(s.ordered.orders) != 0 {
		t.Errorf("ordered: %v", s.ordered.orders)
	}
	entries, err := os.ReadDir(filepath.Join(dir, "acme"))
	if err != nil || len(entries) != 0 {
		t.Errorf("something was stored: %v %v", entries, err)
	}
	if info, err := os.Stat(filepath.Join(dir, "acme")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode of the directory: %v %v", info.Mode(), err)
	}
}

func TestStore_OrdersForAsLongAsOneOwnerWantsTheHost(t *testing.T) {
	// An authority that accepts connections and says nothing.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	s, err := Open(Config{Logger: quiet(), ACME: &ACME{
		Directory: "https://" + listener.Addr().String() + "/directory", Roots: x509.NewCertPool(),
		Dir: filepath.Join(t.TempDir(), "acme"), HTTPAddress: "127.0.0.1:80", TLSAddress: "127.0.0.1:443",
	}})
	if err != nil {
		t.Fatal(err)
	}
	run(t, s)
	s.Want("a", []string{"Shop.example.com."})
	if got := s.Status("shop.example.com"); got.State != Ordered {
		t.Errorf("status %v", got)
	}
	if _, err := listener.Accept(); err != nil { // the order is on its way
		t.Fatal(err)
	}
	s.Want("b", []string{"shop.example.com"})
	s.Want("a", nil)
	if !s.ordered.wants("shop.example.com") {
		t.Error("the order was ended while another owner wants the host")
	}
	s.Want("b", nil)
	if s.ordered.wants("shop.example.com") || s.Status("shop.example.com").State != Missing {
		t.Error("the order goes on although nobody wants the host")
	}
}

func TestLog_TellsWhatWentWrong(t *testing.T) {
	log := newRecorder()
	a := &authority{logger: slog.New(slog.NewTextHandler(log, nil)), orders: map[string]*order{}, changed: func(string) {}}
	a.orders["x.test"] = &order{entered: make(chan struct{}), status: Status{State: Ordered}}
	a.happened(t.Context(), "cert_failed", map[string]any{"identifier": "x.test", "error": io.ErrUnexpectedEOF})
	if got := a.status("x.test"); got.State != Failed || got.Err != io.ErrUnexpectedEOF {
		t.Errorf("%v", got)
	}
	a.happened(t.Context(), "cert_obtaining", map[string]any{"identifier": "x.test"})
	if got := a.status("x.test"); got.State != Failed {
		t.Errorf("the next try hid why the last one failed: %v", got)
	}
	a.happened(t.Context(), "cached_managed_cert", map[string]any{"sans": []string{"x.test"}})
	a.happened(t.Context(), "cert_failed", map[string]any{"identifier": "x.test", "error": io.ErrUnexpectedEOF})
	if got := a.status("x.test"); got.State != Issued {
		t.Errorf("a renewal that failed took the certificate away: %v", got)
	}
}
