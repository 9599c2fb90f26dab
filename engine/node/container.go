package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/engine"
)

const (
	// restartGrace is what a container is given between SIGTERM and SIGKILL before it is started again, unless it says
	// otherwise (contract C54).
	restartGrace = 10 * time.Second
	// firstBackoff and longestBackoff bound the pause before a container that was started again lately is once more.
	firstBackoff   = time.Second
	longestBackoff = time.Minute
	// steadyLife is how long a container lives before its former ends count no more.
	steadyLife = 10 * time.Minute
)

// Reasons of a container's state.
const (
	reasonBackOff   = "CrashLoopBackOff" // it waits to be started again, after a pause
	reasonRestart   = "Restarting"       // it is being started again
	reasonCompleted = "Completed"        // its program has ended, as Kubernetes says it
	reasonError     = "Error"
	reasonOOM       = "OOMKilled"
)

// errEnding is why a container is not started again.
var errEnding = errors.New("the instance is ending")

// container is one container of an instance. It may live several times: it is started again in place, in the same
// network and with the same volumes.
type container struct {
	instance *instance
	spec     *engine.Container
	id       string // of its cgroup, its bundle and the runtime's state

	// restarting is held while one life is followed by another.
	restarting sync.Mutex

	// life is the present or the last one. It changes with both restarting and instance.mu held.
	life *life

	// Guarded by instance.mu.
	state    engine.ContainerState
	reason   string
	since    time.Time // of state
	started  bool      // its startup probe has passed in this life
	unready  bool      // its readiness probe fails
	restarts int
	attempts int // to start it again, since it last lived for long
	lastExit *engine.Exit
}

// serves tells whether requests go to the container.
func (c *container) serves() bool { return c == c.instance.containers[0] }

// called is what the container is called in sentences.
func (c *container) called() string {
	if len(c.instance.containers) == 1 {
		return "the container"
	}
	return fmt.Sprintf("the container %q", c.spec.Name)
}

// blame says in an error which container it is about, where there are several.
func (c *container) blame(err error) error {
	if len(c.instance.containers) == 1 {
		return err
	}
	var failure *engine.StartError
	if errors.As(err, &failure) {
		failure.Container = c.spec.Name
		return err
	}
	return fmt.Errorf("container %q: %w", c.spec.Name, err)
}

// say writes a line of the platform's own into the container's log.
func (c *container) say(text string) {
	c.instance.log.write(source{c.instance.id, c.spec.Name}, "system", []string{text})
}

// conceive returns a life that is yet to be prepared.
func (c *container) conceive() *life {
	return &life{container: c, exited: make(chan struct{})}
}

// enter records what the container does from now on. instance.mu is held.
func (c *container) enter(state engine.ContainerState, reason string) {
	c.state, c.reason, c.since = state, reason, time.Now()
	c.instance.moved = true
}

// status tells how the container is. instance.mu is held.
func (c *container) status() engine.ContainerStatus {
	status := engine.ContainerStatus{
		Name: c.spec.Name, Image: c.spec.Image, State: c.state, Since: c.since, Reason: c.reason,
		Started: c.started, Ready: c.started && !c.unready, Restarts: c.restarts, LastExit: c.lastExit,
	}
	if c.state == engine.ContainerTerminated {
		exit := c.life.exit
		status.Exit = &exit
	}
	return status
}

// keepsRequestsAway tells whether the instance cannot take requests for the container: an instance is ready when all its
// containers are, as a pod is. A sidecar that checks who may ask must not be missed. instance.mu is held.
func (c *container) keepsRequestsAway() bool { return !c.started || c.unready }

// setUnready records whether the readiness probe fails, unless what probing says counts no more.
func (c *container) setUnready(probing context.Context, unready bool) {
	i := c.instance
	i.mu.Lock()
	if probing.Err() == nil {
		c.unready = unready
		i.publish()
	}
	i.mu.Unlock()
	if !unready {
		i.holdAnyway()() // it freezes if it was to be and could not while it was unready
	}
}

// ended records the end of a life, and decides what follows.
func (c *container) ended(l *life, exit engine.Exit) {
	i := c.instance
	i.mu.Lock()
	exit.OOM = exit.OOM && !i.stopping
	tell := i.started && !i.stopping && i.broken == nil && (!l.followed || exit.OOM)
	i.mu.Unlock()
	if tell {
		c.say(c.called() + " " + exit.String()) // before anybody learns of the end
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	l.exit = exit
	close(l.exited)
	l.endProbing()
	c.started = false
	c.enter(engine.ContainerTerminated, endReason(exit))
	if !l.begun.IsZero() && time.Since(l.begun) >= steadyLife {
		c.attempts = 0
	}
	if exit.OOM {
		i.breakDown(exit)
	}
	switch {
	case l.followed && i.broken == nil: // who follows it deals with that
	case c.serves():
		i.finish(exit)
	case i.stopping || i.broken != nil:
	case !i.ready:
		i.fail(c, exit)
	default:
		i.publish()
		go c.resurrect(l)
	}
}

func endReason(exit engine.Exit) string {
	switch {
	case exit.OOM:
		return reasonOOM
	case exit.Code != 0 || exit.Signal != 0:
		return reasonError
	}
	return reasonCompleted
}

// resurrect starts a sidecar again that has ended by itself.
func (c *container) resurrect(l *life) {
	c.restarting.Lock()
	defer c.restarting.Unlock()
	if c.life != l {
		return // somebody did
	}
	defer c.instance.holdAnyway()()
	_ = c.relive() // it fails at the instance's end only
}

// restart ends a life of the container, with SIGTERM and time to obey, and begins another in the same network and with
// the same volumes. It returns when the new one has passed the startup probe; until then the instance takes no
// requests. A life that cannot begin is tried again, with growing pauses. It fails at the instance's end only. why is
// for the log and the status.
func (c *container) restart(l *life, why string) error {
	i := c.instance
	c.restarting.Lock()
	defer c.restarting.Unlock()
	if c.life != l {
		return nil // another has followed it already
	}
	defer i.holdAnyway()()
	i.mu.Lock()
	if i.isEnding() {
		i.mu.Unlock()
		return errEnding
	}
	l.followed, l.cause = true, why
	c.started = false
	i.publish()
	i.mu.Unlock()
	c.say(why + ". The container is started again.")
	l.signal(unix.SIGTERM)
	timer := time.NewTimer(cmp.Or(c.spec.TerminationGrace, restartGrace))
	defer timer.Stop()
	select {
	case <-l.exited:
	case <-timer.C:
	case <-i.ending:
		return c.giveUp()
	}
	return c.relive()
}

// giveUp leaves the container as it is, because the instance is ending. When its life has ended already, to be followed
// by another, and then something else broke the instance down, nobody else tells of the end.
func (c *container) giveUp() error {
	i := c.instance
	i.mu.Lock()
	defer i.mu.Unlock()
	if c.serves() && i.broken != nil && hasEnded(c.life.exited) {
		i.finish(c.life.exit)
	}
	return errEnding
}

// removeCgroup removes the container's cgroup once its last life has ended. It is kept from one life to the next: what
// a life has left in a volume counts to those that follow, and could not be taken from again and again.
func (c *container) removeCgroup() {
	i, e := c.instance, c.instance.engine
	if err := e.cgroups.remove(c.id); err != nil {
		e.logger.Error("removing a container's cgroup", "revision", i.spec.Revision, "instance", i.id, "container", c.spec.Name, "error", err)
	}
}

// relive has a new life follow the present one, which it ends if need be. restarting is held.
func (c *container) relive() error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-c.instance.ending:
			cancel()
		case <-ctx.Done():
		}
	}()
	for {
		c.life.kill()
		pause := c.bury()
		c.life.remove()
		c.instance.engine.cgroups.awaitEmpty(c.id)
		if pause > 0 {
			c.say(fmt.Sprintf("%s is started again in %s", c.called(), pause))
		}
		if sleep(ctx, pause) != nil {
			break
		}
		err := c.beginAgain(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			break
		}
		c.say(fmt.Sprintf("starting %s again: %v", c.called(), err))
	}
	return c.giveUp()
}

// bury records that the present life will be followed by another, after a pause.
func (c *container) bury() (pause time.Duration) {
	c.instance.mu.Lock()
	defer c.instance.mu.Unlock()
	exit := c.life.exit
	exit.Cause = c.life.cause
	c.lastExit = &exit
	reason := reasonRestart
	if c.attempts > 0 {
		pause = min(firstBackoff<<min(c.attempts-1, 10), longestBackoff)
		reason = reasonBackOff
	}
	c.attempts++
	c.instance.engine.logger.Warn("container is started again", "revision", c.instance.spec.Revision, "instance", c.instance.id,
		"container", c.spec.Name, "exit", exit.String(), "pause", pause)
	c.enter(engine.ContainerWaiting, reason)
	c.instance.publish()
	return pause
}

// beginAgain makes a life, and returns when it has passed the startup probe.
func (c *container) beginAgain(ctx context.Context) error {
	i := c.instance
	l := c.conceive()
	l.followed = true
	if err := l.prepare(ctx, func(string) {}); err != nil {
		l.abandon()
		return err
	}
	l.watch()
	i.mu.Lock()
	ending := i.isEnding()
	c.life = l
	c.restarts++
	i.mu.Unlock()
	if ending {
		l.kill()
		return errEnding
	}
	if err := l.release(); err != nil {
		return err
	}
	if err := l.awaitStarted(ctx); err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if hasEnded(l.exited) {
		return errors.New(c.called() + " " + l.exit.String())
	}
	l.followed = false
	i.publish()
	return nil
}

func hasEnded(exited <-chan struct{}) bool {
	select {
	case <-exited:
		return true
	default:
		return false
	}
}
