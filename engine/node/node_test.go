package node

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"context"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1"

	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/engine/enginetest"
	"github.com/berth-run/berth/image"
)

func openEngine(t testing.TB, dir string) *Engine {
	t.Helper()
	images, err := image.Open(filepath.Join(dir, "images"), image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { images.Close() })
	e, err := Open(Config{
		Dir: filepath.Join(dir, "node"), Images: images, Network: netip.MustParsePrefix("10.213.0.0/16"),
		LogKeep: 1 << 20, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("closing the engine: %v", err)
		}
	})
	return e
}

func get(t testing.TB, i engine.Instance, path string) string {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return i.Dial(ctx) }}}
	defer client.CloseIdleConnections()
	r, err := client.Get("http://instance" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, _ := io.ReadAll(r.Body)
	return string(b)
}

func TestSmoke(t *testing.T) {
	e := openEngine(t, t.TempDir())
	registry := enginetest.NewRegistry(t)
	ref := registry.Push(t, "program", v1.Config{Entrypoint: []string{"/program"}}, []enginetest.File{{Name: "program", Mode: 0o755, Text: enginetest.Program(t)}})
	spec := engine.Spec{Namespace: "default", Service: "hello", Configuration: "hello", Revision: "hello-00001", StartupTimeout: 5 * time.Second,
		Container: engine.Container{Name: "user-container", Image: ref, Port: 8080, CPU: 1000, Memory: 256 << 20, Credentials: engine.Credentials{Insecure: true}}}
	if err := e.Pull(t.Context(), spec, nil); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		t0 := time.Now()
		i, err := e.Prepare(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		t1 := time.Now()
		if err := i.Start(t.Context()); err != nil {
			t.Error(err)
		}
		t2 := time.Now()
		fmt.Println(get(t, i, "/inspect"))
		fmt.Println(i.Stages(), t1.Sub(t0), t2.Sub(t1))
		t3 := time.Now()
		i.Stop(0)
		fmt.Println("stop", time.Since(t3))
	}
	fmt.Println(e.Info())
}
