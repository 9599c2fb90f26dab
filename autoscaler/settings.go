package autoscaler

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strconv"
	"time"

	"knative.dev/pkg/kmap"
	"knative.dev/serving/pkg/apis/autoscaling"
)

// Values of [Scale].Metric.
const (
	metricConcurrency = autoscaling.Concurrency
	metricRPS         = autoscaling.RPS
	metricCPU         = autoscaling.CPU
	metricMemory      = autoscaling.Memory
)

// DefaultSettings are Knative's defaults (contract 1.6), and Cloud Run's where Knative has none (contract 1.3).
func DefaultSettings() Settings {
	return Settings{
		StableWindow:          60 * time.Second,
		PanicWindowPercent:    10,
		PanicThresholdPercent: 200,
		Tick:                  2 * time.Second,
		MaxScaleUpRate:        1000,
		MaxScaleDownRate:      2,
		Target:                100,
		TargetUtilization:     0.7,
		RPSTarget:             200,
		Patience:              10 * time.Millisecond,
		ScaleToZeroGrace:      30 * time.Second,
		ScaleToZeroRetention:  0,
		InitialScale:          1,
		MinScale:              0,
		MaxScale:              100,
		StopGrace:             10 * time.Second,
		DrainTimeout:          3600 * time.Second,
		InstanceMemory:        Amount{Percent: 400},
		PreparedMemory:        Amount{Bytes: 64 << 20},
		MemoryReserve:         Amount{Percent: 5},
		IdleKeep:              15 * time.Minute,
		StartsAtOnce:          2 * runtime.NumCPU(),
	}
}

// CloudRunSettings are Cloud Run's rules (contract 1.3): 60 % of the concurrency and of the CPU over a minute, and the
// last instance is kept for 15 minutes without requests.
func CloudRunSettings() Settings {
	s := DefaultSettings()
	s.TargetUtilization = 0.6
	s.CPUTarget = 0.6
	s.ScaleToZeroGrace = 15*time.Minute - s.StableWindow // it begins when the averages have come to nothing
	return s
}

// Validate tells, by the names of their flags, which settings cannot be used and what they may be. Windows may be
// shorter than an annotation may make them: that is for trying things out.
func (s Settings) Validate() error {
	var errs []error
	check := func(name string, ok bool, value any, want string) {
		if !ok {
			errs = append(errs, fmt.Errorf("--%s %v: give %s", name, value, want))
		}
	}
	check("stable-window", s.StableWindow > 0, s.StableWindow, "a time above 0")
	check("panic-window-percent", s.PanicWindowPercent > 0 && s.PanicWindowPercent <= 100, s.PanicWindowPercent, "a number above 0, up to 100")
	check("panic-threshold-percent", s.PanicThresholdPercent > 100, s.PanicThresholdPercent, "a number above 100")
	check("tick", s.Tick > 0, s.Tick, "a time above 0")
	check("max-scale-up-rate", s.MaxScaleUpRate > 1, s.MaxScaleUpRate, "a number above 1")
	check("max-scale-down-rate", s.MaxScaleDownRate > 1, s.MaxScaleDownRate, "a number above 1")
	check("target", s.Target >= autoscaling.TargetMin, s.Target, fmt.Sprintf("a number from %g up", autoscaling.TargetMin))
	check("target-utilization", s.TargetUtilization > 0 && s.TargetUtilization <= 1, s.TargetUtilization, "a number above 0, up to 1")
	check("cpu-target", s.CPUTarget >= 0 && s.CPUTarget <= 1, s.CPUTarget, "a number from 0 (do not scale by CPU) to 1")
	check("rps-target", s.RPSTarget >= autoscaling.TargetMin, s.RPSTarget, fmt.Sprintf("a number from %g up", autoscaling.TargetMin))
	check("patience", s.Patience >= 0, s.Patience, "a time from 0 (each request that waits asks for an instance) up")
	check("scale-to-zero-grace", s.ScaleToZeroGrace >= 0, s.ScaleToZeroGrace, "a time from 0 up")
	check("scale-to-zero-retention", s.ScaleToZeroRetention >= 0, s.ScaleToZeroRetention, "a time from 0 up")
	check("initial-scale", s.InitialScale >= 0, s.InitialScale, "a number from 0 up")
	check("min-instances", s.MinScale >= 0, s.MinScale, "a number from 0 up")
	check("max-instances", s.MaxScale >= 0, s.MaxScale, "a number from 0 (unlimited) up")
	check("min-instances", s.MaxScale <= 0 || s.MinScale <= s.MaxScale, s.MinScale, fmt.Sprintf("no more than --max-instances, which is %d", s.MaxScale))
	check("stop-grace", s.StopGrace >= 0, s.StopGrace, "a time from 0 up")
	check("drain-timeout", s.DrainTimeout >= 0, s.DrainTimeout, "a time from 0 up")
	check("instance-memory", s.InstanceMemory.valid(), s.InstanceMemory, "a size or a percentage from 0 (no bound) up")
	check("prepared-memory", s.PreparedMemory.valid() && (s.PreparedMemory.Percent > 0 || s.PreparedMemory.Bytes == 0 || s.PreparedMemory.Bytes >= spareBound),
		s.PreparedMemory, fmt.Sprintf("0 (none), a percentage, or a size from %s up, which is what one instance counts", inBytes(spareBound)))
	check("memory-reserve", s.MemoryReserve.valid() && s.MemoryReserve.Percent < 100, s.MemoryReserve, "a size or a percentage from 0 (never) up, but less than 100%")
	check("idle-keep", s.IdleKeep >= 0, s.IdleKeep, "a time from 0 (keep none) up")
	check("starts-at-once", s.StartsAtOnce >= 1, s.StartsAtOnce, "a number from 1 up")
	return errors.Join(errs...)
}

// Scale applies a revision's annotations and its containerConcurrency to the settings, by Knative's rules:
// the target never exceeds containerConcurrency, and windows and percentages keep within Knative's bounds.
// The error names every annotation that cannot be used, what it holds and what it may hold.
func (s Settings) Scale(annotations map[string]string, containerConcurrency int64) (Scale, error) {
	if containerConcurrency < 0 {
		return Scale{}, fmt.Errorf("containerConcurrency is %d: give a number from 0 (unlimited) up", containerConcurrency)
	}
	if err := s.Validate(); err != nil {
		return Scale{}, err
	}
	r := annotationReader{annotations: annotations}
	scale := Scale{
		Metric:               r.metric(),
		Concurrency:          int(containerConcurrency),
		Patience:             s.Patience,
		StableWindow:         r.duration(autoscaling.WindowAnnotation, s.StableWindow, autoscaling.WindowMin, autoscaling.WindowMax, time.Second),
		PanicThreshold:       r.float(autoscaling.PanicThresholdPercentageAnnotation, s.PanicThresholdPercent, autoscaling.PanicThresholdPercentageMin, autoscaling.PanicThresholdPercentageMax) / 100,
		MaxScaleUpRate:       s.MaxScaleUpRate,
		MaxScaleDownRate:     s.MaxScaleDownRate,
		Min:                  r.int(autoscaling.MinScaleAnnotation, s.MinScale, 0),
		Max:                  r.int(autoscaling.MaxScaleAnnotation, s.MaxScale, 0),
		Initial:              r.int(autoscaling.InitialScaleAnnotation, s.InitialScale, 0),
		Activation:           r.int(autoscaling.ActivationScale, 0, 2),
		ScaleDownDelay:       r.duration(autoscaling.ScaleDownDelayAnnotation, 0, 0, autoscaling.WindowMax, time.Second),
		ScaleToZeroGrace:     s.ScaleToZeroGrace,
		ScaleToZeroRetention: r.duration(autoscaling.ScaleToZeroPodRetentionPeriodAnnotation, s.ScaleToZeroRetention, 0, autoscaling.WindowMax, time.Nanosecond),
	}
	percent := r.float(autoscaling.PanicWindowPercentageAnnotation, s.PanicWindowPercent, autoscaling.PanicWindowPercentageMin, autoscaling.PanicWindowPercentageMax)
	// Load is read once in a tick, but waking requests cause readings between: a second is the finest that means something.
	scale.PanicWindow = max(time.Second, time.Duration(float64(scale.StableWindow)*percent/100))
	scale.PanicWindow = min(scale.PanicWindow, scale.StableWindow)
	r.targets(s, &scale, containerConcurrency)
	scale.Decaying = r.decaying()
	r.bounds(&scale)
	if err := errors.Join(r.errs...); err != nil {
		return Scale{}, err
	}
	return scale, nil
}

// annotationReader reads annotations under every spelling that Knative takes ("min-scale" and "minScale"),
// and collects what is wrong with them.
type annotationReader struct {
	annotations map[string]string
	errs        []error
}

func (r *annotationReader) refuse(key, value, want string) {
	r.errs = append(r.errs, fmt.Errorf("annotation %s is %q: %s", key, value, want))
}

func (r *annotationReader) metric() string {
	known := [...]string{metricConcurrency, metricRPS}
	if r.horizontal() {
		known = [...]string{metricCPU, metricMemory}
	}
	key, value, ok := autoscaling.MetricAnnotation.Get(r.annotations)
	switch {
	case !ok:
		return known[0]
	case !slices.Contains(known[:], value):
		r.refuse(key, value, fmt.Sprintf("give %q or %q", known[0], known[1]))
		return known[0]
	}
	return value
}

// decaying tells whether averages weigh what is newer more. Class hpa has no such choice.
func (r *annotationReader) decaying() bool {
	key, value, ok := autoscaling.MetricAggregationAlgorithmAnnotation.Get(r.annotations)
	switch {
	case !ok || value == "" || value == autoscaling.MetricAggregationAlgorithmLinear || r.horizontal():
		return false
	case value != autoscaling.MetricAggregationAlgorithmWeightedExponential && value != autoscaling.MetricAggregationAlgorithmWeightedExponentialAlt:
		r.refuse(key, value, fmt.Sprintf("give %q or %q", autoscaling.MetricAggregationAlgorithmLinear, autoscaling.MetricAggregationAlgorithmWeightedExponential))
	}
	return true
}

func (r *annotationReader) int(keys kmap.KeyPriority, otherwise, least int) int {
	key, value, ok := keys.Get(r.annotations)
	if !ok {
		return otherwise
	}
	n, err := strconv.ParseInt(value, 10, 32)
	if err != nil || n < int64(least) {
		r.refuse(key, value, fmt.Sprintf("give a whole number from %d to %d", least, math.MaxInt32))
		return otherwise
	}
	return int(n)
}

func (r *annotationReader) float(keys kmap.KeyPriority, otherwise, least, most float64) float64 {
	key, value, ok := keys.Get(r.annotations)
	if !ok {
		return otherwise
	}
	f, err := strconv.ParseFloat(value, 64)
	// The comparison is written so that NaN does not pass.
	if err != nil || !(f >= least && f <= most) {
		want := fmt.Sprintf("give a number from %g to %g", least, most)
		if most == math.MaxFloat64 {
			want = fmt.Sprintf("give a number from %g up", least)
		}
		r.refuse(key, value, want)
		return otherwise
	}
	return f
}

func (r *annotationReader) duration(keys kmap.KeyPriority, otherwise, least, most, step time.Duration) time.Duration {
	key, value, ok := keys.Get(r.annotations)
	if !ok {
		return otherwise
	}
	d, err := time.ParseDuration(value)
	if err != nil || d < least || d > most || d.Truncate(step) != d {
		want := fmt.Sprintf("give a duration from %s to %s, like \"60s\"", least, most)
		if step == time.Second {
			want += ", in whole seconds"
		}
		r.refuse(key, value, want)
		return otherwise
	}
	return d
}

// bounds checks the least and greatest numbers against each other. A default that contradicts an annotation gives way.
func (r *annotationReader) bounds(scale *Scale) {
	maxKey, maxValue, maxGiven := autoscaling.MaxScaleAnnotation.Get(r.annotations)
	minKey, minValue, minGiven := autoscaling.MinScaleAnnotation.Get(r.annotations)
	if scale.Max != 0 && scale.Min > scale.Max {
		switch {
		case maxGiven && minGiven:
			r.refuse(maxKey, maxValue, fmt.Sprintf("it is less than %s, which is %q: give the greater number to the first", minKey, minValue))
		case maxGiven:
			scale.Min = scale.Max
		default:
			scale.Max = scale.Min
		}
	}
	if scale.Activation == 0 {
		return
	}
	key, value, _ := autoscaling.ActivationScale.Get(r.annotations)
	switch {
	case scale.Activation < scale.Min && minGiven:
		r.refuse(key, value, fmt.Sprintf("it is less than %s, which is %q", minKey, minValue))
	case scale.Max != 0 && scale.Activation > scale.Max && maxGiven:
		r.refuse(key, value, fmt.Sprintf("it is greater than %s, which is %q", maxKey, maxValue))
	case scale.Max != 0 && scale.Activation > scale.Max:
		scale.Max = scale.Activation
	}
}
