package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/engine"
)

const (
	// startupTimeout applies to specs that have none (contract C45).
	startupTimeout = 240 * time.Second
	// createPatience is how long the runtime may go on making a container that nobody wants any more.
	createPatience = 10 * time.Second
	// releasePatience is how long a created container may take to begin its program.
	releasePatience = 10 * time.Second
	// drainPatience is how long the last lines of a container that has ended may take to be read.
	drainPatience = 2 * time.Second
)

// instance is an OCI container, made and not yet running, running, or ended.
type instance struct {
	engine *Engine
	id     string
	spec   engine.Spec

	// Set while preparing, and then left alone until remove.
	link    *link
	volumes *volumes // nil when there are none
	rootfs  *rootfs
	output  *output
	process *process
	memory  *os.File // tells when the memory limit is met; nil where the kernel ends the instance itself

	exited chan struct{}
	exit   engine.Exit // written before exited is closed

	stopOnce sync.Once
	stopped  chan struct{}

	mu       sync.Mutex
	stages   []engine.Stage
	started  bool
	stopping bool
	waiting  string // what Start waits for, once that takes long
}

var _ engine.Instance = (*instance)(nil)

// prepare makes everything up to a container that waits for release. When it fails, remove takes back what it
// has made.
func (i *instance) prepare(ctx context.Context) error {
	e := i.engine
	image, err := e.images.Image(i.spec.Container.Image)
	if err != nil {
		return &engine.StartError{Reason: engine.ReasonImageNotPulled, Err: err}
	}
	e.cgroups.warm()
	lap := i.stopwatch()
	if i.link, err = e.network.take(); err != nil {
		return err
	}
	lap("network")
	if i.volumes, err = e.openVolumes(ctx, i.id, i.spec, i.link.ids); err != nil {
		return err
	}
	b := &bundle{
		spec: i.spec, image: image.Config, hostname: hostname(i.id),
		cgroupsPath: e.cgroups.path(i.id), network: namespacePath(i.link.namespace), openFiles: e.openFiles, oomScore: e.oomScore,
		annotations: e.runtime.annotations(), swapCounted: e.swapCounted, unified: e.cgroups.v2,
	}
	if i.link.users != nil {
		b.users, b.ids = namespacePath(i.link.users), i.link.ids
	}
	err = e.namespace.do(func() error { return i.prepareRootfs(b, image.Layers) })
	if err != nil {
		return err
	}
	lap("rootfs")
	if err := i.create(ctx, b); err != nil {
		return err
	}
	lap("create")
	if i.memory != nil {
		go i.watchMemory(i.memory)
	}
	go i.watch()
	return nil
}

// prepareRootfs mounts and furnishes the root and writes the bundle. It runs in the mount namespace.
func (i *instance) prepareRootfs(b *bundle, layers []string) error {
	e := i.engine
	var err error
	i.rootfs, err = mountRootfs(filepath.Join(e.bundles, i.id), layers, i.spec.Container.Memory, i.link.users, i.link.ids)
	if err != nil {
		return err
	}
	passwd, _ := i.rootfs.readFile("/etc/passwd") // without them, only numbers are known
	group, _ := i.rootfs.readFile("/etc/group")
	if b.user, err = findUser(b.image.User, i.spec.Container.User, passwd, group); err != nil {
		return err
	}
	if err := b.user.check(b.ids); err != nil {
		return err
	}
	hosts := fmt.Sprintf("127.0.0.1\tlocalhost %s\n%s\t%s\n", i.spec.Container.Name, i.link.address, b.hostname)
	if err := i.rootfs.furnish(b.hostname, hosts, e.relay.resolvConf()); err != nil {
		return err
	}
	if err := i.rootfs.mkdirAll(b.workingDir()); err != nil {
		return notExecutable("the working directory %q cannot be made in the image: %w", b.workingDir(), reason(err))
	}
	if err := i.rootfs.checkProgram(b.args(), b.variable("PATH"), b.workingDir(), b.user); err != nil && !mayBeMounted(i.spec.Container, b.args(), b.variable("PATH"), b.workingDir()) {
		return err
	}
	if b.volumes, err = i.volumes.mounts(i.spec.Container); err != nil {
		return err
	}
	return b.write(i.rootfs.dir)
}

// create has the runtime make the container.
func (i *instance) create(ctx context.Context, b *bundle) error {
	e := i.engine
	output, stdout, stderr, err := e.logs.open(i.id, i.spec, b.ids.outside(b.user.uid))
	if err != nil {
		return err
	}
	i.output = output
	pid, err := e.runtime.create(ctx, i.id, i.rootfs.dir, i.rootfs.null, stdout, stderr)
	stdout.Close()
	stderr.Close()
	i.rootfs.release()
	if err != nil {
		return fmt.Errorf("creating the container: %w", err)
	}
	if i.process, err = openProcess(pid); err != nil {
		return err
	}
	if err := i.checkView(); err != nil {
		return err
	}
	i.memory, err = e.cgroups.memoryEvents(i.id)
	return err
}

// checkView makes sure that the container has a /proc and a /sys of its own. In a user namespace the kernel mounts
// these only where the machine's are not partly covered by other mounts, and crun then shows the container the
// machine's, with its network interfaces.
func (i *instance) checkView() error {
	if !i.link.ids.shifted() {
		return nil
	}
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", i.process.pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("looking at the container's root: %w", err)
	}
	defer unix.Close(root)
	for _, name := range []string{"/proc", "/sys"} {
		var own, machines unix.Stat_t
		fd, err := unix.Openat2(root, name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
		if err == nil {
			err = errors.Join(unix.Fstat(fd, &own), unix.Stat(name, &machines), unix.Close(fd))
		}
		if err != nil {
			return fmt.Errorf("looking at the container's %s: %w", name, err)
		}
		if own.Dev == machines.Dev {
			return fmt.Errorf("the container has the machine's %s, as a part of that is covered by another mount, which forbids one of its own: unmount what is below %s, or start the server with --user-namespaces=off", name, name)
		}
	}
	return nil
}

// stopwatch returns a function that records a stage that took the time since the last call.
func (i *instance) stopwatch() func(stage string) {
	last := time.Now()
	return func(stage string) {
		now := time.Now()
		i.mu.Lock()
		i.stages = append(i.stages, engine.Stage{Name: stage, Took: now.Sub(last)})
		i.mu.Unlock()
		last = now
	}
}

// watch waits for the container's end and records it.
func (i *instance) watch() {
	status, err := i.process.wait()
	oom := i.engine.cgroups.outOfMemory(i.id)
	i.output.drain(drainPatience)
	exit := engine.Exit{LastLines: i.output.lastLines()}
	switch {
	case err != nil:
		i.engine.logger.Error("waiting for a container", "revision", i.spec.Revision, "instance", i.id, "error", err)
		exit.Code = -1
	case status.Signaled():
		exit.Signal = status.Signal()
	default:
		exit.Code = status.ExitStatus()
	}
	i.mu.Lock()
	stopping, started := i.stopping, i.started
	i.mu.Unlock()
	// Whichever process it was that the kernel killed, the instance ended for it.
	exit.OOM = oom && !stopping
	if started && !stopping {
		i.output.system("the container " + exit.String())
	}
	i.exit = exit
	close(i.exited)
}

// ID implements engine.Instance.
func (i *instance) ID() string { return i.id }

// Exited implements engine.Instance.
func (i *instance) Exited() <-chan struct{} { return i.exited }

// Exit implements engine.Instance.
func (i *instance) Exit() engine.Exit {
	select {
	case <-i.exited:
		return i.exit
	default:
		return engine.Exit{}
	}
}

// Stages implements engine.Instance.
func (i *instance) Stages() []engine.Stage {
	i.mu.Lock()
	defer i.mu.Unlock()
	return append([]engine.Stage(nil), i.stages...)
}

// Readiness implements engine.Instance.
func (i *instance) Readiness() <-chan bool { return nil }

// Address is the instance's address in the instance network.
func (i *instance) Address() netip.Addr { return i.link.address }

// Exec implements engine.Instance.
func (i *instance) Exec(context.Context, engine.Command) (int, error) {
	return 0, fmt.Errorf("running a command in instance %q: %w", i.id, errors.ErrUnsupported)
}

// Containers implements engine.Instance.
func (i *instance) Containers() []engine.ContainerStatus {
	c := i.spec.Container
	status := engine.ContainerStatus{Name: c.Name, Image: c.Image, State: engine.ContainerWaiting}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.started {
		status.State, status.Started = engine.ContainerRunning, true
	}
	select {
	case <-i.exited:
		exit := i.exit
		status.State, status.Exit = engine.ContainerTerminated, &exit
	default:
	}
	return []engine.ContainerStatus{status}
}

// Dial implements engine.Instance.
func (i *instance) Dial(ctx context.Context) (net.Conn, error) {
	return dial(ctx, i.link.address, i.spec.Container.Port)
}

// Start implements engine.Instance.
func (i *instance) Start(ctx context.Context) error {
	i.mu.Lock()
	if i.started || i.stopping {
		i.mu.Unlock()
		return &engine.StartError{Reason: engine.ReasonEngine, Err: fmt.Errorf("instance %q was started or stopped before", i.id)}
	}
	i.started = true
	i.mu.Unlock()

	begun := time.Now()
	lap := i.stopwatch()
	if err := i.engine.runtime.release(i.id); err != nil {
		return &engine.StartError{Reason: engine.ReasonEngine, Err: err}
	}
	lap("release")
	timeout := i.spec.StartupTimeout
	if timeout == 0 {
		timeout = startupTimeout
	}
	probe := engine.Probe{TCP: &engine.TCPProbe{Port: i.spec.Container.Port}}
	if i.spec.Container.StartupProbe != nil {
		probe = *i.spec.Container.StartupProbe
	}
	err := i.awaitReady(ctx, timeout, probe)
	if err == nil {
		lap("listen")
		return nil
	}
	return i.startError(ctx, probe, time.Since(begun), err)
}

// awaitReady tries the probe until it passes. It gives up after timeout, at the container's end, and when the
// container listens where no request can reach it.
func (i *instance) awaitReady(ctx context.Context, timeout time.Duration, probe engine.Probe) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	var beside sync.WaitGroup
	defer beside.Wait()
	defer cancel()
	beside.Go(func() {
		select {
		case <-i.exited:
			cancel()
		case <-ctx.Done():
		}
	})
	beside.Go(func() {
		// Who asks for the probing to begin later knows that the program takes its time.
		if sleep(ctx, probe.InitialDelay) == nil && i.lookOut(ctx, probedPort(probe)) {
			cancel()
		}
	})
	return awaitReady(ctx, i.link.address, probe)
}

// startError says why an instance is not ready.
func (i *instance) startError(ctx context.Context, probe engine.Probe, waited time.Duration, err error) error {
	select {
	case <-i.exited:
		port := i.spec.Container.Port
		exit := i.exit
		return &engine.StartError{Reason: engine.ReasonExited, Exit: &exit, Port: port, LastLines: exit.LastLines}
	default:
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	failure := &engine.StartError{
		Reason: engine.ReasonNotListening, Port: probedPort(probe), Waited: waited,
		Listened: listened(i.process.pid), LastLines: i.output.lastLines(),
	}
	if probe.HTTP != nil { // of a TCP probe, "connection refused" would say no more
		failure.Err = err
	}
	return failure
}

// Stop implements engine.Instance.
func (i *instance) Stop(grace time.Duration) {
	i.stopOnce.Do(func() {
		defer close(i.stopped)
		i.mu.Lock()
		i.stopping = true
		started := i.started
		i.mu.Unlock()
		if started && grace > 0 {
			i.terminate(grace)
		}
		i.kill()
		i.remove()
	})
	<-i.stopped
}

// terminate asks the container to end and gives it time. The signal is always SIGTERM (contract C54), also for
// images that name another (STOPSIGNAL): a program is stopped here as it is on Cloud Run.
func (i *instance) terminate(grace time.Duration) {
	if err := i.process.signal(unix.SIGTERM); err != nil {
		i.engine.logger.Warn("sending SIGTERM", "revision", i.spec.Revision, "instance", i.id, "error", err)
		return
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-i.exited:
	case <-timer.C:
	}
}

// kill ends the container's first process, and with it the kernel ends all processes of its PID namespace. It
// returns when they have ended.
func (i *instance) kill() {
	if err := i.process.signal(unix.SIGKILL); err != nil && !errors.Is(err, os.ErrClosed) {
		i.engine.logger.Warn("sending SIGKILL", "revision", i.spec.Revision, "instance", i.id, "error", err)
	}
	<-i.exited
}

// abandon takes back what a prepare that failed has made.
func (i *instance) abandon() {
	if i.process != nil {
		_ = i.process.signal(unix.SIGKILL)
		_, _ = i.process.wait()
	}
	i.engine.cgroups.kill(i.id) // what the runtime left behind
	i.remove()
}

// remove gives back all that the instance holds. No process of it is left.
func (i *instance) remove() {
	e := i.engine
	var errs []error
	if i.memory != nil {
		i.memory.Close() // before its cgroup goes, which is an event too
	}
	if i.process != nil {
		i.process.close()
	}
	if i.output != nil {
		i.output.close()
	}
	errs = append(errs, e.namespace.do(func() error {
		var unmounted error
		if i.rootfs != nil {
			unmounted = i.rootfs.unmount()
		}
		return errors.Join(unmounted, e.runtime.remove(i.id))
	}))
	errs = append(errs, i.volumes.close(), e.cgroups.remove(i.id))
	if i.link != nil {
		e.network.give(i.link)
	}
	if err := errors.Join(errs...); err != nil {
		e.logger.Error("removing an instance", "revision", i.spec.Revision, "instance", i.id, "error", err)
	}
	e.forget(i)
}

// hostname is the instance's ID, cut to what the kernel takes.
func hostname(id string) string {
	const longest = 63
	if len(id) > longest {
		id = strings.Trim(id[len(id)-longest:], "-")
	}
	return id
}
