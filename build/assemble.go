package build

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// nonroot is the user that programs run as: the number that images without a distribution commonly use.
const nonroot = 65532

// Where things are in an image.
const (
	programDir   = "usr/local/bin/"
	home         = "/home/nonroot"
	certificates = "etc/ssl/certs/ca-certificates.crt"
)

// certificateFiles are where distributions keep the CA certificates, all in one file.
func certificateFiles() []string {
	return []string{
		"/etc/ssl/certs/ca-certificates.crt",
		"/etc/pki/tls/certs/ca-bundle.crt",
		"/etc/ssl/ca-bundle.pem",
		"/etc/ssl/cert.pem",
	}
}

// entry is a file or directory of an image.
type entry struct {
	name  string // directories end in "/"
	mode  int64
	owner int
	data  []byte
}

// assemble makes an image of one program: a layer with what programs expect around them, and one with the
// program, so that a new build of it is all there is to send.
func assemble(name string, program []byte) (v1.Image, error) {
	base, err := surroundings()
	if err != nil {
		return nil, err
	}
	image := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	image = mutate.ConfigMediaType(image, types.OCIConfigJSON)
	for _, entries := range [][]entry{base, {
		{name: "usr/", mode: 0o755},
		{name: "usr/local/", mode: 0o755},
		{name: programDir, mode: 0o755},
		{name: programDir + name, mode: 0o755, data: program},
	}} {
		layer, err := makeLayer(entries)
		if err != nil {
			return nil, fmt.Errorf("making the image of %s: %w", name, err)
		}
		if image, err = mutate.AppendLayers(image, layer); err != nil {
			return nil, fmt.Errorf("making the image of %s: %w", name, err)
		}
	}
	file, err := image.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("making the image of %s: %w", name, err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", "amd64"
	file.Config = v1.Config{
		Entrypoint: []string{"/" + programDir + name},
		Env:        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		User:       fmt.Sprint(nonroot),
		WorkingDir: home,
	}
	if image, err = mutate.ConfigFile(image, file); err != nil {
		return nil, fmt.Errorf("making the image of %s: %w", name, err)
	}
	return image, nil
}

// surroundings are the users, the directories and the CA certificates that programs look for.
func surroundings() ([]entry, error) {
	entries := []entry{
		{name: "etc/", mode: 0o755},
		{name: "etc/passwd", mode: 0o644, data: []byte("root:x:0:0:root:/root:/sbin/nologin\n" +
			fmt.Sprintf("nonroot:x:%d:%d:nonroot:%s:/sbin/nologin\n", nonroot, nonroot, home))},
		{name: "etc/group", mode: 0o644, data: fmt.Appendf(nil, "root:x:0:\nnonroot:x:%d:\n", nonroot)},
		{name: "home/", mode: 0o755},
		{name: home[1:] + "/", mode: 0o700, owner: nonroot},
		{name: "root/", mode: 0o700},
		{name: "tmp/", mode: 0o1777},
	}
	for _, path := range certificateFiles() {
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading the CA certificates: %w", err)
		}
		return append(entries,
			entry{name: "etc/ssl/", mode: 0o755},
			entry{name: "etc/ssl/certs/", mode: 0o755},
			entry{name: certificates, mode: 0o644, data: data},
		), nil
	}
	return entries, nil
}

func makeLayer(entries []entry) (v1.Layer, error) {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, e := range entries {
		header := &tar.Header{
			Name:    e.name,
			Mode:    e.mode,
			Uid:     e.owner,
			Gid:     e.owner,
			Size:    int64(len(e.data)),
			ModTime: time.Unix(0, 0), // the same image from the same source
		}
		if err := w.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := w.Write(e.data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(
		func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive.Bytes())), nil },
		tarball.WithMediaType(types.OCILayer),
		tarball.WithCompressionLevel(gzip.BestSpeed),
		tarball.WithCompressedCaching,
	)
}
