// Package testimage makes container images for tests, and serves them from a registry on this machine. Its
// programs folder has the programs that tests run, one Go main package each. Only tests may import it.
// Start reading at [Go] and [Serve].
package testimage

import (
	"crypto/subtle"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/berth-run/berth/build"
)

// Image is an image that is not pushed yet.
type Image = v1.Image

// Builder builds images once, however often they are asked for. The zero value is ready; tests of a package
// may share one.
type Builder struct {
	mu     sync.Mutex
	images map[string]Image // guarded by mu; by folder
}

// Go builds the Go main package in dir into an image. A dir that is not absolute is relative to the module's
// root: "examples/hello".
func (b *Builder) Go(t testing.TB, dir string) Image {
	t.Helper()
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(moduleRoot(t), dir)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if image := b.images[dir]; image != nil {
		return image
	}
	image, err := build.Source(t.Context(), dir, build.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if b.images == nil {
		b.images = map[string]Image{}
	}
	b.images[dir] = image
	return image
}

// Program builds one of the programs in this package's programs folder: "exit", "inspect" and so on.
func (b *Builder) Program(t testing.TB, program string) Image {
	t.Helper()
	return b.Go(t, "internal/testimage/programs/"+program)
}

// Go is [Builder.Go] of a new builder.
func Go(t testing.TB, dir string) Image {
	t.Helper()
	return new(Builder).Go(t, dir)
}

// Program is [Builder.Program] of a new builder.
func Program(t testing.TB, program string) Image {
	t.Helper()
	return new(Builder).Program(t, program)
}

func moduleRoot(t testing.TB) string {
	t.Helper()
	_, file, _, ok := runtime.Caller(0)
	if !ok || !filepath.IsAbs(file) {
		t.Fatal("the tests were built with -trimpath: build them without, to find the test programs")
	}
	return filepath.Join(filepath.Dir(file), "..", "..")
}

// Options are the settings of a registry. The zero value asks for no credentials.
type Options struct {
	Username, Password string
	// Wrap, when set, stands before the registry: to count requests, or to break them.
	Wrap func(http.Handler) http.Handler
}

// Registry is a registry on 127.0.0.1 that keeps images in memory.
type Registry struct {
	Host    string // host:port, as in image references
	options Options
	server  *httptest.Server
}

// Serve starts a registry, which the end of the test stops.
func Serve(t testing.TB, options Options) *Registry {
	t.Helper()
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	if options.Username != "" || options.Password != "" {
		handler = withPassword(handler, options)
	}
	if options.Wrap != nil {
		handler = options.Wrap(handler)
	}
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return &Registry{Host: strings.TrimPrefix(server.URL, "http://"), options: options, server: server}
}

// Close stops the registry before the end of the test, as when its machine goes down.
func (r *Registry) Close() { r.server.Close() }

// Push stores an image under "name:tag" and returns the whole reference.
func (r *Registry) Push(t testing.TB, image Image, nameAndTag string) string {
	t.Helper()
	ref := r.reference(t, nameAndTag)
	if err := remote.Write(ref, image, r.auth(), remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	return ref.Name()
}

// PushIndex stores an image for several platforms under "name:tag" and returns the whole reference.
func (r *Registry) PushIndex(t testing.TB, index v1.ImageIndex, nameAndTag string) string {
	t.Helper()
	ref := r.reference(t, nameAndTag)
	if err := remote.WriteIndex(ref, index, r.auth(), remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	return ref.Name()
}

func (r *Registry) reference(t testing.TB, nameAndTag string) name.Reference {
	t.Helper()
	ref, err := name.ParseReference(r.Host + "/" + nameAndTag)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func (r *Registry) auth() remote.Option {
	return remote.WithAuth(authn.FromConfig(authn.AuthConfig{Username: r.options.Username, Password: r.options.Password}))
}

func withPassword(next http.Handler, options Options) http.Handler {
	same := func(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		username, password, ok := r.BasicAuth()
		if !ok || !same(username, options.Username) || !same(password, options.Password) {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}
