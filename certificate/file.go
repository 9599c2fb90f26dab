package certificate

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// File is a certificate with its chain and its private key, both PEM; or, without Key, a directory of them:
// NAME.crt or NAME.pem with NAME.key, and, as certbot has them, NAME/fullchain.pem with NAME/privkey.pem.
type File struct {
	Certificate string
	Key         string
}

// pair is a certificate as it was read.
type pair struct {
	file        File
	certificate *tls.Certificate
}

func (p pair) same(as pair) bool {
	return p.file == as.file && slices.EqualFunc(p.certificate.Certificate, as.certificate.Certificate, bytes.Equal)
}

// names are the hosts that the certificate is for.
func (p pair) names() []string { return p.certificate.Leaf.DNSNames }

// readFiles reads certificates. The errors are those of pairs that cannot be used: of these, what there is of the pair
// before is kept.
func readFiles(files []File, before []pair) (pairs []pair, errs []error) {
	for _, file := range files {
		found, err := list(file)
		if err != nil {
			errs = append(errs, err)
			for _, p := range before { // what the directory had
				if filepath.Dir(p.file.Certificate) == file.Certificate || filepath.Dir(filepath.Dir(p.file.Certificate)) == file.Certificate {
					pairs = append(pairs, p)
				}
			}
		}
		for _, file := range found {
			p, err := read(file)
			if err != nil {
				errs = append(errs, err)
				i := slices.IndexFunc(before, func(p pair) bool { return p.file == file })
				if i < 0 {
					continue
				}
				p = before[i]
			}
			pairs = append(pairs, p)
		}
	}
	return pairs, errs
}

// list names the pairs of a file or directory, in the order of their names.
func list(file File) ([]File, error) {
	if file.Key != "" {
		return []File{file}, nil
	}
	dir := file.Certificate
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("reading certificate directory: %w", err)
	}
	there := func(path string) bool {
		info, err := os.Stat(path)
		return err == nil && info.Mode().IsRegular()
	}
	var found []File
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		if name, isKey := strings.CutSuffix(path, ".key"); isKey {
			chain := name + ".crt"
			if !there(chain) {
				chain = name + ".pem"
			}
			if !there(chain) {
				return nil, fmt.Errorf("reading certificate directory %q: %s has no certificate beside it: name it %s.crt or %s.pem",
					dir, entry.Name(), filepath.Base(name), filepath.Base(name))
			}
			found = append(found, File{chain, path})
			continue
		}
		if chain, key := filepath.Join(path, "fullchain.pem"), filepath.Join(path, "privkey.pem"); there(chain) && there(key) {
			found = append(found, File{chain, key})
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("reading certificate directory %q: it has no pair of NAME.crt (or NAME.pem) and NAME.key, nor of NAME/fullchain.pem and NAME/privkey.pem", dir)
	}
	return found, nil
}

// read reads one pair.
func read(file File) (pair, error) {
	chain, err := os.ReadFile(file.Certificate)
	if err != nil {
		return pair{}, fmt.Errorf("reading certificate: %w", err)
	}
	key, err := os.ReadFile(file.Key)
	if err != nil {
		return pair{}, fmt.Errorf("reading the key of certificate %q: %w", file.Certificate, err)
	}
	certificate, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return pair{}, fmt.Errorf("reading certificate %q with key %q: %w", file.Certificate, file.Key, withoutPrefix(err))
	}
	return pair{file, &certificate}, nil
}

// withoutPrefix is an error of crypto/tls without the name of the package.
func withoutPrefix(err error) error {
	if text, ok := strings.CutPrefix(err.Error(), "tls: "); ok && errors.Unwrap(err) == nil {
		return errors.New(text)
	}
	return err
}

// table finds the certificates of hosts. It never changes.
type table struct {
	byName map[string][]*tls.Certificate // in lower case; "*.example.com" has all names of one more label
	first  *tls.Certificate              // for clients that name no host, or one that there is no certificate for; nil when there is none
}

func newTable(pairs []pair) *table {
	t := &table{byName: map[string][]*tls.Certificate{}}
	for i, p := range pairs {
		if i == 0 {
			t.first = p.certificate
		}
		for _, name := range p.names() {
			name = normalize(name)
			t.byName[name] = append(t.byName[name], p.certificate)
		}
	}
	return t
}

// of returns the certificates that have a host by its name, and else those that have it by a wildcard.
func (t *table) of(host string) []*tls.Certificate {
	if found := t.byName[host]; len(found) > 0 {
		return found
	}
	if dot := strings.IndexByte(host, '.'); dot > 0 {
		return t.byName["*"+host[dot:]]
	}
	return nil
}

func (t *table) has(host string) bool { return len(t.of(host)) > 0 }

// find returns the first certificate of a host that the client can use, or simply the first; nil when there is none.
func (t *table) find(host string, hello *tls.ClientHelloInfo) *tls.Certificate {
	found := t.of(host)
	if len(found) > 1 {
		for _, certificate := range found {
			if hello.SupportsCertificate(certificate) == nil {
				return certificate
			}
		}
	}
	if len(found) > 0 {
		return found[0]
	}
	return nil
}

// expiryWarning is how long before its end a certificate of a file is warned of.
const expiryWarning = 14 * 24 * time.Hour

// trouble says what is wrong with a certificate's time or names, "" when nothing is.
func trouble(leaf *x509.Certificate, now time.Time) string {
	switch {
	case now.After(leaf.NotAfter):
		return "it has expired"
	case now.Before(leaf.NotBefore):
		return "it is not valid yet"
	case len(leaf.DNSNames) == 0:
		return "it has no host names (subject alternative names): clients do not take it for any host"
	case now.Add(expiryWarning).After(leaf.NotAfter):
		return "it expires soon"
	}
	return ""
}

// warn tells of certificates of files that clients will not take, or soon will not.
func (s *Store) warn() {
	for _, p := range s.pairs {
		leaf := p.certificate.Leaf
		if what := trouble(leaf, time.Now()); what != "" {
			s.config.Logger.Warn("certificate: "+what, "file", p.file.Certificate, "hosts", strings.Join(p.names(), " "),
				"from", leaf.NotBefore.UTC().Format(time.RFC3339), "to", leaf.NotAfter.UTC().Format(time.RFC3339))
		}
	}
}

// isDir tells whether a path is a directory.
func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// Files pairs certificates with their keys, as two lists give them: directories among the certificates have no key.
func Files(certificates, keys []string) ([]File, error) {
	var files []File
	left := keys
	for _, certificate := range certificates {
		if isDir(certificate) {
			files = append(files, File{Certificate: certificate})
			continue
		}
		if len(left) == 0 {
			if _, err := os.Stat(certificate); errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("%q is not there", certificate)
			}
			return nil, fmt.Errorf("%q has no key: name one for each file, in the same order", certificate)
		}
		files = append(files, File{certificate, left[0]})
		left = left[1:]
	}
	if len(left) > 0 {
		return nil, fmt.Errorf("key %q has no certificate: name one for each key, in the same order", left[0])
	}
	return files, nil
}
