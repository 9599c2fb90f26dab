package autoscaler

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func annotate(pairs ...string) map[string]string {
	m := make(map[string]string)
	for i := 0; i < len(pairs); i += 2 {
		key := pairs[i]
		if !strings.Contains(key, "/") {
			key = "autoscaling.knative.dev/" + key
		}
		m[key] = pairs[i+1]
	}
	return m
}

// Names of annotations, and a value.
const (
	hpa               = "hpa.autoscaling.knative.dev"
	cpuTarget         = "run.googleapis.com/scaling-cpu-target"
	concurrencyTarget = "run.googleapis.com/scaling-concurrency-target"
)

func TestScale_AppliesDefaults(t *testing.T) {
	got, err := DefaultSettings().Scale(nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	want := Scale{
		Metric:           "concurrency",
		Target:           70,
		TotalTarget:      100,
		Patience:         10 * time.Millisecond,
		StableWindow:     time.Minute,
		PanicWindow:      6 * time.Second,
		PanicThreshold:   2,
		MaxScaleUpRate:   1000,
		MaxScaleDownRate: 2,
		Max:              100,
		Initial:          1,
		ScaleToZeroGrace: 30 * time.Second,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("defaults (-want +got):\n%s", diff)
	}
}

func TestScale_AppliesAnnotations(t *testing.T) {
	for _, test := range []struct {
		name        string
		annotations map[string]string
		concurrency int64
		change      func(*Scale)
	}{
		{"concurrency is the target", nil, 10, func(s *Scale) { s.Concurrency, s.TotalTarget, s.Target = 10, 10, 7 }},
		{"a target above concurrency is cut", annotate("target", "50"), 10, func(s *Scale) { s.Concurrency, s.TotalTarget, s.Target = 10, 10, 7 }},
		{"a target below concurrency holds", annotate("target", "4"), 10, func(s *Scale) { s.Concurrency, s.TotalTarget, s.Target = 10, 4, 2.8 }},
		{"utilization", annotate("target", "10", "target-utilization-percentage", "50"), 0, func(s *Scale) { s.TotalTarget, s.Target = 10, 5 }},
		{"the least target", annotate("target", "0.01"), 0, func(s *Scale) { s.TotalTarget, s.Target = 0.01, 0.01 }},
		{"rps", annotate("metric", "rps"), 10, func(s *Scale) { s.Concurrency, s.Metric, s.TotalTarget, s.Target = 10, "rps", 200, 140 }},
		{"rps with a target", annotate("metric", "rps", "target", "1000"), 10, func(s *Scale) { s.Concurrency, s.Metric, s.TotalTarget, s.Target = 10, "rps", 1000, 700 }},
		{"a window", annotate("window", "10m"), 0, func(s *Scale) { s.StableWindow, s.PanicWindow = 10*time.Minute, time.Minute }},
		{"the shortest panic window", annotate("window", "6s"), 0, func(s *Scale) { s.StableWindow, s.PanicWindow = 6*time.Second, time.Second }},
		{"panic", annotate("panic-window-percentage", "20", "panic-threshold-percentage", "150"), 0, func(s *Scale) {
			s.PanicWindow, s.PanicThreshold = 12*time.Second, 1.5
		}},
		{"bounds", annotate("min-scale", "1", "max-scale", "3", "initial-scale", "2", "activation-scale", "3"), 0, func(s *Scale) {
			s.Min, s.Max, s.Initial, s.Activation = 1, 3, 2, 3
		}},
		{"Cloud Run's spelling", annotate("minScale", "1", "maxScale", "3"), 0, func(s *Scale) { s.Min, s.Max = 1, 3 }},
		{"no greatest number", annotate("max-scale", "0"), 0, func(s *Scale) { s.Max = 0 }},
		{"a least number above the default greatest", annotate("min-scale", "150"), 0, func(s *Scale) { s.Min, s.Max = 150, 150 }},
		{"CPU as Kubernetes does", annotate("class", hpa), 0, func(s *Scale) {
			s.Metric, s.CPUTarget, s.CPUOfRequest, s.Min = "cpu", 0.8, true, 1
		}},
		{"CPU as Kubernetes does, to zero", annotate("class", hpa, "metric", "cpu", "target", "150", "min-scale", "0"), 0, func(s *Scale) {
			s.Metric, s.CPUTarget, s.CPUOfRequest = "cpu", 1.5, true
		}},
		{"memory", annotate("class", hpa, "metric", "memory", "target", "100", "minScale", "2"), 20, func(s *Scale) {
			s.Concurrency, s.Metric, s.MemoryTarget, s.Min, s.TotalTarget, s.Target = 20, "memory", 100, 2, 20, 14
		}},
		{"the class that is the default", annotate("class", "kpa.autoscaling.knative.dev", "metric", "concurrency"), 0, func(*Scale) {}},
		{"Cloud Run's targets", annotate(cpuTarget, "0.75", concurrencyTarget, "0.5"), 80, func(s *Scale) {
			s.Concurrency, s.CPUTarget, s.TotalTarget, s.Target = 80, 0.75, 80, 40
		}},
		{"Cloud Run's CPU target alone", annotate(cpuTarget, "0.75", concurrencyTarget, "disabled"), 80, func(s *Scale) {
			s.Concurrency, s.Metric, s.CPUTarget, s.TotalTarget, s.Target = 80, "cpu", 0.75, 80, 56
		}},
		{"no CPU target", annotate(cpuTarget, "disabled"), 0, func(*Scale) {}},
		{"averages that decay", annotate("metric-aggregation-algorithm", "weighted-exponential"), 0, func(s *Scale) { s.Decaying = true }},
		{"averages that do not", annotate("metricAggregationAlgorithm", "linear"), 0, func(*Scale) {}},
		{"delays", annotate("scale-down-delay", "15m", "scale-to-zero-pod-retention-period", "1m1.5s"), 0, func(s *Scale) {
			s.ScaleDownDelay, s.ScaleToZeroRetention = 15*time.Minute, 61500*time.Millisecond
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			want, err := DefaultSettings().Scale(nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			test.change(&want)
			got, err := DefaultSettings().Scale(test.annotations, test.concurrency)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("scale (-want +got):\n%s", diff)
			}
		})
	}
}

func TestScale_RefusesWhatItCannotUse(t *testing.T) {
	for _, test := range []struct {
		annotations map[string]string
		want        []string // parts of the error
	}{
		{annotate("min-scale", "few"), []string{`autoscaling.knative.dev/min-scale is "few"`, "whole number from 0"}},
		{annotate("minScale", "-1"), []string{`autoscaling.knative.dev/minScale is "-1"`}},
		{annotate("max-scale", "99999999999"), []string{`"99999999999"`, "2147483647"}},
		{annotate("min-scale", "5", "max-scale", "2"), []string{`max-scale is "2"`, `min-scale, which is "5"`}},
		{annotate("activation-scale", "1"), []string{"from 2"}},
		{annotate("activation-scale", "5", "max-scale", "2"), []string{`activation-scale is "5"`, "greater than"}},
		{annotate("activation-scale", "2", "min-scale", "3"), []string{`activation-scale is "2"`, "less than"}},
		{annotate("window", "5s"), []string{`window is "5s"`, "6s to 1h0m0s"}},
		{annotate("window", "6500ms"), []string{"whole seconds"}},
		{annotate("metric", "cpu"), []string{`metric is "cpu"`, `"concurrency" or "rps"`}},
		{annotate("class", hpa, "metric", "rps"), []string{`metric is "rps"`, `"cpu" or "memory"`}},
		{annotate("class", hpa, "metric", "memory"), []string{`metric is "memory"`, "give autoscaling.knative.dev/target too", "MiB"}},
		{annotate("class", hpa, "target", "much"), []string{`target is "much"`}},
		{annotate("metric-aggregation-algorithm", "median"), []string{`metric-aggregation-algorithm is "median"`, `"linear" or "weighted-exponential"`}},
		{annotate("class", "mine.example.com"), []string{`class is "mine.example.com"`, `"kpa.autoscaling.knative.dev"`, `"hpa.autoscaling.knative.dev"`}},
		{annotate(cpuTarget, "1"), []string{`scaling-cpu-target is "1"`, `from 0.1 to 0.95, or "disabled"`}},
		{annotate(cpuTarget, "NaN"), []string{`scaling-cpu-target is "NaN"`}},
		{annotate(concurrencyTarget, "60"), []string{`scaling-concurrency-target is "60"`, `from 0.1 to 0.95`}},
		{annotate(concurrencyTarget, "disabled"), []string{`scaling-concurrency-target is "disabled"`, "give run.googleapis.com/scaling-cpu-target a number"}},
		{annotate(concurrencyTarget, "disabled", cpuTarget, "disabled"), []string{"nothing is left to scale by"}},
		{annotate(concurrencyTarget, "0.5", "target-utilization-percentage", "70"), []string{`target-utilization-percentage, which is "70"`, "remove one"}},
		{annotate("target", "0"), []string{`target is "0"`, "from 0.01 up"}},
		{annotate("target", "NaN"), []string{`target is "NaN"`}},
		{annotate("target-utilization-percentage", "101"), []string{"1 to 100"}},
		{annotate("panic-threshold-percentage", "100"), []string{"110 to 1000"}},
		{annotate("window", "x", "metric", "y"), []string{`window is "x"`, `metric is "y"`}},
	} {
		_, err := DefaultSettings().Scale(test.annotations, 0)
		if err == nil {
			t.Errorf("%v: no error", test.annotations)
			continue
		}
		for _, want := range test.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%v: %q does not say %q", test.annotations, err, want)
			}
		}
	}
	if _, err := DefaultSettings().Scale(nil, -1); err == nil || !strings.Contains(err.Error(), "containerConcurrency is -1") {
		t.Errorf("containerConcurrency -1: %v", err)
	}
}

func TestSettings_ValidateNamesWhatIsWrong(t *testing.T) {
	if err := DefaultSettings().Validate(); err != nil {
		t.Errorf("the defaults are not valid: %v", err)
	}
	s := DefaultSettings()
	s.MaxScaleDownRate, s.StartsAtOnce, s.MinScale, s.MemoryReserve, s.PreparedMemory = 0, 0, 200, Amount{Percent: 100}, Amount{Bytes: 64}
	err := s.Validate()
	if err == nil {
		t.Fatal("no error")
	}
	want := "--max-scale-down-rate 0: give a number above 1\n" +
		"--min-instances 200: give no more than --max-instances, which is 100\n" +
		"--prepared-memory 64: give 0 (none), a percentage, or a size from 1536Ki up, which is what one instance counts\n" +
		"--memory-reserve 100%: give a size or a percentage from 0 (never) up, but less than 100%\n" +
		"--starts-at-once 0: give a number from 1 up"
	if diff := cmp.Diff(want, err.Error()); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
	if _, err := s.Scale(nil, 0); err == nil {
		t.Error("Scale took settings that are not valid")
	}
}
