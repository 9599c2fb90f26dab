package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"

	"golang.org/x/sys/unix"
)

// An engine holds the lock of a file in lifeDir, named by its mark, for as long as it lives. When a lock is free, its
// engine was killed, and what the engine has left on the machine belongs to nobody: not even its directory may be
// there to be opened again.
const lifeDir = "/run"

func lifeFile(mark string) string { return filepath.Join(lifeDir, "berth-"+mark+".lock") }

// runDir is where the engine's mount namespace has memory of its own. Elsewhere it is empty.
func runDir(mark string) string { return filepath.Join(lifeDir, "berth-"+mark) }

// claimLife takes the lock that says that the engine of a directory lives.
func claimLife(mark, dir string) (*os.File, error) {
	path := lifeFile(mark)
	for {
		file, err := lockFile(path, unix.LOCK_EX)
		if err != nil {
			return nil, fmt.Errorf("another server that was started on %q is still there: %w", dir, err)
		}
		same, err := isAt(file, path)
		if err == nil && same {
			err = errors.Join(file.Truncate(0), writeLine(file, dir))
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("writing %q: %w", path, err), unlock(file))
		}
		if same {
			return file, nil
		}
		_ = unlock(file) // who had it has removed it
	}
}

// writeLine tells people whose file it is.
func writeLine(file *os.File, line string) error {
	_, err := file.WriteAt([]byte(line+"\n"), 0)
	return err
}

// isAt reports whether an open file is the one at a path.
func isAt(file *os.File, path string) (bool, error) {
	opened, err := file.Stat()
	if err != nil {
		return false, err
	}
	there, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(opened, there), err
}

// releaseLife removes the file, when nothing of the engine is left, and gives the lock back.
func releaseLife(file *os.File) error {
	return errors.Join(os.Remove(file.Name()), unlock(file))
}

// collectLeftovers removes what engines that were killed have left, on whatever directory they were.
func (e *Engine) collectLeftovers(own string) {
	entries, err := os.ReadDir(lifeDir)
	if err != nil {
		e.logger.Warn("looking for what servers that are gone have left", "error", err)
		return
	}
	names := regexp.MustCompile(`^berth-([0-9a-f]{6})\.lock$`)
	for _, entry := range entries {
		match := names.FindStringSubmatch(entry.Name())
		if match == nil || match[1] == own {
			continue
		}
		file, err := lockFile(lifeFile(match[1]), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			continue // it lives
		}
		if err == nil {
			err = e.collect(match[1], file)
		}
		if err != nil {
			e.logger.Warn("removing what a server that is gone has left", "mark", match[1], "error", err)
		}
	}
}

// collect removes what the engine of a mark has left, whose lock file is.
func (e *Engine) collect(mark string, file *os.File) error {
	// Whoever had the lock before may have removed the file, and another engine be there with a new one.
	if same, err := isAt(file, file.Name()); err != nil || !same {
		return errors.Join(err, unlock(file))
	}
	groups := &cgroups{v2: e.cgroups.v2, roots: e.cgroups.roots, name: "berth-" + mark}
	err := errors.Join(groups.sweep(), deleteLinks(linkPrefix+mark), deleteGatewayAddress(linkPrefix+mark))
	nft, lookErr := exec.LookPath("nft")
	if lookErr == nil {
		lookErr = (&firewall{nft: nft}).deleteTable(tablePrefix + mark)
	}
	if gone := os.Remove(runDir(mark)); !errors.Is(gone, fs.ErrNotExist) {
		err = errors.Join(err, gone)
	}
	if err = errors.Join(err, lookErr); err != nil {
		return errors.Join(err, unlock(file)) // the next server tries again
	}
	e.logger.Info("removed what a server that is gone had left", "mark", mark)
	return releaseLife(file)
}
