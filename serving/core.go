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
	GRPCAction           = v1.GRPCAction
	ExecAction           = v1.ExecAction
	PodSpec              = v1.PodSpec
	ResourceList         = v1.ResourceList
	LocalObjectReference = v1.LocalObjectReference
	SecurityContext      = v1.SecurityContext

	ServiceAccount                = v1.ServiceAccount
	Volume                        = v1.Volume
	VolumeMount                   = v1.VolumeMount
	VolumeProjection              = v1.VolumeProjection
	KeyToPath                     = v1.KeyToPath
	DownwardAPIVolumeFile         = v1.DownwardAPIVolumeFile
	ServiceAccountTokenProjection = v1.ServiceAccountTokenProjection
	ConfigMapProjection           = v1.ConfigMapProjection
	SecretProjection              = v1.SecretProjection
	SecretVolumeSource            = v1.SecretVolumeSource
	ResourceFieldSelector         = v1.ResourceFieldSelector
	ResourceName                  = v1.ResourceName

	Pod                      = v1.Pod
	PodCondition             = v1.PodCondition
	PodConditionType         = v1.PodConditionType
	PodContainerStatus       = v1.ContainerStatus
	PodIP                    = v1.PodIP
	PodPhase                 = v1.PodPhase
	PodStatus                = v1.PodStatus
	ContainerState           = v1.ContainerState
	ContainerStateWaiting    = v1.ContainerStateWaiting
	ContainerStateRunning    = v1.ContainerStateRunning
	ContainerStateTerminated = v1.ContainerStateTerminated

	CoreService         = v1.Service
	CoreServiceSpec     = v1.ServiceSpec
	ServicePort         = v1.ServicePort
	LoadBalancerIngress = v1.LoadBalancerIngress
	Event               = v1.Event
	EventSource         = v1.EventSource
	ObjectReference     = v1.ObjectReference
)

// Resource names and condition states.
const (
	ResourceCPU    = v1.ResourceCPU
	ResourceMemory = v1.ResourceMemory

	URISchemeHTTP  = v1.URISchemeHTTP
	URISchemeHTTPS = v1.URISchemeHTTPS

	ConditionTrue    = v1.ConditionTrue
	ConditionFalse   = v1.ConditionFalse
	ConditionUnknown = v1.ConditionUnknown

	NamespaceActive      = v1.NamespaceActive
	NamespaceTerminating = v1.NamespaceTerminating

	PodPending   = v1.PodPending
	PodRunning   = v1.PodRunning
	PodSucceeded = v1.PodSucceeded
	PodFailed    = v1.PodFailed

	PodScheduled    = v1.PodScheduled
	PodInitialized  = v1.PodInitialized
	ContainersReady = v1.ContainersReady
	PodReady        = v1.PodReady

	RestartPolicyAlways = v1.RestartPolicyAlways

	ServiceTypeLoadBalancer = v1.ServiceTypeLoadBalancer
	ServiceTypeExternalName = v1.ServiceTypeExternalName
	ProtocolTCP             = v1.ProtocolTCP
)
