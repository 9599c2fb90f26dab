package api

import (
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"strings"
)

// access is who may use a route.
type access int

const (
	public   access = iota // everyone
	token                  // who has the token, on loopback too
	registry               // as token; registries' clients send it as the password of Basic too
)

func (a *api) allowed(need access, r *http.Request) bool {
	if need == public {
		return true
	}
	if bearer, ok := bearerToken(r); ok {
		return a.isToken(bearer)
	}
	if _, password, ok := r.BasicAuth(); ok && need == registry {
		return a.isToken(password)
	}
	return false
}

// isToken compares in constant time; hashing first hides the token's length too.
func (a *api) isToken(given string) bool {
	want, got := sha256.Sum256([]byte(a.Token)), sha256.Sum256([]byte(given))
	return a.Token != "" && subtle.ConstantTimeCompare(want[:], got[:]) == 1
}

func bearerToken(r *http.Request) (string, bool) {
	scheme, value, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return "", false
	}
	return strings.TrimSpace(value), true
}

// missing says what is wrong with a request's credentials, without repeating them.
func missing(r *http.Request) string {
	if _, ok := bearerToken(r); ok {
		return "the bearer token is not this server's"
	}
	if r.Header.Get("Authorization") != "" {
		return "the Authorization header holds no bearer token"
	}
	return "the request has no token"
}

// refuseRegistry answers as registries do, so that clients come again with credentials.
func refuseRegistry(w http.ResponseWriter) reply {
	w.Header().Set("WWW-Authenticate", `Basic realm="berth"`)
	w.Header().Set("Docker-Distribution-API-Version", "registry/2.0")
	type problem struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	return reply{http.StatusUnauthorized, map[string][]problem{"errors": {{
		Code:    "UNAUTHORIZED",
		Message: "authentication required: log in with any user name and the server's token as the password",
	}}}}
}
