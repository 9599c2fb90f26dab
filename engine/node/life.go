package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/engine"
)

// life is one life of a container: an OCI container, made and not yet running, running, or ended.
type life struct {
	container *container

	// Set while preparing, and then left alone until remove.
	rootfs  *rootfs
	output  *output
	process *process
	memory  *os.File // tells when the memory limit is met; nil where the kernel ends the container itself

	listening *listening // from when its program is let run until it has started; set with instance.mu held

	exited chan struct{}
	exit   engine.Exit // written before exited is closed

	launching sync.Mutex // held while a command is being started; guards the next
	commands  []int      // processes that Exec started and waits for

	// Guarded by instance.mu.
	begun    time.Time // when its program was let run
	followed bool      // another life will follow, and who sees to that deals with the end of this
	cause    string    // why it is ended for another; "" when it ended by itself

	stopProbing context.CancelFunc // nil while nothing is probed after the start; guarded by instance.mu
	probing     sync.WaitGroup
	courses     *courses // of the probes after the start: theirs while they go on
}

// prepare makes the life up to where it waits for release. When it fails, abandon takes back what it has made. lap is
// called at the end of each stage.
func (l *life) prepare(ctx context.Context, lap func(stage string)) error {
	c := l.container
	i, e := c.instance, c.instance.engine
	image, err := e.images.Image(c.spec.Image)
	if err != nil {
		return &engine.StartError{Reason: engine.ReasonImageNotPulled, Err: err}
	}
	b := &bundle{
		spec: i.spec, container: c.spec, image: image.Config, hostname: hostname(i.id),
		cgroupsPath: e.cgroups.path(c.id), network: namespacePath(i.link.namespace), openFiles: e.openFiles, oomScore: e.oomScore,
		annotations: e.runtime.annotations(bounding(c.spec)), swapCounted: e.swapCounted, unified: e.cgroups.v2,
	}
	if i.link.users != nil {
		b.users, b.ids = namespacePath(i.link.users), i.link.ids
	}
	err = e.namespace.do(func() error { return l.prepareRootfs(b, image.Layers) })
	if err != nil {
		return err
	}
	lap("rootfs")
	if err := l.create(ctx, b); err != nil {
		return err
	}
	lap("create")
	return nil
}

// prepareRootfs mounts and furnishes the root and writes the bundle. It runs in the mount namespace.
func (l *life) prepareRootfs(b *bundle, layers []string) error {
	c := l.container
	i, e := c.instance, c.instance.engine
	var err error
	l.rootfs, err = mountRootfs(filepath.Join(e.bundles, c.id), layers, c.spec.Memory, i.link.users, i.link.ids)
	if err != nil {
		return err
	}
	passwd, _ := l.rootfs.readFile("/etc/passwd") // without them, only numbers are known
	group, _ := l.rootfs.readFile("/etc/group")
	if b.user, err = findUser(b.image.User, c.spec.User, c.spec.Group, passwd, group); err != nil {
		return err
	}
	if c.spec.NonRoot {
		if err := b.user.checkNotRoot(b.image.User, c.spec.User); err != nil {
			return err
		}
	}
	if err := b.user.check(b.ids); err != nil {
		return err
	}
	hosts := fmt.Sprintf("127.0.0.1\tlocalhost %s\n%s\t%s\n", c.spec.Name, i.link.address, b.hostname)
	if err := l.rootfs.furnish(b.hostname, hosts, e.relay.resolvConf()); err != nil {
		return err
	}
	if err := l.rootfs.mkdirAll(b.workingDir()); err != nil {
		return notExecutable("the working directory %q cannot be made in the image: %w", b.workingDir(), reason(err))
	}
	if err := l.rootfs.checkProgram(b.args(), b.variable("PATH"), b.workingDir(), b.user); err != nil && !mayBeMounted(*c.spec, b.args(), b.variable("PATH"), b.workingDir()) {
		return err
	}
	if b.volumes, err = i.volumes.mounts(*c.spec); err != nil {
		return err
	}
	if err := l.rootfs.checkMountPoints(b.volumes); err != nil {
		return err
	}
	return b.write(l.rootfs.dir)
}

// create has the runtime make the container.
func (l *life) create(ctx context.Context, b *bundle) error {
	c := l.container
	i, e := c.instance, c.instance.engine
	output, stdout, stderr, err := openOutput(i.log, source{i.id, c.spec.Name}, b.ids.outside(b.user.uid))
	if err != nil {
		return err
	}
	l.output = output
	pid, err := e.runtime.create(ctx, c.id, l.rootfs.dir, l.rootfs.null, stdout, stderr, i.hurry)
	stdout.Close()
	stderr.Close()
	l.rootfs.release()
	if err != nil {
		return fmt.Errorf("creating the container: %w", err)
	}
	e.runtime.keepFilter(c.id, bounding(c.spec))
	if l.process, err = openProcess(pid); err != nil {
		return err
	}
	if err := l.checkView(); err != nil {
		return err
	}
	l.memory, err = e.cgroups.memoryEvents(c.id)
	return err
}

// checkView makes sure that the container has a /proc and a /sys of its own. In a user namespace the kernel mounts
// these only where the machine's are not partly covered by other mounts, and crun then shows the container the
// machine's, with its network interfaces.
func (l *life) checkView() error {
	if !l.container.instance.link.ids.shifted() {
		return nil
	}
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", l.process.pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
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

// watch waits, beside the caller, for the life's end and tells the container.
func (l *life) watch() {
	if l.memory != nil {
		go l.watchMemory(l.memory)
	}
	go func() {
		status, err := l.process.wait()
		i := l.container.instance
		exit := engine.Exit{OOM: i.engine.cgroups.outOfMemory(l.container.id)} // whichever process it was that the kernel killed
		l.output.drain(drainPatience)
		exit.LastLines = l.output.lastLines()
		switch {
		case err != nil:
			i.engine.logger.Error("waiting for a container", "revision", i.spec.Revision, "instance", i.id, "error", err)
			exit.Code = -1
		case status.Signaled():
			exit.Signal = status.Signal()
		default:
			exit.Code = status.ExitStatus()
		}
		l.container.ended(l, exit)
	}()
}

// release lets the program run.
func (l *life) release() error {
	c := l.container
	i := c.instance
	i.mu.Lock()
	if !i.stopping { // else nobody might end it
		l.listening = i.engine.listens.watch(namespaceInode(i.link.namespace))
	}
	l.begun = time.Now()
	c.enter(engine.ContainerRunning, "")
	i.mu.Unlock()
	return i.engine.runtime.release(c.id)
}

// awaitStarted waits until the container has started: until what startChecks lists has passed. When it cannot be, the
// error is a *engine.StartError, or ctx's.
func (l *life) awaitStarted(ctx context.Context) error {
	c := l.container
	i := c.instance
	defer l.listening.end()
	if checks := startChecks(c.spec, c.serves()); len(checks) > 0 {
		timeout := cmp.Or(i.spec.StartupTimeout, startupTimeout)
		begun := time.Now()
		probed := l.probed()
		probed.unheard = probed.heard != nil
		for _, check := range checks {
			if err := l.awaitCheck(ctx, probed, begun.Add(timeout), check); err != nil {
				return c.blame(l.startError(ctx, check, time.Since(begun), err))
			}
			probed.unheard = false
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	c.started, c.unready = !hasEnded(l.exited), false
	l.courses = newCourses(c.spec.ReadinessProbe, c.spec.LivenessProbe, l.begun)
	l.goOnProbing(false)
	l.endBoost()
	return nil
}

// awaitCheck tries a probe until it passes. It gives up at a time, at the life's end, and when the container listens
// where no request can reach it.
func (l *life) awaitCheck(ctx context.Context, p probed, until time.Time, check engine.Probe) error {
	ctx, cancel := context.WithDeadline(ctx, until)
	var beside sync.WaitGroup
	defer beside.Wait()
	defer cancel()
	beside.Go(func() {
		select {
		case <-l.exited:
			cancel()
		case <-ctx.Done():
		}
	})
	if l.container.serves() {
		beside.Go(func() {
			// Who asks for the probing to begin later knows that the program takes its time.
			if sleep(ctx, check.InitialDelay-time.Since(l.begun)) == nil && l.lookOut(ctx, probedPort(check)) {
				cancel()
			}
		})
	}
	return p.awaitPassed(ctx, check, l.begun)
}

// probed is the container as its probes reach it.
func (l *life) probed() probed {
	i := l.container.instance
	return probed{
		address: i.link.address,
		heard:   l.listening.channel(),
		run: func(ctx context.Context, command engine.Command) (int, error) {
			command.Container = l.container.spec.Name
			return i.Exec(ctx, command)
		},
	}
}

// goOnProbing begins the probes that go on after the start, where there are any, or goes on with them after a freeze.
// instance.mu is held.
func (l *life) goOnProbing(anew bool) {
	c := l.container
	i := c.instance
	if c.spec.ReadinessProbe == nil && c.spec.LivenessProbe == nil || !c.started || i.draining || i.isEnding() {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := prober{
		name: c.spec.Name, readiness: c.spec.ReadinessProbe, liveness: c.spec.LivenessProbe, courses: l.courses, anew: anew,
		try:  l.probed().try,
		hold: i.holdAwake,
		say:  c.say,
		turn: func(ready bool) { c.setUnready(ctx, !ready) },
		fail: func(why string) {
			i.mu.Lock()
			defer i.mu.Unlock()
			if ctx.Err() == nil && !hasEnded(l.exited) {
				go c.restart(l, why) // it fails at the instance's end only
			}
		},
	}
	l.stopProbing = cancel
	l.probing.Go(func() { p.run(ctx) })
}

// endProbing sees to it that nothing is probed any more. instance.mu is held.
func (l *life) endProbing() {
	if l != nil && l.stopProbing != nil {
		l.stopProbing()
	}
}

// startError says why the container has not started.
func (l *life) startError(ctx context.Context, probe engine.Probe, waited time.Duration, err error) error {
	if hasEnded(l.exited) {
		exit := l.exit
		return &engine.StartError{Reason: engine.ReasonExited, Exit: &exit, Port: l.container.spec.Port, LastLines: exit.LastLines}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	failure := &engine.StartError{
		Reason: engine.ReasonNotListening, Port: probedPort(probe), Waited: waited,
		Listened: listened(l.process.pid), LastLines: l.output.lastLines(),
	}
	if probe.TCP == nil { // of a TCP probe, "connection refused" would say no more
		failure.Err = err
	}
	return failure
}

// signal sends a signal to the container's first process. One that has ended is no error.
func (l *life) signal(signal unix.Signal) {
	if err := l.process.signal(signal); err != nil {
		i := l.container.instance
		i.engine.logger.Warn("sending "+unix.SignalName(signal), "revision", i.spec.Revision, "instance", i.id, "container", l.container.spec.Name, "error", err)
	}
}

// kill ends the first process, and with it the kernel ends all processes of its PID namespace. It returns when they
// have ended.
func (l *life) kill() {
	l.signal(unix.SIGKILL)
	<-l.exited
}

// abandon takes back what a prepare that failed has made.
func (l *life) abandon() {
	if l.process != nil {
		_ = l.process.signal(unix.SIGKILL)
		_, _ = l.process.wait()
	}
	l.container.instance.engine.cgroups.kill(l.container.id) // what the runtime left behind
	l.remove()
}

// remove gives back all that the life holds but its cgroup, which is the container's. No process of it is left. Calling
// it again does nothing.
func (l *life) remove() {
	c := l.container
	i, e := c.instance, c.instance.engine
	i.mu.Lock()
	listening := l.listening
	i.mu.Unlock()
	listening.end()
	l.probing.Wait()   // the life's end has stopped it
	l.launching.Lock() // what is being started here must not be found in the next life, which has the same names
	defer l.launching.Unlock()
	if l.memory != nil {
		l.memory.Close() // before its cgroup goes, which is an event too
	}
	if l.process != nil {
		l.process.close()
	}
	if l.output != nil {
		l.output.close()
	}
	err := e.namespace.do(func() error {
		var unmounted error
		if l.rootfs != nil {
			unmounted = l.rootfs.unmount()
		}
		return errors.Join(unmounted, e.runtime.remove(c.id))
	})
	if err != nil {
		e.logger.Error("removing a container", "revision", i.spec.Revision, "instance", i.id, "container", c.spec.Name, "error", err)
	}
}
