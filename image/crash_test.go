package image

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/testimage"
)

// Environment variables that turn the test binary into another process that pulls.
const (
	childDir  = "BERTH_TEST_PULL_DIR"
	childRef  = "BERTH_TEST_PULL_REF"
	childTiny = "BERTH_TEST_PULL_TINY" // bytes of the file system that it mounts there for itself
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		os.Exit(pullInChild(dir))
	}
	os.Exit(m.Run())
}

func pullInChild(dir string) int {
	if size := os.Getenv(childTiny); size != "" {
		// In a mount namespace of its own, which ends with this process.
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			panic(err)
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
			panic(err)
		}
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
