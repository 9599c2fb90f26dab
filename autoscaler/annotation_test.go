package autoscaler

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestAnnotations_EachTakesEffect plays the same timeline without and with an annotation, and looks at how many
// instances are wanted at a moment. Of Knative's annotations about scaling only target-burst-capacity has none: it says
// when requests go past Knative's activator, and here the gateway sees all of them.
func TestAnnotations_EachTakesEffect(t *testing.T) {
	const step = "0s requests 1\n30s requests 20\n"
	// To more than is aimed for, which averages find out, and no more than the target, which would count at once.
	const rise = "set target 10\n0s requests 1\n60s requests 9\n"
	for _, test := range []struct {
		key, value    string
		script        string // lines that are set, and the timeline
		at            string
		without, with int
	}{
		{"class", hpa, "0s requests 1\n10s requests 0\n", "200s", 0, 1},
		{"metric", "rps", "0s rate 1000\n0s requests 1\n", "60s", 1, 8},
		{"metric", "memory", "set class " + hpa + "\nset target 50\n0s requests 1\n0s memory 70\n", "10s", 1, 2},
		{"target", "10", step, "40s", 1, 3},
		{"target-utilization-percentage", "20", "set target 30\n" + step, "40s", 1, 4},
		{"targetUtilizationPercentage", "20", "set target 30\n" + step, "40s", 1, 4},
		{"min-scale", "2", "0s requests 0\n", "10s", 0, 2},
		{"minScale", "2", "0s requests 0\n", "10s", 0, 2},
		{"max-scale", "2", "set concurrency 1\n0s requests 5\n", "10s", 8, 2},
		{"maxScale", "2", "set concurrency 1\n0s requests 5\n", "10s", 8, 2},
		{"initial-scale", "3", "set prove yes\n0s requests 0\n", "500ms", 1, 3},
		{"initialScale", "3", "set prove yes\n0s requests 0\n", "500ms", 1, 3},
		{"activation-scale", "4", "0s requests 1\n", "1s", 1, 4},
		{"window", "10s", "0s requests 1\n20s requests 0\n", "65s", 1, 0},
		{"panic-window-percentage", "50", rise, "70s", 2, 1},
		{"panicWindowPercentage", "50", rise, "70s", 2, 1},
		{"panic-threshold-percentage", "1000", rise, "70s", 2, 1},
		{"panicThresholdPercentage", "1000", rise, "70s", 2, 1},
		{"scale-down-delay", "3m", "set concurrency 1\n0s requests 5\n10s requests 1\n", "150s", 2, 8},
		{"scaleDownDelay", "3m", "set concurrency 1\n0s requests 5\n10s requests 1\n", "150s", 2, 8},
		{"scale-to-zero-pod-retention-period", "5m", "0s requests 1\n10s requests 0\n", "200s", 0, 1},
		{"scaleToZeroPodRetentionPeriod", "5m", "0s requests 1\n10s requests 0\n", "200s", 0, 1},
		{"metric-aggregation-algorithm", "weighted-exponential", "set panic-threshold-percentage 1000\n" + rise, "75s", 1, 2},
		{"metricAggregationAlgorithm", "weightedExponential", "set panic-threshold-percentage 1000\n" + rise, "75s", 1, 2},
		{cpuTarget, "0.2", "0s requests 1\n0s cpu 700\n", "30s", 1, 4},
		{concurrencyTarget, "0.1", "set target 30\n" + step, "40s", 1, 7},
	} {
		t.Run(test.key+"="+test.value, func(t *testing.T) {
			if got := wantedAt(t, test.script, test.at); got != test.without {
				t.Errorf("without it %d instances are wanted, not %d", got, test.without)
			}
			if got := wantedAt(t, fmt.Sprintf("set %s %s\n%s", test.key, test.value, test.script), test.at); got != test.with {
				t.Errorf("with it %d instances are wanted, not %d", got, test.with)
			}
		})
	}
}

// wantedAt plays a script and returns how many instances are wanted at a time in it.
func wantedAt(t *testing.T, script, at string) int {
	t.Helper()
	moment, err := time.ParseDuration(at)
	if err != nil {
		t.Fatal(err)
	}
	var table string
	synctest.Test(t, func(t *testing.T) { table = play(t, script+at+" end\n") })
	wanted := 0
	for n, line := range strings.Split(strings.TrimSpace(table), "\n") {
		if n == 0 {
			continue
		}
		var since string
		var requests, desired int
		if _, err := fmt.Sscan(line, &since, &requests, &desired); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if d, err := time.ParseDuration(since); err != nil || d > moment {
			break
		}
		wanted = desired
	}
	return wanted
}
