// Package identity issues the tokens by which instances say who they are to others: JSON Web Tokens for service
// accounts with the claims that Kubernetes' have, which whoever trusts the issuer can check by OpenID Connect
// discovery. They open nothing of Berth itself. Start reading at [Issuer].
package identity

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// How long a token is valid.
const (
	LeastLife   = 10 * time.Minute
	DefaultLife = time.Hour
	// MostLife is as long as a token may live: there is no way to take one back.
	MostLife = 365 * 24 * time.Hour
)

// The paths, below the issuer's URL, of what tokens are checked by.
const (
	ConfigurationPath = "/.well-known/openid-configuration"
	KeysPath          = "/openid/v1/jwks"
)

// Issuer issues tokens. It may be used concurrently.
type Issuer struct {
	url  string
	path string

	mu     sync.Mutex
	keys   []key           // the first signs; none before the first token; guarded by mu
	unkept *rsa.PrivateKey // the key that was made and could not be written yet; guarded by mu
}

// Open returns the issuer of a URL, whose keys are in the file at path. The first key is made when it is first
// needed.
func Open(path, url string) (*Issuer, error) {
	keys, err := readKeys(path)
	if err != nil {
		return nil, err
	}
	return &Issuer{url: url, path: path, keys: keys}, nil
}

// Subject is whom a token speaks of.
type Subject struct {
	Namespace string
	Account   string // the service account's name
	UID       string // the service account's
	Pod       string // the pod that has the token; "" for none
}

// Token is a signed token.
type Token struct {
	Text    string // "HEADER.CLAIMS.SIGNATURE"
	Issued  time.Time
	Expires time.Time
}

// claims are what a token says beside what every one does.
type claims struct {
	jwt.Claims
	Kubernetes kubernetes `json:"kubernetes.io"`
}

type kubernetes struct {
	Namespace      string     `json:"namespace"`
	Pod            *reference `json:"pod,omitempty"`
	ServiceAccount reference  `json:"serviceaccount"`
}

type reference struct {
	Name string `json:"name"`
	UID  string `json:"uid,omitempty"`
}

// Issue makes a token for audiences; none is the issuer itself. A life longer than MostLife is cut.
func (i *Issuer) Issue(subject Subject, audiences []string, life time.Duration) (Token, error) {
	signs, err := i.signingKey()
	if err != nil {
		return Token{}, err
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: signs.private, KeyID: signs.public.KeyID}},
		new(jose.SignerOptions).WithType("JWT"))
	if err != nil {
		return Token{}, fmt.Errorf("signing a token: %w", err)
	}
	if len(audiences) == 0 {
		audiences = []string{i.url}
	}
	now := time.Now().Truncate(time.Second)
	t := Token{Issued: now, Expires: now.Add(min(life, MostLife))}
	c := claims{
		Claims: jwt.Claims{
			Issuer: i.url, Subject: "system:serviceaccount:" + subject.Namespace + ":" + subject.Account, Audience: audiences,
			IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(t.Expires), ID: rand.Text(),
		},
		Kubernetes: kubernetes{Namespace: subject.Namespace, ServiceAccount: reference{Name: subject.Account, UID: subject.UID}},
	}
	if subject.Pod != "" {
		c.Kubernetes.Pod = &reference{Name: subject.Pod}
	}
	if t.Text, err = jwt.Signed(signer).Claims(c).Serialize(); err != nil {
		return Token{}, fmt.Errorf("signing a token: %w", err)
	}
	return t, nil
}

// URL names the issuer in its tokens.
func (i *Issuer) URL() string { return i.url }

// Configuration is the document of OpenID Connect discovery, in JSON.
func (i *Issuer) Configuration() ([]byte, error) {
	return json.Marshal(map[string]any{
		"issuer":                                i.url,
		"jwks_uri":                              i.url + KeysPath,
		"response_types_supported":              []string{"id_token"},
		"subject_types_supported":               []string{"public"},
		"id_token_signing_alg_values_supported": []string{string(jose.RS256)},
	})
}

// Keys are the keys that tokens can be signed with, as a JSON Web Key Set (RFC 7517).
func (i *Issuer) Keys() ([]byte, error) {
	if _, err := i.signingKey(); err != nil { // whoever reads them before the first token is issued keeps them for long
		return nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	var set jose.JSONWebKeySet
	for _, k := range i.keys {
		set.Keys = append(set.Keys, k.public)
	}
	return json.Marshal(set)
}

// signingKey is the key that signs, which it makes when there is none.
func (i *Issuer) signingKey() (key, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.keys) > 0 {
		return i.keys[0], nil
	}
	if i.unkept == nil { // making one is work that everybody who reads the keys can ask for
		private, err := rsa.GenerateKey(rand.Reader, keyBits)
		if err != nil {
			return key{}, fmt.Errorf("making a key to sign tokens with: %w", err)
		}
		i.unkept = private
	}
	made, err := newKey(&i.unkept.PublicKey, i.unkept)
	if err != nil {
		return key{}, err
	}
	if err := writeKey(i.path, i.unkept); err != nil {
		return key{}, err
	}
	i.keys, i.unkept = []key{made}, nil
	return made, nil
}
