package bolt

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/berth-run/berth/serving"
)

// table holds the objects of one kind, ordered by namespace and name.
//
// It keeps them as JSON, a third of their size in memory and nothing that the garbage collector must look into,
// and decodes those that are read. What was read last stays decoded: see [recent].
type table struct {
	kind   int // index into serving.Kinds
	recent *recent
	rows   []row
}

func newTables() []table {
	tables, recent := make([]table, len(serving.Kinds)), new(recent)
	for kind := range tables {
		tables[kind] = table{kind: kind, recent: recent}
	}
	return tables
}

type row struct {
	namespace, name string
	entry           *entry
}

// entry is one version of an object. Its JSON never changes.
type entry struct {
	data    []byte
	decoded atomic.Pointer[serving.Object] // nil while not decoded
}

func (r row) compare(other row) int {
	if c := cmp.Compare(r.namespace, other.namespace); c != 0 {
		return c
	}
	return cmp.Compare(r.name, other.name)
}

// get returns the object with a name, or nil.
func (t *table) get(namespace, name string) serving.Object {
	if i, ok := t.find(namespace, name); ok {
		e := t.rows[i].entry
		if o := e.decoded.Load(); o != nil {
			return *o
		}
		o := t.decode(e)
		t.recent.keep(e, o)
		return o
	}
	return nil
}

// has reports whether there is an object with a name.
func (t *table) has(namespace, name string) bool {
	_, ok := t.find(namespace, name)
	return ok
}

// set stores an object and its JSON under a name; a nil object removes it.
func (t *table) set(namespace, name string, object serving.Object, data []byte) {
	i, ok := t.find(namespace, name)
	if object == nil {
		if ok {
			t.rows = slices.Delete(t.rows, i, i+1)
		}
		return
	}
	e := &entry{data: data}
	t.recent.keep(e, object)
	t.place(i, ok, namespace, name, e)
}

// reserve makes room for n objects.
func (t *table) reserve(n int) { t.rows = slices.Grow(t.rows, n) }

// load stores an object that nobody has decoded.
func (t *table) load(namespace, name string, data []byte) {
	i, ok := t.find(namespace, name)
	t.place(i, ok, namespace, name, &entry{data: data})
}

func (t *table) place(i int, there bool, namespace, name string, e *entry) {
	if there {
		t.rows[i].entry = e
	} else {
		t.rows = slices.Insert(t.rows, i, row{namespace, name, e})
	}
}

// read returns the objects of rows. Those it decodes are not kept: a list would push out what is read often. It
// needs no lock: an entry never changes.
func (t *table) read(rows []row) []serving.Object {
	objects := make([]serving.Object, len(rows))
	for i, r := range rows {
		objects[i] = t.object(r.entry)
	}
	return objects
}

// readAll is read on all processors, when that is worth it.
func (t *table) readAll(rows []row) ([]serving.Object, error) {
	workers := min(runtime.GOMAXPROCS(0), 1+len(rows)/readApart)
	objects := make([]serving.Object, len(rows))
	errs := make([]error, workers)
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			defer catch(&errs[w])
			for i := w; i < len(rows); i += workers {
				objects[i] = t.object(rows[i].entry)
			}
		})
	}
	group.Wait()
	return objects, errors.Join(errs...)
}

// readApart is how many objects are worth a goroutine to decode them.
const readApart = 500

func (t *table) object(e *entry) serving.Object {
	if o := e.decoded.Load(); o != nil {
		return *o
	}
	return t.decode(e)
}

// decode reads an entry's JSON. The store wrote it, or read its head when it was opened; when it is not an object of
// the kind all the same, decode panics with a *damage.
func (t *table) decode(e *entry) serving.Object {
	o := serving.Kinds[t.kind].New()
	if err := json.Unmarshal(e.data, o); err != nil {
		var h head
		_ = json.Unmarshal(e.data, &h) // it worked before
		panic(&damage{fmt.Errorf("the store's file is damaged (reading %s %q: %w); %s", bucketName(t.kind),
			key{t.kind, h.Metadata.Namespace, h.Metadata.Name}.bytes(), err, remedy)})
	}
	return o
}

// damage is what is wrong with one object. Whoever reads it is told; the others are as they were.
type damage struct{ error }

// catch makes the error of a function of the damage that it panicked with. Defer it.
func catch(err *error) {
	switch r := recover().(type) {
	case nil:
	case *damage:
		*err = r.error
	default:
		panic(r)
	}
}

// in returns the rows of a namespace ("" is all).
func (t *table) in(namespace string) []row {
	if namespace == "" {
		return t.rows
	}
	from, _ := t.find(namespace, "")
	n, _ := slices.BinarySearchFunc(t.rows[from:], namespace, func(r row, namespace string) int {
		if r.namespace == namespace {
			return -1
		}
		return 1
	})
	return t.rows[from : from+n]
}

func (t *table) find(namespace, name string) (int, bool) {
	return slices.BinarySearchFunc(t.rows, row{namespace: namespace, name: name}, row.compare)
}

// keepDecoded is how many objects stay decoded: enough for the reconcilers, which read one service's objects again
// and again while it is deployed.
const keepDecoded = 32

// recent keeps the objects that were decoded last, and forgets the oldest for each new one.
type recent struct {
	mu      sync.Mutex
	entries [keepDecoded]*entry // guarded by mu
	next    int                 // guarded by mu
}

func (r *recent) keep(e *entry, o serving.Object) {
	e.decoded.Store(&o)
	r.mu.Lock()
	defer r.mu.Unlock()
	if old := r.entries[r.next]; old != nil && old != e {
		old.decoded.Store(nil)
	}
	r.entries[r.next] = e
	r.next = (r.next + 1) % keepDecoded
}
