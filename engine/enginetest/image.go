package enginetest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// File is a file of an image: a directory when its name ends in a slash.
type File struct {
	Name string
	Mode int64
	Text string

	UID, GID int
}

// made is shared by the tests of a process: making it takes longer than most of them.
var made = shared{blobs: registry.NewInMemoryBlobHandler(), layers: map[[sha256.Size]byte]v1.Layer{}}

type shared struct {
	blobs   registry.BlobHandler // of all registries
	mu      sync.Mutex
	program string                         // guarded by mu
	layers  map[[sha256.Size]byte]v1.Layer // guarded by mu; by the hash of their archives
}

// Program returns the bytes of the suite's program, which it builds once.
func Program(t testing.TB) string {
	t.Helper()
	made.mu.Lock()
	defer made.mu.Unlock()
	if made.program != "" {
		return made.program
	}
	path := filepath.Join(t.TempDir(), "program")
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", path, "github.com/berth-run/berth/engine/enginetest/program")
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the program: %v\n%s", err, output)
	}
	made.program = readFile(t, path)
	return made.program
}

// SaveProgram writes the program to a file, for another test process to load.
func SaveProgram(t testing.TB) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte(Program(t)), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// LoadProgram takes the program from a file that another test process has saved, instead of building it again.
func LoadProgram(t testing.TB, path string) {
	t.Helper()
	made.mu.Lock()
	defer made.mu.Unlock()
	made.program = readFile(t, path)
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Registry is an image registry for one test. It speaks plain HTTP.
type Registry struct{ host string }

// NewRegistry starts a registry.
func NewRegistry(t testing.TB) *Registry {
	t.Helper()
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithBlobHandler(made.blobs)))
	t.Cleanup(server.Close)
	return &Registry{host: strings.TrimPrefix(server.URL, "http://")}
}

// Push makes an image of one layer for each list of files, and returns its reference by digest.
func (r *Registry) Push(t testing.TB, repository string, config v1.Config, layers ...[]File) string {
	t.Helper()
	image := v1.Image(empty.Image)
	file, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config = "linux", "amd64", config
	if image, err = mutate.ConfigFile(image, file); err != nil {
		t.Fatal(err)
	}
	for _, files := range layers {
		layer, err := packed(files)
		if err != nil {
			t.Fatal(err)
		}
		if image, err = mutate.AppendLayers(image, layer); err != nil {
			t.Fatal(err)
		}
	}
	ref, err := name.ParseReference(r.host+"/"+repository, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, image); err != nil {
		t.Fatal(err)
	}
	digest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return ref.Context().Digest(digest.String()).String()
}

// packed is the layer with files.
func packed(files []File) (v1.Layer, error) {
	text := archive(files)
	made.mu.Lock()
	defer made.mu.Unlock()
	key := sha256.Sum256(text)
	if layer := made.layers[key]; layer != nil {
		return layer, nil
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(text)), nil },
		tarball.WithCompressionLevel(gzip.NoCompression), tarball.WithCompressedCaching)
	if err == nil {
		made.layers[key] = layer
	}
	return layer, err
}

func archive(files []File) []byte {
	var b bytes.Buffer
	size := 0
	for _, f := range files {
		size += len(f.Text) + 2048 // its header, and what it is rounded up to
	}
	b.Grow(size)
	w := tar.NewWriter(&b)
	for _, f := range files {
		header := &tar.Header{Name: f.Name, Mode: f.Mode, Size: int64(len(f.Text)), Typeflag: tar.TypeReg, Uid: f.UID, Gid: f.GID}
		if strings.HasSuffix(f.Name, "/") {
			header.Typeflag, header.Size = tar.TypeDir, 0
		}
		_ = w.WriteHeader(header) // to memory: cannot fail
		_, _ = io.WriteString(w, f.Text)
	}
	_ = w.Close()
	return b.Bytes()
}
