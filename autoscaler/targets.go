package autoscaler

import (
	"fmt"
	"math"
	"strconv"

	"knative.dev/serving/pkg/apis/autoscaling"
)

// Cloud Run's annotations about scaling. Each is a part of what an instance has, or [targetDisabled].
const (
	annotationCPUTarget         = "run.googleapis.com/scaling-cpu-target"
	annotationConcurrencyTarget = "run.googleapis.com/scaling-concurrency-target"

	targetDisabled = "disabled"
)

// Bounds of Cloud Run's annotations.
const (
	cloudRunTargetMin = 0.1
	cloudRunTargetMax = 0.95
)

// defaultHorizontalCPU is the CPU target of class hpa, in percent: what Kubernetes takes where none is given.
const defaultHorizontalCPU = 80

// horizontal tells whether the revision scales as by Kubernetes' horizontal autoscaler, by CPU or memory.
func (r *annotationReader) horizontal() bool {
	_, value, _ := autoscaling.ClassAnnotation.Get(r.annotations)
	return value == autoscaling.HPA
}

// targets reads how much one instance takes, and how much of that the autoscaler aims for.
func (r *annotationReader) targets(s Settings, scale *Scale, containerConcurrency int64) {
	if key, value, ok := autoscaling.ClassAnnotation.Get(r.annotations); ok && value != autoscaling.KPA && value != autoscaling.HPA {
		r.refuse(key, value, fmt.Sprintf("give %q or %q", autoscaling.KPA, autoscaling.HPA))
	}
	if r.horizontal() {
		r.horizontalTargets(s, scale, containerConcurrency)
		return
	}
	total := s.Target
	if scale.Metric == metricRPS {
		total = s.RPSTarget
	} else if containerConcurrency > 0 {
		total = float64(containerConcurrency)
	}
	total = r.float(autoscaling.TargetAnnotation, total, autoscaling.TargetMin, math.MaxFloat64)
	if scale.Metric == metricConcurrency && containerConcurrency > 0 {
		// Never aim for more than the instance is given.
		total = min(total, float64(containerConcurrency))
	}
	utilization := r.utilization(s, scale)
	scale.TotalTarget, scale.Target = total, max(autoscaling.TargetMin, total*utilization)
}

// utilization reads which part of the target is aimed for, in Knative's words or Cloud Run's, and the part of the CPU
// that counts beside it.
func (r *annotationReader) utilization(s Settings, scale *Scale) float64 {
	utilization := r.float(autoscaling.TargetUtilizationPercentageAnnotation, 100*s.TargetUtilization, 1, 100) / 100
	scale.CPUTarget, _ = r.part(annotationCPUTarget, s.CPUTarget)
	value, given := r.annotations[annotationConcurrencyTarget]
	if !given {
		return utilization
	}
	if key, other, ok := autoscaling.TargetUtilizationPercentageAnnotation.Get(r.annotations); ok {
		r.refuse(annotationConcurrencyTarget, value, fmt.Sprintf("%s, which is %q, is about the same: remove one of the two", key, other))
	}
	part, disabled := r.part(annotationConcurrencyTarget, utilization)
	switch {
	case !disabled:
		return part
	case scale.CPUTarget == 0:
		r.refuse(annotationConcurrencyTarget, value, fmt.Sprintf("nothing is left to scale by: give %s a number too", annotationCPUTarget))
	default:
		scale.Metric = metricCPU
	}
	return utilization
}

// part reads one of Cloud Run's annotations: a part of what an instance has, or 0 when it is not scaled by.
func (r *annotationReader) part(name string, otherwise float64) (part float64, disabled bool) {
	value, ok := r.annotations[name]
	switch {
	case !ok:
		return otherwise, false
	case value == targetDisabled:
		return 0, true
	}
	f, err := strconv.ParseFloat(value, 64)
	// The comparison is written so that NaN does not pass.
	if err != nil || !(f >= cloudRunTargetMin && f <= cloudRunTargetMax) {
		r.refuse(name, value, fmt.Sprintf("give a number from %g to %g, or %q", cloudRunTargetMin, cloudRunTargetMax, targetDisabled))
		return otherwise, false
	}
	return f, false
}

// horizontalTargets are those of class hpa: its target is percent of the CPU that is requested, or MiB of memory.
// Requests that wait for an instance ask for what takes them all, whatever that will use.
func (r *annotationReader) horizontalTargets(s Settings, scale *Scale, containerConcurrency int64) {
	scale.TotalTarget = s.Target
	if containerConcurrency > 0 {
		scale.TotalTarget = float64(containerConcurrency)
	}
	scale.Target = max(autoscaling.TargetMin, scale.TotalTarget*s.TargetUtilization)
	target := r.float(autoscaling.TargetAnnotation, defaultHorizontalCPU, autoscaling.TargetMin, math.MaxFloat64)
	_, _, given := autoscaling.TargetAnnotation.Get(r.annotations)
	switch {
	case scale.Metric != metricMemory:
		scale.CPUTarget, scale.CPUOfRequest = target/100, true
	case !given:
		r.refuse(autoscaling.MetricAnnotationKey, metricMemory, fmt.Sprintf("give %s too, the MiB that an instance is to use", autoscaling.TargetAnnotationKey))
	default:
		scale.MemoryTarget = target
	}
	if _, _, given := autoscaling.MinScaleAnnotation.Get(r.annotations); !given {
		scale.Min = max(1, scale.Min) // as in Knative, where one that says nothing of zero does not go there
	}
}
