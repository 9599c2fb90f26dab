// Package build makes container images out of Go source ([Source]) or a finished program ([Binary]), without
// Docker: a program that is linked statically needs no distribution around it. It writes nothing but the image;
// pushing that is package image's. Start reading at [Source].
package build

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1"
)

// Options are the settings of a build. The zero value is usable.
type Options struct {
	// Go is the go command; empty is the one in PATH.
	Go string
	// Env is the environment of the go command, as NAME=VALUE; nil is this process's.
	Env []string
}

// UnsupportedError says that what was given to a build is not something that it makes images of.
type UnsupportedError struct {
	Path   string
	Reason string // what was found, and what to do
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("cannot make an image of %q: %s", e.Path, e.Reason)
}

// CompileError carries what the compiler said.
type CompileError struct {
	Dir    string
	Output string
}

func (e *CompileError) Error() string {
	return fmt.Sprintf("building %q:\n%s", e.Dir, e.Output)
}

// Source builds the Go main package in dir for linux/amd64 and makes an image of it. The same source, built by
// the same Go release on a machine with the same CA certificates, gives the same digest.
// Errors are *UnsupportedError and *CompileError, which carries the compiler's own words.
func Source(ctx context.Context, dir string, options Options) (v1.Image, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("building %q: %w", dir, err)
	}
	if err := inspect(dir); err != nil {
		return nil, err
	}
	command := options.Go
	if command == "" {
		command = "go"
	}
	if command, err = exec.LookPath(command); err != nil {
		return nil, fmt.Errorf("building %q: the go command is needed to build from source: %w", dir, err)
	}
	b := builder{command: command, dir: dir, env: options.Env}
	p, err := b.list(ctx)
	if err != nil {
		return nil, err
	}
	if p.Name != "main" {
		return nil, &UnsupportedError{dir, fmt.Sprintf("it is the Go package %s, not a main package: give the folder of the program's main package", p.Name)}
	}
	work, err := os.MkdirTemp("", "berth-build-")
	if err != nil {
		return nil, fmt.Errorf("building %q: %w", dir, err)
	}
	defer os.RemoveAll(work)
	out := filepath.Join(work, "program")
	// Nothing of the folder's place or its history goes into the program: equal source, equal image.
	if _, err := b.run(ctx, "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", out, "."); err != nil {
		return nil, err
	}
	program, err := os.ReadFile(out)
	if err != nil {
		return nil, fmt.Errorf("building %q: %w", dir, err)
	}
	if err := checkProgram(dir, program); err != nil {
		return nil, err
	}
	return assemble(programName(p.ImportPath), program)
}

// Binary makes an image of a program: an ELF executable for linux/amd64 that is linked statically. Others are
// refused with an *UnsupportedError.
func Binary(path string) (v1.Image, error) {
	program, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("making an image: %w", err)
	}
	if err := checkProgram(path, program); err != nil {
		return nil, err
	}
	return assemble(programName(path), program)
}

// inspect refuses folders without Go source, saying what was found there.
func inspect(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("building: %w", err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".go") && !e.IsDir() {
			return nil
		}
		names = append(names, e.Name())
	}
	const supported = "a folder with a Go main package is supported; for other languages build an image and give that"
	for _, name := range names {
		if name == "Dockerfile" || name == "Containerfile" {
			return &UnsupportedError{dir, fmt.Sprintf("it has a %s and no Go files. %s: docker build -t NAME . && docker save -o image.tar NAME, then docker-archive:image.tar", name, supported)}
		}
	}
	if len(names) == 0 {
		return &UnsupportedError{dir, "it is empty. " + supported}
	}
	const most = 8
	found := strings.Join(names[:min(len(names), most)], ", ")
	if len(names) > most {
		found += ", …"
	}
	return &UnsupportedError{dir, fmt.Sprintf("it has no Go files, but %s. %s", found, supported)}
}

// builder runs the go command.
type builder struct {
	command string
	dir     string
	env     []string
}

// listed is what `go list` says of a package.
type listed struct{ Name, ImportPath string }

func (b builder) list(ctx context.Context) (listed, error) {
	out, err := b.run(ctx, "list", "-json=Name,ImportPath", ".")
	if err != nil {
		return listed{}, err
	}
	var p listed
	if err := json.Unmarshal(out, &p); err != nil {
		return listed{}, fmt.Errorf("building %q: reading what go list says: %w", b.dir, err)
	}
	return p, nil
}

func (b builder) run(ctx context.Context, arguments ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, b.command, arguments...)
	cmd.Dir = b.dir
	cmd.Env = append(cmd.Env, b.env...)
	if b.env == nil {
		cmd.Env = cmd.Environ()
	}
	cmd.Env = append(cmd.Env, "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOAMD64=v1", "GOFLAGS=")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("building %q: %w", b.dir, context.Cause(ctx))
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil, &CompileError{Dir: b.dir, Output: strings.TrimSpace(stderr.String() + stdout.String())}
	}
	if err != nil {
		return nil, fmt.Errorf("building %q: %w", b.dir, err)
	}
	return stdout.Bytes(), nil
}

// checkProgram refuses programs that would not start in an image that has nothing else.
func checkProgram(path string, program []byte) error {
	file, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return &UnsupportedError{path, fmt.Sprintf("it is not a Linux executable (%v): build it with GOOS=linux GOARCH=amd64, or give a folder or an image", err)}
	}
	defer file.Close()
	if file.Class != elf.ELFCLASS64 || file.Machine != elf.EM_X86_64 {
		return &UnsupportedError{path, fmt.Sprintf("it is for %s (%s), servers need linux/amd64: build it for that", file.Machine, file.Class)}
	}
	if file.Type != elf.ET_EXEC && file.Type != elf.ET_DYN {
		return &UnsupportedError{path, fmt.Sprintf("it is an ELF file of type %s, not an executable", file.Type)}
	}
	for _, p := range file.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		// A library list that cannot be read is left out of the message.
		libraries, _ := file.ImportedLibraries()
		return &UnsupportedError{path, fmt.Sprintf("it is linked dynamically and needs %s: link it statically (for Go: CGO_ENABLED=0), or build an image that has its libraries", strings.Join(libraries, ", "))}
	}
	if file.Type == elf.ET_DYN && file.Entry == 0 {
		return &UnsupportedError{path, "it is a shared library, not an executable"}
	}
	return nil
}

// programName is the last element of a package's or file's path that can be a file's name. Versions of modules
// ("example.com/hello/v2") do not count.
func programName(path string) string {
	path = filepath.ToSlash(path)
	base := path[strings.LastIndex(path, "/")+1:]
	if regexp.MustCompile(`^v[0-9]+$`).MatchString(base) {
		if above := programName(strings.TrimSuffix(path, "/"+base)); above != path {
			return above
		}
	}
	if base == "" || !fs.ValidPath(base) {
		return "program"
	}
	return base
}
