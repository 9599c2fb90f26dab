package bolt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"

	"github.com/berth-run/berth/serving"
)

// The file: a bucket for each kind, named like "services.serving.knative.dev", holds JSON under NAMESPACE/NAME;
// one more holds what concerns the file itself.
const (
	metaBucket = "berth"
	formatKey  = "format"  // 8 bytes, big endian; a change that older versions cannot read adds one
	versionKey = "version" // 8 bytes, big endian: a resourceVersion that none given out so far reaches

	format = 1

	// ahead is how many versions a commit reserves for objects that are not in the file: they have versions without
	// a write of their own. A restart skips what is left of them, so that no version is given out twice, and a
	// watch from before the restart is known to be one.
	ahead = 1024

	smallest    = 2 * 4096    // bytes: bbolt's two header pages
	lockTimeout = time.Second // to wait for a process that is just ending
)

// What to do about a file that cannot be read. The path is in the error already.
const remedy = "restore a backup of the file, or move it away to start with an empty store"

func bucketName(kind int) string { return serving.Kinds[kind].String() }

func (k key) bytes() []byte { return []byte(k.namespace + "/" + k.name) }

// openFile opens or makes the file and reads it into memory.
func (s *Store) openFile() error {
	info, err := os.Stat(s.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := createFile(s.path); err != nil {
			return err
		}
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("it is not a file (%s); give the path of the store's file", info.Mode().Type())
	case info.Size() < smallest:
		return fmt.Errorf("the file has %d bytes, and no store has fewer than %d; %s", info.Size(), smallest, remedy)
	}
	if err := s.readFile(); err != nil {
		return err
	}
	if err := compactFile(s.path); err != nil {
		s.logger.Warn("compacting the store; it stays as large as it is", "path", s.path, "error", err)
	}
	if s.db, err = openBolt(s.path, false); err != nil {
		return err
	}
	version, err := s.savedVersion()
	if err == nil && version != s.reserved {
		err = errors.New("another process wrote to it just now; stop that one or use another state directory")
	}
	if err != nil {
		s.db.Close()
	}
	return err
}

// createFile makes an empty store. It gets its name when it is complete, so that a crash leaves no half of one.
func createFile(path string) error {
	making := path + ".new"
	if err := os.Remove(making); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	db, err := openBolt(making, false)
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		meta, err := tx.CreateBucket([]byte(metaBucket))
		if err != nil {
			return err
		}
		if err := meta.Put([]byte(formatKey), binary.BigEndian.AppendUint64(nil, format)); err != nil {
			return err
		}
		return meta.Put([]byte(versionKey), binary.BigEndian.AppendUint64(nil, 0))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	return install(making, path)
}

// install gives a complete file its name, durably.
func install(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	directory, err := os.Open(filepath.Dir(to))
	if err != nil {
		return err
	}
	defer directory.Close()
	return directory.Sync()
}

func openBolt(path string, readOnly bool) (*bbolt.DB, error) {
	var db *bbolt.DB
	var file *os.File
	err := guard(func() (err error) {
		db, err = bbolt.Open(path, 0o600, &bbolt.Options{
			Timeout:      lockTimeout,
			FreelistType: bbolt.FreelistMapType,
			ReadOnly:     readOnly,
			OpenFile: func(name string, flag int, mode os.FileMode) (*os.File, error) {
				file, err = os.OpenFile(name, flag, mode)
				return file, err
			},
		})
		return err
	})
	if err != nil && file != nil {
		file.Close() // bbolt has not when it panicked; until then the file stays locked
	}
	switch {
	case errors.Is(err, bbolt.ErrTimeout):
		return nil, errors.New("another process has it open, probably a Berth server; stop that one or use another state directory")
	case errors.Is(err, bbolt.ErrInvalid), errors.Is(err, bbolt.ErrChecksum), errors.Is(err, bbolt.ErrVersionMismatch):
		return nil, fmt.Errorf("it is damaged or not a store (%w); %s", err, remedy)
	}
	return db, err
}

// readFile reads a file into memory before anything is written to it. It opens it for itself: the pages of a mapping
// that were read count as the process's memory until it is unmapped.
func (s *Store) readFile() error {
	// The two need nothing of each other, and are most of what a start with many objects takes. Each opens the file for
	// itself: bbolt's check changes what it knows of a file, unseen by those who read it by the same handle.
	inspected := make(chan error, 1)
	go func() {
		inspected <- readBolt(s.path, func(tx *bbolt.Tx) error { return inspect(tx, s.path) })
	}()
	loaded := readBolt(s.path, s.load)
	if err := <-inspected; err != nil {
		return err
	}
	return loaded
}

// readBolt opens a file to be read, and reads it.
func readBolt(path string, read func(*bbolt.Tx) error) error {
	db, err := openBolt(path, true)
	if err != nil {
		return err
	}
	defer db.Close()
	return guard(func() error { return db.View(read) })
}

// inspect returns an error unless all of a file is there and it is a store.
func inspect(tx *bbolt.Tx, path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Size() < tx.Size() {
		return fmt.Errorf("it is cut off: %d of %d bytes are there; %s", info.Size(), tx.Size(), remedy)
	}
	var damage []error
	for err := range tx.Check() {
		damage = append(damage, err)
	}
	if len(damage) > 0 {
		return fmt.Errorf("it is damaged in %d places, first: %w; %s", len(damage), damage[0], remedy)
	}
	meta := tx.Bucket([]byte(metaBucket))
	if meta == nil {
		return errors.New("it is another program's bbolt file; use another path")
	}
	found, err := number(meta, formatKey)
	if err != nil {
		return err
	}
	if found > format {
		return fmt.Errorf("it has format %d, and this version of Berth reads up to %d; start the newer version that wrote it", found, format)
	}
	return nil
}

// guard runs f, which reads a file that may be damaged, and makes an error of what bbolt panics with then.
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("it is damaged (%v); %s", r, remedy)
		}
	}()
	return f()
}

func number(meta *bbolt.Bucket, name string) (uint64, error) {
	data := meta.Get([]byte(name))
	if len(data) != 8 {
		return 0, fmt.Errorf("it is damaged (its %s has %d bytes, not 8); %s", name, len(data), remedy)
	}
	return binary.BigEndian.Uint64(data), nil
}

// savedVersion returns the version that the file holds.
func (s *Store) savedVersion() (version uint64, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		version, err = number(tx.Bucket([]byte(metaBucket)), versionKey)
		return err
	})
	return version, err
}

// Files smaller than this are not worth compacting.
const compactFrom = 4 << 20

// compactFile rewrites a file of which more than half is free.
func compactFile(path string) error {
	making := path + ".compact"
	if err := os.Remove(making); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	info, err := os.Stat(path)
	if err != nil || info.Size() < compactFrom {
		return err
	}
	from, err := openBolt(path, false)
	if err != nil {
		return err
	}
	defer from.Close()
	free := int64(from.Stats().FreePageN) * int64(from.Info().PageSize)
	if free < info.Size()/2 {
		return nil
	}
	to, err := openBolt(making, false)
	if err != nil {
		return err
	}
	if err := errors.Join(guard(func() error { return bbolt.Compact(to, from, 1<<20) }), to.Close()); err != nil {
		os.Remove(making)
		return err
	}
	return install(making, path)
}
