package e2e

import (
	"k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// The options of Kubernetes' clients under plain names.
type (
	getOptions    = v1.GetOptions
	listOptions   = v1.ListOptions
	createOptions = v1.CreateOptions
	updateOptions = v1.UpdateOptions
	patchOptions  = v1.PatchOptions
)

const (
	foreground = v1.DeletePropagationForeground
	mergePatch = types.MergePatchType
)
