package node

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// compiledFilter is the annotation by which crun is given a system call filter that it has compiled before.
const compiledFilter = "run.oci.seccomp_bpf_data"

// ociRuntime is an OCI runtime program: crun, or runc.
type ociRuntime struct {
	path      string
	program   string // what is run in the engine's mount namespace, see protect
	version   string // "crun 1.8.1"
	root      string // where it keeps its state, in the engine's mount namespace
	namespace *mountNamespace

	mu sync.Mutex
	// filters are the system call filters as crun compiled them for the first container with the same capabilities, on
	// which they depend, in base64. Compiling takes it longer than all else it does.
	filters map[string]string
}

// findRuntime finds the runtime that was asked for by name or path; "" is crun, else runc.
func findRuntime(wanted string) (*ociRuntime, error) {
	names := []string{"crun", "runc"}
	if wanted != "" {
		names = []string{wanted}
	}
	var path string
	for _, name := range names {
		found, err := exec.LookPath(name)
		if err == nil {
			path = found
			break
		}
		if strings.Contains(name, "/") {
			return nil, fmt.Errorf("finding the OCI runtime %q: %w; give --runtime the name or path of one, or leave it out to use crun or runc", name, err)
		}
	}
	if path == "" {
		return nil, fmt.Errorf("finding an OCI runtime: there is no %s in $PATH; install one with: apt-get install crun", strings.Join(names, " and no "))
	}
	output, err := exec.Command(path, "--version").Output()
	if err != nil {
		return nil, fmt.Errorf("asking %q for its version: %w", path, err)
	}
	first, _, _ := strings.Cut(string(output), "\n")
	// What the engine knows of how a runtime keeps its state holds for these two.
	if !strings.HasPrefix(first, "crun version ") && !strings.HasPrefix(first, "runc version ") {
		return nil, fmt.Errorf("asking %q for its version: it says %.60q and so is neither crun nor runc; give --runtime the name or path of one, or leave it out", path, first)
	}
	return &ociRuntime{path: path, version: strings.Replace(first, " version", "", 1)}, nil
}

// protect has the runtime run from a mount of its program, in a directory that it makes, which nobody can write to. A
// container can reach the program of the runtime that makes it, and must not be able to change it: a runtime that finds
// itself in no such place makes one and starts itself again there, for each container. It runs in the mount namespace.
func (r *ociRuntime) protect(dir string) error {
	path := filepath.Join(dir, filepath.Base(r.path))
	err := os.Mkdir(dir, 0o711)
	if err == nil {
		err = os.WriteFile(path, nil, 0o600) // for the mount to lie on
	}
	if err == nil {
		err = unix.Mount(r.path, path, "", unix.MS_BIND, "")
	}
	if err == nil {
		err = unix.Mount("", path, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
	}
	if err != nil {
		return fmt.Errorf("mounting the OCI runtime %q where it cannot be changed: %w", r.path, err)
	}
	r.program = path
	return nil
}

// create makes a container that waits for release, and returns its first process. It fails with what the
// runtime said. stdin, stdout and stderr become the container's: crun gives them to its user.
// Where nobody waits for it, hurry tells when somebody does; else it is nil.
func (r *ociRuntime) create(ctx context.Context, id, bundle string, stdin, stdout, stderr *os.File, hurry <-chan struct{}) (int, error) {
	return r.run(ctx, hurry, bundle, []*os.File{stdin, stdout, stderr}, "create", "--bundle", bundle, id)
}

// exec starts a process in a container that runs, as process.json in dir describes it.
func (r *ociRuntime) exec(ctx context.Context, id, dir string, s *streams) (int, error) {
	args := []string{"exec", "--detach", "--process", filepath.Join(dir, "process.json")}
	files := s.theirs
	if s.listener != nil {
		args = append(args, "--console-socket", s.listener.Addr().String())
		files = []*os.File{nil, nil, nil}
	}
	return r.run(ctx, nil, dir, files, append(args, id)...)
}

// run runs the runtime with a command that starts a process, with the three files as its stdin, stdout and stderr. It
// returns the process, or fails with what the runtime said. dir takes what the runtime writes. hurry is as in create.
func (r *ociRuntime) run(ctx context.Context, hurry <-chan struct{}, dir string, files []*os.File, args ...string) (int, error) {
	pidFile, logFile := filepath.Join(dir, "pid"), filepath.Join(dir, "runtime.log")
	args = slices.Concat([]string{"--root", r.root, "--log", logFile, "--log-format", "json", args[0], "--pid-file", pidFile}, args[1:])
	cmd := exec.CommandContext(ctx, r.program, args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + defaultPath}
	if files[0] != nil {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = files[0], files[1], files[2]
	}
	// When ctx ends, the runtime comes to its end nevertheless, which takes milliseconds: killed in the middle, it
	// would leave processes that nobody knows of.
	cmd.Cancel = func() error { return os.ErrProcessDone }
	cmd.WaitDelay = createPatience
	// The threads of the mount namespace live as long as the server: when it is killed, so is the runtime. A session of
	// its own keeps keys pressed at the server's terminal from it, and crun's commands apart from the server.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true}
	if err := r.namespace.do(cmd.Start); err != nil {
		return 0, fmt.Errorf("running %q: %w", r.path, err)
	}
	raise := lower(cmd.Process.Pid, hurry)
	waitErr := cmd.Wait()
	if waitErr != nil {
		reapGroup(cmd.Process.Pid)
	}
	var pid int
	err := r.namespace.do(func() error {
		if waitErr != nil {
			said, _ := os.ReadFile(logFile)
			return runtimeError(said, waitErr)
		}
		text, err := os.ReadFile(pidFile)
		if err != nil {
			return fmt.Errorf("reading the process ID: %w", err)
		}
		pid, err = strconv.Atoi(string(bytes.TrimSpace(text)))
		return err
	})
	raise(pid)
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return pid, err
}

// reapGroup ends what is left of a runtime that has failed: its session began with it, and its children are this
// process's now.
func reapGroup(group int) {
	_ = unix.Kill(-group, unix.SIGKILL)
	for {
		if _, err := unix.Wait4(-group, nil, 0, nil); err != nil && err != unix.EINTR {
			return // there are no more
		}
	}
}

// keepFilter remembers the compiled filter of a container with certain capabilities, if the runtime is crun, which
// leaves it in a file.
func (r *ociRuntime) keepFilter(id string, capabilities []string) {
	const most = 16 // others are compiled each time
	key := strings.Join(capabilities, " ")
	r.mu.Lock()
	_, known := r.filters[key]
	full := len(r.filters) >= most
	r.mu.Unlock()
	if known || full {
		return
	}
	var filter []byte
	err := r.namespace.do(func() error {
		var err error
		filter, err = os.ReadFile(filepath.Join(r.root, id, "seccomp.bpf"))
		return err
	})
	if err != nil || len(filter) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.filters == nil {
		r.filters = map[string]string{}
	}
	r.filters[key] = base64.StdEncoding.EncodeToString(filter)
}

// annotations tell the runtime, of a container with certain capabilities, what its configuration cannot. A runtime that
// does not know them uses the configuration.
func (r *ociRuntime) annotations(capabilities []string) map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if filter, ok := r.filters[strings.Join(capabilities, " ")]; ok {
		return map[string]string{compiledFilter: filter}
	}
	return nil
}

// runtimeError is the last error in a runtime's JSON log, or err when there is none.
func runtimeError(log []byte, err error) error {
	var said string
	for line := range bytes.Lines(log) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal(line, &entry) == nil && entry.Msg != "" && entry.Level != "warning" && entry.Level != "debug" {
			said = entry.Msg
		}
	}
	if said == "" {
		return err
	}
	return errors.New(said)
}

// release lets the container's program run. The runtime's own start command does the same, in the
// milliseconds of one more process: the container waits at a FIFO in its state. crun's has it open and waits for
// a byte; runc's waits for somebody to open it, and writes a byte.
func (r *ociRuntime) release(id string) error {
	path := filepath.Join(r.root, id, "exec.fifo")
	var fifo *os.File // set when there is a byte to be read
	err := r.namespace.do(func() error {
		defer os.Remove(path)
		fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err == nil {
			defer unix.Close(fd)
			_, err = unix.Write(fd, []byte{0})
			return err
		}
		if err != unix.ENXIO { // nobody has it open for reading
			return err
		}
		// For reading and writing, so that opening does not wait and reading does.
		fd, err = unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err == nil {
			fifo = os.NewFile(uintptr(fd), path)
		}
		return err
	})
	if err == nil && fifo != nil {
		defer fifo.Close()
		if err = fifo.SetReadDeadline(deadlineIn(releasePatience)); err == nil {
			_, err = fifo.Read(make([]byte, 1))
		}
	}
	if err != nil {
		return fmt.Errorf("releasing the container: %w", err)
	}
	return nil
}

// reapHelpers reaps, in a while, what a runtime has left that could not start a command because the container ended: a
// process on its way into the container, which was never in its PID namespace.
func (r *ociRuntime) reapHelpers() {
	const soon, patience = time.Second, 2 * time.Second
	time.AfterFunc(soon, func() {
		left := r.endedHelpers()
		if len(left) == 0 {
			return
		}
		time.AfterFunc(patience, func() {
			for pid, begun := range r.endedHelpers() {
				// Processes that somebody waits for have been waited for by now.
				if left[pid] == begun {
					_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
				}
			}
		})
	})
}

// endedHelpers are the children of this process that have ended, were not waited for and are named as the runtime, with
// the time when they began.
func (r *ociRuntime) endedHelpers() map[int]string {
	ended := map[int]string{}
	processes, _ := os.ReadDir("/proc")
	for _, entry := range processes {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		stat := processStat(pid)
		if len(stat) <= statBegun || stat[statState] != "Z" || stat[statParent] != strconv.Itoa(os.Getpid()) {
			continue
		}
		name, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "comm"))
		if err == nil && string(bytes.TrimSpace(name)) == filepath.Base(r.path) {
			ended[pid] = stat[statBegun]
		}
	}
	return ended
}

// remove removes the runtime's state of a container that has ended. It runs in the mount namespace.
func (r *ociRuntime) remove(id string) error {
	if err := os.RemoveAll(filepath.Join(r.root, id)); err != nil {
		return fmt.Errorf("removing the runtime's state: %w", err)
	}
	return nil
}
