package node

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/engine"
)

// Usage implements engine.Instance. Memory is what the kernel charges to the containers, less the pages of files,
// active and inactive ones: those can be read again. What is in memory only, as in /tmp or /dev/shm, is no such file.
func (i *instance) Usage() (engine.Usage, error) {
	var sum engine.Usage
	for _, c := range i.containers {
		one, err := i.engine.cgroups.usage(c.id)
		if err != nil {
			return engine.Usage{}, fmt.Errorf("reading what instance %q uses: %w", i.id, err)
		}
		sum.CPU, sum.Memory = sum.CPU+one.CPU, sum.Memory+one.Memory
	}
	return sum, nil
}

// usage is what a container uses.
func (c *cgroups) usage(id string) (u engine.Usage, err error) {
	path := c.path(id)
	buffer := make([]byte, 8<<10) // as long as memory.stat comes to, and more
	var held, files int64
	if c.v2 {
		group := filepath.Join(c.roots[""], path)
		cpu, err := readCgroup(filepath.Join(group, "cpu.stat"), buffer)
		if err != nil {
			return u, err
		}
		u.CPU = time.Duration(count(cpu, "usage_usec")) * time.Microsecond
		if held, err = c.held(id, buffer); err != nil {
			return u, err
		}
		memory, err := readCgroup(filepath.Join(group, "memory.stat"), buffer)
		if err != nil {
			return u, err
		}
		files = count(memory, "active_file") + count(memory, "inactive_file")
	} else {
		root := c.roots["cpuacct"]
		if root == "" {
			return u, fmt.Errorf("the cgroup controller \"cpuacct\" is not mounted below %s: mount it there", cgroupMount)
		}
		cpu, err := readCgroup(filepath.Join(root, path, "cpuacct.usage"), buffer)
		if err != nil {
			return u, err
		}
		u.CPU = time.Duration(number(cpu))
		if held, err = c.held(id, buffer); err != nil {
			return u, err
		}
		memory, err := readCgroup(filepath.Join(c.roots["memory"], path, "memory.stat"), buffer)
		if err != nil {
			return u, err
		}
		files = count(memory, "total_active_file") + count(memory, "total_inactive_file")
	}
	u.Memory = max(held-files, 0)
	return u, nil
}

// held is how many bytes are charged to a container.
func (c *cgroups) held(id string, buffer []byte) (int64, error) {
	file := filepath.Join(c.roots["memory"], c.path(id), "memory.usage_in_bytes")
	if c.v2 {
		file = filepath.Join(c.roots[""], c.path(id), "memory.current")
	}
	text, err := readCgroup(file, buffer)
	return number(text), err
}

// readCgroup reads a file of a cgroup into a buffer, as cheaply as tell writes one.
func readCgroup(path string, buffer []byte) ([]byte, error) {
	fd, err := retried(func() (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return nil, &fs.PathError{Op: "opening", Path: path, Err: err}
	}
	defer unix.Close(fd)
	n := 0
	for n < len(buffer) {
		more, err := retried(func() (int, error) { return unix.Read(fd, buffer[n:]) })
		if err != nil {
			return nil, &fs.PathError{Op: "reading", Path: path, Err: err}
		}
		if more == 0 {
			break
		}
		n += more
	}
	return buffer[:n], nil
}

// number is the number that a file consists of; 0 if it does not.
func number(text []byte) int64 {
	n, _ := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64)
	return n
}

// count is the number after a name, in a file of lines with a name and a number each; 0 if there is none.
func count(text []byte, name string) int64 {
	for line := range bytes.Lines(text) {
		if len(line) > len(name) && line[len(name)] == ' ' && string(line[:len(name)]) == name {
			return number(line[len(name)+1:])
		}
	}
	return 0
}

// Reclaim implements engine.Instance. Pages of files are dropped, what has changed in them is written; all else goes to
// swap, where the machine has some. A Thaw ends it early.
func (i *instance) Reclaim() (freed int64, err error) {
	runtime.LockOSThread() // Thaw interrupts the thread
	defer runtime.UnlockOSThread()
	f := &i.freezer
	f.mu.Lock()
	begun := f.frozen && f.reclaiming == 0
	if begun {
		f.reclaiming = unix.Gettid()
	}
	f.mu.Unlock()
	if !begun {
		return 0, nil // it runs again, or somebody does it
	}
	defer func() {
		f.mu.Lock()
		f.reclaiming = 0
		f.mu.Unlock()
	}()
	for _, c := range i.containers {
		if !f.wanted.Load() {
			return freed, nil
		}
		n, err := i.engine.cgroups.reclaim(c.id)
		freed += n
		if err != nil && f.wanted.Load() { // else it runs again, or has ended
			return freed, fmt.Errorf("reclaiming the memory of instance %q: %w", i.id, err)
		}
	}
	return freed, nil
}

// reclaim has the kernel take what it can of a container's memory, until a signal comes.
func (c *cgroups) reclaim(id string) (freed int64, err error) {
	buffer := make([]byte, 64)
	before, err := c.held(id, buffer)
	if err != nil || before == 0 {
		return 0, err
	}
	path := filepath.Join(c.roots["memory"], c.path(id), "memory.force_empty")
	value := "0"
	if c.v2 {
		group := filepath.Join(c.roots[""], c.path(id))
		path, value = filepath.Join(group, "memory.reclaim"), strconv.FormatInt(before, 10)
		back, err := c.letSwap(group)
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, back()) }()
	}
	switch err := tellOnce(path, value); {
	case err == nil, errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EBUSY), errors.Is(err, unix.EINTR): // not all of it
	default:
		return 0, err
	}
	after, err := c.held(id, buffer)
	return max(before-after, 0), err
}

// letSwap lets a container's memory go to swap until back is called. With version 2 its limit of memory and swap
// together is one of swap alone: none. What is in swap stays there then.
func (c *cgroups) letSwap(group string) (back func() error, err error) {
	file := filepath.Join(group, "memory.swap.max")
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return func() error { return nil }, nil // the kernel does not count swap
	}
	if err != nil {
		return nil, err
	}
	before := string(bytes.TrimSpace(text))
	return func() error { return tell(file, before) }, tell(file, "max")
}
