package simulation

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"knative.dev/serving/pkg/autoscaler/aggregation"

	"github.com/berth-run/berth/autoscaler"
)

// TestBuckets_AverageAsKnativesDo compares with Knative's own buckets, over histories with gaps.
func TestBuckets_AverageAsKnativesDo(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 0))
		window := time.Duration(1+random.IntN(60)) * time.Second
		theirs := aggregation.NewTimedFloat64Buckets(window, time.Second)
		ours := newBuckets(window, time.Second)
		now := time.Duration(1_700_000_000) * time.Second
		for range 300 {
			now += time.Duration(random.IntN(1500)) * time.Millisecond
			if random.IntN(40) == 0 {
				now += time.Duration(random.IntN(90)) * time.Second
			}
			at := time.Unix(0, int64(now))
			if random.IntN(3) > 0 {
				value := float64(random.IntN(50))
				theirs.Record(at, value)
				ours.record(now, value)
			}
			if !ours.any {
				continue
			}
			if ours.empty(now) != theirs.IsEmpty(at) {
				t.Fatalf("seed %d: empty is %v, Knative says %v", seed, ours.empty(now), theirs.IsEmpty(at))
			}
			if got, want := ours.average(now), theirs.WindowAverage(at); math.Abs(got-want) > 1e-5 {
				t.Fatalf("seed %d: average is %v, Knative says %v", seed, got, want)
			}
		}
	}
}

// steady plays a number of requests at every moment to a revision of Knative's, with instances that start at once.
func knativeDesired(t *testing.T, limit int, before int, load, after float64, settle, then time.Duration) []int {
	t.Helper()
	scale, err := autoscaler.DefaultSettings().Scale(map[string]string{"autoscaling.knative.dev/max-scale": "0"}, int64(limit))
	if err != nil {
		t.Fatal(err)
	}
	k := NewKnative(scale, 0)
	k.desired = before
	var seen Seen
	seen.Ready, seen.Load.At = before, epoch
	var history []int
	for at := time.Duration(0); at <= settle+then; at += time.Second {
		concurrency := load
		if at > settle {
			concurrency = after
		}
		seen.Now = at
		if at > 0 {
			seen.Load.Busy += time.Duration(concurrency * float64(time.Second))
		}
		seen.Ready, _ = k.Look(seen)
		history = append(history, seen.Ready)
	}
	return history
}

func TestKnative_DividesTheStableAverageByTheTarget(t *testing.T) {
	// Its documentation's example: concurrency over the target of 70 % of 10, rounded up.
	history := knativeDesired(t, 10, 4, 25, 25, 90*time.Second, 0)
	if got := history[len(history)-1]; got != 4 {
		t.Errorf("25 requests at 7 each want %d, want 4", got)
	}
}

func TestKnative_PanicsAtTwiceWhatIsReadyAndThenOnlyGrows(t *testing.T) {
	history := knativeDesired(t, 10, 1, 5, 30, 60*time.Second, 20*time.Second)
	if at60 := history[60]; at60 != 1 {
		t.Fatalf("5 requests want %d, want 1", at60)
	}
	// The panic window's average passes 14, twice what one instance is for, in the third second of 30 requests.
	if history[61] != 1 || history[64] < 3 || history[68] != 5 {
		t.Errorf("after a step to 30 it wants %v, want 1 at first, 3 or more after 4 s, and 5 when the window is full", history[60:70])
	}
	for i := 62; i < len(history); i++ {
		if history[i] < history[i-1] {
			t.Errorf("it took instances away in panic: %v", history[60:])
		}
	}
}

func TestKnative_GoesToZeroAStableWindowAfterTheLastRequest(t *testing.T) {
	history := knativeDesired(t, 10, 1, 5, 0, 120*time.Second, 120*time.Second)
	var zero int
	for i, n := range history {
		if n == 0 && i > 0 {
			zero = i
			break
		}
	}
	// The activator is in the path of so small a revision always: the grace period has passed long before.
	if zero < 178 || zero > 184 {
		t.Errorf("it is at zero after %d s, want about 60 s after 120", zero)
	}
}

func TestKnative_TakesTheActivatorOutOfThePathWhereABurstFits(t *testing.T) {
	scale, err := autoscaler.DefaultSettings().Scale(nil, 100)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		ready  int
		direct bool
	}{{1, false}, {2, false}, {3, true}} {
		k := NewKnative(scale, 0)
		k.desired, k.wanted = test.ready, test.ready
		k.excessBurst(Seen{Ready: test.ready})
		if got := k.Manner().Direct(); got != test.direct {
			t.Errorf("%d instances of 100 requests: direct is %v, want %v for a burst of 211", test.ready, got, test.direct)
		}
	}
}

func TestKnative_StartsForTheFirstRequestAtOnce(t *testing.T) {
	s := Scenario{Name: "one", Revision: Revision{Start: time.Second, Limit: 1}}
	rule, err := KnativeRules(s, autoscaler.DefaultSettings())
	if err != nil {
		t.Fatal(err)
	}
	got := Run(s.Revision, requests(1000.3, 1), rule)
	if got.Waits[0] != time.Second {
		t.Errorf("the first request waited for %s, want the start of a second", got.Waits[0])
	}
	// One request at a target of 0.7 is two instances, as users of containerConcurrency 1 see.
	if got.Starts != 2 {
		t.Errorf("%d instances started, want 2", got.Starts)
	}
}
