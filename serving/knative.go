package serving

import (
	"knative.dev/serving/pkg/apis/serving/v1"
)

// The serving.knative.dev/v1 types under plain names.
type (
	Service              = v1.Service
	Configuration        = v1.Configuration
	Revision             = v1.Revision
	RevisionSpec         = v1.RevisionSpec
	RevisionStatus       = v1.RevisionStatus
	RevisionTemplateSpec = v1.RevisionTemplateSpec
	Route                = v1.Route
	RouteStatus          = v1.RouteStatus
	TrafficTarget        = v1.TrafficTarget
	ContainerStatus      = v1.ContainerStatus
)

// Condition types of the objects, as Knative names them.
const (
	ServiceReady               = v1.ServiceConditionReady
	ServiceRoutesReady         = v1.ServiceConditionRoutesReady
	ConfigurationReady         = v1.ConfigurationConditionReady
	ServiceConfigurationsReady = v1.ServiceConditionConfigurationsReady
	RevisionReady              = v1.RevisionConditionReady
	RevisionResourcesAvailable = v1.RevisionConditionResourcesAvailable
	RevisionContainerHealthy   = v1.RevisionConditionContainerHealthy
	RevisionActive             = v1.RevisionConditionActive
	RouteReady                 = v1.RouteConditionReady
	RouteAllTrafficAssigned    = v1.RouteConditionAllTrafficAssigned
	RouteIngressReady          = v1.RouteConditionIngressReady
)

// DefaultUserPort is the port a container listens on unless it declares another (contract C10).
const DefaultUserPort = v1.DefaultUserPort

// Messages and reasons of revision conditions that clients know.
var (
	ExitCodeReason                  = v1.ExitCodeReason
	RevisionContainerExitingMessage = v1.RevisionContainerExitingMessage
	RevisionContainerMissingMessage = v1.RevisionContainerMissingMessage
)

// Reasons of revision conditions, as Knative sets them.
const (
	ReasonContainerMissing = v1.ReasonContainerMissing
	ReasonResolvingDigests = v1.ReasonResolvingDigests
	ReasonDeploying        = v1.ReasonDeploying
	ReasonNotOwned         = v1.ReasonNotOwned
)

// Values of LabelRoutingState.
const (
	RoutingPending = string(v1.RoutingStatePending)
	RoutingActive  = string(v1.RoutingStateActive)
	RoutingReserve = string(v1.RoutingStateReserve)
)
