package api_test

import (
	"encoding/json"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/go-cmp/cmp"
	"k8s.io/api/authentication/v1"

	"github.com/berth-run/berth/api"
	"github.com/berth-run/berth/identity"
	"github.com/berth-run/berth/serving"
)

const issuerURL = "https://berth.example"

// withIssuer gives an API an issuer of tokens.
func withIssuer(t *testing.T) func(*api.Config) {
	t.Helper()
	issuer, err := identity.Open(filepath.Join(t.TempDir(), "identity.pem"), issuerURL)
	if err != nil {
		t.Fatal(err)
	}
	return func(c *api.Config) { c.Identity = issuer }
}

// account makes a service account.
func (s *server) account(name string) *serving.ServiceAccount {
	s.t.Helper()
	o, err := s.store.Create(s.t.Context(), &serving.ServiceAccount{ObjectMeta: serving.ObjectMeta{Namespace: "default", Name: name}})
	if err != nil {
		s.t.Fatal(err)
	}
	return o.(*serving.ServiceAccount)
}

// verify checks a token as a stranger does, who knows the address of the API only.
func (s *server) verify(text string) jwt.Claims {
	s.t.Helper()
	fetch := func(path string, into any) {
		request, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.URL+path, nil)
		if err != nil {
			s.t.Fatal(err)
		}
		reply, err := s.Client().Do(request)
		if err != nil {
			s.t.Fatal(err)
		}
		defer reply.Body.Close()
		if reply.StatusCode != http.StatusOK {
			s.t.Fatalf("GET %s without a token: %s", path, reply.Status)
		}
		if err := json.NewDecoder(reply.Body).Decode(into); err != nil {
			s.t.Fatal(err)
		}
	}
	var discovery struct {
		Issuer string
		Keys   string `json:"jwks_uri"`
	}
	fetch("/.well-known/openid-configuration", &discovery)
	path, ok := strings.CutPrefix(discovery.Keys, issuerURL)
	if !ok || discovery.Issuer != issuerURL {
		s.t.Fatalf("got %+v", discovery)
	}
	var keys jose.JSONWebKeySet
	fetch(path, &keys)
	token, err := jwt.ParseSigned(text, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		s.t.Fatal(err)
	}
	var claims jwt.Claims
	if err := token.Claims(keys, &claims); err != nil {
		s.t.Fatalf("the token is not signed with a published key: %v", err)
	}
	return claims
}

func TestToken_IsIssuedForAServiceAccount(t *testing.T) {
	s := newServer(t, withIssuer(t))
	s.account("cart")
	const path = "/api/v1/namespaces/default/serviceaccounts/cart/token"
	a := s.do("POST", path, `{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": ["vault", "bank"], "expirationSeconds": 1200}}`)
	var got v1.TokenRequest
	if err := json.Unmarshal([]byte(a.body), &got); err != nil || a.code != 201 || got.Kind != "TokenRequest" {
		t.Fatalf("got %d %s", a.code, a.body)
	}
	claims := s.verify(got.Status.Token)
	if diff := cmp.Diff(jwt.Audience{"vault", "bank"}, claims.Audience); diff != "" || claims.Subject != "system:serviceaccount:default:cart" || claims.Issuer != issuerURL {
		t.Errorf("claims %+v", claims)
	}
	if !claims.Expiry.Time().Equal(got.Status.ExpirationTimestamp.Time) || claims.Expiry.Time().Sub(claims.IssuedAt.Time()) != 20*time.Minute {
		t.Errorf("it ends at %s, and %s is said", claims.Expiry.Time(), got.Status.ExpirationTimestamp)
	}
	if a := s.do("POST", path, `{"spec": {}}`); a.code != 201 || !strings.Contains(a.body, `"expirationSeconds":3600`) || !strings.Contains(a.body, `"audiences":["`+issuerURL+`"]`) {
		t.Errorf("without wishes: %d %s", a.code, a.body)
	}
	if a := s.do("POST", path+"?dryRun=All", `{"spec": {}}`); a.code != 201 || !strings.Contains(a.body, `"token":""`) {
		t.Errorf("dry run: %d %s", a.code, a.body)
	}
	for body, says := range map[string]string{
		`{"spec": {"expirationSeconds": 599}}`:                       "spec.expirationSeconds",
		`{"spec": {"expirationSeconds": 4294967297}}`:                "spec.expirationSeconds",
		`{"spec": {"audiences": ["a", ""]}}`:                         "spec.audiences[1]",
		`{"spec": {"boundObjectRef": {"kind": "Pod", "name": "x"}}}`: "spec.boundObjectRef",
		`{"spec": {"audience": "x"}}`:                                "spec.audience",
		`{"apiVersion": "v1", "kind": "Secret", "metadata": {}}`:     "Secret",
	} {
		if a := s.do("POST", path, body); a.code < 400 || a.code >= 500 || !strings.Contains(a.body, says) {
			t.Errorf("%s: %d %s", body, a.code, a.body)
		}
	}
	if a := s.do("POST", "/api/v1/namespaces/default/serviceaccounts/nobody/token", `{"spec": {}}`); a.code != 404 || !strings.Contains(a.body, `serviceaccounts \"nobody\" not found`) {
		t.Errorf("of nobody: %d %s", a.code, a.body)
	}
}

func TestToken_OpensNothingHere(t *testing.T) {
	s := newServer(t, withIssuer(t))
	s.account("cart")
	a := s.do("POST", "/api/v1/namespaces/default/serviceaccounts/cart/token", `{"spec": {}}`)
	var got v1.TokenRequest
	if err := json.Unmarshal([]byte(a.body), &got); err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/api/v1/namespaces/default/secrets", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+got.Status.Token)
	reply, err := s.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	reply.Body.Close()
	if reply.StatusCode != http.StatusUnauthorized {
		t.Errorf("a service account's token gets %s", reply.Status)
	}
}

func TestKubectl_ServiceAccountsAndTheirTokens(t *testing.T) {
	s := newTLSServer(t, withIssuer(t))
	s.run("", []string{"create", "serviceaccount", "cart"}, "serviceaccount/cart created")
	s.run("", []string{"get", "sa"}, "NAME", "SECRETS", "AGE", "cart", "0")
	token := s.run("", []string{"create", "token", "cart", "--audience", "x", "--duration", "2h"})
	claims := s.verify(strings.TrimSpace(token))
	if life := claims.Expiry.Time().Sub(claims.IssuedAt.Time()); life != 2*time.Hour || claims.Audience[0] != "x" {
		t.Errorf("claims %+v", claims)
	}
	if out, err := s.kubectl("", "create", "token", "cart", "--duration", "1m"); err == nil || !strings.Contains(out, "10 minutes") {
		t.Errorf("got %v %s", err, out)
	}
	s.run("", []string{"delete", "sa", "cart"}, "deleted")
}
