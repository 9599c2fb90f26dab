package bench_test

import (
	"os"
	"strings"
	"testing"

	"github.com/berth-run/berth/bench"
)

func TestStart_SaysWhatAServerThatEndedWrote(t *testing.T) {
	t.Chdir(t.TempDir())
	t.Setenv("TMPDIR", t.TempDir())
	if err := os.Mkdir("bin", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("bin/berth", []byte("#!/bin/sh\necho it has no arms >&2\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := bench.Start(t.Context())
	if err == nil || !strings.Contains(err.Error(), "it ended") || !strings.Contains(err.Error(), "it has no arms") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("got error %v, want one that says how it ended and what it wrote", err)
	}
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) > 0 {
		t.Errorf("%v is left (%v)", left, err)
	}
}
