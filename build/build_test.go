package build

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// source writes a folder of files.
func source(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const hello = "package main\n\nfunc main() { println(\"hello\") }\n"

// contents reads all entries of an image's file system.
func contents(t *testing.T, image v1.Image) map[string]*tar.Header {
	t.Helper()
	files := map[string]*tar.Header{}
	all := mutate.Extract(image)
	defer all.Close()
	reader := tar.NewReader(all)
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		files[header.Name] = header
	}
}

func TestSource_MakesTheSameRunnableImageFromTheSameSource(t *testing.T) {
	files := map[string]string{"go.mod": "module example.com/greet/v2\n\ngo 1.26\n", "main.go": hello}
	first, err := Source(t.Context(), source(t, files), Options{})
	if err != nil {
		t.Fatal(err)
	}
	second, err := Source(t.Context(), source(t, files), Options{})
	if err != nil {
		t.Fatal(err)
	}
	one, oneErr := first.Digest()
	two, twoErr := second.Digest()
	if one != two || oneErr != nil || twoErr != nil {
		t.Errorf("digests %s and %s differ (%v, %v)", one, two, oneErr, twoErr)
	}
	file, err := first.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if file.OS != "linux" || file.Architecture != "amd64" || file.Config.User != "65532" || file.Config.WorkingDir != "/home/nonroot" {
		t.Errorf("the configuration is %+v", file)
	}
	if diff := cmp.Diff([]string{"/usr/local/bin/greet"}, file.Config.Entrypoint); diff != "" {
		t.Errorf("entrypoint (-want +got):\n%s", diff)
	}
	tree := contents(t, first)
	for name, mode := range map[string]int64{"tmp/": 0o1777, "etc/passwd": 0o644, "etc/group": 0o644, "home/nonroot/": 0o700, "usr/local/bin/greet": 0o755} {
		if h := tree[name]; h == nil && tree[strings.TrimSuffix(name, "/")] == nil {
			t.Errorf("the image has no %s", name)
		} else if h != nil && h.Mode != mode {
			t.Errorf("%s has the mode %o, want %o", name, h.Mode, mode)
		}
	}
}

func TestSource_CarriesTheCompilersWords(t *testing.T) {
	dir := source(t, map[string]string{"go.mod": "module example.com/x\n", "main.go": "package main\n\nfunc main() { undefinedName() }\n"})
	_, err := Source(t.Context(), dir, Options{})
	var failed *CompileError
	if !errors.As(err, &failed) || !strings.Contains(err.Error(), "main.go:3:15: undefined: undefinedName") {
		t.Errorf("got error %v, want the compiler's", err)
	}
}

func TestSource_SaysWhatItFoundInsteadOfAMainPackage(t *testing.T) {
	for name, test := range map[string]struct {
		files map[string]string
		want  string
	}{
		"a library":     {map[string]string{"go.mod": "module example.com/lib\n", "lib.go": "package lib\n"}, "it is the Go package lib, not a main package"},
		"a Dockerfile":  {map[string]string{"Dockerfile": "FROM scratch\n", "main.py": ""}, "it has a Dockerfile and no Go files"},
		"Python source": {map[string]string{"main.py": "", "requirements.txt": ""}, "no Go files, but main.py, requirements.txt. a folder with a Go main package is supported"},
		"nothing":       {nil, "it is empty"},
	} {
		_, err := Source(t.Context(), source(t, test.files), Options{})
		var unsupported *UnsupportedError
		if !errors.As(err, &unsupported) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got error %v, want %q", name, err, test.want)
		}
	}
	if _, err := Source(t.Context(), source(t, map[string]string{"main.go": hello}), Options{}); err == nil || !strings.Contains(err.Error(), "go.mod") {
		t.Errorf("outside of a module: got error %v, want go's own about go.mod", err)
	}
	if _, err := Source(t.Context(), filepath.Join(t.TempDir(), "nothing"), Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a folder that is not there: got error %v", err)
	}
	if _, err := Source(t.Context(), source(t, map[string]string{"main.go": hello}), Options{Go: "no-such-go"}); err == nil || !strings.Contains(err.Error(), "the go command is needed") {
		t.Errorf("without the go command: got error %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Source(ctx, source(t, map[string]string{"go.mod": "module example.com/x\n", "main.go": hello}), Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: got error %v", err)
	}
}

func TestBinary_TakesStaticProgramsForServersOnly(t *testing.T) {
	dir := source(t, map[string]string{"go.mod": "module example.com/x\n", "main.go": hello, "text": "hello"})
	compile := func(name string, env ...string) string {
		cmd := exec.CommandContext(t.Context(), "go", "build", "-o", name, ".")
		cmd.Dir = dir
		cmd.Env = append(append(cmd.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64"), env...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return filepath.Join(dir, name)
	}
	image, err := Binary(compile("server"))
	if err != nil {
		t.Fatal(err)
	}
	if file, err := image.ConfigFile(); err != nil || !cmp.Equal(file.Config.Entrypoint, []string{"/usr/local/bin/server"}) {
		t.Errorf("the configuration is %+v, %v", file, err)
	}
	dynamic, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		compile("arm", "GOARCH=arm64"): "it is for EM_AARCH64 (ELFCLASS64), servers need linux/amd64",
		compile("mac", "GOOS=darwin"):  "it is not a Linux executable",
		filepath.Join(dir, "text"):     "it is not a Linux executable",
		dynamic:                        "it is linked dynamically and needs libc.so.6",
	} {
		_, err := Binary(path)
		var unsupported *UnsupportedError
		if !errors.As(err, &unsupported) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got error %v, want %q", path, err, want)
		}
	}
	if _, err := Binary(filepath.Join(dir, "nothing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: got error %v", err)
	}
}
