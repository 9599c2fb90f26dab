package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// serveStore serves the registry of s to whoever has the token.
func serveStore(t testing.TB, s *Store, token string) *url.URL {
	t.Helper()
	registry := s.Registry()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if token != "" && r.Header.Get("Authorization") != "Bearer "+token {
			http.Error(w, "no token", http.StatusUnauthorized)
			return
		}
		registry.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestPush_MakesAnImageThatPullsWithoutTheNetworkAlsoAfterAReopen(t *testing.T) {
	dir := t.TempDir()
	s := openTest(t, dir, Options{})
	server := serveStore(t, s, "t0ken")
	pushed := makeImage(t, gzipLayer(t, makeTar(t, reg("a", strings.Repeat("1", 100000)))), zstdLayer(t, makeTar(t, reg("b", "2"))))
	var complete, total int64
	ref, err := Push(t.Context(), pushed, Server{URL: server, Token: "t0ken", Transport: http.DefaultTransport}, "team/hello", func(c, n int64) { complete, total = c, n })
	if err != nil {
		t.Fatal(err)
	}
	digest, err := pushed.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if want := "berth.localhost/team/hello@" + digest.String(); ref != want {
		t.Errorf("pushed as %q, want %q", ref, want)
	}
	if complete != total || total == 0 {
		t.Errorf("the last progress is %d of %d", complete, total)
	}
	if _, err := Push(t.Context(), pushed, Server{URL: server, Token: "t0ken", Transport: http.DefaultTransport}, "team/hello", nil); err != nil {
		t.Errorf("pushing again: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, dir, Options{})
	if got, err := s.Resolve(t.Context(), ref, Credentials{}); got != ref || err != nil {
		t.Errorf("resolving gave %q, %v", got, err)
	}
	image, err := s.Pull(t.Context(), ref, Credentials{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := listTree(t, image.Layers[1]); !cmp.Equal(got, []string{"b=2"}) {
		t.Errorf("the layer holds %q", got)
	}
}

func TestPush_RefusesABadTokenAndABadName(t *testing.T) {
	s := openTest(t, t.TempDir(), Options{})
	server := serveStore(t, s, "t0ken")
	if _, err := Push(t.Context(), makeImage(t), Server{URL: server, Token: "wrong", Transport: http.DefaultTransport}, "hello", nil); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("got error %v, want one with 401", err)
	}
	if _, err := Push(t.Context(), makeImage(t), Server{URL: server, Token: "t0ken", Transport: http.DefaultTransport}, "UPPER", nil); err == nil || !strings.Contains(err.Error(), "UPPER") {
		t.Errorf("got error %v, want one with the name", err)
	}
}

// recorder keeps what would be sent, and sends nothing: it answers the first requests itself, and then fails.
type recorder struct {
	answers int
	mu      sync.Mutex
	sent    []string // guarded by mu; "SCHEME://HOST AUTHORIZATION"
}

func (r *recorder) RoundTrip(request *http.Request) (*http.Response, error) {
	r.mu.Lock()
	r.sent = append(r.sent, request.URL.Scheme+"://"+request.URL.Host+" "+request.Header.Get("Authorization"))
	answered := len(r.sent) <= r.answers
	r.mu.Unlock()
	if answered {
		return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody, Request: request}, nil
	}
	return nil, errors.New("no route")
}

func TestPush_AsksNothingButTheServersSchemeAndHost(t *testing.T) {
	for _, test := range []struct{ server, want string }{
		{"https://127.0.0.1:8081", "https://127.0.0.1:8081"},
		{"https://localhost:8081", "https://localhost:8081"},
		{"https://10.0.0.1", "https://10.0.0.1:443"},
		{"https://berth", "https://berth:443"},
		{"https://berth.localhost/", "https://berth.localhost:443"},
		{"https://[::1]", "https://[::1]:443"},
		{"http://berth", "http://berth:80"},
		{"http://berth:8081", "http://berth:8081"},
	} {
		u, err := url.Parse(test.server)
		if err != nil {
			t.Fatal(err)
		}
		// The first request is Push's own. After it, the registry client begins to look for a scheme that works.
		for answers := range 2 {
			network := recorder{answers: answers}
			_, err = Push(t.Context(), makeImage(t), Server{URL: u, Token: "t0ken", Transport: &network}, "hello", nil)
			if err == nil || !strings.Contains(err.Error(), test.server) || !strings.Contains(err.Error(), "no route") {
				t.Errorf("%s: got error %v, want one that names it and the cause", test.server, err)
			}
			if answers == 0 && strings.Contains(fmt.Sprint(err), "not asking") {
				t.Errorf("%s: the error speaks of a scheme that nobody asked for: %v", test.server, err)
			}
			if len(network.sent) <= answers {
				t.Errorf("%s: sent %d requests", test.server, len(network.sent))
			}
			for _, sent := range network.sent {
				if sent != test.want+" Bearer t0ken" {
					t.Errorf("%s: sent %q", test.server, sent)
				}
			}
		}
	}
}

func TestPush_DoesNotFollowARedirectElsewhere(t *testing.T) {
	var strayed atomic.Int64
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { strayed.Add(1) }))
	defer elsewhere.Close()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v2/" {
			http.Redirect(w, r, elsewhere.URL+r.URL.Path, http.StatusTemporaryRedirect)
		}
	}))
	defer server.Close()
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Push(t.Context(), makeImage(t), Server{URL: u, Token: "t0ken", Transport: http.DefaultTransport}, "hello", nil)
	if err == nil || !strings.Contains(err.Error(), server.URL+" only") || strayed.Load() > 0 {
		t.Errorf("got error %v and %d requests elsewhere", err, strayed.Load())
	}
}

func TestPush_RefusesAServerWithoutARegistry(t *testing.T) {
	for server, want := range map[string]string{"https://berth/api": `path "api"`, "ftp://berth": `scheme "ftp"`} {
		u, err := url.Parse(server)
		if err != nil {
			t.Fatal(err)
		}
		var network recorder
		if _, err := Push(t.Context(), makeImage(t), Server{URL: u, Transport: &network}, "hello", nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got error %v, want one with %s", server, err, want)
		}
		if len(network.sent) > 0 {
			t.Errorf("%s: sent %q", server, network.sent)
		}
	}
}

func TestRegistry_ServesAnyClientTagsAndIndexesIncluded(t *testing.T) {
	s := openTest(t, t.TempDir(), Options{})
	server := serveStore(t, s, "")
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: makeImage(t, gzipLayer(t, makeTar(t, reg("a", "1")))), Descriptor: v1.Descriptor{Platform: new(platform())}})
	ref, err := name.ParseReference(server.Host + "/a/b:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(ref, index); err != nil {
		t.Fatal(err)
	}
	back, err := remote.Index(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(back); err != nil {
		t.Error(err)
	}
	tags, err := remote.List(ref.Context())
	if err != nil || !cmp.Equal(tags, []string{"v1"}) {
		t.Errorf("tags are %q, %v", tags, err)
	}
	image, err := resolveAndPull(t, s, "berth.localhost/a/b:v1", Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	if want, err := index.Digest(); err != nil || image.Digest != want.String() {
		t.Errorf("pulled %s, want %s (%v)", image.Digest, want, err)
	}
}

// request sends a request to the registry and returns the status, the headers and the body.
func request(t *testing.T, server *url.URL, method, path, body string, header ...string) (int, http.Header, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, server.String()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, answer.Header, string(data)
}

func TestRegistry_TakesABlobInChunksInOrderOnly(t *testing.T) {
	s := openTest(t, t.TempDir(), Options{})
	server := serveStore(t, s, "")
	_, header, _ := request(t, server, "POST", "/v2/hello/blobs/uploads/", "")
	at := header.Get("Location")
	if code, header, _ := request(t, server, "PATCH", at, "hello ", "Content-Range", "0-5"); code != 202 || header.Get("Range") != "0-5" {
		t.Errorf("first chunk: %d, range %q", code, header.Get("Range"))
	}
	if code, _, body := request(t, server, "PATCH", at, "gap", "Content-Range", "10-12"); code != 416 || !strings.Contains(body, "goes on at byte 6") {
		t.Errorf("a gap: %d %s", code, body)
	}
	digest := digestOf([]byte("hello world"))
	if code, header, body := request(t, server, "PUT", at+"?digest="+digest, "world"); code != 201 || header.Get("Docker-Content-Digest") != digest {
		t.Errorf("last chunk: %d %s", code, body)
	}
	if code, _, body := request(t, server, "GET", "/v2/other/blobs/"+digest, ""); code != 200 || body != "hello world" {
		t.Errorf("reading back: %d %q", code, body)
	}
	if code, _, body := request(t, server, "GET", "/v2/hello/blobs/"+digest, "", "Range", "bytes=6-"); code != 206 || body != "world" {
		t.Errorf("reading a range: %d %q", code, body)
	}
}

func TestRegistry_RefusesWhatWouldBreakAnImage(t *testing.T) {
	s := openTest(t, t.TempDir(), Options{})
	server := serveStore(t, s, "")
	none := "sha256:" + strings.Repeat("0", 64)
	manifest := fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"%s","size":2},"layers":[]}`, none)
	for _, test := range []struct {
		method, path, body string
		code               int
		want               string
	}{
		{"POST", "/v2/hello/blobs/uploads/?digest=" + none, "body", 400, "not " + none},
		{"POST", "/v2/hello/blobs/uploads/?digest=../../../etc/passwd", "body", 400, "DIGEST_INVALID"},
		{"PUT", "/v2/hello/manifests/v1", manifest, 404, "MANIFEST_BLOB_UNKNOWN"},
		{"PUT", "/v2/hello/manifests/" + none, manifest, 400, "DIGEST_INVALID"},
		{"PUT", "/v2/hello/manifests/v1", "{", 400, "MANIFEST_INVALID"},
		{"PUT", "/v2/hello/manifests/v1", `{"schemaVersion":1,"mediaType":"application/vnd.docker.distribution.manifest.v1+prettyjws"}`, 400, "not supported"},
		{"PUT", "/v2/hello/manifests/v1", strings.Repeat(" ", maxManifestBytes+1), 413, "SIZE_INVALID"},
		{"GET", "/v2/hello/manifests/v1", "", 404, "MANIFEST_UNKNOWN"},
		{"GET", "/v2/hello/manifests/..%2f..%2flock", "", 404, "errors"},
		{"GET", "/v2/hello/blobs/" + none, "", 404, "BLOB_UNKNOWN"},
		{"GET", "/v2/hello/blobs/..", "", 404, "errors"},
		{"GET", "/v2/../hello/tags/list", "", 404, "errors"},
		{"GET", "/v2/UPPER/tags/list", "", 404, "lower case"},
		{"GET", "/v2/" + strings.Repeat("n", 200) + "/tags/list", "", 400, "NAME_INVALID"},
		{"DELETE", "/v2/hello/manifests/v1", "", 405, "UNSUPPORTED"},
		{"PATCH", "/v2/hello/blobs/uploads/" + strings.Repeat("0", 32), "x", 404, "start again"},
	} {
		code, _, body := request(t, server, test.method, test.path, test.body)
		if code != test.code || !strings.Contains(body, test.want) {
			t.Errorf("%s %s: got %d %s, want %d with %q", test.method, test.path, code, body, test.code, test.want)
		}
	}
	if left, err := filepath.Glob(filepath.Join(s.dir, "registry", "*", "*")); err != nil || len(left) > 0 {
		t.Errorf("%q is left (%v)", left, err)
	}
}

func TestCollect_RemovesPushedImagesThatNothingUses(t *testing.T) {
	// What a path may hold that is special in a pattern.
	s := openTest(t, filepath.Join(t.TempDir(), `berth[1]*?\`), Options{})
	server := serveStore(t, s, "")
	push := func(repo, content string) string {
		ref, err := Push(t.Context(), makeImage(t, gzipLayer(t, makeTar(t, reg("a", "shared"))), gzipLayer(t, makeTar(t, reg("b", content)))), Server{URL: server, Transport: http.DefaultTransport}, repo, nil)
		if err != nil {
			t.Fatal(err)
		}
		return ref
	}
	used, unused := push("used", "1"), push("unused", "2")
	before := s.Usage()
	freed, err := s.Collect(t.Context(), []string{used}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if freed == 0 || s.Usage() != before-freed {
		t.Errorf("freed %d, usage went from %d to %d", freed, before, s.Usage())
	}
	if _, err := s.Pull(t.Context(), used, Credentials{}, nil); err != nil {
		t.Errorf("the image in use: %v", err)
	}
	var notFound *NotFoundError
	if _, err := s.Pull(t.Context(), unused, Credentials{}, nil); !errors.As(err, &notFound) {
		t.Errorf("the unused image: got error %v, want a NotFoundError", err)
	}
}

func TestLoad_OpensEveryKindOfLocalImage(t *testing.T) {
	dir := t.TempDir()
	archive := makeTar(t, reg("a", "1"))
	one := makeImageFor(t, platform(), gzipLayer(t, archive))
	two := makeImageFor(t, platform(), gzipLayer(t, makeTar(t, reg("a", "2"))))
	arm := makeImageFor(t, v1.Platform{OS: "linux", Architecture: "arm64"}, gzipLayer(t, archive))
	docker := func(file string, images map[name.Reference]v1.Image) string {
		path := filepath.Join(dir, file)
		if err := tarball.MultiRefWriteToFile(path, images); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tag := func(s string) name.Reference { return name.MustParseReference("hello:v1").Context().Tag(s) }
	oci := func(folder string, images ...v1.Image) string {
		path, err := layout.Write(filepath.Join(dir, folder), empty.Index)
		if err != nil {
			t.Fatal(err)
		}
		for i, image := range images {
			if err := path.AppendImage(image, layout.WithAnnotations(map[string]string{tagAnnotation: fmt.Sprintf("v%d", i+1)})); err != nil {
				t.Fatal(err)
			}
		}
		return string(path)
	}
	multi := oci("multi:arch")
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: arm, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}},
		mutate.IndexAddendum{Add: one, Descriptor: v1.Descriptor{Platform: new(platform())}})
	if err := layout.Path(multi).AppendIndex(index); err != nil {
		t.Fatal(err)
	}
	folder := oci("folder", one, two)
	packed := filepath.Join(dir, "packed.tar")
	if err := os.WriteFile(packed, packDir(t, folder), 0o600); err != nil {
		t.Fatal(err)
	}
	single := docker("single.tar", map[name.Reference]v1.Image{tag("v1"): one})
	both := docker("both.tar", map[name.Reference]v1.Image{tag("v1"): one, tag("v2"): two})
	text := filepath.Join(dir, "text.txt")
	if err := os.WriteFile(text, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		ref  string
		want v1.Image
		err  string
	}{
		{ref: "docker-archive:" + single, want: one},
		{ref: "docker-archive:" + single + ":v1", want: one},
		{ref: "docker-archive:" + both + ":v2", want: two},
		{ref: "docker-archive:" + both, err: "holds 2 images: add one of the tags"},
		{ref: "docker-archive:" + both + ":v3", err: `no image with the tag "v3", it has: `},
		{ref: "docker-archive:" + text, err: "not an archive of docker save"},
		{ref: "docker-archive:" + filepath.Join(dir, "nothing.tar"), err: "no such file"},
		{ref: "docker-archive:" + docker("arm.tar", map[name.Reference]v1.Image{tag("v1"): arm}), err: "has linux/arm64 only"},
		{ref: "oci:" + folder + ":v1", want: one},
		{ref: "oci:" + folder + ":v2", want: two},
		{ref: "oci:" + folder, err: "holds 2 images: add one of the tags v1, v2"},
		{ref: "oci:" + folder + ":v3", err: `no image with the tag "v3", it has: v1, v2`},
		{ref: "oci:" + multi, want: one},
		{ref: "oci:" + oci("empty"), err: "holds no image"},
		{ref: "oci:" + dir, err: "not an OCI image layout"},
		{ref: "oci-archive:" + packed + ":v2", want: two},
		{ref: "oci-archive:" + text, err: "not a tar file"},
		{ref: "hello:v1", err: "want docker-archive:"},
		{ref: "./web.tar", err: "docker-archive:./web.tar"},
		{ref: single, err: "docker-archive:" + single},
	} {
		if local := IsLocal(test.ref); local != (test.ref != "hello:v1") {
			t.Errorf("%s: IsLocal is %t", test.ref, local)
		}
		got, err := Load(test.ref)
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) || !strings.Contains(err.Error(), test.ref) {
				t.Errorf("%s: got error %v, want one with %q", test.ref, err, test.err)
			}
			continue
		}
		if err != nil {
			t.Error(err)
			continue
		}
		if err := validate.Image(got); err != nil {
			t.Errorf("%s: %v", test.ref, err)
		}
		want, wantErr := test.want.ConfigName()
		name, gotErr := got.ConfigName()
		if wantErr != nil || gotErr != nil || name != want {
			t.Errorf("%s: got image %s, want %s (%v, %v)", test.ref, name, want, gotErr, wantErr)
		}
	}
}

// packDir makes a tar file of a folder.
func packDir(t testing.TB, dir string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
