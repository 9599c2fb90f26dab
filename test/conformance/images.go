package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"runtime"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// images are the programs that the tests deploy, by their folders in the suite's module. One more that the tests
// name, invalidhelloworld, must not exist.
var images = []string{
	"autoscale", "failing", "hellovolume", "helloworld", "multicontainer/servingcontainer",
	"multicontainer/sidecarcontainer", "pizzaplanetv1", "pizzaplanetv2", "readiness", "runtime", "singlethreaded",
	"timeout", "volumes",
}

const (
	// repository is where the images are in the registry.
	repository = "knative"
	// nonroot is the user that the images run as, and that the tests expect.
	nonroot = 65532
)

func programFolder(dir string) string { return filepath.Join(dir, "programs") }

// imageServer is a registry on 127.0.0.1 that holds the images in memory.
type imageServer struct {
	Host   string // host:port, as in image references
	server *http.Server
}

// Close stops the registry.
func (s *imageServer) Close() { s.server.Close() }

// serveImages makes an image of each program that was built in a folder, and serves them.
func serveImages(dir string) (*imageServer, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &imageServer{
		Host:   listener.Addr().String(),
		server: &http.Server{Handler: registry.New(registry.Logger(log.New(io.Discard, "", 0)))},
	}
	go s.server.Serve(listener)
	if err := s.push(dir); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *imageServer) push(dir string) error {
	base, err := baseImage()
	if err != nil {
		return err
	}
	for _, i := range images {
		program := path.Base(i)
		image, err := withProgram(base, filepath.Join(programFolder(dir), program))
		if err != nil {
			return fmt.Errorf("making image %q: %w", program, err)
		}
		ref, err := name.ParseReference(fmt.Sprintf("%s/%s/%s:latest", s.Host, repository, program))
		if err != nil {
			return err
		}
		if err := remote.Write(ref, image); err != nil {
			return fmt.Errorf("pushing image %q: %w", program, err)
		}
	}
	return nil
}

// baseImage has no program: it has what the tests look for in an image's files and settings.
func baseImage() (v1.Image, error) {
	layer, err := layerOf(func(w *tar.Writer) error {
		files := []struct {
			tar.Header
			content string
		}{
			{Header: tar.Header{Name: "etc/", Mode: 0o755, Typeflag: tar.TypeDir}},
			{Header: tar.Header{Name: "etc/passwd", Mode: 0o644},
				content: "root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n"},
			{Header: tar.Header{Name: "etc/group", Mode: 0o644}, content: "root:x:0:\nnonroot:x:65532:\n"},
			{Header: tar.Header{Name: "home/", Mode: 0o755, Typeflag: tar.TypeDir}},
			{Header: tar.Header{Name: "home/nonroot/", Mode: 0o700, Typeflag: tar.TypeDir, Uid: nonroot, Gid: nonroot}},
			{Header: tar.Header{Name: "tmp/", Mode: 0o1777, Typeflag: tar.TypeDir}},
			{Header: tar.Header{Name: "var/", Mode: 0o755, Typeflag: tar.TypeDir}},
			{Header: tar.Header{Name: "var/run/", Mode: 0o755, Typeflag: tar.TypeDir}},
			{Header: tar.Header{Name: "var/run/ko/", Mode: 0o755, Typeflag: tar.TypeDir}},
		}
		for _, f := range files {
			f.Size = int64(len(f.content))
			if err := w.WriteHeader(&f.Header); err != nil {
				return err
			}
			if _, err := io.WriteString(w, f.content); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	file, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", runtime.GOARCH
	file.Config.User = fmt.Sprint(nonroot)
	file.Config.WorkingDir = "/home/nonroot"
	file.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/ko-app", "KO_DATA_PATH=/var/run/ko"}
	return mutate.ConfigFile(image, file)
}

// withProgram adds a program to an image, which runs it.
func withProgram(base v1.Image, program string) (v1.Image, error) {
	content, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	inside := "ko-app/" + filepath.Base(program)
	layer, err := layerOf(func(w *tar.Writer) error {
		if err := w.WriteHeader(&tar.Header{Name: "ko-app/", Mode: 0o755, Typeflag: tar.TypeDir}); err != nil {
			return err
		}
		if err := w.WriteHeader(&tar.Header{Name: inside, Mode: 0o755, Size: int64(len(content))}); err != nil {
			return err
		}
		_, err := w.Write(content)
		return err
	})
	if err != nil {
		return nil, err
	}
	image, err := mutate.AppendLayers(base, layer)
	if err != nil {
		return nil, err
	}
	file, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config := file.DeepCopy().Config
	config.Entrypoint = []string{"/" + inside}
	return mutate.Config(image, config)
}

// layerOf makes a layer of what write puts into an archive.
func layerOf(write func(*tar.Writer) error) (v1.Layer, error) {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	if err := errors.Join(write(w), w.Close()); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(
		func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive.Bytes())), nil },
		tarball.WithCompressionLevel(gzip.BestSpeed), tarball.WithCompressedCaching)
}
