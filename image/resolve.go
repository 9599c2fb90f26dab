package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Resolve turns a reference into one by digest, "registry/repo@sha256:…", asking the registry (contract C6). The
// digest is of what the reference names, be it an index or a manifest. A reference by digest is only checked to
// exist, and not even that when its image is present.
//
// Errors are *NotFoundError, *UnauthorizedError, *UnreachableError, or say what is wrong with ref.
// The caller bounds the time by ctx.
func (s *Store) Resolve(ctx context.Context, ref string, credentials Credentials) (string, error) {
	parsed, err := parse(ref, s.insecure(ref, credentials))
	if err != nil {
		return "", err
	}
	if digest, ok := parsed.(name.Digest); ok {
		if _, err := digestHex(digest.DigestStr()); err != nil {
			return "", fmt.Errorf("image reference %q: %w", ref, err)
		}
		if _, err := s.Image(digest.String()); err == nil {
			return digest.Name(), nil
		}
	}
	if parsed.Context().RegistryStr() == LocalRegistry {
		digest, err := s.pushes.resolve(parsed.Context().RepositoryStr(), parsed.Identifier())
		if err != nil {
			return "", &NotFoundError{Image: ref, Err: err}
		}
		return parsed.Context().Digest(digest).Name(), nil
	}
	puller, anonymous, err := s.puller(parsed, credentials)
	if err != nil {
		return "", err
	}
	digest, err := headOrGet(ctx, puller, parsed)
	if err != nil {
		return "", registryError("resolving", ref, parsed.Context().RegistryStr(), anonymous, err)
	}
	if _, err := digestHex(digest); err != nil {
		return "", fmt.Errorf("resolving image %q: the registry's answer: %w", ref, err)
	}
	return parsed.Context().Digest(digest).Name(), nil
}

// headOrGet asks with HEAD, which registries do not count as a pull, and with GET where HEAD does not work.
func headOrGet(ctx context.Context, puller *remote.Puller, ref name.Reference) (string, error) {
	head, err := puller.Head(ctx, ref)
	if err == nil {
		return head.Digest.String(), nil
	}
	var answer *transport.Error
	if errors.As(err, &answer) && answer.StatusCode != http.StatusMethodNotAllowed && answer.StatusCode < 500 {
		// GET says the same, but in words: the body of a HEAD is empty.
		if _, err := puller.Get(ctx, ref); err != nil {
			return "", err
		}
	}
	if ctx.Err() != nil {
		return "", err
	}
	get, getErr := puller.Get(ctx, ref)
	if getErr != nil {
		return "", getErr
	}
	return get.Digest.String(), nil
}

// puller talks to the registry of ref. It tells whether it does so without credentials.
func (s *Store) puller(ref name.Reference, credentials Credentials) (*remote.Puller, bool, error) {
	auth, err := s.authenticator(ref.Context(), credentials)
	if err != nil {
		return nil, false, err
	}
	puller, err := remote.NewPuller(
		remote.WithAuth(auth),
		remote.WithJobs(parallelLayers),
		remote.WithUserAgent("berth"),
		remote.WithRetryBackoff(remote.Backoff{Duration: 200 * time.Millisecond, Factor: 3, Jitter: 0.1, Steps: 3}),
	)
	if err != nil {
		return nil, false, fmt.Errorf("asking registry %s: %w", ref.Context().RegistryStr(), err)
	}
	return puller, auth == authn.Anonymous, nil
}

func (s *Store) authenticator(repo name.Repository, credentials Credentials) (authn.Authenticator, error) {
	switch {
	case credentials.Token != "":
		return authn.FromConfig(authn.AuthConfig{RegistryToken: credentials.Token}), nil
	case credentials.Username != "" || credentials.Password != "":
		return authn.FromConfig(authn.AuthConfig{Username: credentials.Username, Password: credentials.Password}), nil
	case s.options.DockerConfig == "":
		return authn.Anonymous, nil
	}
	auth, err := dockerAuth(s.options.DockerConfig, repo)
	if err != nil {
		return nil, fmt.Errorf("reading credentials for %s from %q: %w", repo.RegistryStr(), s.options.DockerConfig, err)
	}
	return auth, nil
}

// dockerAuth looks a repository up in Docker's configuration file, which may hold the credentials, or name a
// credential helper to ask.
func dockerAuth(path string, repo name.Repository) (authn.Authenticator, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return authn.Anonymous, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	file, err := config.LoadFromReader(f)
	if err != nil {
		return nil, err
	}
	keys := []string{repo.Name(), repo.RegistryStr()}
	if repo.RegistryStr() == name.DefaultRegistry {
		// Docker keeps the default registry's credentials under its old address.
		keys = append(keys, authn.DefaultAuthKey)
	}
	for _, key := range keys {
		auth, err := file.GetAuthConfig(key)
		if err != nil {
			return nil, err
		}
		auth.ServerAddress = ""
		if auth != (types.AuthConfig{}) {
			return authn.FromConfig(authn.AuthConfig{
				Username:      auth.Username,
				Password:      auth.Password,
				Auth:          auth.Auth,
				IdentityToken: auth.IdentityToken,
				RegistryToken: auth.RegistryToken,
			}), nil
		}
	}
	return authn.Anonymous, nil
}

// insecure tells whether the registry of ref may be asked over plain HTTP.
func (s *Store) insecure(ref string, credentials Credentials) bool {
	if credentials.Insecure {
		return true
	}
	parsed, err := parse(ref, false)
	return err == nil && slices.Contains(s.options.InsecureRegistries, parsed.Context().RegistryStr())
}
