package node

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// rootfs is the file system of one life of a container: the image's layers below, and above them a tmpfs that takes what the
// instance writes (contract C39: in memory, within its limit, gone when it stops). It is mounted in the engine's
// mount namespace, and its methods run there.
type rootfs struct {
	dir  string // the bundle: config.json, and the directories below
	root int    // O_PATH of the mounted root
	// null is a /dev/null of the instance's own, for its stdin: who runs in the instance will own it, and could take
	// the machine's away from everybody.
	null *os.File
	ids  ids // of the instance, by which it owns what is in the root
}

func (r *rootfs) rootDir() string  { return filepath.Join(r.dir, "rootfs") }
func (r *rootfs) upperDir() string { return filepath.Join(r.dir, "upper") }

// mountRootfs mounts the file system of an instance in dir, which it makes. limit bounds what can be written,
// in bytes; 0 is half of the machine's memory. users is the instance's user namespace, with IDs m; nil when it has
// none.
func mountRootfs(dir string, layers []string, limit int64, users *os.File, m ids) (*rootfs, error) {
	r := &rootfs{dir: dir, root: -1, ids: m}
	if err := r.mount(layers, limit, users); err != nil {
		return nil, errors.Join(err, r.unmount())
	}
	return r, nil
}

func (r *rootfs) mount(layers []string, limit int64, users *os.File) error {
	for _, dir := range []string{r.dir, r.rootDir(), r.upperDir()} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("making the instance's directory: %w", err)
		}
	}
	// The kernel takes one page of options, which the paths of many layers do not fit in: name them by short
	// paths, relative to this thread's working directory.
	if err := os.Chdir(r.dir); err != nil {
		return fmt.Errorf("entering the instance's directory: %w", err)
	}
	options := "mode=0755"
	if limit > 0 {
		options += ",size=" + strconv.FormatInt(limit, 10)
	}
	// Not MS_NODEV as the root is: the container may open its stdin again by name, and no other device is reached here.
	if err := unix.Mount("berth", r.upperDir(), "tmpfs", 0, options); err != nil {
		return fmt.Errorf("mounting memory for the instance's writes: %w", err)
	}
	for _, dir := range []string{"upper/up", "upper/work"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("making the instance's directory: %w", err)
		}
		if err := os.Chown(dir, r.ids.outside(0), r.ids.outside(0)); err != nil {
			return fmt.Errorf("giving the instance its directory: %w", err)
		}
	}
	var err error
	if r.null, err = makeNull("upper/dev"); err != nil {
		return err
	}
	lower := make([]string, len(layers))
	for i, layer := range layers {
		at := "upper/" + strconv.Itoa(i)
		if err := mountLayer(layer, at, users); err != nil {
			return fmt.Errorf("mounting layer %q: %w", layer, err)
		}
		lower[len(layers)-1-i] = at
	}
	data := "lowerdir=" + strings.Join(lower, ":") + ",upperdir=upper/up,workdir=upper/work"
	if err := unix.Mount("berth", "rootfs", "overlay", unix.MS_NODEV, data); err != nil {
		return fmt.Errorf("mounting the image's %d layers with overlayfs: %w", len(layers), err)
	}
	// The overlay holds what it is made of. Without these mounts, every mount namespace that is made from the
	// engine's is made faster.
	if err := unix.Unmount("upper", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("hiding the image's layers: %w", err)
	}
	root, err := unix.Open(r.rootDir(), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening the instance's root: %w", err)
	}
	r.root = root
	return nil
}

// makeNull makes a directory with a /dev/null in it, and opens that.
func makeNull(dir string) (*os.File, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, fmt.Errorf("making the instance's directory: %w", err)
	}
	const mode, major, minor = unix.S_IFCHR | 0o644, 1, 3
	name := dir + "/null"
	if err := unix.Mknod(name, mode, int(unix.Mkdev(major, minor))); err != nil {
		return nil, fmt.Errorf("making the instance's stdin: %w", err)
	}
	return os.OpenFile(name, os.O_RDWR, 0)
}

// mountLayer mounts a layer at a directory, which it makes. There its files belong to the users of a user namespace
// that have the numbers of their owners; users is nil when they are to keep their owners.
func mountLayer(layer, at string, users *os.File) error {
	if err := os.Mkdir(at, 0o755); err != nil {
		return err
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, layer, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if users != nil {
		change := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(users.Fd())}
		if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &change); err != nil {
			return fmt.Errorf("shifting the owners of its files: %w", err)
		}
	}
	return unix.MoveMount(tree, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// checkOverlay checks that instances' file systems can be mounted on this machine, with a small one at dir of which
// layer is a part.
func checkOverlay(dir, layer string) error {
	r, err := mountRootfs(dir, []string{layer}, 0, nil, ids{})
	if err != nil {
		return fmt.Errorf("%w; the kernel needs overlay and tmpfs (modprobe overlay), and to be Linux 5.2 or later", err)
	}
	return r.unmount()
}

// checkUsers checks that instances can have user namespaces on this machine, with a small file system at dir of
// which layer is a part. It must be called on a thread that runs nothing else meanwhile.
func checkUsers(dir, layer string) error {
	m := ids{first: firstID}
	users, network, err := newNamespaces(m)
	if err != nil {
		return err
	}
	defer users.Close()
	defer network.Close()
	r, err := mountRootfs(dir, []string{layer}, 0, users, m)
	if err != nil {
		return fmt.Errorf("%w; owners are shifted by Linux 5.19 or later, on ext4, XFS, Btrfs and tmpfs among others: %q may have to be moved", err, layer)
	}
	return r.unmount()
}

// release closes what the engine holds open.
func (r *rootfs) release() {
	if r.null != nil {
		r.null.Close()
		r.null = nil
	}
	if r.root >= 0 {
		unix.Close(r.root)
		r.root = -1
	}
}

// unmount takes the file system down and removes dir.
func (r *rootfs) unmount() error {
	r.release()
	var errs []error
	for _, dir := range []string{r.rootDir(), r.upperDir()} {
		err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && err != unix.EINVAL && err != unix.ENOENT { // not mounted, not there
			errs = append(errs, fmt.Errorf("unmounting %q: %w", dir, err))
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...) // removing would remove what is mounted
	}
	if err := os.RemoveAll(r.dir); err != nil {
		return fmt.Errorf("removing the instance's directory: %w", err)
	}
	return nil
}

// openIn opens a path of the root as the container would: links and ".." stay inside.
func (r *rootfs) openIn(name string, flags int, mode fs.FileMode) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	if flags&unix.O_CREAT != 0 {
		how.Mode = uint64(mode)
	}
	for {
		fd, err := unix.Openat2(r.root, name, &how)
		switch err {
		case nil:
			return os.NewFile(uintptr(fd), name), nil
		case unix.EINTR, unix.EAGAIN:
			continue
		}
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
}

// readFile reads a file of the root, of which it takes at most 16 MiB.
func (r *rootfs) readFile(name string) ([]byte, error) {
	file, err := r.openIn(name, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, 16<<20))
}

// mkdirAll makes a directory of the root and its parents, with mode 0755 and root as their owner.
func (r *rootfs) mkdirAll(name string) error {
	name = path.Clean("/" + name)
	directory, err := r.openIn(name, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err == nil {
		directory.Close()
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) || name == "/" {
		return err
	}
	if err := r.mkdirAll(path.Dir(name)); err != nil {
		return err
	}
	parent, err := r.openIn(path.Dir(name), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer parent.Close()
	if err := unix.Mkdirat(int(parent.Fd()), path.Base(name), 0o755); err != nil {
		return &fs.PathError{Op: "mkdir", Path: name, Err: err}
	}
	root := r.ids.outside(0)
	if err := unix.Fchownat(int(parent.Fd()), path.Base(name), root, root, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "chown", Path: name, Err: err}
	}
	return nil
}

// replaceFile writes a file of the root. What had its name is removed first: in many images it is a link that
// leads nowhere.
func (r *rootfs) replaceFile(name, text string) error {
	if err := r.mkdirAll(path.Dir(name)); err != nil {
		return fmt.Errorf("making %q in the image: %w", path.Dir(name), err)
	}
	parent, err := r.openIn(path.Dir(name), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("opening %q in the image: %w", path.Dir(name), err)
	}
	defer parent.Close()
	if err := unix.Unlinkat(int(parent.Fd()), path.Base(name), 0); err != nil && err != unix.ENOENT {
		return fmt.Errorf("replacing %q in the image: %w", name, err)
	}
	fd, err := unix.Openat(int(parent.Fd()), path.Base(name), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return fmt.Errorf("replacing %q in the image: %w", name, err)
	}
	file := os.NewFile(uintptr(fd), name)
	_, err = io.WriteString(file, text)
	err = errors.Join(err, file.Chown(r.ids.outside(0), r.ids.outside(0)))
	if err := errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("writing %q in the image: %w", name, err)
	}
	return nil
}

// furnish writes what every container finds in its file system: names and addresses in /etc, and a /tmp that
// everybody may write to.
func (r *rootfs) furnish(hostname, hosts, resolv string) error {
	files := [][2]string{{"/etc/hostname", hostname + "\n"}, {"/etc/hosts", hosts}, {"/etc/resolv.conf", resolv}}
	for _, f := range files {
		if err := r.replaceFile(f[0], f[1]); err != nil {
			return err
		}
	}
	if err := r.mkdirAll("/tmp"); err != nil {
		return fmt.Errorf("making /tmp in the image: %w", err)
	}
	tmp, err := r.openIn("/tmp", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("opening /tmp in the image: %w", err)
	}
	defer tmp.Close()
	const everybody = 0o1777
	if err := unix.Fchmod(int(tmp.Fd()), everybody); err != nil {
		return fmt.Errorf("letting everybody write to /tmp: %w", err)
	}
	return nil
}
