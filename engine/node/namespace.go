package node

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// namespaceThreads is how many threads work in the mount namespace at the same time. Unmounting waits for the
// kernel, so more than one; each is an OS thread, so few.
const namespaceThreads = 4

// threadUmask is of the namespace's threads, and so of containers, whatever the server's is: what is made for a
// container can be read by its users.
const threadUmask = 0o022

// mountNamespace is a mount namespace of the engine's own, in which everything that it mounts lives and in which
// the OCI runtime runs. The machine's mount table stays as it is, and when the process is killed the kernel
// drops the namespace and all its mounts.
type mountNamespace struct {
	jobs    chan func()
	threads sync.WaitGroup
}

// newMountNamespace makes a mount namespace and runs prepare in it, once.
func newMountNamespace(prepare func() error) (*mountNamespace, error) {
	m := &mountNamespace{jobs: make(chan func())}
	first := make(chan error, 1)
	var namespace *os.File
	m.threads.Add(1)
	onOwnThread(func() {
		defer m.threads.Done()
		err := enterNewMountNamespace()
		if err == nil {
			err = prepare()
		}
		if err == nil {
			namespace, err = os.Open("/proc/thread-self/ns/mnt")
		}
		first <- err
		if err == nil {
			m.work()
		}
	})
	if err := <-first; err != nil {
		return nil, err
	}
	defer namespace.Close()
	for range namespaceThreads - 1 {
		joined := make(chan error, 1)
		m.threads.Add(1)
		onOwnThread(func() {
			defer m.threads.Done()
			err := joinMountNamespace(namespace)
			joined <- err
			if err == nil {
				m.work()
			}
		})
		if err := <-joined; err != nil {
			m.close()
			return nil, err
		}
	}
	return m, nil
}

func enterNewMountNamespace() error {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return fmt.Errorf("making a mount namespace: %w (berth must run as root, with CAP_SYS_ADMIN)", err)
	}
	unix.Umask(threadUmask)
	// Slave, not private: what the machine unmounts is unmounted here too and so is not kept busy.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("separating the mount namespace from the machine's: %w", err)
	}
	return nil
}

func joinMountNamespace(namespace *os.File) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("separating a thread's file system attributes: %w", err)
	}
	unix.Umask(threadUmask)
	if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("joining the mount namespace: %w", err)
	}
	return nil
}

func (m *mountNamespace) work() {
	for job := range m.jobs {
		job()
	}
}

// do runs f on a thread in the namespace and returns its error. f may change the thread's working directory, so
// it must use absolute paths otherwise. Processes that f starts are in the namespace.
func (m *mountNamespace) do(f func() error) error {
	done := make(chan error, 1)
	m.jobs <- func() { done <- f() }
	return <-done
}

// close ends the threads; the caller makes sure that no do is under way. Its mounts go with the last process
// that is in it.
func (m *mountNamespace) close() {
	close(m.jobs)
	m.threads.Wait()
}
