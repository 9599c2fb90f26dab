package node

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// lockFile opens a file, making it if need be, and locks it with flock. Closing it, or the end of the process,
// unlocks it.
func lockFile(path string, how int) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("making the directory of lock %q: %w", path, err)
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening lock %q: %w", path, err)
	}
	for {
		err := unix.Flock(int(file.Fd()), how)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			file.Close()
			return nil, fmt.Errorf("locking %q: %w", path, err)
		}
		return file, nil
	}
}
