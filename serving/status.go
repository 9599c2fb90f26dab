package serving

import (
	"reflect"
)

// CopyStatus sets to's status to that of from, an object of the same kind, and reports whether the kind has a
// status. What the status points to is shared by both afterwards: a change of it needs a copy first.
func CopyStatus(to, from Object) bool {
	status := reflect.ValueOf(to).Elem().FieldByName("Status")
	if !status.IsValid() {
		return false
	}
	status.Set(reflect.ValueOf(from).Elem().FieldByName("Status"))
	return true
}

// SameStatus reports whether the statuses of two objects of the same kind are the same, in every detail: false may also
// be about what makes no difference when it is stored.
func SameStatus(a, b Object) bool {
	one, other := reflect.ValueOf(a).Elem().FieldByName("Status"), reflect.ValueOf(b).Elem().FieldByName("Status")
	return one.IsValid() && reflect.DeepEqual(one.Interface(), other.Interface())
}
