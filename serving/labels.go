package serving

import (
	"strings"

	"knative.dev/serving/pkg/apis/autoscaling"
	"knative.dev/serving/pkg/apis/serving"
)

// Group is the API group of the serving objects.
const Group = serving.GroupName

// Label and annotation keys, as Knative names them.
const (
	LabelService                 = serving.ServiceLabelKey
	LabelConfiguration           = serving.ConfigurationLabelKey
	LabelConfigurationGeneration = serving.ConfigurationGenerationLabelKey
	LabelRoute                   = serving.RouteLabelKey
	LabelRoutingState            = serving.RoutingStateLabelKey
	LabelServiceUID              = serving.ServiceUIDLabelKey
	LabelConfigurationUID        = serving.ConfigurationUIDLabelKey
	LabelDomainMappingNamespace  = serving.DomainMappingNamespaceLabelKey
	LabelRevision                = serving.RevisionLabelKey
	LabelRevisionUID             = serving.RevisionUID

	AnnotationRoutingStateModified = serving.RoutingStateModifiedAnnotationKey
	AnnotationCreator              = serving.CreatorAnnotation
	AnnotationLastModifier         = serving.UpdaterAnnotation
	AnnotationProgressDeadline     = serving.ProgressDeadlineAnnotationKey

	AnnotationMinScale = autoscaling.MinScaleAnnotationKey
	AnnotationMaxScale = autoscaling.MaxScaleAnnotationKey
)

// Cloud Run's annotations that Berth knows.
const (
	// AnnotationSessionAffinity on a revision template, "true", brings a client's requests back to the instance that
	// served it before, where that can be.
	AnnotationSessionAffinity = "run.googleapis.com/sessionAffinity"
	// AnnotationThrottling on a revision template, "true", withholds the CPU from instances between requests; "false"
	// leaves it to them always (contract C66).
	AnnotationThrottling = "run.googleapis.com/cpu-throttling"
	// AnnotationBoost on a revision template, "true", gives instances more CPU than their limit while they start (contract C46).
	AnnotationBoost = "run.googleapis.com/startup-cpu-boost"
)

// What Berth says of services and revisions beside Knative's conditions.
const (
	// ConditionInstancesHealthy is there, and false, while instances do not start or soon end again. It has no part in Ready.
	ConditionInstancesHealthy = "InstancesHealthy"
	ReasonCrashLoop           = "CrashLoop"
	// ReasonWaitingForMemory is why a revision's conditions are unknown while no memory is left for its next instance.
	ReasonWaitingForMemory = "WaitingForMemory"
)

// Enabled tells whether an annotation is "true", in any case; one that is not there, or says neither, is as otherwise.
func Enabled(annotations map[string]string, key string, otherwise bool) bool {
	switch value := annotations[key]; {
	case strings.EqualFold(value, "true"):
		return true
	case strings.EqualFold(value, "false"):
		return false
	}
	return otherwise
}

// Berth's own annotations, where neither Knative nor Cloud Run has one.
const (
	// AnnotationInstance on a pod names the instance that it shows.
	AnnotationInstance = "berth.run/instance"
	// AnnotationInsecureRegistry on a revision template, "true", lets its image be pulled over plain HTTP.
	AnnotationInsecureRegistry = "berth.run/insecure-registry"
)
