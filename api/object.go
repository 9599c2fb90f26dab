package api

import (
	"github.com/berth-run/berth/serving"
)

// hasStatus says whether a kind has a status that is written on its own.
func hasStatus(kind serving.Kind) bool { return setStatus(kind.New(), kind.New()) }

// setStatus gives to the status of from, an object of the same kind. It returns false for a kind without status.
func setStatus(to, from serving.Object) bool {
	switch to := to.(type) {
	case *serving.Service:
		from.(*serving.Service).Status.DeepCopyInto(&to.Status)
	case *serving.Configuration:
		from.(*serving.Configuration).Status.DeepCopyInto(&to.Status)
	case *serving.Route:
		from.(*serving.Route).Status.DeepCopyInto(&to.Status)
	case *serving.Revision:
		from.(*serving.Revision).Status.DeepCopyInto(&to.Status)
	case *serving.Namespace:
		from.(*serving.Namespace).Status.DeepCopyInto(&to.Status)
	default:
		return false
	}
	return true
}

// setSystem gives to the metadata that only the platform sets, from the stored object, or from a new one on
// creation. What the user wrote there is ignored.
func setSystem(to, from serving.Object) {
	to.SetUID(from.GetUID())
	to.SetResourceVersion(from.GetResourceVersion())
	to.SetGeneration(from.GetGeneration())
	to.SetCreationTimestamp(from.GetCreationTimestamp())
	to.SetDeletionTimestamp(from.GetDeletionTimestamp())
	to.SetDeletionGracePeriodSeconds(from.GetDeletionGracePeriodSeconds())
	to.SetSelfLink("")
	to.SetManagedFields(nil)
}

func copied(o serving.Object) serving.Object { return o.DeepCopyObject().(serving.Object) }
