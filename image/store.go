package image

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Options are the settings of a store. The zero value is usable.
type Options struct {
	// InsecureRegistries are asked over plain HTTP when they do not speak HTTPS: HOST or HOST:PORT.
	InsecureRegistries []string
	// DockerConfig is the path of Docker's config.json. It is read again for every use, so that a new login
	// works at once. Empty, or a file that is not there, means no credentials.
	DockerConfig string
	// Limits bound what one layer may unpack to. Zero fields are [DefaultLimits].
	Limits Limits
	Logger *slog.Logger // nil: nothing is logged
}

// Store is images on disk. Its methods may be called at the same time.
//
// In its directory, `layers/NAME` is an unpacked layer and `layers/NAME.json` what is known of it;
// `images/HEX.json` is an image; `registry/` is what was pushed here; `tmp/` is work that is not done, removed
// when the store opens. An entry appears under its final name by a rename, after its bytes are on disk, so that
// whatever has a name is whole.
type Store struct {
	dir      string
	options  Options
	logger   *slog.Logger
	lock     *os.File
	pause    time.Duration // before a layer is downloaded a second time
	patience time.Duration // with a registry that sends nothing
	pushes   registry

	mu      sync.RWMutex
	slots   map[string]chan struct{} // guarded by mu; by registry: bounds the layers that are unpacked at the same time
	images  map[string]*entry        // guarded by mu; by digest
	layers  map[string]*layer        // guarded by mu; by diff ID
	flights map[string]*flight       // guarded by mu; by diff ID
}

// entry is an image and when it was last asked for.
type entry struct {
	image  *Image
	layers []string // diff IDs
	used   atomic.Int64
}

// layer is an unpacked layer.
type layer struct {
	DiffID string `json:"diffID"`
	Size   int64  `json:"size"` // bytes on disk
	// Implied are directories that the layer's archive has no entry for, only entries below them.
	Implied []string `json:"implied,omitempty"`

	pins int // guarded by Store.mu; pulls that need it and have not finished
}

// record is an image as written to disk.
type record struct {
	Ref    string   `json:"ref"`
	Digest string   `json:"digest"`
	Layers []string `json:"layers"` // diff IDs, bottom first
	Config Config   `json:"config"`
}

// parallelLayers is how many layers of one registry are downloaded and unpacked at the same time, by one pull and
// by all together.
const parallelLayers = 4

// Open opens the store in dir, making it when it is not there. A store is open once at a time; a second Open
// reports that. What an earlier process left undone is removed.
func Open(dir string, options Options) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("opening image store %q: %w", dir, err)
	}
	options.Limits = options.Limits.orDefault()
	s := &Store{
		dir:      dir,
		options:  options,
		logger:   options.Logger,
		pause:    firstPause,
		patience: stallTimeout,
		slots:    map[string]chan struct{}{},
		images:   map[string]*entry{},
		layers:   map[string]*layer{},
		flights:  map[string]*flight{},
	}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	s.pushes = registry{dir: filepath.Join(dir, "registry"), uploads: map[string]*upload{}, logger: s.logger}
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("opening image store %q: %w", dir, err)
	}
	return s, nil
}

func (s *Store) open() error {
	// Layers hold setuid programs: nobody but root may get at them by this path. Mounts do not need it.
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	if err := os.Chmod(s.dir, 0o700); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	if err := claim(lock); err != nil {
		lock.Close()
		return fmt.Errorf("another process uses it: stop that one, or choose another directory: %w", err)
	}
	s.lock = lock
	if err := s.load(); err != nil {
		s.Close()
		return err
	}
	return nil
}

// claim locks a file. A process that was just killed may leave others that have a copy of its files for a moment yet.
func claim(lock *os.File) (err error) {
	const patience = time.Second
	for deadline := time.Now().Add(patience); ; time.Sleep(patience / 100) {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err != unix.EWOULDBLOCK || time.Now().After(deadline) {
			return err
		}
	}
}

// Close lets another process open the store. Nothing may use s any more.
//
// Closing the lock alone would keep the store locked for as long as a process that is just being started has a copy
// of what this one had open.
func (s *Store) Close() error {
	return errors.Join(unix.Flock(int(s.lock.Fd()), unix.LOCK_UN), s.lock.Close())
}

func (s *Store) load() error {
	if err := os.RemoveAll(s.tmp()); err != nil {
		return err
	}
	for _, dir := range []string{s.tmp(), s.path("layers"), s.path("images")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if err := s.pushes.open(); err != nil {
		return err
	}
	if err := s.loadLayers(); err != nil {
		return err
	}
	return s.loadImages()
}

func (s *Store) loadLayers() error {
	entries, err := os.ReadDir(s.path("layers"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		dir := s.path("layers", strings.TrimSuffix(e.Name(), ".json"))
		if dir == s.path("layers", e.Name()) {
			if _, err := os.Lstat(dir + ".json"); errors.Is(err, fs.ErrNotExist) {
				s.logger.Warn("removing a layer that nothing is known of", "directory", dir)
				if err := os.RemoveAll(dir); err != nil {
					return err
				}
			}
			continue
		}
		var l layer
		err := readJSON(dir+".json", &l)
		info, statErr := os.Lstat(dir)
		if err != nil || statErr != nil || !info.IsDir() || s.layerDir(l.DiffID) != dir {
			s.logger.Warn("removing a layer that is not whole", "directory", dir, "error", errors.Join(err, statErr))
			if err := errors.Join(os.RemoveAll(dir+".json"), os.RemoveAll(dir)); err != nil {
				return err
			}
			continue
		}
		s.layers[l.DiffID] = &l
	}
	return nil
}

func (s *Store) loadImages() error {
	entries, err := os.ReadDir(s.path("images"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := s.path("images", e.Name())
		var r record
		err := readJSON(path, &r)
		info, statErr := e.Info()
		if err == nil && statErr == nil && s.has(r.Layers) && e.Name() == imageFile(r.Digest) {
			s.add(r, info.ModTime())
			continue
		}
		s.logger.Warn("forgetting an image whose layers are not here", "image", r.Ref, "file", path, "error", err)
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return nil
}

// Image returns an image that is present, else a *NotPulledError. It reads memory only.
func (s *Store) Image(digestRef string) (*Image, error) {
	_, digest, _ := strings.Cut(digestRef, "@")
	s.mu.RLock()
	e := s.images[digest]
	s.mu.RUnlock()
	if e == nil {
		return nil, &NotPulledError{Image: digestRef}
	}
	e.used.Store(time.Now().UnixNano())
	return e.image, nil
}

// Usage is how many bytes the store takes on disk: unpacked layers, and what was pushed.
func (s *Store) Usage() int64 {
	s.mu.RLock()
	var total int64
	for _, l := range s.layers {
		total += l.Size
	}
	s.mu.RUnlock()
	return total + s.pushes.usage()
}

// add makes an image known. Its layers are present. Preconditions: s.mu is held, or s is not shared yet.
func (s *Store) add(r record, used time.Time) *Image {
	i := &Image{Ref: r.Ref, Digest: r.Digest, Config: r.Config}
	// A directory may be in an overlay once. The topmost of equal layers hides all of those below it.
	for n, id := range r.Layers {
		if !slices.Contains(r.Layers[n+1:], id) {
			i.Layers = append(i.Layers, s.layerDir(id))
			if l := s.layers[id]; l != nil {
				i.Size += l.Size
			}
		}
	}
	e := &entry{image: i, layers: r.Layers}
	e.used.Store(used.UnixNano())
	s.images[r.Digest] = e
	return i
}

// has tells whether all layers are present. Preconditions: as for add.
func (s *Store) has(diffIDs []string) bool {
	for _, id := range diffIDs {
		if s.layers[id] == nil {
			return false
		}
	}
	return true
}

func (s *Store) path(elements ...string) string {
	return filepath.Join(append([]string{s.dir}, elements...)...)
}

func (s *Store) tmp() string { return s.path("tmp") }

// layerDir is where a layer is unpacked. The name has 128 bits of a hash of the diff ID, in 26 characters.
func (s *Store) layerDir(diffID string) string {
	sum := sha256.Sum256([]byte(diffID))
	encoding := base32.StdEncoding.WithPadding(base32.NoPadding)
	return s.path("layers", strings.ToLower(encoding.EncodeToString(sum[:16])))
}

func imageFile(digest string) string {
	return strings.TrimPrefix(digest, "sha256:") + ".json"
}

func readJSON(path string, into any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("reading %q: %w", path, err)
	}
	return nil
}

// writeFile puts data at path so that a crash leaves the old content or the new, never a part.
// tmp is a directory on the same file system.
func writeFile(tmp, path string, data []byte) error {
	f, err := os.CreateTemp(tmp, "file-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func writeJSON(tmp, path string, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return writeFile(tmp, path, data)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
