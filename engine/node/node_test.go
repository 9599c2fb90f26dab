package node

import (
	"log/slog"
	"net/netip"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/engine/enginetest"
	"github.com/berth-run/berth/image"
)

// programFile tells the re-executed test binary where the suite's program is.
const programFile = "BERTH_TEST_PROGRAM"

// Tests that start instances call t.Parallel, except those that look at the whole process or machine: at open files,
// ended children, mounts, what a killed server has left, or addresses that there are once.

func openEngine(t testing.TB, dir string) *Engine {
	t.Helper()
	return openEngineWith(t, dir, "")
}

func openEngineWith(t testing.TB, dir, runtime string) *Engine {
	t.Helper()
	return openEngineAs(t, dir, runtime, UserNamespacesOn)
}

// openEngineAs opens an engine with a runtime, and with a setting of user namespaces.
func openEngineAs(t testing.TB, dir, runtime, users string) *Engine {
	t.Helper()
	images, err := image.Open(filepath.Join(dir, "images"), image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { images.Close() })
	e, err := Open(Config{
		Dir: filepath.Join(dir, "node"), Images: images, Network: netip.MustParsePrefix("10.213.0.0/16"),
		LogKeep: 1 << 20, Runtime: runtime, UserNamespaces: users, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
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

func TestEngine_PassesTheSuite(t *testing.T) {
	t.Parallel()
	for _, runtime := range []string{"crun", "runc"} {
		t.Run(runtime, func(t *testing.T) {
			if _, err := exec.LookPath(runtime); err != nil {
				t.Skipf("%s is not installed", runtime)
			}
			enginetest.Run(t, func(t *testing.T) engine.Engine { return openEngineWith(t, t.TempDir(), runtime) })
		})
	}
}
