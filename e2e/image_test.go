package e2e

import (
	"archive/tar"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/berth-run/berth/internal/testimage"
	"github.com/berth-run/berth/server"
	"github.com/berth-run/berth/serving"
)

func TestImage_OfADistributionServesAndSharesItsLayers(t *testing.T) {
	t.Parallel()
	base := debian(t)
	registry := testimage.Serve(t, testimage.Options{Username: "anna", Password: "secret"})
	config := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(config, dockerConfig(registry.Host, "anna", "secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, func(c *server.Config) { c.DockerConfig, c.ImageKeep = config, time.Second })

	blob := make([]byte, 3<<20)
	for i, random := 0, rand.NewPCG(1, 2); i < len(blob); i++ {
		blob[i] = byte(random.Uint64())
	}
	// What a Dockerfile's RUN does to files of the base: remove one, replace a directory, add.
	image := withFiles(t, base,
		file{tar.Header{Name: "etc/.wh.debian_version", Mode: 0o644}, nil},
		file{tar.Header{Name: "usr/share/doc/.wh..wh..opq", Mode: 0o644}, nil},
		file{tar.Header{Name: "usr/share/doc/README", Mode: 0o644}, []byte("all there is")},
		file{tar.Header{Name: "srv/blob", Mode: 0o644}, blob},
	)
	p.mustBerth("deploy", "files", "--image", registry.Push(t, image, "files:1"))
	s, err := p.Services("default").Get(t.Context(), "files")
	if err != nil {
		t.Fatal(err)
	}
	url := s.Status.URL.String()
	for path, want := range map[string]int{
		"/srv/blob": 200, "/usr/bin/python3": 200, "/usr/share/doc/README": 200,
		"/etc/debian_version": 404, "/usr/share/doc/dpkg/": 404,
	} {
		if a := p.get(url + path); a.status != want {
			t.Errorf("%s: answer %d, want %d", path, a.status, want)
		}
	}
	if a := p.get(url + "/srv/blob"); a.body != string(blob) {
		t.Errorf("%d bytes came, and not those of the image's %d", len(a.body), len(blob))
	}
	p.awaitZero("files")
	if a := p.get(url + "/srv/blob"); a.body != string(blob) {
		t.Errorf("from zero %d bytes came, and not those of the image's %d", len(a.body), len(blob))
	}

	// A second image of the same base adds its own layer only.
	before := p.layers()
	other := withFiles(t, base, file{tar.Header{Name: "srv/other", Mode: 0o644}, []byte("other")})
	p.mustBerth("deploy", "other", "--image", registry.Push(t, other, "other:1"))
	if got := p.layers(); got != before+1 {
		t.Errorf("%d layers became %d, want one more", before, got)
	}
	// With the service goes what only its image had; what others use stays.
	p.mustBerth("services", "delete", "files", "--quiet")
	p.await("the layer of the deleted service to be collected", func() error {
		n := p.layers()
		return errorUnless(n == before, "%d layers", n)
	})
	s, err = p.Services("default").Get(t.Context(), "other")
	if err != nil {
		t.Fatal(err)
	}
	p.awaitZero("other")
	if a := p.get(s.Status.URL.String() + "/srv/other"); a.body != "other" {
		t.Errorf("the other service answers %d %q", a.status, a.body)
	}
	p.mustBerth("services", "delete", "other", "--quiet")
	p.await("all layers to be collected", func() error {
		n := p.layers()
		return errorUnless(n == 0, "%d layers", n)
	})
}

// layers counts the layers that a server keeps.
func (p *platform) layers() int {
	p.t.Helper()
	records, err := filepath.Glob(filepath.Join(p.dir, "images", "layers", "*.json"))
	if err != nil {
		p.t.Fatal(err)
	}
	return len(records)
}

// debian is a small Debian with Python, in one layer of thousands of files, that serves all its files. It is made
// once and kept in the user's cache directory.
func debian(t *testing.T) v1.Image {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("debootstrap needs root: run the tests as root")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	cache = filepath.Join(cache, "berth-test")
	find := func() []string {
		found, err := filepath.Glob(filepath.Join(cache, debianName+"-*.tar.gz"))
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	archives := find()
	if len(archives) == 0 {
		makeDebian(t, cache)
		archives = find()
	}
	hex := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(archives[0]), debianName+"-"), ".tar.gz")
	layer, err := partial.CompressedToLayer(archiveLayer{archives[0], v1.Hash{Algorithm: "sha256", Hex: hex}})
	if err != nil {
		t.Fatal(err)
	}
	image, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{
		OS: "linux", Architecture: "amd64", RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{Cmd: []string{"sh", "-c", "exec python3 -m http.server $PORT --directory /"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	image, err = mutate.AppendLayers(image, layer)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// debianName begins the name of the archive in the cache, which ends with the digest of what is in it.
const debianName = "debian-bookworm-python3"

// archiveLayer is a layer in a compressed file. To know its diffID spares unpacking it only to find that.
type archiveLayer struct {
	path   string
	diffID v1.Hash
}

func (l archiveLayer) DiffID() (v1.Hash, error)            { return l.diffID, nil }
func (l archiveLayer) Compressed() (io.ReadCloser, error)  { return os.Open(l.path) }
func (l archiveLayer) MediaType() (types.MediaType, error) { return types.DockerLayer, nil }
func (l archiveLayer) Digest() (v1.Hash, error) {
	f, err := os.Open(l.path)
	if err != nil {
		return v1.Hash{}, err
	}
	defer f.Close()
	digest, _, err := v1.SHA256(f)
	return digest, err
}
func (l archiveLayer) Size() (int64, error) {
	info, err := os.Stat(l.path)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func makeDebian(t *testing.T, cache string) {
	t.Helper()
	if _, err := exec.LookPath("debootstrap"); err != nil {
		t.Skip("debootstrap is not installed: it makes the Debian that this test runs")
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(cache, "making-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	tree, archive := filepath.Join(dir, "tree"), filepath.Join(dir, "debian.tar")
	made, err := exec.Command("debootstrap", "--variant=minbase", "--include=python3-minimal,libpython3-stdlib", "bookworm", tree).CombinedOutput()
	if err != nil {
		t.Skipf("debootstrap makes no Debian here: %v\n%s", err, made)
	}
	packed, err := exec.Command("tar", "--numeric-owner", "--exclude=./dev", "--exclude=./proc", "--exclude=./sys",
		"--exclude=./var/cache/*", "--exclude=./var/lib/apt/lists/*", "--exclude=./usr/share/locale/*",
		"-C", tree, "-cf", archive, ".").CombinedOutput()
	if err != nil {
		t.Fatalf("packing: %v\n%s", err, packed)
	}
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	diffID, _, err := v1.SHA256(f)
	if err != nil {
		t.Fatal(err)
	}
	if packed, err := exec.Command("gzip", archive).CombinedOutput(); err != nil {
		t.Fatalf("compressing: %v\n%s", err, packed)
	}
	if err := os.Rename(archive+".gz", filepath.Join(cache, debianName+"-"+diffID.Hex+".tar.gz")); err != nil {
		t.Fatal(err)
	}
}

func TestImage_InAFileOrFromSourceNeedsNoRegistry(t *testing.T) {
	t.Parallel()
	p := start(t, func(c *server.Config) { c.InsecureRegistries = nil })
	hello, dir := images.Go(t, "examples/hello"), t.TempDir()
	tag, err := name.NewTag("example.com/hello:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(filepath.Join(dir, "docker.tar"), tag, hello); err != nil {
		t.Fatal(err)
	}
	path, err := layout.Write(filepath.Join(dir, "layout"), empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := path.AppendImage(hello); err != nil {
		t.Fatal(err)
	}
	pack(t, filepath.Join(dir, "layout"), filepath.Join(dir, "oci.tar"))

	for service, flags := range map[string][]string{
		"docker-archive": {"--image", "docker-archive:" + filepath.Join(dir, "docker.tar")},
		"oci-archive":    {"--image", "oci-archive:" + filepath.Join(dir, "oci.tar")},
		"oci-layout":     {"--image", "oci:" + filepath.Join(dir, "layout")},
		"source":         {"--source", "../examples/hello"},
	} {
		p.mustBerth(append([]string{"deploy", service}, flags...)...)
		s, err := p.Services("default").Get(t.Context(), service)
		if err != nil {
			t.Fatal(err)
		}
		if a := p.get(s.Status.URL.String()); a.status != 200 || !strings.Contains(a.body, service+"-00001") {
			t.Errorf("%s: %d %q", service, a.status, a.body)
		}
	}
	// All are the same image: its layers are stored once.
	layers, err := hello.Layers()
	if err != nil {
		t.Fatal(err)
	}
	if got := p.layers(); got != len(layers) {
		t.Errorf("%d layers are stored, the image has %d", got, len(layers))
	}
}

// pack makes a tar file of a folder.
func pack(t *testing.T, folder, archive string) {
	t.Helper()
	f, err := os.Create(archive)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(f)
	if err := errors.Join(w.AddFS(os.DirFS(folder)), w.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestImage_IsPulledWithASecretAndOverPlainHTTPWhereAllowed(t *testing.T) {
	t.Parallel()
	p := start(t, func(c *server.Config) { c.InsecureRegistries = nil })
	registry := testimage.Serve(t, testimage.Options{Username: "anna", Password: "secret"})
	private := registry.Push(t, images.Go(t, "examples/hello"), "hello:1")
	p.secret("elsewhere", "registry.example.com/hello", "anna", "wrong here")
	p.secret("pull", private, "anna", "secret")
	s := service("private", private)
	s.Spec.Template.Spec.ImagePullSecrets = []serving.LocalObjectReference{{Name: "elsewhere"}, {Name: "pull"}}
	if a := p.get(p.deploy(s).Status.URL.String()); a.status != 200 {
		t.Errorf("with a pull secret: %d %q", a.status, a.body)
	}

	// Registries on loopback addresses are always asked over plain HTTP; another name for one is not known to be.
	public := testimage.Serve(t, testimage.Options{})
	reference := public.Push(t, images.Go(t, "examples/hello"), "hello:1")
	_, port, err := net.SplitHostPort(public.Host)
	if err != nil {
		t.Fatal(err)
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	named := net.JoinHostPort(host, port)
	if reply, err := http.Get("http://" + named + "/v2/"); err != nil {
		t.Skipf("this machine's name does not lead to 127.0.0.1, which the rest of this test needs: %v", err)
	} else if _, err := io.Copy(io.Discard, reply.Body); err != nil || reply.Body.Close() != nil {
		t.Fatal(err)
	}
	reference = strings.Replace(reference, public.Host, named, 1)
	p.refuses(1, []string{"it speaks plain HTTP: allow that with --insecure-registry"}, "deploy", "plain", "--image", reference)
	p.mustBerth("deploy", "plain", "--image", reference, "--insecure-registry")
	plain, err := p.Services("default").Get(t.Context(), "plain")
	if err != nil {
		t.Fatal(err)
	}
	if a := p.get(plain.Status.URL.String()); a.status != 200 {
		t.Errorf("over plain HTTP: %d %q", a.status, a.body)
	}
}
