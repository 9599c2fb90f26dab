package simulation

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-run/berth/autoscaler"
)

func TestAtCost_InterpolatesBetweenLevels(t *testing.T) {
	costs := []int{100, 80, 40}
	waits := []int{0, 10, 50}
	play := func(level Thrift) (Score, error) {
		return Score{Cost: time.Duration(costs[level]) * time.Second, P99: time.Duration(waits[level]) * time.Millisecond}, nil
	}
	for _, test := range []struct {
		cost  int
		level Thrift
		p99   time.Duration
	}{{120, 0, 0}, {100, 0, 0}, {90, 1, 5 * time.Millisecond}, {60, 2, 30 * time.Millisecond}, {40, 2, 50 * time.Millisecond}} {
		got, level, err := AtCost(time.Duration(test.cost)*time.Second, play)
		if err != nil || level != test.level || got.P99 != test.p99 {
			t.Errorf("at %d: p99 %s at level %d (%v), want %s at %d", test.cost, got.P99, level, err, test.p99, test.level)
		}
	}
}

func TestThrift_EachLevelIsDifferentAndValid(t *testing.T) {
	seen := map[string]Thrift{}
	for level := range thriftMost + 1 {
		s := level.Settings()
		if err := s.Validate(); err != nil {
			t.Errorf("level %d: %v", level, err)
		}
		if other, twice := seen[level.String()]; twice {
			t.Errorf("levels %d and %d are the same", other, level)
		}
		seen[level.String()] = level
	}
	if diff := cmp.Diff(autoscaler.DefaultSettings(), Thrift(0).Settings()); diff != "" {
		t.Errorf("level 0 is not the default (-want +got):\n%s", diff)
	}
}

func TestJudge_ComparesAtTheSameCost(t *testing.T) {
	const ms = time.Millisecond
	knative := Score{P99: 100 * ms, Mean: 10 * ms, Cost: 1000 * time.Second}
	for _, test := range []struct {
		name  string
		berth Score
		want  Verdict
	}{
		{"shorter", Score{P99: 90 * ms, Mean: 20 * ms, Cost: 1000 * time.Second}, Won},
		{"longer", Score{P99: 110 * ms, Mean: 1 * ms, Cost: 900 * time.Second}, Lost},
		{"equal, and the mean too", Score{P99: 101 * ms, Mean: 10 * ms, Cost: 1000 * time.Second}, Even},
		{"equal, and the mean longer", Score{P99: 100 * ms, Mean: 20 * ms, Cost: 1000 * time.Second}, Lost},
		{"dearer", Score{P99: 1 * ms, Mean: 1 * ms, Cost: 1100 * time.Second}, Lost},
	} {
		if got := judge(test.berth, knative); got != test.want {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
}

// TestCompare_WaitsLessThanKnative keeps the decision from getting worse where no benchmark runs: `make
// bench-autoscaler` plays every scenario.
func TestCompare_WaitsLessThanKnative(t *testing.T) {
	for _, s := range Scenarios() {
		switch s.Name {
		case "spike-1", "spike-10", "poisson-1-60s", "on-off-fast", "cron-1", "cron-20-at-once", "poisson-sparse":
			c, err := Compare(s)
			if err != nil {
				t.Fatal(err)
			}
			if c.Verdict == Lost {
				t.Errorf("%s is lost: %+v, Knative %+v", s.Name, c.Equal, c.Knative)
			}
		}
	}
}
