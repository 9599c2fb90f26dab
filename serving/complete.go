package serving

import (
	"context"
)

// Completed returns a copy of an object with Knative's own defaults filled in: not those of the platform's
// [Settings], which are for resources and timeouts. A kind without defaults is returned as it is.
func Completed(o Object) Object {
	if _, ok := o.(admissible); !ok {
		return o
	}
	o = o.DeepCopyObject().(Object)
	o.(admissible).SetDefaults(context.Background())
	return o
}
