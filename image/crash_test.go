package image

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/testimage"
)

// Environment variables that turn the test binary into another process that pulls.
const (
	childDir  = "BERTH_TEST_PULL_DIR"
	childRef  = "BERTH_TEST_PULL_REF"
	childTiny = "BERTH_TEST_PULL_TINY" // bytes of the file system that it mounts there for itself
	childList = "BERTH_TEST_LIST"      // layers, top first, to be mounted as an overlay at childDir and listed
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" && os.Getenv(childList) != "" {
		os.Exit(listInChild(dir))
	} else if dir != "" {
		os.Exit(pullInChild(dir))
	}
	os.Exit(m.Run())
}

func pullInChild(dir string) int {
	if size := os.Getenv(childTiny); size != "" {
		mountForMyself("tmpfs", dir, "size="+size)
	}
	s, err := Open(dir, Options{})
	if err != nil {
		panic(err)
	}
	image, err := s.Pull(context.Background(), os.Getenv(childRef), Credentials{}, func(complete, total int64) {
		if complete > total/3 {
			os.Stdout.WriteString("a third\n")
		}
	})
	switch {
	case errors.Is(err, unix.ENOSPC):
		for _, pattern := range []string{"layers/*", "images/*", "tmp/*"} {
			if left, globErr := filepath.Glob(filepath.Join(dir, pattern)); globErr != nil || len(left) > 0 {
				os.Stdout.WriteString("left behind: " + strings.Join(left, " ") + "; ")
			}
		}
		os.Stdout.WriteString("disk full: " + err.Error())
	case err != nil:
		os.Stdout.WriteString("error: " + err.Error())
	default:
		os.Stdout.WriteString("pulled " + image.Ref)
	}
	return 0
}

// mountForMyself mounts in this process's own mount namespace, which ends with it.
func mountForMyself(kind, dir, data string) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		panic(err)
	}
	if err := unix.Mount(kind, dir, kind, 0, data); err != nil {
		panic(err)
	}
}

func listInChild(dir string) int {
	mountForMyself("overlay", dir, "lowerdir="+os.Getenv(childList))
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		var content []byte
		if e.Type().IsRegular() {
			if content, err = os.ReadFile(path); err != nil {
				return err
			}
		}
		_, err = fmt.Printf("%v %s %s\n", info.Mode(), strings.TrimPrefix(path, dir), content)
		return err
	})
	if err != nil {
		panic(err)
	}
	return 0
}

func TestPull_LayersMakeTheImagesFileSystemWhenMounted(t *testing.T) {
	registry := testimage.Serve(t, testimage.Options{})
	s := openTest(t, t.TempDir(), Options{})
	image, err := resolveAndPull(t, s, registry.Push(t, makeImage(t,
		gzipLayer(t, makeTar(t,
			tar.Header{Name: "tmp/", Mode: 0o1777}, reg("tmp/old", "old"), reg("etc/hosts", "lower"), reg("etc/gone", "gone"),
			reg("opaque/below", "x"), reg("replaced/below", "x"), reg("becomes-file/x", "x"), reg("becomes-dir", "x"),
			reg("removed/deep/x", "x"))),
		gzipLayer(t, makeTar(t,
			reg("tmp/new", "new"), reg("etc/hosts", "upper"), reg("etc/.wh.gone", ""),
			reg("opaque/", ""), reg("opaque/above", "y"), reg("opaque/.wh..wh..opq", ""),
			reg(".wh.replaced", ""), reg("replaced/above", "y"),
			reg(".wh.becomes-file", ""), reg("becomes-file", "f"), reg("becomes-dir/", ""), reg("becomes-dir/y", "y"),
			reg("removed/.wh.deep", ""))),
	), "hello:v1"), Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	layers := slices.Clone(image.Layers)
	slices.Reverse(layers)
	cmd := child(t, t.TempDir(), "", childList+"="+strings.Join(layers, ":"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	want := `drwxr-xr-x /becomes-dir 
-rwxr-xr-x /becomes-dir/y y
-rwxr-xr-x /becomes-file f
drwxr-xr-x /etc 
-rwxr-xr-x /etc/hosts upper
drwxr-xr-x /opaque 
-rwxr-xr-x /opaque/above y
drwxr-xr-x /removed 
drwxr-xr-x /replaced 
-rwxr-xr-x /replaced/above y
dtrwxrwxrwx /tmp 
-rwxr-xr-x /tmp/new new
-rwxr-xr-x /tmp/old old
`
	if diff := cmp.Diff(want, string(out)); diff != "" {
		t.Errorf("the mounted image (-want +got):\n%s", diff)
	}
}

// child is the test binary, told to pull ref into dir.
func child(t *testing.T, dir, ref string, env ...string) *exec.Cmd {
	t.Helper()
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), binary)
	cmd.Env = append(append(os.Environ(), childDir+"="+dir, childRef+"="+ref), env...)
	cmd.Stderr = os.Stderr
	return cmd
}

func TestPull_AKilledProcessLeavesNothingHalfDoneThatIsUsed(t *testing.T) {
	needRoot(t)
	var files []tar.Header
	for i := range 200 {
		files = append(files, reg(strings.Repeat("n", i+1), strings.Repeat("content", 1500)))
	}
	archive := makeTar(t, files...)
	layer := plainLayer(archive)
	digest, err := layer.Digest()
	if err != nil {
		t.Fatal(err)
	}
	released := make(chan struct{})
	registry := testimage.Serve(t, testimage.Options{Wrap: func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-released:
				next.ServeHTTP(w, r)
				return
			default:
			}
			if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, digest.String()) {
				next.ServeHTTP(w, r)
				return
			}
			w.Header().Set("Content-Length", strconv.Itoa(len(archive)))
			if _, err := w.Write(archive[:len(archive)/2]); err != nil {
				t.Error(err)
			}
			if err := http.NewResponseController(w).Flush(); err != nil {
				t.Error(err)
			}
			<-r.Context().Done()
		})
	}})
	dir := t.TempDir()
	s := openTest(t, dir, Options{})
	ref, err := s.Resolve(t.Context(), registry.Push(t, makeImage(t, layer), "hello:v1"), Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := child(t, dir, ref)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "a third\n" {
		t.Fatalf("the process said %q, %v", line, err)
	}
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("the process ended by itself")
	}
	if left, err := filepath.Glob(filepath.Join(dir, "tmp", "*", "nn")); err != nil || len(left) == 0 {
		t.Fatalf("the process was killed too early: it left %q (%v)", left, err)
	}
	close(released)
	s = openTest(t, dir, Options{})
	isEmpty(t, s)
	if _, err := s.Image(ref); err == nil {
		t.Fatal("the half image is taken for whole")
	}
	image, err := s.Pull(t.Context(), ref, Credentials{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(listTree(t, image.Layers[0])); n != 200 {
		t.Errorf("the layer has %d files, want 200", n)
	}
}

func TestPull_SaysThatTheDiskIsFullAndKeepsNothing(t *testing.T) {
	needRoot(t)
	registry := testimage.Serve(t, testimage.Options{})
	ref := registry.Push(t, makeImage(t, gzipLayer(t, makeTar(t, reg("big", strings.Repeat("x", 8<<20))))), "hello:v1")
	dir := t.TempDir()
	s := openTest(t, t.TempDir(), Options{})
	digest, err := s.Resolve(t.Context(), ref, Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	cmd := child(t, dir, digest, childTiny+"=2m")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(out)
	if err := errors.Join(err, cmd.Wait()); err != nil {
		t.Fatal(err)
	}
	got := string(text)
	got = strings.ReplaceAll(got, "a third\n", "")
	if !strings.HasPrefix(got, "disk full: ") || !strings.Contains(got, dir) || !strings.Contains(got, "free space") {
		t.Errorf("the process said %q, want the directory and what to do", got)
	}
	if n := strings.Count(got, digest); n != 1 {
		t.Errorf("the image is named %d times in %q", n, got)
	}
}
