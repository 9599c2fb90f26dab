package image

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Server is the registry of a Berth server.
type Server struct {
	URL       *url.URL          // the API's
	Token     string            // the API's
	Transport http.RoundTripper // trusts the API's certificate
}

// Push sends an image to the registry of a Berth server, and returns its name there:
// berth.localhost/REPO@sha256:…. What the server has already is not sent again. report, which may be nil, is
// called from one goroutine at a time with the compressed bytes sent and to be sent.
func Push(ctx context.Context, pushed v1.Image, server Server, repo string, report func(complete, total int64)) (string, error) {
	digest, err := pushed.Digest()
	if err != nil {
		return "", fmt.Errorf("pushing image %q: %w", repo, err)
	}
	local, err := parseDigest(LocalRegistry+"/"+repo+"@"+digest.String(), false)
	if err != nil {
		return "", err
	}
	ref, err := server.reference(repo + "@" + digest.String())
	if err != nil {
		return "", fmt.Errorf("pushing image %q to %s: %w", repo, server.URL, err)
	}
	registry := bearer{token: server.Token, scheme: server.URL.Scheme, host: ref.Context().RegistryStr(), next: server.Transport}
	if err := registry.ping(ctx); err != nil {
		return "", fmt.Errorf("pushing image %q to %s: %w", repo, server.URL, err)
	}
	ended := make(chan struct{})
	write := []remote.Option{
		remote.WithContext(ctx),
		remote.WithTransport(registry),
		remote.WithUserAgent("berth"),
	}
	if report == nil {
		close(ended)
	} else {
		updates := make(chan v1.Update, 16)
		write = append(write, remote.WithProgress(updates))
		go func() {
			defer close(ended)
			for update := range updates {
				if update.Error == nil {
					report(update.Complete, update.Total)
				}
			}
		}()
	}
	err = remote.Write(ref, pushed, write...)
	<-ended
	if err != nil {
		return "", fmt.Errorf("pushing image %q to %s: %w", repo, server.URL, err)
	}
	return local.Name(), nil
}

// reference names an image, REPO@DIGEST, in the server's registry.
func (s Server) reference(image string) (name.Digest, error) {
	var options []name.Option
	port := s.URL.Port()
	switch s.URL.Scheme {
	case "http":
		options = append(options, name.Insecure)
		port = cmp.Or(port, "80")
	case "https":
		port = cmp.Or(port, "443")
	default:
		return name.Digest{}, fmt.Errorf("the server's URL has the scheme %q, want http or https", s.URL.Scheme)
	}
	if path := strings.Trim(s.URL.Path, "/"); path != "" {
		return name.Digest{}, fmt.Errorf("the server's URL has the path %q, but a registry is at the root of its host: use a URL without a path", path)
	}
	// With a port a host is taken for a registry, without one for the first part of a repository's name.
	return name.NewDigest(net.JoinHostPort(s.URL.Hostname(), port)+"/"+image, options...)
}

// bearer adds the API token to requests. It sends none to another scheme or host: for names that look like this
// machine or its network, the registry client tries http, too.
type bearer struct {
	token, scheme, host string
	next                http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != b.scheme || r.URL.Host != b.host {
		if r.Body != nil {
			r.Body.Close()
		}
		return nil, fmt.Errorf("not asking %s://%s: the image and the token are for %s://%s only", r.URL.Scheme, r.URL.Host, b.scheme, b.host)
	}
	if b.token != "" {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+b.token)
	}
	return b.next.RoundTrip(r)
}

// ping tells why the server cannot be reached. The registry client would say so of each scheme that it tries.
func (b bearer) ping(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, b.scheme+"://"+b.host+"/v2/", nil)
	if err != nil {
		return err
	}
	answer, err := b.RoundTrip(request)
	if err != nil {
		return err
	}
	return answer.Body.Close()
}
