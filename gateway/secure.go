package gateway

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// ServeTLS is Serve for connections that begin with a TLS handshake: HTTP/2 where the client offers it (ALPN),
// else HTTP/1. config chooses the certificate. A handshake may take Config.ReadHeaderTimeout.
func (g *Gateway) ServeTLS(ctx context.Context, listener net.Listener, config *tls.Config) error {
	config = config.Clone()
	for _, protocol := range []string{"h2", "http/1.1", "http/1.0"} {
		if !slices.Contains(config.NextProtos, protocol) {
			config.NextProtos = append(config.NextProtos, protocol)
		}
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	server := g.server(protocols)
	server.TLSConfig = config
	server.ConnContext = withTLS
	server.Handler = http.HandlerFunc(g.serveShaken)
	shaken := newShakenListener(g, clientListener{Listener: listener, gateway: g, tls: true}, config)
	return g.serve(ctx, server, shaken.settle, func() error { return server.Serve(shaken) })
}

// intercepts tells whether there may be any request that is not for a service although its host has one.
func (g *Gateway) intercepts() bool { return g.config.Challenge != nil || g.redirects.Load() }

// secure tells whether a request came with TLS: here, or at a trusted proxy in front.
func (g *Gateway) secure(r *http.Request) bool {
	if r.TLS != nil {
		return true
	}
	origin := g.origin(r)
	return origin.trusted && origin.forwardedProto(r.Header) == "https"
}

// challengePath is where a certificate authority looks for the answer to its challenge (RFC 8555, 8.3).
const challengePath = "/.well-known/acme-challenge/"

// intercept answers a request without TLS that is not for a service: a certificate authority's, and one that is to
// come again with TLS, at location. It is nil for all others. host and target are as the client wrote them.
func (g *Gateway) intercept(host, target string) (answer *refusal, location string) {
	if token, ok := strings.CutPrefix(targetPath(target), challengePath); ok {
		if text, ok := g.challenge(host, token); ok {
			return &refusal{http.StatusOK, text}, ""
		}
		return nil, "" // a service's own; its authority need not follow a redirect
	}
	if location, ok := g.redirect(host, target); ok {
		return &refusal{http.StatusFound, "This host is reached with https: " + location}, location
	}
	return nil, ""
}

func (g *Gateway) challenge(host, token string) (string, bool) {
	token, _, _ = strings.Cut(token, "?")
	host, ok := normalizeHost(host)
	if !ok || token == "" || g.config.Challenge == nil {
		return "", false
	}
	return g.config.Challenge(host, token)
}

// redirect is the URL that a request without TLS is sent to; false when it is served as it is.
func (g *Gateway) redirect(host, target string) (location string, ok bool) {
	if !g.redirects.Load() {
		return "", false
	}
	host, ok = normalizeHost(host)
	if !ok {
		return "", false
	}
	found := g.table.published(host)
	if found == nil || found.redirect == 0 {
		return "", false
	}
	path := targetPath(target)
	if path == "" {
		return "", false // "OPTIONS *" asks about the server, and has no URL
	}
	if found.redirect != 443 {
		host += ":" + strconv.Itoa(int(found.redirect))
	}
	return "https://" + host + path, true
}

// targetPath is the path and query of a request target: of its absolute form, as of the usual one (RFC 9112, 3.2).
// It is empty for "*".
func targetPath(target string) string {
	if strings.HasPrefix(target, "/") {
		return target
	}
	_, rest, ok := strings.Cut(target, "://")
	if !ok {
		return ""
	}
	if i := strings.IndexAny(rest, "/?"); i < 0 {
		return "/"
	} else if rest[i] == '?' {
		return "/" + rest[i:]
	} else {
		return rest[i:]
	}
}
