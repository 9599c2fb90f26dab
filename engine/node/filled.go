package node

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/berth-run/berth/engine"
)

// Limits on the files of all volumes of an instance, which are in the engine's memory.
const (
	maxVolumeBytes = 16 << 20
	maxVolumeFiles = 4096
)

// The names in a volume's directory that are not files of the volume begin with two dots, as no file's may.
const (
	dataLink  = "..data"
	freshLink = "..data_new"
)

// filled is a volume with files that the platform writes, laid out as Kubernetes does, so that what is known about
// one holds for the other: the files are in a directory whose name is a time, the link ..data leads to that directory, and
// the links that have the files' names lead through ..data. New files are written to a new directory, and then the
// one link is replaced: whoever reads through it sees all of the old files or all of the new.
type filled struct {
	dir    string
	owner  int
	read   func(context.Context) ([]engine.File, error)
	points []string // paths in the volume where others are mounted, directories

	files []engine.File     // read and not yet written
	count int               // of the files that were read last
	bytes int               // in these files
	sum   [sha256.Size]byte // of the files that are written
	held  map[string]string // directories of files that a container has mounted a part of, by container
	// current is the directory that ..data leads to, by its name.
	current string
}

// load reads the files and checks them.
func (f *filled) load(ctx context.Context) error {
	files, err := f.read(ctx)
	if err != nil {
		return err
	}
	files = slices.Clone(files)
	slices.SortFunc(files, func(a, b engine.File) int { return strings.Compare(a.Path, b.Path) })
	size := 0
	known := map[string]bool{}
	for _, file := range files {
		if !fs.ValidPath(file.Path) || file.Path == "." || strings.HasPrefix(file.Path, "..") {
			return fmt.Errorf("%q cannot be the path of a file in it: give one that is relative, clean, and does not begin with two dots", file.Path)
		}
		if known[file.Path] {
			return fmt.Errorf("two files in it have the path %q", file.Path)
		}
		for dir := path.Dir(file.Path); dir != "."; dir = path.Dir(dir) {
			if known[dir] {
				return fmt.Errorf("%q is a file in it, and so %q cannot be", dir, file.Path)
			}
		}
		known[file.Path] = true
		size += len(file.Data)
	}
	f.files, f.count, f.bytes = files, len(files), size
	return nil
}

// make writes the volume's first files, into its empty directory.
func (f *filled) make() error {
	for _, point := range f.points {
		first := firstName(point)
		if slices.ContainsFunc(f.files, func(file engine.File) bool { return firstName(file.Path) == first }) {
			return fmt.Errorf("another volume is mounted at %q in it, where it has files of its own", point)
		}
		if err := f.mkdirAll(f.dir, point); err != nil {
			return err
		}
	}
	if err := os.Chown(f.dir, f.owner, f.owner); err != nil {
		return err
	}
	return f.write()
}

// replace replaces the files by those that were loaded, if they are others.
func (f *filled) replace() error {
	if f.sum == sum(f.files) {
		f.files = nil
		return nil
	}
	return f.write()
}

// write makes the loaded files the volume's.
func (f *filled) write() error {
	next, err := os.MkdirTemp(f.dir, time.Now().UTC().Format("..2006_01_02_15_04_05."))
	if err != nil {
		return err
	}
	if err := f.writeInto(next); err != nil {
		return errors.Join(reason(err), os.RemoveAll(next))
	}
	f.current = filepath.Base(next)
	if err := errors.Join(f.link(), f.removeOld()); err != nil {
		return err // and the next time all is written again
	}
	f.sum, f.files = sum(f.files), nil
	return nil
}

// writeInto writes the loaded files to a directory, and makes ..data lead to it.
func (f *filled) writeInto(next string) error {
	if err := errors.Join(os.Chmod(next, 0o755), os.Chown(next, f.owner, f.owner)); err != nil {
		return err
	}
	for _, file := range f.files {
		if err := f.mkdirAll(next, path.Dir(file.Path)); err != nil {
			return err
		}
		name := filepath.Join(next, file.Path)
		if err := os.WriteFile(name, file.Data, 0o600); err != nil {
			return err
		}
		if err := errors.Join(os.Chmod(name, fs.FileMode(file.Mode)&fs.ModePerm), os.Chown(name, f.owner, f.owner)); err != nil {
			return err
		}
	}
	fresh := filepath.Join(f.dir, freshLink)
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(filepath.Base(next), fresh); err != nil {
		return err
	}
	return errors.Join(os.Lchown(fresh, f.owner, f.owner), os.Rename(fresh, filepath.Join(f.dir, dataLink)))
}

// link makes a link for the first name of each file's path, and removes those of files that are no more.
func (f *filled) link() error {
	wanted := map[string]bool{}
	for _, point := range f.points {
		wanted[firstName(point)] = true // which is a directory
	}
	for _, file := range f.files {
		name := firstName(file.Path)
		if wanted[name] {
			continue
		}
		wanted[name] = true
		link := filepath.Join(f.dir, name)
		if _, err := os.Lstat(link); err == nil {
			continue
		}
		if err := errors.Join(os.Symlink(dataLink+"/"+name, link), os.Lchown(link, f.owner, f.owner)); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(f.dir)
	for _, entry := range entries {
		if name := entry.Name(); !wanted[name] && !strings.HasPrefix(name, "..") {
			err = errors.Join(err, os.Remove(filepath.Join(f.dir, name)))
		}
	}
	return err
}

// removeOld removes the files that were replaced, but those that a container has mounted a part of.
func (f *filled) removeOld() error {
	entries, err := os.ReadDir(f.dir)
	for _, entry := range entries {
		name := entry.Name()
		used := name == f.current
		for _, version := range f.held {
			used = used || version == name
		}
		if entry.IsDir() && strings.HasPrefix(name, "..") && !used {
			err = errors.Join(err, os.RemoveAll(filepath.Join(f.dir, name)))
		}
	}
	return err
}

// part is where a file or directory of the volume is. It stays what it is when the files are replaced, as with
// Kubernetes: a mount leads to a file, not to a name.
func (f *filled) part(subPath string) (string, error) {
	if !fs.ValidPath(path.Clean(subPath)) {
		return "", errors.New("give a relative path without \"..\"")
	}
	name := filepath.Join(f.dir, f.current, subPath) // only directories and files are there, no links
	if _, err := os.Lstat(name); err != nil {
		return "", errors.New("there is no such file or directory in the volume")
	}
	return name, nil
}

// mkdirAll makes a directory below base, and those above it.
func (f *filled) mkdirAll(base, name string) error {
	if name == "." {
		return nil
	}
	if err := f.mkdirAll(base, path.Dir(name)); err != nil {
		return err
	}
	at := filepath.Join(base, name)
	if err := os.Mkdir(at, 0o755); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil
		}
		return err
	}
	return os.Chown(at, f.owner, f.owner)
}

// firstName is the first name of a path.
func firstName(name string) string {
	first, _, _ := strings.Cut(name, "/")
	return first
}

// sum tells lists of files apart, without keeping them.
func sum(files []engine.File) (s [sha256.Size]byte) {
	h := sha256.New()
	for _, file := range files {
		_ = binary.Write(h, binary.LittleEndian, []uint64{uint64(len(file.Path)), uint64(file.Mode), uint64(len(file.Data))}) // a hash takes all
		h.Write([]byte(file.Path))
		h.Write(file.Data)
	}
	h.Sum(s[:0])
	return s
}
