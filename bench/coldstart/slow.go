package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/berth-run/berth/bench"
)

const pythonServer = `import http.server, os
class Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "6")
        self.end_headers()
        self.wfile.write(b"hello\n")
    def log_message(self, *args):
        pass
http.server.HTTPServer(("", int(os.environ["PORT"])), Hello).serve_forever()
`

const nodeServer = `require("http").createServer((_, response) => response.end("hello\n")).listen(Number(process.env.PORT))
`

// slow is a program that takes its time to start.
type slow struct {
	name    string
	program program
	deploy  []string // flags of berth deploy
}

// measureSlow compares programs that start slowly with themselves, run directly.
func measureSlow(ctx context.Context, s *bench.Server, dir string) error {
	late := filepath.Join(dir, "late")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", late, "./bench/coldstart/late")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building bench/coldstart/late: %w\n%s", err, out)
	}
	all := []slow{{"go", program{path: late}, []string{"--source", "bench/coldstart/late"}}}
	for _, prepare := range []func(context.Context, string) (slow, error){node, python} {
		p, err := prepare(ctx, dir)
		if errors.Is(err, exec.ErrNotFound) {
			fmt.Printf("slow_added_%s_ms is skipped: %v\n", p.name, err)
			continue
		}
		if err != nil {
			return fmt.Errorf("making an image of %s: %w", p.name, err)
		}
		all = append(all, p)
	}
	for _, p := range all {
		if err := p.measure(ctx, s); err != nil {
			return fmt.Errorf("measuring %s: %w", p.name, err)
		}
	}
	return nil
}

func (p slow) measure(ctx context.Context, s *bench.Server) error {
	// Directly, it has all of the machine: these use more than the one processor that is the usual limit.
	args := append([]string{"deploy", p.name, "--cpu", strconv.Itoa(runtime.NumCPU())}, p.deploy...)
	if err := s.Berth(ctx, args...); err != nil {
		return err
	}
	service, err := s.Client.Services("default").Get(ctx, p.name)
	if err != nil {
		return err
	}
	f := figures{prepared: 1}
	for range slowRounds {
		if err := f.round(ctx, s, service.Status.URL.String(), p.program); err != nil {
			return err
		}
	}
	wait, floor := bench.Quantile(f.wait, 0.5), bench.Quantile(f.floor, 0.5)
	fmt.Printf("%s: %.2f ms at p50: %s; by exec %.2f ms: %s\n", p.name, wait, f.path, floor, f.floorPath)
	bench.Print("slow_added_"+p.name+"_ms", wait-floor, "ms")
	return s.Remove(ctx, "default", p.name)
}

// node is a server on the machine's own Node.
func node(ctx context.Context, dir string) (slow, error) {
	path, err := exec.LookPath("node")
	if err != nil {
		return slow{name: "node"}, err
	}
	return interpreted(ctx, "node", dir, []string{path}, "server.js", nodeServer)
}

// python is a server on the machine's own Python, with its standard library.
func python(ctx context.Context, dir string) (slow, error) {
	path, err := exec.LookPath("/usr/bin/python3")
	if err != nil {
		path, err = exec.LookPath("python3")
	}
	if err != nil {
		return slow{name: "python"}, err
	}
	out, err := exec.CommandContext(ctx, path, "-c", "import sys, sysconfig; print(sys.executable); print(sysconfig.get_path('stdlib'))").Output()
	if err != nil {
		return slow{name: "python"}, fmt.Errorf("asking %q for its library: %w", path, err)
	}
	executable, library, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return interpreted(ctx, "python", dir, []string{executable, library}, "server.py", pythonServer)
}

// interpreted is a program in a file of this name on an interpreter of the machine's: its path, and those of its
// libraries. Its image has the same files at the same places.
func interpreted(ctx context.Context, name, dir string, interpreter []string, file, text string) (slow, error) {
	script := filepath.Join(dir, file)
	command, err := filepath.EvalSymlinks(interpreter[0])
	if err == nil {
		err = os.WriteFile(script, []byte(text), 0o644)
	}
	files := []string{command, script}
	for _, library := range interpreter[1:] {
		if err == nil {
			files, err = addLibrary(files, library)
		}
	}
	if err != nil {
		return slow{name: name}, err
	}
	files = addShared(ctx, files)
	for _, optional := range []string{"/etc/nsswitch.conf", "/etc/passwd", "/etc/group"} {
		if _, err := os.Stat(optional); err == nil {
			files = append(files, optional)
		}
	}
	archive := filepath.Join(dir, name+".tar")
	err = writeImage(archive, name, files, []string{command, script})
	return slow{name, program{command, []string{script}}, []string{"--image", "docker-archive:" + archive}}, err
}

// addLibrary adds the files of a Python library, without what no server needs.
func addLibrary(files []string, library string) ([]string, error) {
	err := filepath.WalkDir(library, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && slices.Contains([]string{"test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3", "ensurepip", "config"}, strings.SplitN(entry.Name(), "-3", 2)[0]):
			return fs.SkipDir
		case entry.Type().IsRegular():
			files = append(files, path)
		}
		return nil
	})
	return files, err
}

// addShared adds the shared objects that programs and libraries need.
func addShared(ctx context.Context, files []string) []string {
	args := slices.DeleteFunc(slices.Clone(files), func(path string) bool {
		return filepath.Ext(path) != ".so" && path != files[0]
	})
	// Of what is linked to nothing it says so and fails, which is no matter.
	out, _ := exec.CommandContext(ctx, "ldd", args...).Output()
	for line := range strings.Lines(string(out)) {
		for _, word := range strings.Fields(line) {
			if filepath.IsAbs(word) && !strings.HasSuffix(word, ":") && !slices.Contains(files, word) {
				files = append(files, word)
			}
		}
	}
	return files
}

// writeImage writes an image of files of the machine's, at the same places, into a file as docker save does.
func writeImage(path, as string, files, entrypoint []string) error {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, file := range files {
		if err := addFile(w, file); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return saveImage(path, as, layer.Bytes(), entrypoint)
}

func addFile(w *tar.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	header := &tar.Header{Name: strings.TrimPrefix(path, "/"), Typeflag: tar.TypeReg, Mode: int64(info.Mode().Perm()), Size: info.Size(), ModTime: info.ModTime()}
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return err
}

func saveImage(path, as string, files []byte, entrypoint []string) error {
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(files)), nil })
	if err != nil {
		return err
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Config.Entrypoint = "linux", runtime.GOARCH, entrypoint
	if image, err = mutate.ConfigFile(image, config); err != nil {
		return err
	}
	tag, err := name.NewTag("bench/" + as + ":v1")
	if err != nil {
		return err
	}
	return tarball.WriteToFile(path, tag, image)
}
