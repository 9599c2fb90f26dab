package image

import (
	"context"
	"fmt"
	"net/http"
	"net/url"

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

// Push sends an image to the registry of a Berth server, and returns its name there: berth.localhost/REPO@sha256:…. What the server has already is not sent again. report, which may
// be nil, is called from one goroutine at a time with the compressed bytes sent and to be sent.
func Push(ctx context.Context, pushed v1.Image, server Server, repo string, report func(complete, total int64)) (string, error) {
	digest, err := pushed.Digest()
	if err != nil {
		return "", fmt.Errorf("pushing image %q: %w", repo, err)
	}
	local, err := parseDigest(LocalRegistry+"/"+repo+"@"+digest.String(), false)
	if err != nil {
		return "", err
	}
	var options []name.Option
	if server.URL.Scheme == "http" {
		options = append(options, name.Insecure)
	}
	ref, err := name.NewDigest(server.URL.Host+"/"+repo+"@"+digest.String(), options...)
	if err != nil {
		return "", fmt.Errorf("pushing image %q to %s: %w", repo, server.URL, err)
	}
	ended := make(chan struct{})
	write := []remote.Option{
		remote.WithContext(ctx),
		remote.WithTransport(bearer{token: server.Token, host: server.URL.Host, next: server.Transport}),
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

// bearer adds the API token to requests, to that server only.
type bearer struct {
	token, host string
	next        http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	if b.token != "" && r.URL.Host == b.host {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+b.token)
	}
	return b.next.RoundTrip(r)
}
