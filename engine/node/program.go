package node

import (
	"bufio"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/engine"
)

// checkProgram finds the program that the container is to run and checks that the kernel will take it. The
// kernel and the runtimes would say no more than "no such file or directory" or "exec format error".
func (r *rootfs) checkProgram(args []string, searchPath, workingDir string, who user) error {
	if len(args) == 0 || args[0] == "" {
		return notExecutable("the image names no program to run: give it an ENTRYPOINT or CMD, or the service a command")
	}
	file, name, err := r.findProgram(args[0], searchPath, workingDir)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("looking at program %q: %w", name, err)
	}
	if !info.IsDir() && !info.Mode().IsRegular() { // opening a FIFO would wait for who writes to it
		return notExecutable("the container's program %q is not a regular file (mode %s): name the program itself", name, info.Mode())
	}
	if info.IsDir() {
		return notExecutable("the container's program %q is a directory: name the program in it", name)
	}
	if !mayExecute(info, who, r.ids) {
		return notExecutable("the container's program %q may not be executed by user %d (mode %s): chmod +x it in the image", name, who.uid, info.Mode().Perm())
	}
	// The path was opened without permission to read: open what it led to.
	readable, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", file.Fd()))
	if err != nil {
		return fmt.Errorf("reading program %q: %w", name, err)
	}
	defer readable.Close()
	return r.checkFormat(readable, name)
}

func (r *rootfs) findProgram(program, searchPath, workingDir string) (*os.File, string, error) {
	if strings.Contains(program, "/") {
		name := program
		if !path.IsAbs(name) {
			name = path.Join(workingDir, name)
		}
		file, err := r.openIn(name, unix.O_PATH, 0)
		if err != nil {
			return nil, "", notExecutable("the container's program %q is not in the image: %w", name, reason(err))
		}
		return file, name, nil
	}
	for dir := range strings.SplitSeq(searchPath, ":") {
		name := path.Join(workingDir, dir, program)
		if path.IsAbs(dir) {
			name = path.Join(dir, program)
		}
		file, err := r.openIn(name, unix.O_PATH, 0)
		if err != nil {
			continue
		}
		if info, err := file.Stat(); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0 {
			return file, name, nil
		}
		file.Close()
	}
	return nil, "", notExecutable("the container's program %q is not in the image: it is in none of the directories of $PATH (%s)", program, searchPath)
}

func mayExecute(info fs.FileInfo, who user, m ids) bool {
	mode := uint32(info.Mode().Perm())
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return true
	}
	uid, uidKnown := m.inside(stat.Uid)
	gid, gidKnown := m.inside(stat.Gid)
	switch {
	case who.uid == 0 && uidKnown && gidKnown: // over files of others than the instance's users, its root has no power
		return mode&0o111 != 0
	case who.uid == uid && uidKnown:
		return mode&0o100 != 0
	case gidKnown && (who.gid == gid || slices.Contains(who.groups, gid)):
		return mode&0o010 != 0
	}
	return mode&0o001 != 0
}

// checkFormat checks what the program begins with, and that what it needs to start is there.
func (r *rootfs) checkFormat(file *os.File, name string) error {
	head, err := bufio.NewReaderSize(file, 256).Peek(256)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("reading program %q: %w", name, err)
	}
	switch {
	case strings.HasPrefix(string(head), elf.ELFMAG):
		return r.checkELF(file, name)
	case strings.HasPrefix(string(head), "#!"):
		line, _, _ := strings.Cut(string(head[2:]), "\n")
		fields := strings.Fields(line)
		if len(fields) == 0 {
			return notExecutable("the container's program %q is a script whose first line, #!, names no interpreter", name)
		}
		if strings.HasSuffix(line, "\r") {
			return notExecutable("the container's program %q is a script with Windows line ends, and so its interpreter %q is not found: save it with Unix line ends", name, line)
		}
		return r.checkNeeded(name, "the interpreter", fields[0])
	}
	if foreignFormats("") {
		return nil
	}
	return notExecutable("the container's program %q is neither an ELF program nor a script that begins with #!", name)
}

func (r *rootfs) checkELF(file *os.File, name string) error {
	program, err := elf.NewFile(&withoutSections{file: file})
	if err != nil {
		return notExecutable("the container's program %q is damaged: %w", name, err)
	}
	if !slices.Contains([]elf.Machine{elf.EM_X86_64, elf.EM_386}, program.Machine) && !foreignFormats("qemu-") { // contract C2
		return &engine.StartError{
			Reason: engine.ReasonWrongPlatform,
			Err:    fmt.Errorf("the container's program %q is for %s, this machine is linux/%s: exec format error", name, program.Machine, runtime.GOARCH),
		}
	}
	for _, p := range program.Progs {
		if p.Type != elf.PT_INTERP || p.Filesz > unix.PathMax {
			continue
		}
		text, err := io.ReadAll(p.Open())
		if err != nil {
			return fmt.Errorf("reading program %q: %w", name, err)
		}
		return r.checkNeeded(name, "the dynamic linker", strings.TrimRight(string(text), "\x00"))
	}
	return nil
}

// withoutSections is an ELF file as the kernel sees it, which never looks at sections. debug/elf reads all of their
// table, which a small file can claim to be gigabytes of.
type withoutSections struct{ file io.ReaderAt }

// ReadAt implements io.ReaderAt.
func (w *withoutSections) ReadAt(p []byte, off int64) (int, error) {
	n, err := w.file.ReadAt(p, off)
	var class [1]byte
	if _, err := w.file.ReadAt(class[:], elf.EI_CLASS); err != nil {
		return 0, err
	}
	// The fields e_shoff, and e_shentsize to e_shstrndx, of the ELF header.
	fields := [][2]int64{{40, 48}, {58, 64}}
	if elf.Class(class[0]) == elf.ELFCLASS32 {
		fields = [][2]int64{{32, 36}, {46, 52}}
	}
	for _, f := range fields {
		if begin, end := max(f[0]-off, 0), min(f[1]-off, int64(n)); begin < end {
			clear(p[begin:end])
		}
	}
	return n, err
}

func (r *rootfs) checkNeeded(name, what, needed string) error {
	file, err := r.openIn(needed, unix.O_PATH, 0)
	if err != nil {
		return notExecutable("the container's program %q needs %s %q, which is not in the image (%w): use a base image that has it, or link the program statically", name, what, needed, reason(err))
	}
	return file.Close()
}

// foreignFormats reports whether the kernel was taught other formats (binfmt_misc) whose names begin with
// prefix, as QEMU's: then only it knows what runs.
func foreignFormats(prefix string) bool {
	entries, _ := os.ReadDir("/proc/sys/fs/binfmt_misc")
	return slices.ContainsFunc(entries, func(e fs.DirEntry) bool {
		return e.Name() != "register" && e.Name() != "status" && strings.HasPrefix(e.Name(), prefix)
	})
}

// reason is the error of a failed call without the call and the path, which the message says already.
func reason(err error) error {
	var failed *fs.PathError
	if errors.As(err, &failed) {
		return failed.Err
	}
	return err
}

func notExecutable(format string, args ...any) error {
	return &engine.StartError{Reason: engine.ReasonNotExecutable, Err: fmt.Errorf(format, args...)}
}
