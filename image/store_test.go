package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"github.com/berth-run/berth/internal/testimage"
)

func openTest(t testing.TB, dir string, options Options) *Store {
	t.Helper()
	needRoot(t)
	s, err := Open(dir, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	s.pause = 0
	return s
}

// testLayer is a layer with the diff ID that its configuration will promise.
type testLayer struct {
	v1.Layer
	diffID string
}

func (l testLayer) DiffID() (v1.Hash, error) { return v1.NewHash(l.diffID) }

// gzipLayer is a layer of archive as registries mostly have them.
func gzipLayer(t testing.TB, archive []byte) v1.Layer {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(archive); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return testLayer{static.NewLayer(b.Bytes(), types.OCILayer), digestOf(archive)}
}

func zstdLayer(t testing.TB, archive []byte) v1.Layer {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return testLayer{static.NewLayer(w.EncodeAll(archive, nil), types.OCILayerZStd), digestOf(archive)}
}

func plainLayer(archive []byte) v1.Layer {
	return testLayer{static.NewLayer(archive, types.OCIUncompressedLayer), digestOf(archive)}
}

// makeImage makes an image for servers of layers, bottom first.
func makeImage(t testing.TB, layers ...v1.Layer) v1.Image {
	t.Helper()
	return makeImageFor(t, platform(), layers...)
}

func makeImageFor(t testing.TB, p v1.Platform, layers ...v1.Layer) v1.Image {
	t.Helper()
	image := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	image, err := mutate.ConfigFile(image, &v1.ConfigFile{RootFS: v1.RootFS{Type: "layers"}, OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, Config: v1.Config{
		Entrypoint: []string{"/bin/hello"}, Env: []string{"A=b"}, User: "1000", ExposedPorts: map[string]struct{}{"80/tcp": {}, "443/tcp": {}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		// Appending one by one keeps equal layers.
		if image, err = mutate.AppendLayers(image, l); err != nil {
			t.Fatal(err)
		}
	}
	return image
}

func resolveAndPull(t testing.TB, s *Store, ref string, credentials Credentials) (*Image, error) {
	t.Helper()
	digest, err := s.Resolve(t.Context(), ref, credentials)
	if err != nil {
		return nil, err
	}
	return s.Pull(t.Context(), digest, credentials, nil)
}

// counter counts the requests for blobs by path.
type counter struct {
	mu    sync.Mutex
	blobs map[string]int // guarded by mu
	all   atomic.Int64
}

func (c *counter) wrap(next http.Handler) http.Handler {
	c.blobs = map[string]int{}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.all.Add(1)
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			c.mu.Lock()
			c.blobs[r.URL.Path]++
			c.mu.Unlock()
		}
		next.ServeHTTP(w, r)
	})
}

func TestPull_UnpacksEveryCompressionAndReturnsTheConfiguration(t *testing.T) {
	registry := testimage.Serve(t, testimage.Options{})
	s := openTest(t, t.TempDir(), Options{})
	ref := registry.Push(t, makeImage(t,
		gzipLayer(t, makeTar(t, reg("a", "1"), reg("d/x", "x"))),
		zstdLayer(t, makeTar(t, reg("b", "2"), reg(".wh.a", ""))),
		plainLayer(makeTar(t, reg("c", "3"), reg("d/.wh..wh..opq", ""))),
	), "team/hello:v1")
	digest, err := s.Resolve(t.Context(), ref, Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(digest, registry.Host+"/team/hello@sha256:") {
		t.Fatalf("resolved to %q", digest)
	}
	var complete, total int64
	image, err := s.Pull(t.Context(), digest, Credentials{}, func(c, n int64) { complete, total = c, n })
	if err != nil {
		t.Fatal(err)
	}
	if complete != total || total == 0 {
		t.Errorf("the last progress is %d of %d", complete, total)
	}
	var trees [][]string
	for _, dir := range image.Layers {
		trees = append(trees, listTree(t, dir))
	}
	want := [][]string{{"a=1", "d/", "d/x=x"}, {"a=whiteout", "b=2"}, {"c=3", "d/=opaque"}}
	if diff := cmp.Diff(want, trees); diff != "" {
		t.Errorf("layers differ (-want +got):\n%s", diff)
	}
	wantConfig := Config{Entrypoint: []string{"/bin/hello"}, Env: []string{"A=b"}, User: "1000", ExposedPorts: []string{"443/tcp", "80/tcp"}}
	if diff := cmp.Diff(wantConfig, image.Config); diff != "" {
		t.Errorf("configuration differs (-want +got):\n%s", diff)
	}
	if image.Ref != digest || !strings.HasSuffix(digest, "@"+image.Digest) {
		t.Errorf("image is %q with digest %q, want %q", image.Ref, image.Digest, digest)
	}
	if got, err := s.Image(digest); got != image || err != nil {
		t.Errorf("Image gave %v, %v", got, err)
	}
}

func TestPull_ReturnsAPresentImageWithoutTheNetworkAlsoAfterAReopen(t *testing.T) {
	registry := testimage.Serve(t, testimage.Options{})
	dir := t.TempDir()
	s := openTest(t, dir, Options{})
	ref := registry.Push(t, makeImage(t, gzipLayer(t, makeTar(t, reg("a", "1")))), "hello:v1")
	first, err := resolveAndPull(t, s, ref, Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	registry.Close()
	if again, err := s.Pull(t.Context(), first.Ref, Credentials{}, nil); again != first || err != nil {
		t.Fatalf("pulling again gave %v, %v", again, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, dir, Options{})
	again, err := s.Pull(t.Context(), first.Ref, Credentials{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, again); diff != "" {
		t.Errorf("the image changed (-before +after):\n%s", diff)
	}
	if got, err := s.Resolve(t.Context(), first.Ref, Credentials{}); got != first.Ref || err != nil {
		t.Errorf("resolving a present image gave %q, %v", got, err)
	}
}

func TestPull_UnpacksASharedLayerOnceHoweverManyNeedItAtTheSameTime(t *testing.T) {
	var requests counter
	registry := testimage.Serve(t, testimage.Options{Wrap: requests.wrap})
	s := openTest(t, t.TempDir(), Options{})
	base := gzipLayer(t, makeTar(t, reg("base", strings.Repeat("b", 1<<20))))
	var refs []string
	for i := range 3 {
		refs = append(refs, registry.Push(t, makeImage(t, base, gzipLayer(t, makeTar(t, reg("top", fmt.Sprint(i))))), fmt.Sprintf("hello:v%d", i)))
	}
	var group sync.WaitGroup
	for i := range 12 {
		group.Go(func() {
			if _, err := resolveAndPull(t, s, refs[i%3], Credentials{}); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	digest, err := base.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if n := requests.blobs["/v2/hello/blobs/"+digest.String()]; n != 1 {
		t.Errorf("the shared layer was downloaded %d times", n)
	}
	dirs, err := filepath.Glob(filepath.Join(s.dir, "layers", "*.json"))
	if err != nil || len(dirs) != 4 {
		t.Errorf("there are %d layers (%v), want 4", len(dirs), err)
	}
}

func TestPull_NamesALayerThatOccursTwiceOnce(t *testing.T) {
	registry := testimage.Serve(t, testimage.Options{})
	s := openTest(t, t.TempDir(), Options{})
	a, b := gzipLayer(t, makeTar(t, reg("x", "a"))), gzipLayer(t, makeTar(t, reg("x", "b")))
	image, err := resolveAndPull(t, s, registry.Push(t, makeImage(t, a, b, a), "hello:v1"), Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	if len(image.Layers) != 2 || !cmp.Equal(listTree(t, image.Layers[1]), []string{"x=a"}) {
		t.Errorf("layers are %q, want b below a", image.Layers)
	}
}

func TestPull_ChoosesTheServersPlatformOfAnIndex(t *testing.T) {
	registry := testimage.Serve(t, testimage.Options{})
	s := openTest(t, t.TempDir(), Options{})
	variant := func(p v1.Platform) mutate.IndexAddendum {
		image := makeImageFor(t, p, gzipLayer(t, makeTar(t, reg("platform", platformName(p)))))
		return mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: &p}}
	}
	arm, v3, plain := v1.Platform{OS: "linux", Architecture: "arm64"}, platform(), platform()
	v3.Variant = "v3"
	index := mutate.AppendManifests(empty.Index, variant(arm), variant(v3), variant(plain))
	image, err := resolveAndPull(t, s, registry.PushIndex(t, index, "hello:v1"), Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	if got := listTree(t, image.Layers[0]); !cmp.Equal(got, []string{"platform=" + platformName(plain)}) {
		t.Errorf("the image holds %q", got)
	}
	want, err := index.Digest()
	if err != nil || image.Digest != want.String() {
		t.Errorf("the digest is %s, want the index's %s (%v)", image.Digest, want, err)
	}

	for name, ref := range map[string]string{
		"index":    registry.PushIndex(t, mutate.AppendManifests(empty.Index, variant(arm)), "arm:index"),
		"manifest": registry.Push(t, makeImageFor(t, arm), "arm:image"),
	} {
		_, err := resolveAndPull(t, s, ref, Credentials{})
		var wrong *PlatformError
		if !errors.As(err, &wrong) || !strings.Contains(err.Error(), "has linux/arm64 only, servers need "+platformName(plain)) {
			t.Errorf("%s: got error %v, want a PlatformError", name, err)
		}
	}
}

func TestPull_RefusesImagesThatAreNoContainerImages(t *testing.T) {
	registry := testimage.Serve(t, testimage.Options{})
	s := openTest(t, t.TempDir(), Options{})
	archive := makeTar(t, reg("a", "1"))
	for _, test := range []struct {
		name  string
		image v1.Image
		want  string
	}{
		{"another layer type", makeImage(t, testLayer{static.NewLayer(archive, "application/vnd.in-toto+json"), digestOf(archive)}), `is of type "application/vnd.in-toto+json"`},
		{"a layer with a device", makeImage(t, gzipLayer(t, makeTar(t, tar.Header{Typeflag: tar.TypeBlock, Name: "disk"}))), `entry "disk": it is a device node`},
		{"a layer that is no archive", makeImage(t, plainLayer(bytes.Repeat([]byte("no"), 600))), "reading the archive"},
		{"a layer with another diff ID", makeImage(t, testLayer{static.NewLayer(archive, types.OCIUncompressedLayer), digestOf([]byte("other"))}), "is damaged"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := resolveAndPull(t, s, registry.Push(t, test.image, "hello:v1"), Credentials{})
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "/hello@sha256:") {
				t.Errorf("got error %v, want one with the image's name and %q", err, test.want)
			}
			isEmpty(t, s)
		})
	}
}

// isEmpty checks that a store holds no layer and no unfinished work.
func isEmpty(t testing.TB, s *Store) {
	t.Helper()
	for _, pattern := range []string{"layers/*", "images/*", "tmp/*"} {
		if left, err := filepath.Glob(filepath.Join(s.dir, pattern)); err != nil || len(left) > 0 {
			t.Errorf("%q is left (%v)", left, err)
		}
	}
}

func TestPull_StopsALayerBomb(t *testing.T) {
	registry := testimage.Serve(t, testimage.Options{})
	s := openTest(t, t.TempDir(), Options{Limits: Limits{Bytes: 1 << 20}})
	ref := registry.Push(t, makeImage(t, gzipLayer(t, makeTar(t, reg("bomb", strings.Repeat("\x00", 8<<20))))), "bomb:v1")
	_, err := resolveAndPull(t, s, ref, Credentials{})
	if !errors.Is(err, errTooLarge) {
		t.Errorf("got error %v, want one about the limit", err)
	}
	isEmpty(t, s)
}

func TestPull_NeverKeepsALayerThatArrivedDamaged(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"truncated":    func(b []byte) []byte { return b[:len(b)/2] },
		"a bit flips":  func(b []byte) []byte { b = bytes.Clone(b); b[len(b)/2] ^= 1; return b },
		"another blob": func([]byte) []byte { return []byte("hello") },
		"empty":        func([]byte) []byte { return nil },
		"longer":       func(b []byte) []byte { return append(bytes.Clone(b), "more"...) },
	} {
		t.Run(name, func(t *testing.T) {
			layer := gzipLayer(t, makeTar(t, reg("a", strings.Repeat("random enough ", 5000))))
			digest, err := layer.Digest()
			if err != nil {
				t.Fatal(err)
			}
			var broken atomic.Bool
			var downloads atomic.Int64
			registry := testimage.Serve(t, testimage.Options{Wrap: func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, digest.String()) {
						next.ServeHTTP(w, r)
						return
					}
					downloads.Add(1)
					blob, err := layer.Compressed()
					if err != nil {
						t.Error(err)
						return
					}
					data, err := io.ReadAll(blob)
					if err != nil {
						t.Error(err)
					}
					if broken.Load() {
						data = damage(data)
					}
					// The client is to notice, by itself.
					_, _ = w.Write(data)
				})
			}})
			s := openTest(t, t.TempDir(), Options{})
			ref := registry.Push(t, makeImage(t, layer), "hello:v1")
			broken.Store(true)
			if _, err := resolveAndPull(t, s, ref, Credentials{}); err == nil || !strings.Contains(err.Error(), digest.String()) {
				t.Errorf("got error %v, want one that names the layer", err)
			} else {
				t.Log(err)
			}
			if n := downloads.Load(); n != layerAttempts {
				t.Errorf("the layer was downloaded %d times, want %d", n, layerAttempts)
			}
			isEmpty(t, s)
			broken.Store(false)
			if _, err := resolveAndPull(t, s, ref, Credentials{}); err != nil {
				t.Errorf("pulling after the registry was repaired: %v", err)
			}
		})
	}
}

func TestPull_EndsWithItsContextAndLetsAnotherPullGoOn(t *testing.T) {
	layer := gzipLayer(t, makeTar(t, reg("a", "1")))
	digest, err := layer.Digest()
	if err != nil {
		t.Fatal(err)
	}
	asked, answer := make(chan struct{}, 8), make(chan struct{})
	registry := testimage.Serve(t, testimage.Options{Wrap: func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, digest.String()) {
				asked <- struct{}{}
				select {
				case <-answer:
				case <-r.Context().Done():
					return
				}
			}
			next.ServeHTTP(w, r)
		})
	}})
	s := openTest(t, t.TempDir(), Options{})
	ref, err := s.Resolve(t.Context(), registry.Push(t, makeImage(t, layer), "hello:v1"), Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { _, err := s.Pull(ctx, ref, Credentials{}, nil); first <- err }()
	<-asked
	go func() { _, err := s.Pull(t.Context(), ref, Credentials{}, nil); second <- err }()
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the first pull ended with %v", err)
	}
	<-asked // the second pull took over
	close(answer)
	if err := <-second; err != nil {
		t.Errorf("the second pull ended with %v", err)
	}
}

func TestResolve_ErrorsSayWhatWasSeen(t *testing.T) {
	registry := testimage.Serve(t, testimage.Options{})
	private := testimage.Serve(t, testimage.Options{Username: "user", Password: "secret"})
	down := testimage.Serve(t, testimage.Options{})
	down.Close()
	s := openTest(t, t.TempDir(), Options{})
	registry.Push(t, makeImage(t), "hello:v1")
	missing := "@sha256:" + strings.Repeat("0", 64)
	var notFound *NotFoundError
	var unauthorized *UnauthorizedError
	var unreachable *UnreachableError
	for _, test := range []struct {
		ref         string
		credentials Credentials
		as          any
		want        string
	}{
		{registry.Host + "/nothing:v1", Credentials{}, &notFound, "does not exist"},
		{registry.Host + "/hello:v2", Credentials{}, &notFound, "does not exist"},
		{registry.Host + "/hello" + missing, Credentials{}, &notFound, "does not exist"},
		{private.Host + "/hello:v1", Credentials{}, &unauthorized, "needs credentials"},
		{private.Host + "/hello:v1", Credentials{Username: "user", Password: "wrong"}, &unauthorized, "with the given credentials"},
		{down.Host + "/hello:v1", Credentials{}, &unreachable, "connection refused"},
		{LocalRegistry + "/hello:v1", Credentials{}, &notFound, `"hello" here`},
	} {
		_, err := s.Resolve(t.Context(), test.ref, test.credentials)
		if err == nil || !errors.As(err, test.as) || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), test.ref) {
			t.Errorf("%s: got error %T %v, want a %T with %q", test.ref, err, err, test.as, test.want)
		}
	}
	for _, ref := range []string{"./web.tar", "/tmp/web.tar", "../web"} {
		if _, err := s.Resolve(t.Context(), ref, Credentials{}); err == nil || !strings.Contains(err.Error(), "docker-archive:"+ref) {
			t.Errorf("%q: got error %v, want one that says how to deploy a file", ref, err)
		}
	}
	for _, ref := range []string{"", "UPPER/case", "a b", registry.Host + "/hello@sha256:12", "x@md5:00"} {
		if _, err := s.Resolve(t.Context(), ref, Credentials{}); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q", ref)) {
			t.Errorf("%q: got error %v, want one that names it", ref, err)
		}
	}
}

func TestErrors_ReadWellWithoutACause(t *testing.T) {
	for _, err := range []error{
		&NotFoundError{Image: "hello"}, &UnreachableError{Image: "hello", Registry: "example.com"},
		&UnauthorizedError{Image: "hello"}, &UnauthorizedError{Image: "hello", Anonymous: true},
	} {
		if text := err.Error(); strings.Contains(text, "nil") || strings.Contains(text, ": ;") || !strings.Contains(text, "hello") {
			t.Errorf("%T says %q", err, text)
		}
	}
}

func TestResolve_FindsCredentialsInDockersConfiguration(t *testing.T) {
	registry := testimage.Serve(t, testimage.Options{Username: "user", Password: "secret"})
	ref := registry.Push(t, makeImage(t, gzipLayer(t, makeTar(t, reg("a", "1")))), "hello:v1")
	dir := t.TempDir()
	config := filepath.Join(dir, "config.json")
	s := openTest(t, t.TempDir(), Options{DockerConfig: config})
	if _, err := s.Resolve(t.Context(), ref, Credentials{}); err == nil {
		t.Fatal("resolving without credentials worked")
	}
	if _, err := resolveAndPull(t, s, ref, Credentials{Username: "user", Password: "secret"}); err != nil {
		t.Errorf("with explicit credentials: %v", err)
	}
	write := func(content map[string]any) {
		data, err := json.Marshal(content)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(config, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// A login after the store was opened works at once.
	write(map[string]any{"auths": map[string]any{registry.Host: map[string]string{"auth": base64.StdEncoding.EncodeToString([]byte("user:secret"))}}})
	if _, err := s.Resolve(t.Context(), ref, Credentials{}); err != nil {
		t.Errorf("with auths: %v", err)
	}
	helper := "#!/bin/sh\ncat >/dev/null\necho '{\"Username\":\"user\",\"Secret\":\"secret\"}'\n"
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-test"), []byte(helper), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	write(map[string]any{"credHelpers": map[string]string{registry.Host: "test"}})
	if _, err := s.Resolve(t.Context(), ref, Credentials{}); err != nil {
		t.Errorf("with a credential helper: %v", err)
	}
	if err := os.WriteFile(config, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Resolve(t.Context(), ref, Credentials{}); err == nil || !strings.Contains(err.Error(), config) {
		t.Errorf("with a broken file: got %v, want an error that names it", err)
	}
}

func TestOpen_RemovesWhatAnEarlierProcessLeftUndone(t *testing.T) {
	registry := testimage.Serve(t, testimage.Options{})
	dir := t.TempDir()
	s := openTest(t, dir, Options{})
	whole, err := resolveAndPull(t, s, registry.Push(t, makeImage(t, gzipLayer(t, makeTar(t, reg("a", "1")))), "hello:v1"), Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	broken, err := resolveAndPull(t, s, registry.Push(t, makeImage(t, gzipLayer(t, makeTar(t, reg("b", "2")))), "hello:v2"), Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// As after a crash between the two steps of keeping a layer, and in the middle of unpacking one.
	for _, err := range []error{
		os.Remove(broken.Layers[0] + ".json"),
		os.MkdirAll(filepath.Join(dir, "tmp", "layer-1", "half"), 0o755),
		os.WriteFile(filepath.Join(dir, "layers", "half.json"), []byte("{"), 0o600),
		os.MkdirAll(filepath.Join(dir, "layers", "half"), 0o755),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s = openTest(t, dir, Options{})
	if _, err := s.Image(whole.Ref); err != nil {
		t.Errorf("the whole image is gone: %v", err)
	}
	var missing *NotPulledError
	if _, err := s.Image(broken.Ref); !errors.As(err, &missing) {
		t.Errorf("the image without its layer gave %v, want a NotPulledError", err)
	}
	for _, path := range []string{broken.Layers[0], filepath.Join(dir, "tmp", "layer-1"), filepath.Join(dir, "layers", "half"), filepath.Join(dir, "layers", "half.json")} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	if _, err := s.Pull(t.Context(), broken.Ref, Credentials{}, nil); err != nil {
		t.Errorf("pulling again: %v", err)
	}
}

func TestOpen_RefusesADirectoryThatIsInUse(t *testing.T) {
	dir := t.TempDir()
	openTest(t, dir, Options{})
	if _, err := Open(dir, Options{}); err == nil || !strings.Contains(err.Error(), "another process uses it") {
		t.Errorf("got error %v", err)
	}
}

func TestPull_RepairsAnImageWhoseLayerWasRemoved(t *testing.T) {
	registry := testimage.Serve(t, testimage.Options{})
	s := openTest(t, t.TempDir(), Options{})
	image, err := resolveAndPull(t, s, registry.Push(t, makeImage(t, gzipLayer(t, makeTar(t, reg("a", "1")))), "hello:v1"), Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(image.Layers[0]); err != nil {
		t.Fatal(err)
	}
	if image, err = s.Pull(t.Context(), image.Ref, Credentials{}, nil); err != nil {
		t.Fatal(err)
	}
	if got := listTree(t, image.Layers[0]); !cmp.Equal(got, []string{"a=1"}) {
		t.Errorf("the layer holds %q", got)
	}
}

func TestCollect_FreesWhatNothingNeedsAndKeepsTheRest(t *testing.T) {
	registry := testimage.Serve(t, testimage.Options{})
	s := openTest(t, t.TempDir(), Options{})
	shared := gzipLayer(t, makeTar(t, reg("shared", "s")))
	pull := func(tag, content string) *Image {
		image, err := resolveAndPull(t, s, registry.Push(t, makeImage(t, shared, gzipLayer(t, makeTar(t, reg("own", content)))), "hello:"+tag), Credentials{})
		if err != nil {
			t.Fatal(err)
		}
		return image
	}
	used, unused := pull("v1", "1"), pull("v2", strings.Repeat("2", 10000))
	before := s.Usage()
	if freed, err := s.Collect(t.Context(), []string{used.Ref}, 1<<40); freed != 0 || err != nil {
		t.Errorf("collecting with a great age freed %d, %v", freed, err)
	}
	freed, err := s.Collect(t.Context(), []string{used.Ref}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if freed != 12288 || before-s.Usage() != freed {
		t.Errorf("freed %d bytes, usage went from %d to %d", freed, before, s.Usage())
	}
	if _, err := s.Image(used.Ref); err != nil {
		t.Errorf("the image in use is gone: %v", err)
	}
	if _, err := s.Image(unused.Ref); err == nil {
		t.Error("the image that nothing uses is still there")
	}
	for _, dir := range used.Layers {
		if _, err := os.Lstat(dir); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(unused.Layers[1]); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a layer of the collected image is left: %v", err)
	}
	if _, err := s.Pull(t.Context(), unused.Ref, Credentials{}, nil); err != nil {
		t.Errorf("pulling the collected image again: %v", err)
	}
}

func TestCollect_LeavesAPullAloneThatRunsAtTheSameTime(t *testing.T) {
	registry := testimage.Serve(t, testimage.Options{})
	s := openTest(t, t.TempDir(), Options{})
	shared := gzipLayer(t, makeTar(t, reg("shared", "s")))
	var refs []string
	for i := range 4 {
		ref, err := s.Resolve(t.Context(), registry.Push(t, makeImage(t, shared, gzipLayer(t, makeTar(t, reg("own", fmt.Sprint(i))))), fmt.Sprintf("hello:v%d", i)), Credentials{})
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, ref)
	}
	done := make(chan struct{})
	var collecting sync.WaitGroup
	collecting.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			if _, err := s.Collect(t.Context(), nil, 0); err != nil {
				t.Error(err)
				return
			}
		}
	})
	var pulling sync.WaitGroup
	for i := range refs {
		pulling.Go(func() {
			for range 5 {
				if _, err := s.Pull(t.Context(), refs[i], Credentials{}, nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	pulling.Wait()
	close(done)
	collecting.Wait()
	image, err := s.Pull(t.Context(), refs[0], Credentials{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := listTree(t, image.Layers[0]); !cmp.Equal(got, []string{"shared=s"}) {
		t.Errorf("the shared layer holds %q", got)
	}
}
