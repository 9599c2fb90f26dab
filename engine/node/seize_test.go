package node

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/engine/enginetest"
)

// seizer builds the program that tries to write to the runtime's. It lies elsewhere in memory than the runtime, whose
// linker it is to be.
func seizer(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "seize")
	build := exec.Command("go", "build", "-ldflags=-s -w -T 0x20001000", "-o", path, "./testdata/seize")
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the program: %v\n%s", err, output)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestInstance_CannotWriteToTheRuntime has a container run the runtime's program again (CVE-2019-5736), as its own
// program and as a command in it, as root.
func TestInstance_CannotWriteToTheRuntime(t *testing.T) {
	program := seizer(t)
	for _, runtime := range []string{"crun", "runc"} {
		for _, users := range []string{UserNamespacesOn, UserNamespacesOff} {
			t.Run(runtime+"/"+users, func(t *testing.T) {
				t.Parallel()
				if _, err := exec.LookPath(runtime); err != nil {
					t.Skipf("%s is not installed", runtime)
				}
				e := openEngineAs(t, t.TempDir(), runtime, users)
				machines, err := os.Stat(e.runtime.path)
				if err != nil {
					t.Fatal(err)
				}
				check := func(said string) {
					t.Helper()
					var found struct {
						Size          int64
						Write, Change string
					}
					if err := json.Unmarshal([]byte(said), &found); err != nil {
						t.Fatalf("it says %q: %v", said, err)
					}
					if found.Size != machines.Size() {
						t.Errorf("it has opened a program of %d bytes, want the runtime's, which has %d", found.Size, machines.Size())
					}
					if found.Write == "<nil>" {
						t.Error("it opens the runtime's program for writing")
					}
					// This tells also while the program is busy, because another container waits to begin.
					if found.Change != unix.EROFS.Error() {
						t.Errorf("changing the runtime's program: %s, want %v", found.Change, unix.EROFS)
					}
				}
				s := enginetest.New(t, e)
				again := []enginetest.File{
					{Name: "lib64/", Mode: 0o755},
					{Name: "lib64/ld-linux-x86-64.so.2", Mode: 0o755, Text: program},
					{Name: "bin/", Mode: 0o755},
					{Name: "bin/again", Mode: 0o755, Text: "#!/proc/self/exe\n"},
					{Name: "bin/program", Mode: 0o755, Text: s.Program},
					{Name: "proc/", Mode: 0o755}, // what is looked at before the container has a /proc of its own
					{Name: "proc/self/", Mode: 0o755},
					{Name: "proc/self/exe", Mode: 0o755, Text: program},
				}
				image := s.Registry.Push(t, "again", v1.Config{Entrypoint: []string{"/bin/program"}, Env: []string{"PORT=8080"}}, again)

				i := s.Start(t, func(spec *engine.Spec) { spec.Container.Image = image }, "serve")
				var output, said bytes.Buffer
				code, err := i.Exec(t.Context(), engine.Command{Args: []string{"/bin/again"}, Stdout: &output, Stderr: &said})
				if err != nil || code != 0 {
					t.Fatalf("the command ends with %d, %q: %v", code, said.String(), err)
				}
				check(output.String())

				i, err = e.Prepare(t.Context(), s.Spec(t, func(spec *engine.Spec) {
					spec.Container.Image, spec.Container.Command = image, []string{"/bin/again"}
				}))
				if err != nil {
					t.Fatal(err)
				}
				defer i.Stop(0)
				if err := i.Start(t.Context()); err == nil {
					t.Fatal("it starts")
				}
				<-i.Exited()
				check(strings.Join(i.Exit().LastLines, "\n"))
			})
		}
	}
}
