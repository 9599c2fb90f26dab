// Package bolt keeps the declared objects in one bbolt file and in memory, and those of ephemeral kinds in memory
// alone.
//
// Writes are committed by one goroutine, which groups those that wait (commit.go): each is on disk before it is
// acknowledged, and each has a version of its own; writers who could write it
// all again need not wait for the disk (deferred.go). Reads and watches are answered from memory (table.go, watch.go)
// and see a write only once it is committed. The objects that a deleted object owned are removed by the same
// goroutine (cascade.go). Start reading at [Open], then at Store.commit.
package bolt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"reflect"
	"slices"
	"strconv"
	"sync"

	"go.etcd.io/bbolt"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

// DefaultHistory is how many events a store keeps for watches that start at an older version.
const DefaultHistory = 10000

// ErrClosed is returned by a store that was closed.
var ErrClosed = errors.New("the store is closed")

// Options are the settings of a store; the zero value is useful.
type Options struct {
	// Logger gets what no caller is told; nil discards it.
	Logger *slog.Logger
	// History is how many events to keep for watches that start at an older version; 0 is DefaultHistory.
	// Fewer are kept when their objects are large: they take at most half a MiB.
	History int
}

// Store is a [store.Store] in one file. Make it with [Open].
type Store struct {
	path   string
	logger *slog.Logger
	db     *bbolt.DB
	kinds  map[reflect.Type]int // index into serving.Kinds of each Go type

	requests chan *request
	quit     chan struct{} // closed by Close
	done     chan struct{} // closed when the committing goroutine has returned
	close    func() error

	found []found // while the store is opened: what was read from the file

	// The committing goroutine's own.
	graph    graph
	last     uint64 // newest version given out; those of failed commits are not used again
	reserved uint64 // the version in the file, above every published one
	deferral deferral
	fault    error // set when it is unknown what is on disk; every write then fails

	// mu guards what readers see. Only the committing goroutine changes tables and version, so it reads them
	// without the lock.
	mu      sync.RWMutex
	tables  []table // by index into serving.Kinds
	version uint64  // newest committed
	history history
	watches map[*watch]struct{}
	closed  bool
}

var _ store.Store = (*Store)(nil)

// Open opens the store in the file at path, and makes a new one when there is no file. An error says what is wrong
// with the file and what to do; the file is then as it was. One process at a time can have a store open.
func Open(path string, options Options) (*Store, error) {
	s := &Store{
		path:     path,
		logger:   options.Logger,
		kinds:    make(map[reflect.Type]int),
		requests: make(chan *request),
		quit:     make(chan struct{}),
		done:     make(chan struct{}),
		graph:    newGraph(),
		deferral: newDeferral(),
		tables:   newTables(),
		watches:  make(map[*watch]struct{}),
	}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	for i, kind := range serving.Kinds {
		s.kinds[reflect.TypeOf(kind.New())] = i
	}
	if err := s.openFile(); err != nil {
		return nil, fmt.Errorf("opening store %q: %w", path, err)
	}
	limit := options.History
	if limit <= 0 {
		limit = DefaultHistory
	}
	s.last = s.version
	s.history = history{limit: limit, floor: s.version}
	if err := s.findUnfinished(s.found); err != nil {
		s.db.Close()
		return nil, fmt.Errorf("opening store %q: %w", path, err)
	}
	s.found = nil
	s.close = sync.OnceValue(s.shutdown)
	go s.run()
	return s, nil
}

// Close ends the watches, waits for the commit that is under way, saves what was deferred and closes the file. Writes and new watches then
// return ErrClosed. It may be called more than once.
func (s *Store) Close() error { return s.close() }

func (s *Store) shutdown() error {
	close(s.quit)
	<-s.done
	unsaved := s.deferral.last
	s.mu.Lock()
	s.closed = true
	for w := range s.watches {
		s.drop(w)
	}
	s.mu.Unlock()
	if err := errors.Join(unsaved, s.db.Close()); err != nil {
		return fmt.Errorf("closing store %q: %w", s.path, err)
	}
	return nil
}

// Get implements [store.Store].
func (s *Store) Get(ctx context.Context, kind serving.Kind, namespace, name string) (_ serving.Object, err error) {
	defer catch(&err)
	k, err := keyOf(kind, namespace, name)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if o := s.tables[k.kind].get(k.namespace, k.name); o != nil {
		return o, nil
	}
	return nil, k.error(store.ErrNotFound)
}

// List implements [store.Store].
func (s *Store) List(ctx context.Context, kind serving.Kind, namespace string) ([]serving.Object, string, error) {
	objects, _, version, err := s.Page(ctx, kind, namespace, types.NamespacedName{}, math.MaxInt)
	return objects, version, err
}

// Page implements [store.Store].
func (s *Store) Page(ctx context.Context, kind serving.Kind, namespace string, after types.NamespacedName, limit int) ([]serving.Object, int, string, error) {
	k, err := keyOf(kind, namespace, "")
	if err != nil {
		return nil, 0, "", err
	}
	if err := ctx.Err(); err != nil {
		return nil, 0, "", err
	}
	s.mu.RLock()
	rows, version := s.tables[k.kind].in(k.namespace), s.version
	from, there := slices.BinarySearchFunc(rows, row{namespace: after.Namespace, name: after.Name}, row.compare)
	if there {
		from++
	}
	more := max(0, len(rows)-from-limit)
	rows = slices.Clone(rows[from : len(rows)-more])
	s.mu.RUnlock()
	objects, err := s.tables[k.kind].readAll(rows) // without the lock: decoding takes long enough to hold up writers
	return objects, more, formatVersion(version), err
}

// Names implements [store.Store].
func (s *Store) Names(ctx context.Context, kind serving.Kind, namespace string) ([]types.NamespacedName, string, error) {
	k, err := keyOf(kind, namespace, "")
	if err != nil {
		return nil, "", err
	}
	if err := ctx.Err(); err != nil {
		return nil, "", err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	rows := s.tables[k.kind].in(k.namespace)
	names := make([]types.NamespacedName, len(rows))
	for i, r := range rows {
		names[i] = types.NamespacedName{Namespace: r.namespace, Name: r.name}
	}
	return names, formatVersion(s.version), nil
}

// key names an object.
type key struct {
	kind            int // index into serving.Kinds
	namespace, name string
}

// keyOf returns the key of an object of a kind; that of a kind without namespaces has none.
func keyOf(kind serving.Kind, namespace, name string) (key, error) {
	for i := range serving.Kinds {
		if k := &serving.Kinds[i]; k.Name == kind.Name && k.Group == kind.Group {
			if !k.Namespaced {
				namespace = ""
			}
			return key{kind: i, namespace: namespace, name: name}, nil
		}
	}
	return key{}, fmt.Errorf("kind %q is not one that the store keeps (see serving.Kinds)", kind.String())
}

// keyOfObject returns the key of an object as its metadata gives it.
func (s *Store) keyOfObject(o serving.Object) (key, error) {
	i, ok := s.kinds[reflect.TypeOf(o)]
	if !ok {
		return key{}, fmt.Errorf("type %T is not one that the store keeps (see serving.Kinds)", o)
	}
	return keyOf(serving.Kinds[i], o.GetNamespace(), o.GetName())
}

// error wraps a sentinel with the object's kind and name.
func (k key) error(err error) error {
	return fmt.Errorf("%s %q: %w", serving.Kinds[k.kind], k.name, err)
}

func formatVersion(version uint64) string { return strconv.FormatUint(version, 10) }
