package serving

import (
	"k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The metadata types of Kubernetes under plain names.
type (
	Meta           = v1.Object
	ObjectMeta     = v1.ObjectMeta
	TypeMeta       = v1.TypeMeta
	OwnerReference = v1.OwnerReference
	Status         = v1.Status
	StatusDetails  = v1.StatusDetails
	StatusCause    = v1.StatusCause
	Time           = v1.Time
	DeleteOptions  = v1.DeleteOptions
	Preconditions  = v1.Preconditions
)

// CauseFieldValueInvalid is the type of a cause that a field's value is.
const CauseFieldValueInvalid = v1.CauseTypeFieldValueInvalid
