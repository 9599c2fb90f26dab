package node

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// freezer withholds the CPU from all containers of an instance, by the kernel's cgroup freezer.
//
// What the engine itself does in an instance needs the CPU: commands and connections that somebody asked for, and
// containers being started again, and one try of a probe. Each holds the instance thawed, and it freezes, if it is still to be, once the last
// of them has ended.
type freezer struct {
	// wanted tells whether the instance is to be frozen. It becomes true with mu and instance.mu held, and false, with mu
	// held, once the kernel has been told: who reads false finds the instance running.
	wanted atomic.Bool

	mu         sync.Mutex // held while the kernel is told, and taken before instance.mu
	frozen     bool       // the kernel was told so
	holds      int        // what needs the CPU
	reclaiming int        // the thread that takes the frozen instance's memory; 0 is none
}

// Freeze implements engine.Instance. It does not wait until every thread has come to where the kernel can hold it, which
// takes microseconds, unless it waits for a disk.
func (i *instance) Freeze() error {
	f := &i.freezer
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := i.engine.cgroups.freezable(); err != nil {
		return fmt.Errorf("freezing instance %q: %w", i.id, err)
	}
	i.mu.Lock()
	if i.mayFreeze() {
		f.wanted.Store(true)
	}
	i.mu.Unlock()
	if err := i.settle(); err != nil {
		f.wanted.Store(f.frozen)
		return err
	}
	return nil
}

// Thaw implements engine.Instance.
func (i *instance) Thaw() error {
	f := &i.freezer
	if !f.wanted.Load() {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := i.thaw(); err != nil {
		return err
	}
	f.wanted.Store(false)
	return nil
}

// Frozen implements engine.Instance. It is true from Freeze to Thaw, also while something that runs in the instance
// keeps it from being frozen.
func (i *instance) Frozen() bool { return i.freezer.wanted.Load() }

// mayFreeze tells whether the instance is one that can be frozen. i.mu is held.
func (i *instance) mayFreeze() bool {
	return i.ready && !i.unready && !i.draining && !i.stopping && !i.isEnding()
}

// hold keeps the instance running until release is called.
func (i *instance) hold() (release func(), err error) {
	f := &i.freezer
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := i.thaw(); err != nil {
		return nil, err
	}
	return i.held(), nil
}

// holdAwake is hold for what need not be done while the instance is frozen: then ok is false.
func (i *instance) holdAwake() (release func(), ok bool) {
	f := &i.freezer
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.frozen {
		return nil, false
	}
	return i.held(), true
}

// held counts one that holds the instance. freezer.mu is held.
func (i *instance) held() (release func()) {
	f := &i.freezer
	f.holds++
	return sync.OnceFunc(func() {
		f.mu.Lock()
		f.holds--
		err := i.settle()
		f.mu.Unlock()
		if err != nil {
			i.engine.logger.Error("freezing an instance again", "revision", i.spec.Revision, "instance", i.id, "error", err)
		}
	})
}

// holdAnyway is hold for what goes on even if the instance cannot be thawed.
func (i *instance) holdAnyway() (release func()) {
	release, err := i.hold()
	if err != nil {
		i.engine.logger.Error("thawing an instance", "revision", i.spec.Revision, "instance", i.id, "error", err)
		return func() {}
	}
	return release
}

// thawAnyway is Thaw for an instance that ends.
func (i *instance) thawAnyway() {
	f := &i.freezer
	f.mu.Lock()
	defer f.mu.Unlock()
	err := i.thaw()
	f.wanted.Store(f.frozen)
	if err != nil {
		i.engine.logger.Error("thawing an instance that ends", "revision", i.spec.Revision, "instance", i.id, "error", err)
	}
}

// settle freezes the instance if it is to be, and nothing keeps it from that. freezer.mu is held.
func (i *instance) settle() error {
	f := &i.freezer
	if f.frozen || f.holds > 0 || !f.wanted.Load() || !i.pauseProbing() {
		return nil
	}
	for _, c := range i.containers {
		if err := i.engine.cgroups.freeze(c.id); err != nil {
			f.frozen = true // a part of it
			return errors.Join(fmt.Errorf("freezing instance %q: %w", i.id, err), i.thaw())
		}
	}
	f.frozen = true
	return nil
}

// thaw gives the CPU back. freezer.mu is held.
func (i *instance) thaw() error {
	f := &i.freezer
	if !f.frozen {
		return nil
	}
	var errs []error
	for _, c := range i.containers {
		errs = append(errs, i.engine.cgroups.thaw(c.id))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("thawing instance %q: %w", i.id, err)
	}
	f.frozen = false
	if f.reclaiming != 0 { // see Reclaim
		_ = unix.Tgkill(os.Getpid(), f.reclaiming, unix.SIGURG)
	}
	i.goOnProbing()
	return nil
}

// pauseProbing ends the probing of an instance that is about to be frozen; false when it may not be.
func (i *instance) pauseProbing() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.mayFreeze() {
		return false
	}
	i.endProbing()
	return true
}

// goOnProbing goes on with the probing of an instance that was frozen.
func (i *instance) goOnProbing() {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, c := range i.containers {
		c.life.goOnProbing(true)
	}
}

// heldConn is a connection into an instance that is kept running until it is closed.
type heldConn struct {
	*net.TCPConn
	release func()
}

// Close implements net.Conn.
func (c *heldConn) Close() error {
	err := c.TCPConn.Close()
	c.release()
	return err
}

// alwaysFrozen is a cgroup beside the containers' that has no processes. With version 1 the kernel turns the freezer on
// with the first frozen group of the machine and off with the last, by changing its own code, which makes a thaw ten
// times as long. This one keeps it on from the first freeze to the end of the engine.
const alwaysFrozen = "frozen"

// freezable returns why containers cannot be frozen on this machine, or nil.
func (c *cgroups) freezable() error {
	if c.v2 {
		if _, err := os.Stat(filepath.Join(c.roots[""], c.name, "cgroup.freeze")); err != nil {
			return fmt.Errorf("cgroups of version 2 can be frozen from Linux 5.2 on: %w", err)
		}
		return nil
	}
	if c.roots["freezer"] == "" {
		return fmt.Errorf("the cgroup controller \"freezer\" is not mounted below %s: mount it there", cgroupMount)
	}
	c.freezing.Do(func() {
		group := filepath.Join(c.roots["freezer"], c.name, alwaysFrozen)
		if os.MkdirAll(group, 0o755) == nil {
			_ = tell(filepath.Join(group, "freezer.state"), "FROZEN") // without it, each thaw takes longer
		}
	})
	return nil
}

// freezerKind says for people how instances are frozen.
func (c *cgroups) freezerKind() string {
	switch {
	case c.v2:
		return "v2"
	case c.roots["freezer"] == "":
		return fmt.Sprintf("none: the cgroup controller \"freezer\" is not mounted below %s", cgroupMount)
	}
	return "v1"
}

// freeze withholds the CPU from a container.
func (c *cgroups) freeze(id string) error { return c.setFrozen(c.path(id), "FROZEN", "1") }

// thaw gives it back.
func (c *cgroups) thaw(id string) error { return c.setFrozen(c.path(id), "THAWED", "0") }

// setFrozen tells the kernel of a cgroup's new state. One that is gone, with all its processes, is no error.
func (c *cgroups) setFrozen(path, v1, v2 string) error {
	file, state := filepath.Join(c.roots["freezer"], path, "freezer.state"), v1
	if c.v2 {
		file, state = filepath.Join(c.roots[""], path, "cgroup.freeze"), v2
	}
	err := tell(file, state)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// thawAll thaws all cgroups of the engine, so that their processes can end: with version 1 none ends while it is frozen.
func (c *cgroups) thawAll() {
	if !c.v2 && c.roots["freezer"] == "" {
		return
	}
	root := c.roots["freezer"]
	if c.v2 {
		root = c.roots[""]
	}
	_ = filepath.WalkDir(filepath.Join(root, c.name), func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() && filepath.Base(path) != alwaysFrozen {
			relative, _ := filepath.Rel(root, path)
			_ = c.setFrozen(relative, "THAWED", "0") // what stays frozen is reported as a process that does not end
		}
		return nil
	})
}

// tell writes to a file of a cgroup. It is as short as it can be: a file of package os would be made known to the
// poller, which takes longer than all else here.
func tell(path, value string) error {
	for {
		if err := tellOnce(path, value); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// tellOnce is tell that ends when a signal comes.
func tellOnce(path, value string) error {
	fd, err := retried(func() (int, error) { return unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return &fs.PathError{Op: "opening", Path: path, Err: err}
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		return &fs.PathError{Op: "writing " + value + " to", Path: path, Err: err}
	}
	return nil
}

// retried is a system call that is made again for as long as a signal interrupts it.
func retried(call func() (int, error)) (n int, err error) {
	for {
		if n, err = call(); err != unix.EINTR {
			return n, err
		}
	}
}
