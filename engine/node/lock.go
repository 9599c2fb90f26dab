package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// lockFile opens a file, making it if need be, and locks it with flock, until unlock or the end of the process.
func lockFile(path string, how int) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("making the directory of lock %q: %w", path, err)
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening lock %q: %w", path, err)
	}
	const patience = 30 * time.Second // with those who hold it for moments; with LOCK_NB in how there is none
	deadline := time.Now().Add(patience)
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := unix.Flock(int(file.Fd()), how|unix.LOCK_NB) // waiting in the kernel could not be ended
		switch {
		case err == nil:
			return file, nil
		case err == unix.EINTR:
			continue
		case err == unix.EWOULDBLOCK && how&unix.LOCK_NB == 0 && time.Now().Before(deadline):
			time.Sleep(wait)
			continue
		case err == unix.EWOULDBLOCK && how&unix.LOCK_NB == 0:
			err = fmt.Errorf("another process has held it for %s (fuser -v %s tells which): %w", patience, path, err)
		}
		file.Close()
		return nil, fmt.Errorf("locking %q: %w", path, err)
	}
}

// unlock unlocks and closes a file. Closing alone would leave it locked for as long as a process that is just being
// started has a copy of what this one had open.
func unlock(file *os.File) error {
	return errors.Join(unix.Flock(int(file.Fd()), unix.LOCK_UN), file.Close())
}
