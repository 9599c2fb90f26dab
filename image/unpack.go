package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Limits bound what one layer may unpack to, so that a small download cannot fill the disk.
type Limits struct {
	Files int   // entries of a layer, directories included
	Bytes int64 // bytes of a layer's archive, and of the files in it
}

// DefaultLimits are far above what honest images have.
func DefaultLimits() Limits { return Limits{Files: 4_000_000, Bytes: 256 << 30} }

func (l Limits) orDefault() Limits {
	if l.Files == 0 {
		l.Files = DefaultLimits().Files
	}
	if l.Bytes == 0 {
		l.Bytes = DefaultLimits().Bytes
	}
	return l
}

// Names in a layer's archive that say what of the layers below is gone (OCI image specification, "Whiteouts").
const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh." // other names that begin so are bookkeeping of old file systems
	whiteoutOpaque = ".wh..wh..opq"
)

// overlayOpaque marks a directory that hides those of the same name below it.
const overlayOpaque = "trusted.overlay.opaque"

// paxXattr is how archives name extended attributes.
const paxXattr = "SCHILY.xattr."

// unpacker unpacks one layer.
type unpacker struct {
	tree   *tree
	limits Limits
	logger *slog.Logger

	files  int
	bytes  int64 // of files, as the archive says
	disk   int64 // of files, as they take on disk
	buffer []byte
	// times are set at the end: whatever is put into a directory changes its time.
	times map[string]time.Time
}

// unpack unpacks a layer's archive into the empty directory dir, as overlayfs wants it. Nothing outside dir can
// be reached, whatever the archive holds: every path is resolved by the kernel with dir as its root. What the
// archive asks for that is not the business of a file system image is refused with an *UnpackError.
func unpack(dir string, archive io.Reader, limits Limits, logger *slog.Logger) (*layer, error) {
	t, err := openTree(dir)
	if err != nil {
		return nil, err
	}
	defer t.close()
	u := &unpacker{tree: t, limits: limits, logger: logger, times: map[string]time.Time{}, buffer: make([]byte, 128<<10)}
	reader := tar.NewReader(archive)
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, &UnpackError{Err: fmt.Errorf("reading the archive: %w", err)}
		}
		if err := u.entry(header, reader); err != nil {
			return nil, u.explain(header, err)
		}
	}
	if err := u.setTimes(); err != nil {
		return nil, err
	}
	return &layer{Size: u.disk, Implied: slices.Sorted(maps.Keys(t.implied))}, nil
}

// explain names the entry. Errors of the machine stay what they are, all others are the archive's.
func (u *unpacker) explain(header *tar.Header, err error) error {
	var machine *fs.PathError
	var refused *UnpackError
	switch {
	case errors.As(err, &refused):
		return err
	case errors.As(err, &machine):
		return fmt.Errorf("entry %q: %w", header.Name, err)
	}
	return &UnpackError{Entry: header.Name, Err: err}
}

// entry puts one entry in its place.
func (u *unpacker) entry(header *tar.Header, content io.Reader) error {
	if header.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := cleanName(header.Name)
	if err != nil {
		return err
	}
	u.files++
	u.bytes += header.Size
	// One entry implies at most as many directories as fit in a path, so counting those of earlier ones will do.
	if u.files+len(u.tree.implied) > u.limits.Files {
		return fmt.Errorf("the layer has more than %d files, the server allows no more", u.limits.Files)
	}
	if header.Size < 0 || u.bytes > u.limits.Bytes || u.bytes < 0 {
		return fmt.Errorf("the layer's files have more than %d bytes: %w", u.limits.Bytes, errTooLarge)
	}
	if name == "." {
		if header.Typeflag != tar.TypeDir {
			return errors.New("it is in the place of the root directory and is none")
		}
		return u.directory(header, name)
	}
	if base := path.Base(name); strings.HasPrefix(base, whiteoutPrefix) {
		return u.whiteout(name, base)
	}
	switch header.Typeflag {
	case tar.TypeDir:
		return u.directory(header, name)
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		return u.file(header, name, content)
	case tar.TypeSymlink:
		return u.symlink(header, name)
	case tar.TypeLink:
		return u.hardLink(header, name)
	case tar.TypeFifo:
		return u.fifo(header, name)
	case tar.TypeChar, tar.TypeBlock:
		if path.Dir(name) == "dev" {
			// Instances get a /dev of their own, which hides this one. Old base images have nodes there.
			u.logger.Info("leaving out a device node that instances would not see", "entry", header.Name)
			return nil
		}
		return errors.New("it is a device node, which images may not have outside /dev: remove it from the image")
	}
	return fmt.Errorf("it is of the unknown type %q", header.Typeflag)
}

// cleanName makes an entry's name relative to the root, without "." and doubled slashes.
func cleanName(name string) (string, error) {
	if !utf8.ValidString(name) {
		return "", errors.New("its name has non-UTF-8 characters (contract C5): rename it in the image")
	}
	if strings.ContainsRune(name, 0) {
		return "", errors.New("its name has a zero byte")
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", errors.New(`its name has "..": names may not leave the image`)
		}
	}
	return path.Clean(strings.TrimLeft(path.Clean("/"+name), "/")), nil
}

// whiteout hides something of the layers below. What this layer has of that name stays: whiteouts never apply
// to their own layer, in whatever order the two come.
func (u *unpacker) whiteout(name, base string) error {
	if base == whiteoutOpaque {
		fd, err := u.tree.directory(path.Dir(name))
		if err != nil {
			return err
		}
		return u.tree.opaque(fd)
	}
	if strings.HasPrefix(base, whiteoutMeta) {
		return nil
	}
	hidden := strings.TrimPrefix(base, whiteoutPrefix)
	if hidden == "" || hidden == "." || hidden == ".." {
		return errors.New("it is a whiteout of no name")
	}
	parent, err := u.tree.directory(path.Dir(name))
	if err != nil {
		return err
	}
	return u.tree.whiteout(parent, hidden)
}

func (u *unpacker) directory(header *tar.Header, name string) error {
	fd, err := u.tree.explicit(name)
	if err != nil {
		return err
	}
	delete(u.tree.implied, name)
	u.times[name] = header.ModTime
	return u.attributes(header, fd)
}

func (u *unpacker) file(header *tar.Header, name string, content io.Reader) error {
	parent, base, err := u.tree.place(name)
	if err != nil {
		return err
	}
	fd, err := unix.Openat(parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nameError("creating", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	err = u.write(f, content, header.Size)
	if err == nil {
		err = u.attributes(header, fd)
	}
	if err == nil {
		err = setTime(fd, "", header.ModTime)
	}
	return errors.Join(err, f.Close())
}

// write copies a file. Stretches of zeros become holes.
func (u *unpacker) write(f *os.File, content io.Reader, size int64) error {
	var length, data int64
	for {
		n, err := io.ReadFull(content, u.buffer)
		if n > 0 && isZero(u.buffer[:n]) {
			if _, err := f.Seek(int64(n), io.SeekCurrent); err != nil {
				return err
			}
		} else if n > 0 {
			if _, err := f.Write(u.buffer[:n]); err != nil {
				return err
			}
			data += int64(n)
		}
		length += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) && length == size {
			break
		}
		if err != nil {
			return fmt.Errorf("reading the archive: %w", err)
		}
	}
	u.disk += (data + 4095) &^ 4095
	return f.Truncate(length)
}

func (u *unpacker) symlink(header *tar.Header, name string) error {
	if !utf8.ValidString(header.Linkname) {
		return errors.New("what it links to has non-UTF-8 characters (contract C5): rename it in the image")
	}
	if header.Linkname == "" {
		return errors.New("it is a symbolic link to nothing")
	}
	parent, base, err := u.tree.place(name)
	if err != nil {
		return err
	}
	if err := unix.Symlinkat(header.Linkname, parent, base); err != nil {
		return nameError("linking", name, err)
	}
	return u.linkAttributes(header, parent, base)
}

// hardLink makes another name for what this layer already has. The last element of the target is never
// followed, the directories above it are, inside the image.
func (u *unpacker) hardLink(header *tar.Header, name string) error {
	target, err := cleanName(header.Linkname)
	if err != nil {
		return fmt.Errorf("it is a hard link to %q: %w", header.Linkname, err)
	}
	from, err := u.tree.existing(path.Dir(target))
	if err != nil {
		return fmt.Errorf("it is a hard link to %q, which this layer does not have", header.Linkname)
	}
	defer unix.Close(from)
	var to, old unix.Stat_t
	if err := unix.Fstatat(from, path.Base(target), &to, unix.AT_SYMLINK_NOFOLLOW); err != nil || isWhiteout(&to) {
		return fmt.Errorf("it is a hard link to %q, which this layer does not have", header.Linkname)
	}
	if kind := to.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFLNK && kind != unix.S_IFIFO {
		return fmt.Errorf("it is a hard link to %q, which is not a file", header.Linkname)
	}
	parent, err := u.tree.directory(path.Dir(name))
	if err != nil {
		return err
	}
	base := path.Base(name)
	if err := unix.Fstatat(parent, base, &old, unix.AT_SYMLINK_NOFOLLOW); err == nil && old.Dev == to.Dev && old.Ino == to.Ino {
		return nil // the same file already: to make room would delete it
	}
	if err := u.tree.clear(parent, base); err != nil {
		return err
	}
	// Making room may have removed the target, when it was in a directory of the new name.
	if err := unix.Linkat(from, path.Base(target), parent, base, 0); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("it is a hard link to %q, which is inside what it replaces", header.Linkname)
		}
		return pathError("linking", name, err)
	}
	return nil
}

func (u *unpacker) fifo(header *tar.Header, name string) error {
	parent, base, err := u.tree.place(name)
	if err != nil {
		return err
	}
	if err := unix.Mknodat(parent, base, unix.S_IFIFO|0o600, 0); err != nil {
		return pathError("creating", name, err)
	}
	// Opening a pipe would wait for its other end.
	if err := unix.Fchownat(parent, base, header.Uid, header.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return pathError("owning", name, err)
	}
	if err := unix.Fchmodat(parent, base, uint32(header.Mode&0o7777), 0); err != nil {
		return pathError("setting the mode of", name, err)
	}
	return setTime(parent, base, header.ModTime)
}

// attributes sets the owner, mode and extended attributes of an open file. The order matters: a new owner takes
// the setuid bit and the capabilities away.
func (u *unpacker) attributes(header *tar.Header, fd int) error {
	if err := checkOwner(header); err != nil {
		return err
	}
	if err := unix.Fchown(fd, header.Uid, header.Gid); err != nil {
		return pathError("owning", header.Name, err)
	}
	if err := unix.Fchmod(fd, uint32(header.Mode&0o7777)); err != nil {
		return pathError("setting the mode of", header.Name, err)
	}
	for key, value := range header.PAXRecords {
		attribute, ok := strings.CutPrefix(key, paxXattr)
		if !ok || !keepsAttribute(attribute) {
			continue
		}
		err := unix.Fsetxattr(fd, attribute, []byte(value), 0)
		if errors.Is(err, unix.ENOTSUP) && strings.HasPrefix(attribute, "user.") {
			continue // a file system without user attributes, as tmpfs was for long; programs live without
		}
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ERANGE) || errors.Is(err, unix.E2BIG) {
			return fmt.Errorf("its attribute %q is not valid: %w", attribute, err)
		}
		if err != nil {
			return pathError("setting attribute "+attribute+" of", header.Name, err)
		}
	}
	return nil
}

func (u *unpacker) linkAttributes(header *tar.Header, parent int, base string) error {
	if err := checkOwner(header); err != nil {
		return err
	}
	if err := unix.Fchownat(parent, base, header.Uid, header.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return pathError("owning", header.Name, err)
	}
	return setTime(parent, base, header.ModTime)
}

// keepsAttribute chooses the attributes that mean something to a program. The overlay's own must never come
// from an image: they would redirect it.
func keepsAttribute(name string) bool {
	return name == "security.capability" || strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay.")
}

func checkOwner(header *tar.Header) error {
	const most = 1<<32 - 2 // the last number means "no change" to the kernel
	if header.Uid < 0 || header.Uid > most || header.Gid < 0 || header.Gid > most {
		return fmt.Errorf("its owner %d:%d is not a user and group", header.Uid, header.Gid)
	}
	return nil
}

// setTimes gives the directories their times, whose entries are all there now.
func (u *unpacker) setTimes() error {
	for name, at := range u.times {
		fd, err := u.tree.existing(name)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			continue // replaced by a later entry
		}
		if err != nil {
			return pathError("opening", name, err)
		}
		err = setTime(fd, "", at)
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
	return nil
}

// setTime sets the time of what is open as fd, or of base in it.
func setTime(fd int, base string, at time.Time) error {
	spec := unix.NsecToTimespec(at.UnixNano())
	if at.Year() < 1902 || at.Year() > 2260 {
		spec = unix.Timespec{} // outside of what nanoseconds count; nobody meant it
	}
	flags := unix.AT_SYMLINK_NOFOLLOW
	if base == "" {
		flags = unix.AT_EMPTY_PATH
	}
	if err := unix.UtimesNanoAt(fd, base, []unix.Timespec{spec, spec}, flags); err != nil {
		return pathError("setting the time of", base, err)
	}
	return nil
}

func isZero(data []byte) bool {
	return data[0] == 0 && bytes.Equal(data[1:], data[:len(data)-1])
}

func pathError(doing, name string, err error) error {
	return &fs.PathError{Op: doing, Path: name, Err: err}
}
