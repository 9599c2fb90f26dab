// Package node is the engine that runs instances as OCI containers on this machine. [Open] is where to start
// reading: it makes, in order, what all instances share; instance.go follows one instance through its life.
//
// Nothing that the engine makes outlives the process by much. Mounts are in a mount namespace of its own,
// network namespaces are held by file descriptors, the OCI runtime's state is in memory; they go when the server
// does, however it ends. What stays after a kill, processes and their cgroups, interfaces and packet rules, is
// found by names that are made from the state directory, and removed by the next Open, on that or another directory.
package node

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/image"
)

// Config is what an engine is opened with.
type Config struct {
	Dir     string // the engine's directory; one engine at a time
	Images  *image.Store
	Runtime string       // OCI runtime, a name or a path; "" is crun, else runc
	Network netip.Prefix // IPv4 network to take a free part of, for instances' addresses
	DNS     []string     // servers that instances' questions go to, IP addresses with or without :PORT; empty: the machine's
	LogKeep int64        // bytes of log kept for each revision, at least LeastLogKeep
	// UserNamespaces is one of the constants of that name; "" is on. An instance with a user namespace runs as users
	// of its own, its root too, that nothing on the machine belongs to (contract C71).
	UserNamespaces string
	VolumeRefresh  time.Duration // how often the files of a volume are read again; 0 is a minute
	Logger         *slog.Logger  // nil: slog.Default()
}

// Engine runs instances on this machine. It implements engine.Engine.
type Engine struct {
	images  *image.Store
	logger  *slog.Logger
	run     string // directory that the mount namespace has its own memory at
	bundles string // directory of the instances' bundles, in the mount namespace
	volumes string // directory of the instances' volumes, in the mount namespace
	// users tells whether instances have user namespaces, and if not, why.
	users string

	lock      *os.File
	life      *os.File // locked for as long as the engine lives, outside its directory
	cgroups   *cgroups
	namespace *mountNamespace
	runtime   *ociRuntime
	network   *network
	firewall  *firewall
	relay     *relay
	logs      *logs
	// listens tells when programs open their ports; nil where the kernel does not tell.
	listens   *listens
	openFiles uint64 // limit of an instance
	oomScore  int

	volumeRefresh time.Duration
	// swapCounted says whether limits can be set for memory and swap together.
	swapCounted bool

	mu        sync.Mutex
	closed    bool
	instances map[string]*instance
	preparing sync.WaitGroup
}

var _ engine.Engine = (*Engine)(nil)

// Open makes an engine, after removing what a former one on the same directory has left. It needs root.
func Open(config Config) (*Engine, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("opening the node engine: containers, networks and limits are made by root only; run berth as root")
	}
	dir, err := filepath.Abs(config.Dir)
	if err != nil {
		return nil, fmt.Errorf("finding the engine's directory %q: %w", config.Dir, err)
	}
	e := &Engine{
		images:    config.Images,
		logger:    cmp.Or(config.Logger, slog.Default()),
		instances: map[string]*instance{},

		volumeRefresh: cmp.Or(config.VolumeRefresh, volumeRefresh),
	}
	if err := e.open(dir, config); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the node engine: %w", err), e.release())
	}
	return e, nil
}

func (e *Engine) open(dir string, config Config) error {
	var err error
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("making the engine's directory: %w", err)
	}
	if e.lock, err = lockFile(filepath.Join(dir, "lock"), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("another server uses %q: stop it, or give this one another state directory", dir)
		}
		return err
	}
	mark := mark(dir)
	if e.cgroups, err = findCgroups("berth-" + mark); err != nil {
		return err
	}
	if e.life, err = claimLife(mark, dir); err != nil {
		return err
	}
	if err := e.cgroups.open(); err != nil {
		return err
	}
	e.collectLeftovers(mark)
	e.swapCounted = e.cgroups.countsSwap()
	if err := e.readLimits(); err != nil {
		return err
	}
	if e.runtime, err = findRuntime(config.Runtime); err != nil {
		return err
	}
	if err := becomeSubreaper(); err != nil {
		return err
	}
	if err := e.openNamespace(runDir(mark), dir); err != nil {
		return err
	}
	shifted, err := e.checkUsers(config.UserNamespaces, dir)
	if err != nil {
		return err
	}
	if e.network, err = openNetwork(config.Network, linkPrefix+mark, e.logger); err != nil {
		return err
	}
	if e.firewall, err = openFirewall(tablePrefix+mark, e.network, e.logger); err != nil {
		return err
	}
	if e.relay, err = openRelay(e.network.gateway, e.network.prefix, config.DNS, e.logger); err != nil {
		return err
	}
	if e.logs, err = openLogs(filepath.Join(dir, "logs"), config.LogKeep, e.logger); err != nil {
		return err
	}
	if e.listens, err = openListens(e.namespace, filepath.Join(e.run, "tracing")); err != nil {
		e.logger.Info("the kernel does not tell when programs open their ports: they are tried", "error", err)
	}
	e.network.users = shifted
	e.network.refill()
	return nil
}

// mark is a short name of a directory, for names of things that are known to the whole machine.
func mark(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return hex.EncodeToString(sum[:3])
}

// readLimits reads how far instances' limits can go.
func (e *Engine) readLimits() error {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return fmt.Errorf("reading the limit of open files: %w", err)
	}
	e.openFiles = min(maxOpenFiles, files.Max)
	text, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return fmt.Errorf("reading the own oom_score_adj: %w", err)
	}
	score, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("reading the own oom_score_adj: %w", err)
	}
	e.oomScore = max(score, leastOOMScore)
	return nil
}

// openNamespace makes the mount namespace, with a tmpfs at dir for bundles and the runtime's state. Containers in
// user namespaces must be able to pass through all directories above their root, so it is not where the engine's
// state is, which other users are kept away from. layer is a directory on the file system that layers are on.
func (e *Engine) openNamespace(dir, layer string) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return fmt.Errorf("making the engine's directory: %w", err)
	}
	e.run = dir
	e.bundles, e.runtime.root, e.volumes = filepath.Join(dir, "bundles"), filepath.Join(dir, "runtime"), filepath.Join(dir, "volumes")
	namespace, err := newMountNamespace(func() error {
		if err := unix.Mount("berth", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0711"); err != nil {
			return fmt.Errorf("mounting memory at %q: %w", dir, err)
		}
		for _, sub := range []string{e.bundles, e.runtime.root, e.volumes} {
			if err := os.Mkdir(sub, 0o711); err != nil {
				return fmt.Errorf("making the engine's directory: %w", err)
			}
		}
		if err := checkOverlay(filepath.Join(dir, "check"), layer); err != nil {
			return err
		}
		if e.cgroups.hybrid {
			// Runtimes refuse a mix of versions or use the empty v2 hierarchy; here they see v1 alone.
			if err := unix.Unmount(filepath.Join(cgroupMount, "unified"), unix.MNT_DETACH); err != nil && err != unix.EINVAL {
				return fmt.Errorf("hiding the second cgroup hierarchy from the runtime: %w", err)
			}
		}
		return e.runtime.protect(filepath.Join(dir, "bin"))
	})
	if err != nil {
		return err
	}
	e.namespace, e.runtime.namespace = namespace, namespace
	return nil
}

// checkUsers decides whether instances have user namespaces, from the setting and from what the machine can.
func (e *Engine) checkUsers(setting, layer string) (bool, error) {
	switch setting {
	case UserNamespacesOff:
		e.users = "off"
		return false, nil
	case UserNamespacesOn, UserNamespacesAuto, "":
	default:
		return false, fmt.Errorf("--user-namespaces=%s is none of the settings: want %s, %s or %s", setting, UserNamespacesOn, UserNamespacesAuto, UserNamespacesOff)
	}
	err := e.namespace.do(func() error { return checkUsers(filepath.Join(e.run, "check"), layer) })
	switch {
	case err == nil:
		e.users = fmt.Sprintf("on, %d users each from %d", idsEach, firstID)
		return true, nil
	case setting == UserNamespacesAuto:
		e.users = fmt.Sprintf("off: %v", err)
		e.logger.Warn("instances run without user namespaces: root in them is root of the machine, with few privileges", "error", err)
		return false, nil
	}
	return false, fmt.Errorf("%w; with --user-namespaces=off instances run without: their root is then the machine's, with few privileges", err)
}

// Pull implements engine.Engine.
func (e *Engine) Pull(ctx context.Context, spec engine.Spec, report func(engine.Progress)) error {
	var done, total int64 // of the images before
	for _, c := range append([]engine.Container{spec.Container}, spec.Sidecars...) {
		var last engine.Progress
		_, err := e.images.Pull(ctx, c.Image, image.Credentials(c.Credentials), func(complete, size int64) {
			last = engine.Progress{Complete: complete, Total: size}
			if report != nil {
				report(engine.Progress{Complete: done + complete, Total: total + size})
			}
		})
		if err != nil {
			return err
		}
		done, total = done+last.Complete, total+last.Total
	}
	return nil
}

// Prepare implements engine.Engine. Its error is a *engine.StartError when the image or the spec is at fault.
func (e *Engine) Prepare(ctx context.Context, spec engine.Spec) (engine.Instance, error) {
	return e.prepareInstance(ctx, spec, nil)
}

// prepareInstance prepares an instance. Where nobody waits for it, hurry tells when somebody does; else it is nil.
func (e *Engine) prepareInstance(ctx context.Context, spec engine.Spec, hurry <-chan struct{}) (engine.Instance, error) {
	if err := checkSpec(spec); err != nil {
		return nil, fmt.Errorf("preparing an instance: %w", err)
	}
	i, err := e.newInstance(spec)
	if err != nil {
		return nil, err
	}
	defer e.preparing.Done()
	i.hurry = hurry
	err = i.prepare(ctx)
	i.hurry = nil
	if err != nil {
		i.abandon()
		var start *engine.StartError
		if errors.As(err, &start) || ctx.Err() != nil {
			return nil, err
		}
		return nil, fmt.Errorf("preparing instance %q: %w", i.id, err)
	}
	return i, nil
}

// checkSpec refuses what cannot be in the names of files.
func checkSpec(spec engine.Spec) error {
	names := []string{spec.Namespace, spec.Service, spec.Revision}
	for _, v := range spec.Volumes {
		names = append(names, v.Name)
	}
	containers := map[string]bool{spec.Container.Name: true}
	for _, c := range spec.Sidecars {
		if c.Name == "" || containers[c.Name] {
			return fmt.Errorf("a container of %q has the name %q: every one of several must have a name of its own", spec.Revision, c.Name)
		}
		containers[c.Name] = true
	}
	for _, name := range slices.AppendSeq(names, maps.Keys(containers)) {
		if strings.ContainsAny(name, "/ \n") || name == "." || name == ".." {
			return fmt.Errorf("%q cannot be the name of a namespace, service, revision, container or volume", name)
		}
	}
	if spec.Namespace == "" || spec.Revision == "" || spec.Container.Port < 1 || spec.Container.Port > 65535 {
		return fmt.Errorf("%q in namespace %q on port %d: all three must be given", spec.Revision, spec.Namespace, spec.Container.Port)
	}
	return nil
}

// newInstance registers an instance with an ID that no other has. The caller ends with preparing.Done.
func (e *Engine) newInstance(spec engine.Spec) (*instance, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, errors.New("preparing an instance: the engine is closed")
	}
	id := spec.Revision + "-" + suffix()
	for e.instances[id] != nil {
		id = spec.Revision + "-" + suffix()
	}
	i := &instance{
		engine: e, id: id, spec: spec, readiness: make(chan bool, 1),
		ending: make(chan struct{}), exited: make(chan struct{}), stopped: make(chan struct{}),
	}
	i.addContainers()
	e.instances[id] = i
	e.preparing.Add(1)
	return i, nil
}

// suffix is five random characters that make no words.
func suffix() string {
	const letters = "bcdfghjklmnpqrstvwxz2456789"
	return strings.Map(func(r rune) rune { return rune(letters[int(r)%len(letters)]) }, rand.Text()[:5])
}

func (e *Engine) forget(i *instance) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.instances, i.id)
}

// Logs implements engine.Engine. A line longer than 64 KiB comes in pieces.
func (e *Engine) Logs(ctx context.Context, query engine.LogQuery, emit func(engine.LogLine) error) error {
	return e.logs.query(ctx, query, emit)
}

// RemoveLogs removes what instances of a revision have written; revision "" means all revisions of the service.
func (e *Engine) RemoveLogs(namespace, service, revision string) error {
	return e.logs.remove(namespace, service, revision)
}

// Info implements engine.Engine.
func (e *Engine) Info() map[string]string {
	info := map[string]string{
		"engine":  "node",
		"runtime": e.runtime.version,
		"cgroups": e.cgroups.String(),
		"freezer": e.cgroups.freezerKind(),
		"network": e.network.prefix.String(),
		"users":   e.users,
		"nft":     e.firewall.version(),
		"arch":    runtime.GOARCH,
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err == nil {
		info["kernel"] = unix.ByteSliceToString(name.Release[:])
	}
	return info
}

// Close implements engine.Engine.
func (e *Engine) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	e.mu.Unlock()
	e.preparing.Wait()
	var stops sync.WaitGroup
	e.mu.Lock()
	for _, i := range e.instances {
		stops.Go(func() { i.Stop(0) })
	}
	e.mu.Unlock()
	stops.Wait()
	return e.release()
}

// release takes back what open has made, as far as it came.
func (e *Engine) release() error {
	var errs []error
	if e.relay != nil {
		e.relay.close()
	}
	if e.network != nil {
		errs = append(errs, e.network.close())
	}
	if e.firewall != nil {
		errs = append(errs, e.firewall.close())
	}
	errs = append(errs, e.listens.close())
	if e.namespace != nil {
		e.namespace.close()
		if err := os.Remove(e.run); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("removing the engine's directory: %w", err))
		}
	}
	if e.life != nil {
		errs = append(errs, e.cgroups.sweep())
		if errors.Join(errs...) == nil {
			errs = append(errs, releaseLife(e.life))
		} else {
			errs = append(errs, unlock(e.life)) // others may succeed
		}
	}
	if e.lock != nil {
		errs = append(errs, unlock(e.lock))
	}
	return errors.Join(errs...)
}

// Images lists the images, as references by digest, that instances are made from.
func (e *Engine) Images() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var images []string
	for _, i := range e.instances {
		for _, c := range i.containers {
			if !slices.Contains(images, c.spec.Image) {
				images = append(images, c.spec.Image)
			}
		}
	}
	return images
}
