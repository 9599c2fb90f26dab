package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/bench"
)

// crunLoop makes containers of a program with plain crun, in as many workers as ask Berth: create, start, the first
// answer with status 200, kill, delete, and again.
//
// The containers are like Berth's in what the kernel has to do: PID, IPC, UTS, mount and cgroup namespaces, the same
// seven mounts, a cgroup with limits of memory and processes, capabilities, no new privileges. What crun need not do
// here favours it: no network namespace (the program listens on a port of the machine), no user namespace, no
// overlay (the root is a directory), no system call filter (crun would compile it for each container), nothing is
// logged, and the bundle is written once.
type crunLoop struct {
	path  string
	root  string // crun's state
	group string // cgroup
	works [workers]crunWork
}

// crunWork is what one worker uses again and again.
type crunWork struct {
	bundle string
	id     string
	port   int
}

func newCrunLoop(dir, program string) (*crunLoop, error) {
	path, err := exec.LookPath("crun")
	if err != nil {
		return nil, fmt.Errorf("finding crun to compare with: %w; install it with: apt-get install crun", err)
	}
	l := &crunLoop{path: path, root: filepath.Join(dir, "crun"), group: fmt.Sprintf("/bench-crun-%d", os.Getpid())}
	if err := os.Mkdir(l.root, 0o755); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	for i := range l.works {
		free, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer free.Close() // not before all have one: each needs its own
		w := &l.works[i]
		w.port = free.Addr().(*net.TCPAddr).Port
		w.id = fmt.Sprintf("%s-%d", filepath.Base(l.group), i)
		w.bundle = filepath.Join(dir, w.id)
		config, err := json.Marshal(l.config(w))
		if err != nil {
			return nil, err
		}
		err = errors.Join(os.MkdirAll(filepath.Join(w.bundle, "rootfs"), 0o755),
			os.WriteFile(filepath.Join(w.bundle, "rootfs", "hello"), text, 0o755),
			os.WriteFile(filepath.Join(w.bundle, "config.json"), config, 0o644))
		if err != nil {
			return nil, err
		}
	}
	return l, nil
}

func (l *crunLoop) config(w *crunWork) *specs.Spec {
	memory, processes := int64(64<<20), int64(4096)
	capabilities := []string{"CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETGID", "CAP_SETUID"}
	quiet := []string{"nosuid", "noexec", "nodev"}
	return &specs.Spec{
		Version: "1.0.2", Hostname: w.id, Root: &specs.Root{Path: "rootfs"},
		Process: &specs.Process{
			Args: []string{"/hello"}, Env: []string{"PATH=/", "PORT=" + strconv.Itoa(w.port)}, Cwd: "/", NoNewPrivileges: true,
			Capabilities: &specs.LinuxCapabilities{Bounding: capabilities, Effective: capabilities, Permitted: capabilities},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: quiet},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: append(quiet[:3:3], "mode=1777", "size=65536k")},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: quiet},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: append(quiet[:3:3], "ro")},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: append(quiet[:3:3], "ro")},
		},
		Linux: &specs.Linux{
			CgroupsPath: l.group + "/" + w.id,
			Resources:   &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &memory}, Pids: &specs.LinuxPids{Limit: &processes}},
			Namespaces:  []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace}, {Type: specs.CgroupNamespace}},
			MaskedPaths: []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"}, ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

// run has the workers make containers for a time.
func (l *crunLoop) run(ctx context.Context, long time.Duration) sum {
	var group sync.WaitGroup
	var sums [workers]sum
	used, begun := childrenCPU(), time.Now()
	for i := range workers {
		group.Go(func() {
			runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
			for sums[i].err = l.enter(); time.Since(begun) < long && sums[i].err == nil; sums[i].lives++ {
				sums[i].err = l.live(ctx, &l.works[i])
			}
			if sums[i].err != nil {
				_ = l.crun("delete", "--force", l.works[i].id) // what is left of it
			}
		})
	}
	group.Wait()
	all := sum{time: time.Since(begun), children: childrenCPU() - used}
	for _, s := range sums {
		all.add(s)
	}
	return all
}

// enter gives the calling thread, and what crun makes from it, mounts as Berth's engine has them: crun's state is in
// memory, and of two versions of cgroups, which crun refuses, only the first is seen.
func (l *crunLoop) enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return fmt.Errorf("making a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("separating the mount namespace: %w", err)
	}
	if err := unix.Mount("bench", l.root, "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mounting memory for crun's state: %w", err)
	}
	if err := unix.Unmount("/sys/fs/cgroup/unified", unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("hiding the second cgroup hierarchy: %w", err)
	}
	return nil
}

// live is the life of one container.
func (l *crunLoop) live(ctx context.Context, w *crunWork) error {
	pidFile := filepath.Join(w.bundle, "pid")
	if err := l.crun("create", "--bundle", w.bundle, "--pid-file", pidFile, w.id); err != nil {
		return err
	}
	if err := l.crun("start", w.id); err != nil {
		return err
	}
	if err := l.answer(ctx, w); err != nil {
		return err
	}
	text, err := os.ReadFile(pidFile)
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(text)))
	if err != nil {
		return err
	}
	if err := l.crun("kill", w.id, "KILL"); err != nil {
		return err
	}
	for {
		if _, err := unix.Wait4(pid, nil, 0, nil); err != unix.EINTR {
			break
		}
	}
	return l.crun("delete", w.id)
}

func (l *crunLoop) crun(args ...string) error {
	said, err := os.CreateTemp(l.root, "said-")
	if err != nil {
		return err
	}
	defer said.Close()
	defer os.Remove(said.Name())
	command := exec.Command(l.path, append([]string{"--root", l.root}, args...)...)
	command.Stdout, command.Stderr = said, said // files: the container has them too, and would keep pipes open
	if err := command.Run(); err != nil {
		text, _ := os.ReadFile(said.Name())
		return fmt.Errorf("crun %s: %w\n%s", args[0], err, text)
	}
	return nil
}

// answer waits for the program's first answer.
func (l *crunLoop) answer(ctx context.Context, w *crunWork) error {
	ctx, cancel := context.WithTimeout(ctx, answerPatience)
	defer cancel()
	address := "127.0.0.1:" + strconv.Itoa(w.port)
	_, status, err := bench.GetOver(ctx, "http://"+address+"/", func(ctx context.Context, address string) (net.Conn, error) {
		for {
			var dialer net.Dialer
			connection, err := dialer.DialContext(ctx, "tcp4", address)
			if err == nil || ctx.Err() != nil {
				return connection, err
			}
			time.Sleep(500 * time.Microsecond)
		}
	})
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("%s answered with status %d", address, status)
	}
	return err
}

// close removes the cgroups that crun makes above those of containers, and leaves.
func (l *crunLoop) close() {
	for _, pattern := range []string{"/sys/fs/cgroup/*", "/sys/fs/cgroup"} {
		groups, _ := filepath.Glob(pattern + l.group)
		for _, group := range groups {
			_ = os.Remove(group)
		}
	}
}

// childrenCPU is the CPU of the children that this process has waited for.
func childrenCPU() time.Duration {
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_CHILDREN, &usage); err != nil {
		return 0
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
