package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/engine"
)

// maxVolumes is the most volumes of an instance, each of which can be a mount of the engine's. Package serving refuses
// more with its own words.
const maxVolumes = 128

// volumeRefresh is how often the files of a volume are read again, unless Config says otherwise.
const volumeRefresh = time.Minute

// volumes are what the containers of one instance mount, beside their roots. They are made with the instance, outlive
// the restart of a container, and go with the instance.
//
// Each is a directory in the engine's mount namespace: of a volume that is empty at first, memory of its own within
// its limit (a tmpfs, which counts to the container that writes); of one that the platform fills, a part of the
// engine's memory, which only the engine can write to (filled.go).
type volumes struct {
	dir       string
	owner     int // the machine's number for root of the instance
	namespace *mountNamespace
	logger    *slog.Logger

	stop    context.CancelFunc
	tending sync.WaitGroup

	// mu is only taken in the mount namespace, whose threads are few: who waits for one of them must not hold it.
	mu    sync.Mutex
	all   map[string]*volume  // by name
	parts map[string][]string // mounts of parts of volumes, by the container that they were made for
}

// volume is one volume of an instance. Exactly one of size and files is in use.
type volume struct {
	dir   string
	size  int64   // limit in bytes of an empty volume; 0 is half of the machine's memory
	files *filled // nil for an empty volume
}

// openVolumes makes the volumes of an instance. It returns nil when there are none.
func (e *Engine) openVolumes(ctx context.Context, id string, spec engine.Spec, m ids) (*volumes, error) {
	if len(spec.Volumes) == 0 {
		return nil, nil
	}
	if len(spec.Volumes) > maxVolumes {
		return nil, volumeError("there are %d volumes, and %d is the most that an instance can have", len(spec.Volumes), maxVolumes)
	}
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	v := &volumes{
		dir: filepath.Join(e.volumes, id), owner: m.outside(0), namespace: e.namespace, stop: stop,
		logger: e.logger.With("service", spec.Service, "revision", spec.Revision, "instance", id),
		all:    map[string]*volume{}, parts: map[string][]string{},
	}
	tended := false
	for _, declared := range spec.Volumes {
		one := &volume{dir: filepath.Join(v.dir, declared.Name), size: cmp.Or(declared.SizeLimit, spec.Container.Memory)}
		v.all[declared.Name] = one
		if declared.Files == nil {
			continue
		}
		tended = true
		one.files = &filled{dir: one.dir, owner: v.owner, read: declared.Files(id), points: mountPoints(spec, declared.Name), held: map[string]string{}}
		if err := v.load(ctx, one.files); err != nil {
			stop()
			return nil, volumeError("filling volume %q: %w", declared.Name, err)
		}
	}
	err := e.namespace.do(func() error {
		v.mu.Lock()
		defer v.mu.Unlock()
		return v.make()
	})
	if err != nil {
		return nil, errors.Join(err, v.close())
	}
	if tended {
		v.tending.Go(func() { v.tend(life, e.volumeRefresh) })
	}
	return v, nil
}

// make makes the directories and fills them. It runs in the mount namespace, with mu.
func (v *volumes) make() error {
	if err := os.Mkdir(v.dir, 0o711); err != nil { // users of the instance pass through it
		return fmt.Errorf("making the volumes' directory: %w", err)
	}
	for name, one := range v.all {
		if err := os.Mkdir(one.dir, 0o755); err != nil {
			return fmt.Errorf("making volume %q: %w", name, err)
		}
		if one.files == nil {
			// As Kubernetes', everybody may write to it.
			options := fmt.Sprintf("mode=0777,uid=%d,gid=%d", v.owner, v.owner)
			if one.size > 0 {
				options += ",size=" + strconv.FormatInt(one.size, 10)
			}
			if err := unix.Mount("berth", one.dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
				return fmt.Errorf("mounting memory for volume %q: %w", name, err)
			}
			continue
		}
		if err := one.files.make(); err != nil {
			return volumeError("filling volume %q: %w", name, err)
		}
	}
	return nil
}

// load reads the files of one volume, and sees to it that all volumes together are within the limits.
func (v *volumes) load(ctx context.Context, f *filled) error {
	if err := f.load(ctx); err != nil {
		return err
	}
	count, bytes := 0, 0
	for _, one := range v.all {
		if one.files != nil {
			count, bytes = count+one.files.count, bytes+one.files.bytes
		}
	}
	if count > maxVolumeFiles || bytes > maxVolumeBytes {
		return fmt.Errorf("the instance's volumes have %d files with %d bytes, and %d files with %d bytes are the most that an instance can have",
			count, bytes, maxVolumeFiles, maxVolumeBytes)
	}
	return nil
}

// tend keeps the volumes that the platform fills as they should be, until ctx ends.
func (v *volumes) tend(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	failing := map[string]bool{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for name, one := range v.all {
			if one.files == nil {
				continue
			}
			err := v.load(ctx, one.files)
			if err == nil {
				err = v.namespace.do(func() error {
					v.mu.Lock()
					defer v.mu.Unlock()
					return one.files.replace()
				})
			}
			if err != nil && !failing[name] && ctx.Err() == nil { // said once, until it goes well again
				v.logger.Warn("refreshing a volume: its files stay as they are", "volume", name, "error", err)
			}
			failing[name] = err != nil
			one.files.files = nil // what could not be written is read again
		}
	}
}

// mounts are a container's mounts of volumes, in the order in which they must be made. It runs in the mount namespace,
// and again when the container is started again.
func (v *volumes) mounts(c engine.Container) ([]specs.Mount, error) {
	if len(c.Mounts) == 0 {
		return nil, nil
	}
	if v == nil {
		return nil, volumeError("container %q mounts volume %q, and the instance has no volumes", c.Name, c.Mounts[0].Volume)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.dropParts(c.Name); err != nil {
		return nil, err
	}
	held := map[*filled]string{}
	var all []specs.Mount
	for _, m := range sortedMounts(c) {
		one := v.all[m.Volume]
		if one == nil {
			return nil, volumeError("container %q mounts volume %q at %q, and there is no such volume", c.Name, m.Volume, m.Path)
		}
		if kernels(m.Path) {
			return nil, volumeError("container %q mounts volume %q at %q: nothing can be mounted in /proc and /sys, which are the kernel's", c.Name, m.Volume, m.Path)
		}
		options := []string{"bind", "rprivate", "nosuid", "nodev", "rw"}
		if m.ReadOnly || one.files != nil {
			options[len(options)-1] = "ro"
		}
		source := one.dir
		var err error
		switch {
		case m.SubPath == "":
		case one.files != nil:
			source, err = one.files.part(m.SubPath)
			held[one.files] = one.files.current
		default:
			source, err = v.part(one, m.SubPath, c.Name)
		}
		if err != nil {
			return nil, volumeError("mounting subPath %q of volume %q in container %q: %w", m.SubPath, m.Volume, c.Name, err)
		}
		all = append(all, specs.Mount{Destination: path.Clean(m.Path), Type: "bind", Source: source, Options: options})
	}
	for _, one := range v.all {
		if one.files == nil {
			continue
		}
		if version, ok := held[one.files]; ok {
			one.files.held[c.Name] = version
		} else {
			delete(one.files.held, c.Name)
		}
	}
	return all, nil
}

// checkMountPoints sees to it that volumes can be mounted where they are to be; of the runtime's errors nobody could
// tell. What is to be in another volume is the runtime's to find out.
func (r *rootfs) checkMountPoints(mounts []specs.Mount) error {
	for n, m := range mounts {
		if slices.ContainsFunc(mounts[:n], func(outer specs.Mount) bool { return below(m.Destination, outer.Destination) }) {
			continue
		}
		source, err := os.Stat(m.Source)
		if err != nil {
			return fmt.Errorf("looking at what is to be mounted at %q: %w", m.Destination, err)
		}
		point, err := r.openIn(m.Destination, unix.O_PATH, 0)
		if errors.Is(err, fs.ErrNotExist) {
			if err = r.mkdirAll(path.Dir(m.Destination)); err == nil {
				continue // the runtime makes the last of them, a directory or a file
			}
		}
		if err != nil {
			return volumeError("nothing can be mounted at %q in the image: %w", m.Destination, reason(err))
		}
		there, err := point.Stat()
		point.Close()
		switch {
		case err != nil:
			return fmt.Errorf("looking at %q in the image: %w", m.Destination, err)
		case there.IsDir() && !source.IsDir():
			return volumeError("a file is to be mounted at %q, where the image has a directory: add the file's name to the path", m.Destination)
		case !there.IsDir() && source.IsDir():
			return volumeError("a directory is to be mounted at %q, where the image has a file: mount it elsewhere, or one of its files by subPath", m.Destination)
		}
	}
	return nil
}

// part mounts a part of an empty volume where the runtime finds it by a path that no container can change meanwhile:
// those that are in the volume are in containers' hands. What is missing is made, a directory.
func (v *volumes) part(one *volume, subPath, container string) (string, error) {
	root, err := unix.Open(one.dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(root)
	found, err := openBeneath(root, path.Clean(subPath), v.owner)
	if err != nil {
		return "", err
	}
	defer unix.Close(found)
	var stat unix.Stat_t
	if err := unix.Fstat(found, &stat); err != nil {
		return "", err
	}
	at := filepath.Join(v.dir, fmt.Sprintf(".%s.%d", container, len(v.parts[container])))
	if stat.Mode&unix.S_IFMT == unix.S_IFDIR {
		err = os.Mkdir(at, 0o700)
	} else {
		err = os.WriteFile(at, nil, 0o600)
	}
	if err != nil {
		return "", err
	}
	v.parts[container] = append(v.parts[container], at)
	tree, err := unix.OpenTree(found, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return "", err
	}
	defer unix.Close(tree)
	return at, unix.MoveMount(tree, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// openBeneath opens a path that does not lead out of root. What is missing is made: directories like the volume
// itself, which everybody may write to.
func openBeneath(root int, name string, owner int) (int, error) {
	const tries = 100 // what changes while it is looked up makes the kernel give up
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	for try := 0; ; try++ {
		fd, err := unix.Openat2(root, name, &how)
		switch {
		case err == nil:
			return fd, nil
		case (err == unix.EAGAIN || err == unix.EINTR) && try < tries:
			continue
		case err == unix.EXDEV:
			return -1, errors.New("it leads out of the volume, by a link or \"..\"")
		case err != unix.ENOENT || try >= tries:
			return -1, err
		}
		parent, err := openBeneath(root, path.Dir(name), owner)
		if err != nil {
			return -1, err
		}
		err = unix.Mkdirat(parent, path.Base(name), 0)
		if err == nil {
			err = errors.Join(unix.Fchownat(parent, path.Base(name), owner, owner, unix.AT_SYMLINK_NOFOLLOW),
				unix.Fchmodat(parent, path.Base(name), 0o777, 0))
		}
		unix.Close(parent)
		if err != nil && err != unix.EEXIST { // somebody was faster, or it is a link that leads nowhere
			return -1, err
		}
	}
}

// dropParts takes down the mounts that were made for a container that is not made from them any more.
func (v *volumes) dropParts(container string) error {
	for _, at := range v.parts[container] {
		if err := unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL {
			return fmt.Errorf("unmounting %q: %w", at, err)
		}
		if err := os.Remove(at); err != nil {
			return fmt.Errorf("removing a mount point: %w", err)
		}
	}
	delete(v.parts, container)
	return nil
}

// close removes the volumes, whose containers have ended. It must not be called in the mount namespace.
func (v *volumes) close() error {
	if v == nil {
		return nil
	}
	v.stop()
	v.tending.Wait()
	return v.namespace.do(func() error {
		v.mu.Lock()
		defer v.mu.Unlock()
		var errs []error
		for _, container := range slices.Collect(maps.Keys(v.parts)) {
			errs = append(errs, v.dropParts(container))
		}
		for _, one := range v.all {
			if one.files != nil {
				continue
			}
			err := unix.Unmount(one.dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
			if err != nil && err != unix.EINVAL && err != unix.ENOENT { // not mounted, not there
				errs = append(errs, fmt.Errorf("unmounting %q: %w", one.dir, err))
			}
		}
		if err := errors.Join(errs...); err != nil {
			return err // removing would remove what is mounted
		}
		if err := os.RemoveAll(v.dir); err != nil {
			return fmt.Errorf("removing the volumes' directory: %w", err)
		}
		return nil
	})
}

// sortedMounts are a container's mounts, what is below another after it.
func sortedMounts(c engine.Container) []engine.Mount {
	return slices.SortedFunc(slices.Values(c.Mounts), func(a, b engine.Mount) int {
		return strings.Compare(path.Clean(a.Path), path.Clean(b.Path))
	})
}

// mountPoints are the paths in a volume that other mounts of its containers are at. Nobody can make them where the
// volume cannot be written to.
func mountPoints(spec engine.Spec, name string) []string {
	var points []string
	for _, c := range append([]engine.Container{spec.Container}, spec.Sidecars...) {
		for _, inner := range c.Mounts {
			outer := engine.Mount{}
			for _, m := range c.Mounts {
				if below(inner.Path, m.Path) && len(path.Clean(m.Path)) > len(outer.Path) {
					outer = engine.Mount{Volume: m.Volume, SubPath: m.SubPath, Path: path.Clean(m.Path)}
				}
			}
			if outer.Volume == name && outer.SubPath == "" {
				points = append(points, strings.TrimPrefix(path.Clean(inner.Path), outer.Path+"/"))
			}
		}
	}
	slices.Sort(points)
	return slices.Compact(points)
}

// below reports whether a path is in a directory, at whatever depth.
func below(name, dir string) bool {
	return strings.HasPrefix(path.Clean(name), strings.TrimSuffix(path.Clean(dir), "/")+"/") && path.Clean(name) != path.Clean(dir)
}

// kernels reports whether a path is in what the kernel shows of itself.
func kernels(name string) bool {
	return slices.ContainsFunc([]string{"/proc", "/sys"}, func(dir string) bool { return path.Clean(name) == dir || below(name, dir) })
}

// mayBeMounted reports whether a container's program may be in a volume, where it cannot be looked at before the
// container is made.
func mayBeMounted(c engine.Container, args []string, searchPath, workingDir string) bool {
	if len(c.Mounts) == 0 || len(args) == 0 {
		return false
	}
	program := args[0]
	places := []string{path.Join(workingDir, program)}
	switch {
	case path.IsAbs(program):
		places = []string{program}
	case !strings.Contains(program, "/"):
		places = nil
		for dir := range strings.SplitSeq(searchPath, ":") {
			places = append(places, path.Join(dir, program))
		}
	}
	return slices.ContainsFunc(places, func(place string) bool {
		return slices.ContainsFunc(c.Mounts, func(m engine.Mount) bool { return below(place, m.Path) || path.Clean(place) == path.Clean(m.Path) })
	})
}

func volumeError(format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	for _, last := range args {
		// What the machine cannot do is not the user's fault.
		if cause, ok := last.(error); ok && (errors.Is(cause, unix.ENOSPC) || errors.Is(cause, unix.ENOMEM) || errors.Is(cause, fs.ErrPermission)) {
			return &engine.StartError{Reason: engine.ReasonEngine, Err: err}
		}
	}
	return &engine.StartError{Reason: engine.ReasonVolume, Err: err}
}
