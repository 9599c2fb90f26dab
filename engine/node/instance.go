package node

import (
	"context"
	"fmt"
	"net"
	"net/netip"
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

// instance is a network with the containers that share it, made and not yet running, running, or ended.
type instance struct {
	engine *Engine
	id     string
	spec   engine.Spec

	// Set while preparing, and then left alone until remove.
	link       *link
	volumes    *volumes // nil when there are none
	log        *revisionLog
	containers []*container    // the one that requests go to, then the sidecars
	hurry      <-chan struct{} // while preparing what nobody waits for: closed when somebody does

	readiness chan bool     // see Readiness
	ending    chan struct{} // closed when no container is to be started again: the instance is stopped, or was broken
	exited    chan struct{}
	exit      engine.Exit // written before exited is closed

	execs    sync.WaitGroup // commands that are being started
	stopOnce sync.Once
	stopped  chan struct{}

	freezer freezer

	mu       sync.Mutex
	stages   []engine.Stage
	started  bool
	ready    bool // Start has returned without an error
	draining bool // see Drain
	stopping bool
	unready  bool               // what readiness was told last
	moved    bool               // a container has entered another state since, or was started again
	waiting  string             // what Start waits for, once that takes long
	failure  *engine.StartError // of a sidecar that ended before the instance was ready; failed is then closed
	failed   chan struct{}      // nil without sidecars
	broken   *engine.Exit       // how a container ended that takes the instance with it
}

var _ engine.Instance = (*instance)(nil)

// prepare makes everything up to containers that wait for release. When it fails, abandon takes back what it has made.
func (i *instance) prepare(ctx context.Context) error {
	e := i.engine
	e.cgroups.warm()
	i.log = e.logs.use(logName{i.spec.Namespace, i.spec.Service, i.spec.Revision})
	lap := i.stopwatch()
	var err error
	if i.link, err = e.network.take(); err != nil {
		return err
	}
	lap("network")
	if i.volumes, err = e.openVolumes(ctx, i.id, i.spec, i.link.ids); err != nil {
		return err
	}
	if i.volumes != nil {
		lap("volumes")
	}
	for _, c := range i.containers {
		c.life = c.conceive()
		if err := c.life.prepare(ctx, lap); err != nil {
			return c.blame(err)
		}
	}
	for _, c := range i.containers {
		c.life.watch()
	}
	return nil
}

// addContainers lists the containers that an instance will have.
func (i *instance) addContainers() {
	i.containers = make([]*container, 0, 1+len(i.spec.Sidecars))
	i.containers = append(i.containers, &container{instance: i, spec: &i.spec.Container, id: i.id})
	for n := range i.spec.Sidecars {
		c := &i.spec.Sidecars[n]
		i.containers = append(i.containers, &container{instance: i, spec: c, id: i.id + "." + c.Name})
	}
	if len(i.spec.Sidecars) > 0 {
		i.failed = make(chan struct{})
	}
	for _, c := range i.containers {
		c.state, c.since = engine.ContainerWaiting, time.Now()
	}
}

// stopwatch returns a function that records a stage that took the time since the last call. What several containers
// take for a stage is added up.
func (i *instance) stopwatch() func(stage string) {
	last := time.Now()
	return func(stage string) {
		now := time.Now()
		i.mu.Lock()
		defer i.mu.Unlock()
		begun, took := last, now.Sub(last)
		last = now
		for n := range i.stages {
			if i.stages[n].Name == stage {
				i.stages[n].Took += took
				return
			}
		}
		i.stages = append(i.stages, engine.Stage{Name: stage, Begun: begun, Took: took})
	}
}

// ID implements engine.Instance.
func (i *instance) ID() string { return i.id }

// Exited implements engine.Instance.
func (i *instance) Exited() <-chan struct{} { return i.exited }

// Exit implements engine.Instance.
func (i *instance) Exit() engine.Exit {
	if hasEnded(i.exited) {
		return i.exit
	}
	return engine.Exit{}
}

// Stages implements engine.Instance.
func (i *instance) Stages() []engine.Stage {
	i.mu.Lock()
	defer i.mu.Unlock()
	return append([]engine.Stage(nil), i.stages...)
}

// Readiness implements engine.Instance.
func (i *instance) Readiness() <-chan bool { return i.readiness }

// publish tells of the instance's readiness when that, or a container's state, has changed. i.mu is held.
func (i *instance) publish() {
	if !i.ready || i.stopping {
		return
	}
	unready := false
	for _, c := range i.containers {
		unready = unready || c.keepsRequestsAway()
	}
	if unready == i.unready && !i.moved {
		return
	}
	i.unready, i.moved = unready, false
	select {
	case <-i.readiness: // nobody has looked since: the newest is enough
	default:
	}
	i.readiness <- !unready
}

// Address is the instance's address in the instance network.
func (i *instance) Address() netip.Addr { return i.link.address }

// Containers implements engine.Instance.
func (i *instance) Containers() []engine.ContainerStatus {
	i.mu.Lock()
	defer i.mu.Unlock()
	all := make([]engine.ContainerStatus, len(i.containers))
	for n, c := range i.containers {
		all[n] = c.status()
	}
	return all
}

// Dial implements engine.Instance.
func (i *instance) Dial(ctx context.Context) (net.Conn, error) {
	return dial(ctx, i.link.address, i.spec.Container.Port)
}

// Start implements engine.Instance. Sidecars begin first, in their order; none waits for another's probe.
func (i *instance) Start(ctx context.Context) error {
	i.mu.Lock()
	if i.started || i.stopping {
		i.mu.Unlock()
		return &engine.StartError{Reason: engine.ReasonEngine, Err: fmt.Errorf("instance %q was started or stopped before", i.id)}
	}
	i.started = true
	i.mu.Unlock()

	lap := i.stopwatch()
	for _, c := range append(i.containers[1:len(i.containers):len(i.containers)], i.containers[0]) {
		if err := c.life.release(); err != nil {
			return c.blame(&engine.StartError{Reason: engine.ReasonEngine, Err: err})
		}
	}
	lap("release")
	if err := i.awaitStarted(ctx); err != nil {
		return err
	}
	lap("listen")
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.failure != nil { // it ended since
		return i.failure
	}
	i.ready, i.moved = true, false // who started it looks at it now
	i.publish()
	return nil
}

// awaitStarted waits until the startup probes of all containers have passed.
func (i *instance) awaitStarted(ctx context.Context) error {
	if len(i.containers) == 1 {
		return i.containers[0].life.awaitStarted(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var probes, beside sync.WaitGroup
	beside.Go(func() {
		select {
		case <-i.failed:
			cancel(i.failure)
		case <-ctx.Done():
		}
	})
	for _, c := range i.containers {
		probes.Go(func() {
			if err := c.life.awaitStarted(ctx); err != nil {
				cancel(err) // the first cause stays
			}
		})
	}
	probes.Wait()
	err := context.Cause(ctx)
	cancel(nil)
	beside.Wait()
	return err
}

// fail records that a sidecar ended before the instance was ready. i.mu is held.
func (i *instance) fail(c *container, exit engine.Exit) {
	if i.failure != nil {
		return
	}
	i.failure = &engine.StartError{Reason: engine.ReasonExited, Container: c.spec.Name, Exit: &exit, LastLines: exit.LastLines}
	close(i.failed)
}

// end sees to it that no container is started again. i.mu is held.
func (i *instance) end() {
	if !i.isEnding() {
		close(i.ending)
		if i.freezer.wanted.Load() {
			go i.thawAnyway() // the processes of a frozen cgroup do not end
		}
	}
	i.endProbing()
}

// Drain tells the instance that it gets no new requests: none of its containers is probed any more, or started again
// because a probe fails, while the requests in flight end.
func (i *instance) Drain() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.draining = true
	i.endProbing()
}

// endProbing sees to it that no container is probed any more. i.mu is held.
func (i *instance) endProbing() {
	for _, c := range i.containers {
		c.life.endProbing()
	}
}

// isEnding tells whether no container is to be started again. i.mu is held.
func (i *instance) isEnding() bool { return hasEnded(i.ending) }

// breakDown ends the instance because of how one of its containers ended (contract C56). i.mu is held.
func (i *instance) breakDown(exit engine.Exit) {
	if i.broken != nil {
		return
	}
	i.broken = &exit
	i.end()
	for _, c := range i.containers {
		c.life.signal(unix.SIGKILL)
	}
}

// finish records that the container that requests go to has ended for good. i.mu is held.
func (i *instance) finish(exit engine.Exit) {
	if hasEnded(i.exited) {
		return
	}
	if i.broken != nil {
		exit = *i.broken
	}
	i.end()
	i.exit = exit
	close(i.exited)
}

// Stop implements engine.Instance.
func (i *instance) Stop(grace time.Duration) {
	i.stopOnce.Do(func() {
		defer close(i.stopped)
		i.mu.Lock()
		i.stopping = true
		i.end()
		started := i.started
		i.mu.Unlock()
		i.thawAnyway()
		for _, c := range i.containers { // from here on, none is made or removed
			c.restarting.Lock()
			defer c.restarting.Unlock()
		}
		if started && grace > 0 {
			i.terminate(grace)
		}
		i.kill()
		i.execs.Wait()
		i.remove()
	})
	<-i.stopped
}

// terminate asks the containers to end and gives them time. The signal is always SIGTERM (contract C54), also for
// images that name another (STOPSIGNAL): a program is stopped here as it is on Cloud Run.
func (i *instance) terminate(grace time.Duration) {
	for _, c := range i.containers {
		c.life.signal(unix.SIGTERM)
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	for _, c := range i.containers {
		select {
		case <-c.life.exited:
		case <-timer.C:
			return
		}
	}
}

// kill ends the containers, and returns when all their processes have ended.
func (i *instance) kill() {
	for _, c := range i.containers {
		c.life.signal(unix.SIGKILL)
	}
	for _, c := range i.containers {
		<-c.life.exited
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.finish(i.containers[0].life.exit)
}

// abandon takes back what a prepare that failed has made.
func (i *instance) abandon() {
	for _, c := range i.containers {
		if c.life != nil {
			c.life.abandon()
			c.removeCgroup()
		}
	}
	i.giveBack()
}

// remove gives back all that the instance holds. No process of it is left.
func (i *instance) remove() {
	for _, c := range i.containers {
		c.life.remove()
		c.removeCgroup()
	}
	i.giveBack()
}

// giveBack gives back what the containers shared.
func (i *instance) giveBack() {
	e := i.engine
	if err := i.volumes.close(); err != nil {
		e.logger.Error("removing an instance's volumes", "revision", i.spec.Revision, "instance", i.id, "error", err)
	}
	if i.link != nil {
		e.network.give(i.link)
	}
	if i.log != nil {
		e.logs.done(i.log)
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
