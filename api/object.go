package api

import (
	"github.com/berth-run/berth/serving"
)

// hasStatus says whether a kind has a status that is written on its own.
func hasStatus(kind serving.Kind) bool { return serving.CopyStatus(kind.New(), kind.New()) }

// setSystem gives to the metadata that only the platform sets, from the stored object, or from a new one on
// creation. What the user wrote there is ignored. managedFields are not among it: see own.
func setSystem(to, from serving.Object) {
	to.SetUID(from.GetUID())
	to.SetResourceVersion(from.GetResourceVersion())
	to.SetGeneration(from.GetGeneration())
	to.SetCreationTimestamp(from.GetCreationTimestamp())
	to.SetDeletionTimestamp(from.GetDeletionTimestamp())
	to.SetDeletionGracePeriodSeconds(from.GetDeletionGracePeriodSeconds())
	to.SetSelfLink("")
}

func copied(o serving.Object) serving.Object { return o.DeepCopyObject().(serving.Object) }
