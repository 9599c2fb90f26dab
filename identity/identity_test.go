package identity

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/go-cmp/cmp"
)

const url = "https://berth.example:8081"

func open(t *testing.T, path string) *Issuer {
	t.Helper()
	i, err := Open(path, url)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// published are the keys as others read them.
func published(t *testing.T, i *Issuer) jose.JSONWebKeySet {
	t.Helper()
	data, err := i.Keys()
	if err != nil {
		t.Fatal(err)
	}
	var keys jose.JSONWebKeySet
	if err := json.Unmarshal(data, &keys); err != nil {
		t.Fatal(err)
	}
	for _, k := range keys.Keys {
		if !k.IsPublic() || !k.Valid() || k.Use != "sig" || k.Algorithm != "RS256" {
			t.Errorf("key %+v is published", k)
		}
	}
	return keys
}

// check reads a token as others do, who know the published keys only.
func check(t *testing.T, keys jose.JSONWebKeySet, text string) (claims, error) {
	t.Helper()
	var c claims
	token, err := jwt.ParseSigned(text, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		t.Fatal(err)
	}
	found := keys.Key(token.Headers[0].KeyID)
	if len(found) != 1 {
		return c, errors.New("its key is not published")
	}
	return c, token.Claims(found[0], &c)
}

func TestIssue_TokenSaysWhoIssuedItToWhomForWhom(t *testing.T) {
	i := open(t, filepath.Join(t.TempDir(), "keys.pem"))
	subject := Subject{Namespace: "shop", Account: "cart", UID: "u-1", Pod: "cart-00001-deployment-x"}
	token, err := i.Issue(subject, []string{"vault", "bank"}, 20*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	c, err := check(t, published(t, i), token.Text)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(jwt.Expected{Issuer: url, Subject: "system:serviceaccount:shop:cart", AnyAudience: jwt.Audience{"bank"}, Time: time.Now()}); err != nil {
		t.Error(err)
	}
	if err := c.Validate(jwt.Expected{AnyAudience: jwt.Audience{"other"}, Time: time.Now()}); !errors.Is(err, jwt.ErrInvalidAudience) {
		t.Errorf("for another audience: %v", err)
	}
	late := token.Expires.Add(2 * jwt.DefaultLeeway)
	if err := c.Validate(jwt.Expected{Time: late}); !errors.Is(err, jwt.ErrExpired) {
		t.Errorf("after its end: %v", err)
	}
	if life := c.Expiry.Time().Sub(c.IssuedAt.Time()); life != 20*time.Minute || !c.Expiry.Time().Equal(token.Expires) || *c.NotBefore != *c.IssuedAt {
		t.Errorf("it lives %s, until %s, and %s is said", life, c.Expiry.Time(), token.Expires)
	}
	want := kubernetes{Namespace: "shop", Pod: &reference{Name: subject.Pod}, ServiceAccount: reference{Name: "cart", UID: "u-1"}}
	if diff := cmp.Diff(want, c.Kubernetes); diff != "" {
		t.Error(diff)
	}
	again, err := i.Issue(subject, nil, 2*MostLife)
	if err != nil {
		t.Fatal(err)
	}
	next, err := check(t, published(t, i), again.Text)
	if err != nil || next.ID == c.ID || c.ID == "" || !cmp.Equal([]string(next.Audience), []string{url}) || again.Expires.Sub(again.Issued) != MostLife {
		t.Errorf("without audiences and with a long life: %+v, %v", next, err)
	}
}

func TestConfiguration_LeadsToTheKeys(t *testing.T) {
	data, err := open(t, filepath.Join(t.TempDir(), "keys.pem")).Configuration()
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if got["issuer"] != url || got["jwks_uri"] != url+"/openid/v1/jwks" {
		t.Errorf("got %s", data)
	}
}

func TestOpen_KeepsTheKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.pem")
	i := open(t, path)
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a key is made before one is needed: %v", err)
	}
	var group sync.WaitGroup
	texts := make([]string, 4)
	for n := range texts {
		group.Go(func() {
			token, err := i.Issue(Subject{Namespace: "default", Account: "default"}, nil, time.Hour)
			if err != nil {
				t.Error(err)
			}
			texts[n] = token.Text
		})
	}
	group.Wait()
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key's file: %v, %v", info, err)
	}
	keys := published(t, open(t, path))
	if len(keys.Keys) != 1 {
		t.Errorf("%d keys", len(keys.Keys))
	}
	for _, text := range texts {
		if _, err := check(t, keys, text); err != nil {
			t.Errorf("after a restart: %v", err)
		}
	}
}

func TestKeys_AreMadeOnceThoughTheyCannotBeWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "missing", "keys.pem")
	i := open(t, path)
	if _, err := i.Keys(); err == nil {
		t.Fatal("keys that are kept nowhere are published")
	}
	made := i.unkept
	if _, err := i.Issue(Subject{Namespace: "default", Account: "default"}, nil, time.Hour); err == nil || i.unkept != made {
		t.Errorf("got %v and another key: %v", err, i.unkept != made)
	}
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	before := published(t, i)
	if after := published(t, open(t, path)); len(before.Keys) != 1 || len(after.Keys) != 1 || after.Keys[0].KeyID != before.Keys[0].KeyID {
		t.Errorf("got %v, after a restart %v", before, after)
	}
}

func TestOpen_ListsOldKeysAfterTheNewOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.pem")
	before := open(t, path)
	old, err := before.Issue(Subject{}, nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	oldKey := before.keys[0]
	public, err := x509.MarshalPKIXPublicKey(oldKey.public.Key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := rsa.GenerateKey(rand.Reader, keyBits)
	if err != nil {
		t.Fatal(err)
	}
	file := append(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(private)}),
		pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})...)
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	after := open(t, path)
	fresh, err := after.Issue(Subject{}, nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	keys := published(t, after)
	for name, text := range map[string]string{"old": old.Text, "new": fresh.Text} {
		if _, err := check(t, keys, text); err != nil {
			t.Errorf("the %s token: %v", name, err)
		}
	}
	if _, err := check(t, published(t, before), fresh.Text); err == nil {
		t.Error("the new token is signed with the old key")
	}
}

func TestOpen_RefusesFilesThatHoldNoKey(t *testing.T) {
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	for says, file := range map[string]string{
		"does not begin with a private key": "nothing",
		"CERTIFICATE":                       string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})),
		"cannot be parsed":                  string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")})),
		"1024 bits":                         string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(weak)})),
	} {
		path := filepath.Join(t.TempDir(), "keys.pem")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path, url); err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), path) {
			t.Errorf("got %v, want %q", err, says)
		}
	}
}
