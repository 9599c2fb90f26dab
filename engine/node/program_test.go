package node

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/engine"
)

// rootAt is a directory as an instance's root.
func rootAt(t *testing.T, dir string) *rootfs {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	r := &rootfs{dir: dir, root: fd}
	t.Cleanup(r.release)
	return r
}

// check has a file of the root be the program.
func check(r *rootfs, name string) error {
	return r.checkProgram([]string{name}, defaultPath, "/", user{})
}

func refused(err error, reason, text string) bool {
	var failure *engine.StartError
	return errors.As(err, &failure) && failure.Reason == reason && strings.Contains(err.Error(), text)
}

func TestCheckProgram_TakesThisMachines(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{self, "ls", "/bin/sh"} {
		if err := check(rootAt(t, "/"), program); err != nil {
			t.Error(err)
		}
	}
}

func TestCheckProgram_RefusesWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(unix.Mkfifo(filepath.Join(dir, "fifo"), 0o755), os.Mkdir(filepath.Join(dir, "directory"), 0o755)); err != nil {
		t.Fatal(err)
	}
	r := rootAt(t, dir)
	if err := check(r, "/fifo"); !refused(err, engine.ReasonNotExecutable, `"/fifo" is not a regular file (mode prwxr-xr-x)`) {
		t.Errorf("a FIFO: %v", err)
	}
	if err := check(r, "/directory"); !refused(err, engine.ReasonNotExecutable, "is a directory") {
		t.Errorf("a directory: %v", err)
	}
}

// header is the beginning of an ELF program of this machine's, without anything after it.
func header(t *testing.T) []byte {
	t.Helper()
	text := make([]byte, 4096)
	copy(text, "\x7fELF\x02\x01\x01")
	binary.LittleEndian.PutUint16(text[16:], 2)  // e_type: an executable
	binary.LittleEndian.PutUint16(text[18:], 62) // e_machine: x86-64
	binary.LittleEndian.PutUint32(text[20:], 1)  // e_version
	binary.LittleEndian.PutUint16(text[52:], 64) // e_ehsize
	return text
}

func TestCheckProgram_ReadsNoSections(t *testing.T) {
	dir := t.TempDir()
	text := header(t)
	// Sections that begin behind the header, as many as the first one's size says.
	binary.LittleEndian.PutUint64(text[40:], 64)
	binary.LittleEndian.PutUint16(text[58:], 64)
	binary.LittleEndian.PutUint64(text[64+32:], 1<<24)
	if err := os.WriteFile(filepath.Join(dir, "program"), text, 0o755); err != nil {
		t.Fatal(err)
	}
	// Sections are read as long as there are any: make them be there, of zeros that take no space.
	if err := os.Truncate(filepath.Join(dir, "program"), 2<<30); err != nil {
		t.Fatal(err)
	}
	r := rootAt(t, dir)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	err := check(r, "/program")
	runtime.ReadMemStats(&after)
	if err != nil {
		t.Errorf("a program without segments is the kernel's to refuse: %v", err)
	}
	const enough = 4 << 20
	if took := after.TotalAlloc - before.TotalAlloc; took > enough {
		t.Errorf("looking at it took %d bytes of memory", took)
	}
}

func TestCheckProgram_NamesTheMachineAProgramIsFor(t *testing.T) {
	if foreignFormats("qemu-") {
		t.Skip("this machine runs programs for others")
	}
	dir := t.TempDir()
	text := header(t)
	binary.LittleEndian.PutUint16(text[18:], 183)
	if err := os.WriteFile(filepath.Join(dir, "program"), text, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := check(rootAt(t, dir), "/program"); !refused(err, engine.ReasonWrongPlatform, "EM_AARCH64") {
		t.Errorf("got %v", err)
	}
}

func TestFindRuntime_RefusesOtherPrograms(t *testing.T) {
	for _, name := range []string{"ls", "/bin/ls"} {
		_, err := findRuntime(name)
		if err == nil || !strings.Contains(err.Error(), "neither crun nor runc") || !strings.Contains(err.Error(), "/ls") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := findRuntime("/bin/true/x"); err == nil || !strings.Contains(err.Error(), "--runtime") {
		t.Errorf("got %v", err)
	}
}
