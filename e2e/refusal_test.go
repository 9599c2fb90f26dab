package e2e

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-run/berth/server"
)

// refused runs a server that must not start, and sees to it that the error names all the words and that nothing
// is left of the attempt.
func refused(t *testing.T, config server.Config, words ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("instances need root: run the tests as root")
	}
	config.Logger = slog.New(slog.DiscardHandler)
	config.Ready = func(server.Addresses) { t.Error("the server got ready") }
	before := traceOf(t, config.StateDir).all()
	err := server.Run(t.Context(), config)
	if err == nil {
		t.Fatal("the server ran")
	}
	named(t, err.Error(), words...)
	if after := traceOf(t, config.StateDir).all(); len(after) > len(before) {
		t.Errorf("the attempt left %q", after)
	}
}

// named sees to it that a text is one line that has all the words.
func named(t *testing.T, text string, words ...string) {
	t.Helper()
	t.Log(text)
	for _, word := range words {
		if !strings.Contains(text, word) {
			t.Errorf("the error does not name %q: %s", word, text)
		}
	}
	if strings.Contains(text, "\n") {
		t.Errorf("the error has several lines: %q", text)
	}
}

func TestServer_RefusesAStateDirectoryInUse(t *testing.T) {
	t.Parallel()
	p := start(t, func(c *server.Config) { c.Scaling.PreparedMemory.Bytes = 0 })
	url := p.deploy(service("hello", program(t, "hello"))).Status.URL.String()
	// The first server's own traces must not grow meanwhile: it fills its pool of networks after a start.
	last := -1
	await(t, "the first server to come to rest", func() error {
		now := len(traceOf(t, p.dir).all())
		rest := errorUnless(now == last, "%d traces, %d before", now, last)
		last = now
		time.Sleep(300 * time.Millisecond)
		return rest
	})
	refused(t, settings(p.dir), p.dir, "another berth server", strconv.Itoa(os.Getpid()), "--state-dir")
	if a := p.get(url); a.status != 200 {
		t.Errorf("the first server answers %d %q afterwards", a.status, a.body)
	}
	// Many may run beside each other, on directories of their own.
	other := start(t, nil)
	if a := other.get(other.deploy(service("hello", program(t, "hello"))).Status.URL.String()); a.status != 200 {
		t.Errorf("the other server answers %d %q", a.status, a.body)
	}
}

func TestServer_RefusesAnAddressInUse(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	address := taken.Addr().String()
	config := settings(stateDir(t))
	config.GatewayAddress = address
	refused(t, config, "gateway", address, "in use", "--gateway-address")
	config = settings(stateDir(t))
	config.APIAddress = address
	refused(t, config, "API", address, "in use", "--api-address")
	config.APIAddress = "no address"
	refused(t, config, "API", "no address", "--api-address")
}

func TestServer_RefusesARuntimeThatIsNotThere(t *testing.T) {
	t.Parallel()
	config := settings(stateDir(t))
	config.Runtime = "/nonexistent"
	refused(t, config, "OCI runtime", "/nonexistent", "no such file", "--runtime")
	config.Runtime = "nonexistent"
	refused(t, config, "OCI runtime", "nonexistent", "$PATH", "install")
	// Nothing of the attempt is in the way of the next one.
	p := startIn(t, config.StateDir, nil)
	if a := p.get(p.deploy(service("hello", program(t, "hello"))).Status.URL.String()); a.status != 200 {
		t.Errorf("answer %d %q", a.status, a.body)
	}
}

func TestServer_RefusesAFileOfObjectsThatIsDamaged(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	p := startIn(t, dir, nil)
	url := p.deploy(service("hello", program(t, "hello"))).Status.URL.String()
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "objects.db")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for what, damaged := range map[string][]byte{
		"no database":   []byte("this is not a database\n"),
		"half of it":    whole[:len(whole)/2],
		"zeroed inside": append(make([]byte, len(whole)-4096), whole[len(whole)-4096:]...),
	} {
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		t.Log(what)
		refused(t, settings(dir), path)
		if now, err := os.ReadFile(path); err != nil || len(now) != len(damaged) {
			t.Errorf("%s: the server changed the file that it refused: %d bytes of %d, %v", what, len(now), len(damaged), err)
		}
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	p = startIn(t, dir, nil)
	if a := p.get(url); a.status != 200 {
		t.Errorf("with the file restored: %d %q", a.status, a.body)
	}
}

func TestServer_RefusesToRunWithoutRoot(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("becomes another user, which root alone may")
	}
	// The directory that the test binary is in is root's alone.
	dir, err := os.MkdirTemp("", "berth-nobody-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	const nobody = 65534
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "server")
	if err := copyFile(binary, os.Args[0]); err != nil {
		t.Fatal(err)
	}
	// On a directory of its own, and on one that only root may make, as the default is.
	for _, state := range []string{filepath.Join(dir, "state"), stateDir(t)} {
		cmd := exec.CommandContext(t.Context(), binary)
		cmd.Env = append(os.Environ(), serverDir+"="+state)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		output, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 1 {
			t.Errorf("on %s the server ended with %v, want exit code 1", state, err)
		}
		named(t, strings.TrimSpace(string(output)), "run berth as root")
	}
}

// copyFile copies a program. Another process writes it: while this one has it open for writing, the processes that it
// starts meanwhile have it too, and it could not be run ("text file busy").
func copyFile(to, from string) error {
	if output, err := exec.Command("cp", from, to).CombinedOutput(); err != nil {
		return fmt.Errorf("copying %s: %w: %s", from, err, output)
	}
	return nil
}
