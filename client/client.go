// Package client is the typed client of Berth's API, for the command line, tests and users. It speaks plain HTTP
// with JSON to a Berth server (or to anything that serves Knative's API) and holds no state but its connections:
// no cache, no informers. Start reading at [New]; [Load] reads a kubeconfig, [Resource] is what one does with the
// objects of a kind.
package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"k8s.io/apimachinery/pkg/util/net"

	"github.com/berth-run/berth/serving"
)

// maxBody is the most that is read of a reply that is not a stream; lists of thousands of objects fit.
const maxBody = 512 << 20

// Config says where a server is and how to speak to it.
type Config struct {
	Server    string // URL of the API: "https://127.0.0.1:8081"
	Token     string // bearer token; "" sends none
	CA        []byte // PEM certificates to trust instead of the machine's; nil is the machine's
	Insecure  bool   // do not verify the server's certificate
	Namespace string // namespace of the kubeconfig's context; "" when it names none

	// Warn is called with each warning that the server gives with a reply, also with one that says no: that a field
	// has no effect, and the like. It is called by the goroutine that made the request. nil drops warnings.
	Warn func(warning string)
}

// Client speaks to one server. It may be used concurrently.
type Client struct {
	server *url.URL
	token  string
	warn   func(string) // may be nil
	http   *http.Client
}

// New returns a client. It sends nothing yet; the error is about the Config.
func New(config Config) (*Client, error) {
	server, err := url.Parse(config.Server)
	if err != nil {
		return nil, fmt.Errorf("parsing the server's URL %q: %w", config.Server, err)
	}
	if (server.Scheme != "http" && server.Scheme != "https") || server.Host == "" {
		return nil, fmt.Errorf("the server's URL %q is not http://HOST:PORT or https://HOST:PORT", config.Server)
	}
	server.Path = strings.TrimSuffix(server.Path, "/")

	tlsConfig := &tls.Config{InsecureSkipVerify: config.Insecure}
	if len(config.CA) > 0 {
		tlsConfig.RootCAs = x509.NewCertPool()
		if !tlsConfig.RootCAs.AppendCertsFromPEM(config.CA) {
			return nil, fmt.Errorf("the certificate authority for %s holds no PEM certificate", config.Server)
		}
	}
	return &Client{
		server: server,
		token:  config.Token,
		warn:   config.Warn,
		http:   &http.Client{Transport: newTransport(tlsConfig)},
	}, nil
}

// Server is the URL that the client speaks to.
func (c *Client) Server() string { return c.server.String() }

// Transport speaks to the server, for requests that the client has no method for. It does not send the token.
func (c *Client) Transport() http.RoundTripper { return c.http.Transport }

// Token is the bearer token that the client sends.
func (c *Client) Token() string { return c.token }

// UnreachableError says that no server answered.
type UnreachableError struct {
	Server string
	Err    error
}

// Error names the server and the cause.
func (e *UnreachableError) Error() string {
	return fmt.Sprintf("asking the server at %s: %v", e.Server, e.Err)
}

// Unwrap returns the cause.
func (e *UnreachableError) Unwrap() error { return e.Err }

// request is one call: everything but the server and the credentials.
type request struct {
	method      string
	path        string
	query       url.Values
	body        []byte
	contentType string // "" is application/json
}

// send sends a request and returns the reply, whose body the caller closes. A reply that is not 2xx becomes a
// *StatusError; no reply at all an *UnreachableError, or the context's error. A server that speaks HTTP instead of
// HTTPS, or whose certificate is not accepted, is an error of its own.
func (c *Client) send(ctx context.Context, r request) (*http.Response, error) {
	location := *c.server
	location.Path += r.path
	location.RawQuery = r.query.Encode()
	message, err := http.NewRequestWithContext(ctx, r.method, location.String(), bytes.NewReader(r.body))
	if err != nil {
		return nil, fmt.Errorf("making a request to %s: %w", location.String(), err)
	}
	message.Header.Set("Accept", "application/json")
	if r.body != nil {
		message.Header.Set("Content-Type", "application/json")
	}
	if r.contentType != "" {
		message.Header.Set("Content-Type", r.contentType)
	}
	if c.token != "" {
		message.Header.Set("Authorization", "Bearer "+c.token)
	}
	reply, err := c.http.Do(message)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		// The URL in url.Error says nothing that the server's name does not.
		if wrapped, ok := errors.AsType[*url.Error](err); ok {
			err = wrapped.Err
		}
		switch { // these servers answer: waiting and starting one do not help
		case errors.Is(err, http.ErrSchemeMismatch):
			return nil, fmt.Errorf("asking the server at %s: it speaks HTTP: use http:// in its URL", c.Server())
		case isCertificate(err):
			return nil, fmt.Errorf("asking the server at %s: %w", c.Server(), err)
		}
		return nil, &UnreachableError{Server: c.Server(), Err: err}
	}
	c.passWarnings(reply.Header.Values("Warning"))
	if reply.StatusCode/100 != 2 {
		defer reply.Body.Close()
		return nil, statusError(reply)
	}
	return reply, nil
}

// passWarnings tells what Kubernetes' servers warn of in Warning headers of code 299. Headers that are malformed, or
// of caches on the way, are not for people.
func (c *Client) passWarnings(headers []string) {
	if c.warn == nil || len(headers) == 0 {
		return
	}
	warnings, _ := net.ParseWarningHeaders(headers) // what could be parsed is all there is to say
	for _, w := range warnings {
		if w.Code == 299 && w.Text != "" {
			c.warn(w.Text)
		}
	}
}

// call sends a request and decodes the reply into result, unless that is nil.
func (c *Client) call(ctx context.Context, r request, result any) error {
	reply, err := c.send(ctx, r)
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	body, err := io.ReadAll(io.LimitReader(reply.Body, maxBody))
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return &UnreachableError{Server: c.Server(), Err: fmt.Errorf("reading the reply: %w", err)}
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(body, result); err != nil {
		return fmt.Errorf("decoding the reply of %s to %s %s: %w", c.Server(), r.method, r.path, err)
	}
	return nil
}

// collection is the path of a kind's objects: "/apis/serving.knative.dev/v1/namespaces/default/services".
// Namespace "" is every namespace.
func collection(kind serving.Kind, namespace string) string {
	var b strings.Builder
	if kind.Group == "" {
		b.WriteString("/api/" + kind.Version)
	} else {
		b.WriteString("/apis/" + kind.Group + "/" + kind.Version)
	}
	if kind.Namespaced && namespace != "" {
		b.WriteString("/namespaces/" + namespace)
	}
	b.WriteString("/" + kind.Plural)
	return b.String()
}
