package image

import (
	"errors"
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// tree is a directory that a layer is unpacked into. All paths given to it are clean and relative; the kernel
// resolves them with the directory as root, so that neither ".." nor a symbolic link leads out of it.
type tree struct {
	root int // file descriptor

	// The directory that was used last: archives list the entries of a directory one after the other.
	last     string
	lastOpen int // file descriptor, or -1

	implied map[string]bool // directories made only because something is in them
}

func openTree(dir string) (*tree, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, pathError("opening", dir, err)
	}
	if err := unix.Fchmod(fd, 0o755); err != nil {
		unix.Close(fd)
		return nil, pathError("setting the mode of", dir, err)
	}
	return &tree{root: fd, lastOpen: -1, implied: map[string]bool{}}, nil
}

func (t *tree) close() {
	t.flush()
	unix.Close(t.root)
}

// flush forgets the directory that was used last. It must be called whenever a name changes its meaning.
func (t *tree) flush() {
	if t.lastOpen >= 0 {
		unix.Close(t.lastOpen)
	}
	t.last, t.lastOpen = "", -1
}

// existing opens a directory that is there. The caller closes it.
func (t *tree) existing(name string) (int, error) {
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	for {
		fd, err := unix.Openat2(t.root, name, &how)
		// EAGAIN: something on this machine was renamed meanwhile, and the kernel could not be sure.
		if err != unix.EAGAIN && err != unix.EINTR {
			return fd, err
		}
	}
}

// directory opens a directory, making it and those above it when they are not there. The file descriptor
// belongs to t and is good until the next call of one of its methods.
func (t *tree) directory(name string) (int, error) {
	if t.lastOpen >= 0 && t.last == name {
		return t.lastOpen, nil
	}
	fd, err := t.existing(name)
	switch {
	case err == nil:
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		if fd, err = t.make(name); err != nil {
			return -1, err
		}
	case errors.Is(err, unix.ENOSYS):
		return -1, fmt.Errorf("opening directory %q: this kernel has no openat2, Linux 5.6 or later is needed: %w", name, err)
	default:
		return -1, nameError("opening", name, err)
	}
	t.flush()
	t.last, t.lastOpen = name, fd
	return fd, nil
}

// make makes a directory that cannot be opened. The caller closes it.
func (t *tree) make(name string) (int, error) {
	parent, err := t.directory(path.Dir(name))
	if err != nil {
		return -1, err
	}
	var old unix.Stat_t
	err = unix.Fstatat(parent, path.Base(name), &old, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT), err == nil && isWhiteout(&old):
	case err != nil:
		return -1, nameError("looking at", name, err)
	case old.Mode&unix.S_IFMT == unix.S_IFLNK:
		return -1, fmt.Errorf("%q above it is a symbolic link to no directory of this layer", name)
	default:
		return -1, fmt.Errorf("%q above it is a file", name)
	}
	fd, err := t.mkdir(parent, name, err == nil)
	if err == nil {
		t.implied[name] = true
	}
	return fd, err
}

// explicit opens a directory that the archive has an entry for. What else has its name is removed, also a
// symbolic link. It is the caller's as directory says.
func (t *tree) explicit(name string) (int, error) {
	if name == "." {
		return t.directory(name)
	}
	parent, err := t.directory(path.Dir(name))
	if err != nil {
		return -1, err
	}
	base := path.Base(name)
	var old unix.Stat_t
	err = unix.Fstatat(parent, base, &old, unix.AT_SYMLINK_NOFOLLOW)
	there := err == nil
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return -1, nameError("looking at", name, err)
	}
	var fd int
	switch {
	case there && old.Mode&unix.S_IFMT == unix.S_IFDIR:
		fd, err = openBelow(parent, name)
	case there && !isWhiteout(&old):
		if err := t.clear(parent, base); err != nil {
			return -1, err
		}
		fd, err = t.mkdir(parent, name, false)
	default:
		fd, err = t.mkdir(parent, name, there)
	}
	if err != nil {
		return -1, err
	}
	t.flush()
	t.last, t.lastOpen = name, fd
	return fd, nil
}

// mkdir makes and opens a directory. In the place of a whiteout, it hides the directory below that the whiteout
// hid.
func (t *tree) mkdir(parent int, name string, whiteout bool) (int, error) {
	base := path.Base(name)
	if whiteout {
		if err := unix.Unlinkat(parent, base, 0); err != nil {
			return -1, pathError("removing", name, err)
		}
	}
	if err := unix.Mkdirat(parent, base, 0o755); err != nil {
		return -1, nameError("making directory", name, err)
	}
	fd, err := openBelow(parent, name)
	if err != nil {
		return -1, err
	}
	// The process may have a umask.
	if err := unix.Fchmod(fd, 0o755); err != nil {
		unix.Close(fd)
		return -1, pathError("setting the mode of", name, err)
	}
	if whiteout {
		if err := t.opaque(fd); err != nil {
			unix.Close(fd)
			return -1, err
		}
	}
	return fd, nil
}

// place makes room for a new entry: it returns the open directory that it goes to, as directory does, and its
// name there, which nothing has any more.
func (t *tree) place(name string) (parent int, base string, err error) {
	parent, err = t.directory(path.Dir(name))
	if err != nil {
		return -1, "", err
	}
	base = path.Base(name)
	return parent, base, t.clear(parent, base)
}

// clear removes base, and all that is in it.
func (t *tree) clear(parent int, base string) error {
	err := unix.Unlinkat(parent, base, 0)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case !errors.Is(err, unix.EISDIR):
		return nameError("removing", base, err)
	}
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", parent))
	if err != nil {
		return err
	}
	return errors.Join(root.RemoveAll(base), root.Close())
}

// whiteout hides what the layers below have as base. A directory of this layer stays and hides the one below.
func (t *tree) whiteout(parent int, base string) error {
	var old unix.Stat_t
	err := unix.Fstatat(parent, base, &old, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		if err := unix.Mknodat(parent, base, unix.S_IFCHR, 0); err != nil {
			return nameError("making a whiteout for", base, err)
		}
		return nil
	case err != nil:
		return nameError("looking at", base, err)
	case old.Mode&unix.S_IFMT != unix.S_IFDIR:
		return nil
	}
	fd, err := openBelow(parent, base)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return t.opaque(fd)
}

// opaque hides the directories of the same name in the layers below.
func (t *tree) opaque(fd int) error {
	if err := unix.Fsetxattr(fd, overlayOpaque, []byte("y"), 0); err != nil {
		return pathError("setting attribute "+overlayOpaque, "", err)
	}
	return nil
}

func openBelow(parent int, name string) (int, error) {
	fd, err := unix.Openat(parent, path.Base(name), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, pathError("opening", name, err)
	}
	return fd, nil
}

// isWhiteout tells whether overlayfs takes a file for one that hides what is below.
func isWhiteout(s *unix.Stat_t) bool {
	return s.Mode&unix.S_IFMT == unix.S_IFCHR && s.Rdev == 0
}

// nameError is the archive's fault when the name is, else the machine's.
func nameError(doing, name string, err error) error {
	if errors.Is(err, unix.ENAMETOOLONG) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%s %q: %w", doing, name, err)
	}
	return pathError(doing, name, err)
}
