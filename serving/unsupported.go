package serving

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"knative.dev/networking/pkg/apis/networking"
	"knative.dev/pkg/apis"
	"knative.dev/pkg/kmap"
	"knative.dev/serving/pkg/apis/autoscaling"
)

// Labels and annotations that only admission knows: they ask for what Berth has not.
const (
	labelVisibility   = "networking.knative.dev/visibility" // Knative: "cluster-local" is not reachable from outside
	annotationIngress = "run.googleapis.com/ingress"        // Cloud Run: "all", or one of several that are not public
)

// leastMemory is the smallest memory limit, in bytes. The OCI runtime starts the instance within the limit, and the
// files that the platform writes into it (as /etc/hosts) are in memory and count. With runc on cgroup v1
// nothing starts within 3 MiB and the smallest program within 4; twice that is for cgroup v2, which counts the
// kernel's memory too.
const leastMemory = 8 << 20

// mostContainers is how many containers an instance has at most, as on Cloud Run.
const mostContainers = 10

// unsupported refuses what Knative or Cloud Run allow and Berth cannot do.
func unsupported(o Object) (refused *apis.FieldError) {
	switch o := o.(type) {
	case *Service:
		return unsupportedVisibility(o).Also(unsupportedTemplate(&o.Spec.Template).ViaField("spec", "template"))
	case *Configuration:
		return unsupportedTemplate(&o.Spec.Template).ViaField("spec", "template")
	case *Route:
		return unsupportedVisibility(o).Also(invalidProtocol(o))
	case *DomainMapping:
		if o.Spec.TLS != nil {
			refused = refusal("Berth shows clients the certificates that the server was given (--tls-cert) or orders (--acme), not those of Secrets; remove it", "spec.tls")
		}
		return refused.Also(invalidProtocol(o))
	}
	return nil
}

// unsupportedVisibility refuses to make public what was asked to be private.
func unsupportedVisibility(o Object) (refused *apis.FieldError) {
	const public = "Berth cannot keep a service private: everyone who reaches the gateway reaches it; "
	if value, ok := o.GetLabels()[labelVisibility]; ok {
		refused = refused.Also(refusal(fmt.Sprintf(public+"remove this label, which is %q", value), "metadata.labels["+labelVisibility+"]"))
	}
	if value, ok := o.GetAnnotations()[annotationIngress]; ok && value != "all" {
		refused = refused.Also(refusal(fmt.Sprintf(public+"remove this annotation, which is %q, or set it to \"all\"", value),
			"metadata.annotations["+annotationIngress+"]"))
	}
	return refused
}

func unsupportedTemplate(template *RevisionTemplateSpec) (refused *apis.FieldError) {
	if value, ok := template.Annotations[AnnotationSessionAffinity]; ok && value != "true" && value != "false" {
		refused = refusal(fmt.Sprintf("%q says nothing about session affinity; set it to \"true\" or \"false\"", value),
			"metadata.annotations["+AnnotationSessionAffinity+"]")
	}
	for key, what := range map[string]string{
		AnnotationThrottling: "whether the CPU is withheld between requests",
		AnnotationBoost:      "whether there is more CPU while an instance starts",
	} {
		if value, ok := template.Annotations[key]; ok && !strings.EqualFold(value, "true") && !strings.EqualFold(value, "false") {
			refused = refused.Also(refusal(fmt.Sprintf("%.64q does not say %s; set it to \"true\" or \"false\"", value, what), "metadata.annotations["+key+"]"))
		}
	}
	return refused.Also(unsupportedPod(template.Spec.PodSpec).ViaField("spec"))
}

// What the annotation networking.knative.dev/http-protocol says of requests without TLS, in any case.
const (
	HTTPEnabled    = "enabled"    // they are served
	HTTPRedirected = "redirected" // they are redirected
)

// invalidProtocol refuses what Knative finds out only later.
func invalidProtocol(o Object) (refused *apis.FieldError) {
	for _, name := range networking.HTTPProtocolAnnotation {
		switch value := o.GetAnnotations()[name]; strings.ToLower(value) {
		case "", HTTPEnabled, HTTPRedirected:
		default:
			refused = refused.Also(refusal(fmt.Sprintf("requests without TLS are %q or %q, and this is %q", HTTPEnabled, HTTPRedirected, value),
				"metadata.annotations["+name+"]"))
		}
	}
	return refused
}

func unsupportedPod(pod PodSpec) (refused *apis.FieldError) {
	if n := len(pod.Containers); n > mostContainers {
		refused = refused.Also(refusal(fmt.Sprintf("an instance has at most %d containers, and these are %d; remove some", mostContainers, n), "containers"))
	}
	if n := len(pod.Volumes); n > mostVolumes {
		refused = refused.Also(refusal(fmt.Sprintf("there are %d volumes, and %d is the most that an instance can have", n, mostVolumes), "volumes"))
	}
	for i, v := range pod.Volumes {
		refused = refused.Also(unsupportedVolume(v).ViaFieldIndex("volumes", i))
	}
	for i, c := range pod.Containers {
		serves := len(pod.Containers) == 1 || len(c.Ports) > 0
		refused = refused.Also(unsupportedContainer(c).Also(invalidProbes(c, serves)).ViaFieldIndex("containers", i))
	}
	return refused
}

func unsupportedContainer(c Container) (refused *apis.FieldError) {
	if n := len(c.VolumeMounts); n > mostMounts {
		refused = refused.Also(refusal(fmt.Sprintf("there are %d mounts, and %d is the most that a container can have", n, mostMounts), "volumeMounts"))
	}
	for i, m := range c.VolumeMounts {
		refused = refused.Also(unsupportedMount(m).ViaFieldIndex("volumeMounts", i))
	}
	for list, resources := range map[string]ResourceList{"limits": c.Resources.Limits, "requests": c.Resources.Requests} {
		for name := range resources {
			if strings.Contains(string(name), "/") {
				refused = refused.Also(refusal("Berth gives instances CPU and memory only; remove this resource",
					fmt.Sprintf("resources.%s[%s]", list, name)))
			}
		}
	}
	if cpu, ok := c.Resources.Limits[ResourceCPU]; ok && cpu.Sign() <= 0 {
		refused = refused.Also(refusal(fmt.Sprintf("a CPU limit of %s leaves nothing to run with; give more than 0, as 500m, or remove it", &cpu),
			"resources.limits[cpu]"))
	}
	if memory, ok := c.Resources.Limits[ResourceMemory]; ok && memory.Value() < leastMemory {
		refused = refused.Also(refusal(fmt.Sprintf("no instance starts within a memory limit of %s; give %dMi or more", &memory, leastMemory>>20),
			"resources.limits[memory]"))
	}
	return refused
}

func refusal(message, path string) *apis.FieldError {
	return &apis.FieldError{Message: message, Paths: []string{path}}
}

// withoutEffect names what is stored and not acted on.
func withoutEffect(o Object) (warnings []string) {
	var template RevisionTemplateSpec
	switch o := o.(type) {
	case *Service:
		template = o.Spec.Template
	case *Configuration:
		template = o.Spec.Template
	}
	warn := func(path string) {
		warnings = append(warnings, "spec.template."+path+" has no effect in this release of Berth")
	}
	timeout, start := template.Spec.TimeoutSeconds, template.Spec.ResponseStartTimeoutSeconds
	if timeout != nil && start != nil && *start > *timeout {
		warnings = append(warnings, fmt.Sprintf("spec.template.spec.responseStartTimeoutSeconds has no effect: it is %d, and timeoutSeconds, which is %d, ends first", *start, *timeout))
	}
	if _, ok := template.Annotations[AnnotationProgressDeadline]; ok {
		warn("metadata.annotations[" + AnnotationProgressDeadline + "]")
	}
	for _, name := range slices.Sorted(maps.Keys(template.Annotations)) {
		if strings.HasPrefix(name, autoscaling.GroupName+"/") && !isScaling(name) {
			warnings = append(warnings, "spec.template.metadata.annotations["+name+"] has no effect: Knative has no such annotation; check its spelling")
		}
	}
	return warnings
}

// isScaling knows Knative's annotations about scaling, in all their spellings.
func isScaling(name string) bool {
	return slices.ContainsFunc([]kmap.KeyPriority{
		autoscaling.ActivationScale, autoscaling.ClassAnnotation, autoscaling.InitialScaleAnnotation, autoscaling.MaxScaleAnnotation,
		autoscaling.MetricAggregationAlgorithmAnnotation, autoscaling.MetricAnnotation, autoscaling.MinScaleAnnotation,
		autoscaling.PanicThresholdPercentageAnnotation, autoscaling.PanicWindowPercentageAnnotation,
		autoscaling.ScaleDownDelayAnnotation, autoscaling.ScaleToZeroPodRetentionPeriodAnnotation, autoscaling.TargetAnnotation,
		autoscaling.TargetBurstCapacityAnnotation, autoscaling.TargetUtilizationPercentageAnnotation, autoscaling.WindowAnnotation,
	}, func(spellings kmap.KeyPriority) bool { return slices.Contains(spellings, name) })
}
