package serving

import (
	"k8s.io/api/core/v1"
)

// The core v1 types of Kubernetes that Berth uses, under plain names.
type (
	Namespace            = v1.Namespace
	Secret               = v1.Secret
	ConfigMap            = v1.ConfigMap
	Container            = v1.Container
	ContainerPort        = v1.ContainerPort
	EnvVar               = v1.EnvVar
	EnvVarSource         = v1.EnvVarSource
	SecretKeySelector    = v1.SecretKeySelector
	Probe                = v1.Probe
	ProbeHandler         = v1.ProbeHandler
	TCPSocketAction      = v1.TCPSocketAction
	HTTPGetAction        = v1.HTTPGetAction
	PodSpec              = v1.PodSpec
	ResourceList         = v1.ResourceList
	LocalObjectReference = v1.LocalObjectReference
	SecurityContext      = v1.SecurityContext

	Pod             = v1.Pod
	PodCondition    = v1.PodCondition
	PodPhase        = v1.PodPhase
	PodStatus       = v1.PodStatus
	CoreService     = v1.Service
	CoreServiceSpec = v1.ServiceSpec
	ServicePort     = v1.ServicePort
	Event           = v1.Event
	EventSource     = v1.EventSource
	ObjectReference = v1.ObjectReference
)

// Resource names and condition states.
const (
	ResourceCPU    = v1.ResourceCPU
	ResourceMemory = v1.ResourceMemory

	ConditionTrue    = v1.ConditionTrue
	ConditionFalse   = v1.ConditionFalse
	ConditionUnknown = v1.ConditionUnknown

	NamespaceActive      = v1.NamespaceActive
	NamespaceTerminating = v1.NamespaceTerminating
)
