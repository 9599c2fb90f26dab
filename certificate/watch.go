package certificate

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// settle is how long files must rest before they are read: a certificate and its key are written one after the other.
	settle = 500 * time.Millisecond
	// lookAgain is when what could not be watched, because it was not there, is tried again; and it is how long a
	// change stays unseen on file systems that do not tell of changes, such as NFS.
	lookAgain = time.Minute
)

// watch sends to changes whenever files may have changed, until ctx ends.
func (s *Store) watch(ctx context.Context, changes chan<- struct{}) {
	watcher, err := newWatcher()
	if err != nil {
		s.config.Logger.Warn("certificates are looked at once a minute only", "error", err)
	} else {
		defer watcher.close()
	}
	again := time.NewTicker(lookAgain)
	defer again.Stop()
	rest := time.NewTimer(0) // what changed since the files were first read
	defer rest.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-watcher.seen():
			rest.Reset(settle)
			continue
		case <-again.C:
		case <-rest.C:
		}
		watcher.add(s.config.Files) // first: what changes from here on is seen
		select {
		case changes <- struct{}{}:
		case <-ctx.Done():
			return
		}
	}
}

// watcher tells of changes in directories (inotify). A nil watcher tells nothing.
type watcher struct {
	events  *os.File
	changes chan struct{} // has a value when there was a change
	ended   chan struct{}
}

func newWatcher() (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watching certificates: %w", os.NewSyscallError("inotify_init1", err))
	}
	w := &watcher{events: os.NewFile(uintptr(fd), "inotify"), changes: make(chan struct{}, 1), ended: make(chan struct{})}
	go func() {
		defer close(w.ended)
		var buffer [4096]byte // what the events say does not matter: everything is read again
		for {
			if _, err := w.events.Read(buffer[:]); err != nil {
				return
			}
			select {
			case w.changes <- struct{}{}:
			default:
			}
		}
	}()
	return w, nil
}

func (w *watcher) close() {
	w.events.Close()
	<-w.ended
}

func (w *watcher) seen() <-chan struct{} {
	if w == nil {
		return nil
	}
	return w.changes
}

// add watches the directories that certificates are in, and, where they are links, those that they lead to. Directories
// that are watched already stay so. Those that are not there are tried again later.
func (w *watcher) add(files []File) {
	if w == nil {
		return
	}
	control, err := w.events.SyscallConn()
	if err != nil {
		return // it is closed
	}
	control.Control(func(fd uintptr) {
		for _, dir := range directories(files) {
			unix.InotifyAddWatch(int(fd), dir, unix.IN_ONLYDIR|unix.IN_CLOSE_WRITE|unix.IN_CREATE|unix.IN_DELETE|
				unix.IN_MOVED_FROM|unix.IN_MOVED_TO|unix.IN_DELETE_SELF|unix.IN_MOVE_SELF)
		}
	})
}

// directories are those whose changes may change certificates.
func directories(files []File) (dirs []string) {
	for _, file := range files {
		if file.Key == "" {
			dirs = append(dirs, file.Certificate)
			entries, _ := os.ReadDir(file.Certificate) // none when it is not there
			for _, entry := range entries {
				if path := filepath.Join(file.Certificate, entry.Name()); isDir(path) {
					dirs = append(dirs, path)
				}
			}
			continue
		}
		for _, path := range []string{file.Certificate, file.Key} {
			dirs = append(dirs, filepath.Dir(path))
			if real, err := filepath.EvalSymlinks(path); err == nil {
				dirs = append(dirs, filepath.Dir(real))
			}
		}
	}
	return dirs
}
