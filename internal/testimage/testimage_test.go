package testimage_test

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/berth-run/berth/image"
	"github.com/berth-run/berth/internal/testimage"
)

func TestProgram_EveryProgramBuildsPushesAndPulls(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("unpacking images needs root")
	}
	registry := testimage.Serve(t, testimage.Options{Username: "user", Password: "secret"})
	credentials := image.Credentials{Username: "user", Password: "secret"}
	store, err := image.Open(t.TempDir(), image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	programs, err := os.ReadDir("programs")
	if err != nil || len(programs) == 0 {
		t.Fatalf("there are %d programs: %v", len(programs), err)
	}
	var images testimage.Builder
	for _, program := range programs {
		ref := registry.Push(t, images.Program(t, program.Name()), "test/"+program.Name()+":v1")
		digest, err := store.Resolve(t.Context(), ref, credentials)
		if err != nil {
			t.Fatal(err)
		}
		pulled, err := store.Pull(t.Context(), digest, credentials, nil)
		if err != nil {
			t.Fatal(err)
		}
		top := pulled.Layers[len(pulled.Layers)-1]
		if info, err := os.Stat(filepath.Join(top, pulled.Config.Entrypoint[0])); err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("%s: the program is %v, %v", program.Name(), info, err)
		}
	}
}

func TestGo_HelloServesAndEndsOnSIGTERM(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("unpacking images needs root")
	}
	registry := testimage.Serve(t, testimage.Options{})
	store, err := image.Open(t.TempDir(), image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	digest, err := store.Resolve(t.Context(), registry.Push(t, testimage.Go(t, "examples/hello"), "hello:v1"), image.Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	pulled, err := store.Pull(t.Context(), digest, image.Credentials{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(pulled.Layers[len(pulled.Layers)-1], pulled.Config.Entrypoint[0]))
	cmd.Env = []string{fmt.Sprintf("PORT=%d", port), "K_REVISION=hello-00001"}
	started, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// Its first line says that it listens.
	if _, err := started.Read(make([]byte, 256)); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{"/": 200, "/sleep?ms=1": 200, "/sleep?ms=x": 400} {
		answer, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d%s", port, path))
		if err != nil {
			t.Fatal(err)
		}
		if err := answer.Body.Close(); err != nil || answer.StatusCode != want {
			t.Errorf("%s: status %d (%v), want %d", path, answer.StatusCode, err, want)
		}
	}
	if err := errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()); err != nil {
		t.Errorf("it ended with %v", err)
	}
}
