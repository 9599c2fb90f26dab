package identity

import (
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/go-jose/go-jose/v4"
)

// keyBits is the length of the key: RSA, the one kind that every client of OpenID Connect must take.
const keyBits = 2048

// key is a key that tokens are, or were, signed with.
type key struct {
	private *rsa.PrivateKey // nil for one that signs no more
	public  jose.JSONWebKey
}

// readKeys reads a file of keys in PEM: the first is private and signs; those after it, private or public, are still
// listed, so that tokens that they signed can be checked. To change the key, put a new one before the others.
func readKeys(path string) ([]key, error) {
	rest, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the keys of service account tokens: %w", err)
	}
	var keys []key
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		parsed, err := parseKey(block)
		if err != nil {
			return nil, fmt.Errorf("reading the keys of service account tokens: block %d of %q: %w", len(keys)+1, path, err)
		}
		keys = append(keys, parsed)
	}
	if len(keys) == 0 || keys[0].private == nil {
		return nil, fmt.Errorf("reading the keys of service account tokens: %q does not begin with a private key in PEM: put one there, or remove the file to have one made", path)
	}
	return keys, nil
}

func parseKey(block *pem.Block) (key, error) {
	var parsed any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		parsed, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		parsed, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "PUBLIC KEY":
		parsed, err = x509.ParsePKIXPublicKey(block.Bytes)
	default:
		return key{}, fmt.Errorf("it is a %q: want a PRIVATE KEY or a PUBLIC KEY", block.Type)
	}
	if err != nil {
		return key{}, errors.New("it cannot be parsed") // the cause may repeat a part of it
	}
	switch k := parsed.(type) {
	case *rsa.PrivateKey:
		return newKey(&k.PublicKey, k)
	case *rsa.PublicKey:
		return newKey(k, nil)
	}
	return key{}, errors.New("it is not an RSA key")
}

// newKey names a key by what it is, so that the name needs not be kept (RFC 7638).
func newKey(public *rsa.PublicKey, private *rsa.PrivateKey) (key, error) {
	if public.N.BitLen() < keyBits {
		return key{}, fmt.Errorf("it has %d bits, and %d are needed", public.N.BitLen(), keyBits)
	}
	k := key{private: private, public: jose.JSONWebKey{Key: public, Algorithm: string(jose.RS256), Use: "sig"}}
	name, err := k.public.Thumbprint(crypto.SHA256)
	if err != nil {
		return key{}, fmt.Errorf("naming the key: %w", err)
	}
	k.public.KeyID = base64.RawURLEncoding.EncodeToString(name)
	return k, nil
}

// writeKey writes the file of keys, all or nothing, for its owner only.
func writeKey(path string, private *rsa.PrivateKey) error {
	encoded, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return fmt.Errorf("encoding the key of service account tokens: %w", err)
	}
	temporary := path + ".new"
	file, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("writing the key of service account tokens: %w", err)
	}
	err = pem.Encode(file, &pem.Block{Type: "PRIVATE KEY", Bytes: encoded})
	if err = errors.Join(err, file.Sync(), file.Close()); err == nil {
		err = os.Rename(temporary, path)
	}
	if err == nil {
		err = syncDirectory(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("writing the key of service account tokens: %w", err)
	}
	return nil
}

// syncDirectory makes the names in a directory durable: tokens outlive a crash of the machine, and so must their key.
func syncDirectory(path string) error {
	directory, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(directory.Sync(), directory.Close())
}
