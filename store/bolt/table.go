package bolt

import (
	"cmp"
	"slices"

	"github.com/berth-run/berth/serving"
)

// table holds the objects of one kind, ordered by namespace and name.
type table struct {
	rows []row
}

type row struct {
	namespace, name string
	object          serving.Object
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
		return t.rows[i].object
	}
	return nil
}

// set stores an object under a name; nil removes it.
func (t *table) set(namespace, name string, object serving.Object) {
	i, ok := t.find(namespace, name)
	switch {
	case ok && object == nil:
		t.rows = slices.Delete(t.rows, i, i+1)
	case ok:
		t.rows[i].object = object
	case object != nil:
		t.rows = slices.Insert(t.rows, i, row{namespace, name, object})
	}
}

// list returns the objects in a namespace ("" is all), in a slice of the caller's own.
func (t *table) list(namespace string) []serving.Object {
	rows := t.in(namespace)
	objects := make([]serving.Object, len(rows))
	for i := range rows {
		objects[i] = rows[i].object
	}
	return objects
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
