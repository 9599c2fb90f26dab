package autoscaler

import (
	"math/rand/v2"
	"testing"
	"time"
)

func defaultScale(t *testing.T, concurrency int64, annotations ...string) Scale {
	t.Helper()
	scale, err := DefaultSettings().Scale(annotate(annotations...), concurrency)
	if err != nil {
		t.Fatal(err)
	}
	return scale
}

func TestDecide_RequestsThatWaitAskForAllOfThemAtOnce(t *testing.T) {
	now := time.Unix(1000, 0)
	for _, test := range []struct {
		name        string
		concurrency int64
		annotations []string
		in          Input
		want        int
	}{
		{"a thousand at 70 each", 0, nil, Input{Waiting: 1000}, 15},
		{"one at 0.7 each", 1, nil, Input{Waiting: 1}, 1},
		{"ten at 0.7 each", 1, nil, Input{Waiting: 10}, 10},
		{"those in flight count", 10, nil, Input{Ready: 1, InFlight: 10, Waiting: 4}, 2},
		{"those that start are not asked for again", 0, nil, Input{Waiting: 1000, Starting: 15}, 15},
		{"the greatest number", 1, []string{"max-scale", "3"}, Input{Waiting: 1000}, 3},
		{"no greatest number", 1, []string{"max-scale", "0"}, Input{Waiting: 1000}, 1000},
		{"activation", 0, []string{"activation-scale", "4"}, Input{Waiting: 1}, 4},
		{"one unready for long is made up for", 0, nil, Input{Ready: 1, Unready: 1, Waiting: 5}, 2},
		{"no more of them than load asks for", 0, nil, Input{Ready: 3, Unready: 3, Waiting: 5}, 2},
		{"as many as load asks for", 1, nil, Input{Ready: 3, Unready: 3, Waiting: 2}, 4},
		{"within the greatest number", 0, []string{"max-scale", "1"}, Input{Ready: 1, Unready: 1, Waiting: 5}, 1},
		{"nobody waits for the unready", 0, nil, Input{Ready: 1, Unready: 1, InFlight: 5}, 1},
		{"nobody waits", 0, nil, Input{Ready: 1, InFlight: 100}, 1},
		{"those beyond what instances are meant for wait inside", 0, nil, Input{Ready: 1, InFlight: 101}, 2},
		{"those that start count", 0, nil, Input{Ready: 1, Starting: 9, InFlight: 1000}, 10},
		{"by requests a second nobody waits inside", 0, []string{"metric", "rps"}, Input{Ready: 1, InFlight: 1000}, 1},
		{"the first run at the target", 10, nil, Input{Waiting: 20}, 3},
		{"others are filled", 10, nil, Input{Ready: 1, InFlight: 10, Waiting: 10}, 2},
		{"by requests a second, places count too", 10, []string{"metric", "rps"}, Input{Ready: 1, InFlight: 10, Waiting: 11}, 3},
		{"a place is near", 10, nil, Input{Ready: 1, InFlight: 10, Waiting: 10, Service: 5 * time.Millisecond}, 1},
		{"not for so many", 10, nil, Input{Ready: 1, InFlight: 10, Waiting: 40, Service: 5 * time.Millisecond}, 2},
		{"it was near, and did not come", 10, nil, Input{Ready: 1, InFlight: 10, Waiting: 10, Service: 5 * time.Millisecond, Longest: 10 * time.Millisecond}, 2},
		{"instances that take no requests have no places", 10, nil, Input{Ready: 1, Unready: 1, InFlight: 10, Waiting: 10, Service: time.Millisecond}, 3},
	} {
		test.in.Now, test.in.Reachable = now, true
		got, _ := Decide(defaultScale(t, test.concurrency, test.annotations...), test.in, State{})
		if got.Desired != test.want {
			t.Errorf("%s: %d, want %d", test.name, got.Desired, test.want)
		}
	}
}

func TestDecide_LooksAgainWhenAPlaceShouldHaveCome(t *testing.T) {
	scale := defaultScale(t, 10)
	in := Input{Now: time.Unix(1000, 0), Reachable: true, Ready: 1, InFlight: 10, Waiting: 1, Service: time.Millisecond, Longest: 3 * time.Millisecond}
	if got, _ := Decide(scale, in, State{}); got.Again != scale.Patience-in.Longest {
		t.Errorf("looks again after %s, want %s", got.Again, scale.Patience-in.Longest)
	}
	in.Waiting = 0
	if got, _ := Decide(scale, in, State{}); got.Again != 0 {
		t.Errorf("looks again after %s though nobody waits", got.Again)
	}
}

func TestDecide_KeepsWhatTheBusiestMomentFilled(t *testing.T) {
	scale := defaultScale(t, 10)
	now := time.Unix(1000, 0)
	look := func(after time.Duration, in Input, state State) (int, State) {
		now = now.Add(after)
		in.Now, in.Reachable = now, true
		decision, state := Decide(scale, in, state)
		return decision.Desired, state
	}
	n, state := look(0, Input{Ready: 2, InFlight: 20, Waiting: 30}, State{})
	if n != 5 {
		t.Errorf("50 requests on 2 instances want %d, want 5", n)
	}
	if n, state = look(30*time.Second, Input{Ready: 5, InFlight: 25, Stable: 7, Panic: 7}, state); n != 5 {
		t.Errorf("half a minute later it wants %d, want 5", n)
	}
	if n, state = look(30*time.Second, Input{Ready: 5, InFlight: 1, Stable: 7, Panic: 7}, state); n != 3 {
		t.Errorf("a minute later it wants %d, want 3 as half a minute before", n)
	}
	if n, _ = look(30*time.Second, Input{Ready: 3, InFlight: 1, Stable: 7, Panic: 7}, state); n != 1 {
		t.Errorf("another half minute later it wants %d, want 1", n)
	}
}

func TestGreatest_IsTheGreatestOfItsTime(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 0))
	for range 100 {
		var g greatest
		var all []numberAt
		now := time.Unix(1000, 0)
		for range 200 {
			now = now.Add(time.Duration(random.IntN(5000)) * time.Millisecond)
			n := random.IntN(10)
			all = append(all, numberAt{now, n})
			want := n
			for _, a := range all {
				if now.Sub(a.at) < 20*time.Second {
					want = max(want, a.n)
				}
			}
			if got := g.over(20*time.Second, now, n); got != want {
				t.Fatalf("greatest is %d, want %d of %v", got, want, all)
			}
		}
		if len(g) > 10 {
			t.Errorf("it keeps %d of 10 different numbers", len(g))
		}
	}
}

func TestDecide_GrowsAndShrinksByItsRatesAtMost(t *testing.T) {
	scale := defaultScale(t, 0, "target", "10", "max-scale", "0")
	scale.MaxScaleUpRate = 3
	in := Input{Now: time.Unix(1000, 0), Ready: 4, Reachable: true, Stable: 1000}
	if got, _ := Decide(scale, in, State{}); got.Desired != 12 {
		t.Errorf("load of 1000 on 4 instances wants %d, want 3 times as many", got.Desired)
	}
	in.Stable = 1
	if got, _ := Decide(scale, in, State{}); got.Desired != 2 {
		t.Errorf("load of 1 on 4 instances wants %d, want half", got.Desired)
	}
	in.Reachable = false
	if got, _ := Decide(scale, in, State{}); got.Desired != 1 {
		t.Errorf("load of 1 on 4 instances that no route leads to wants %d, want 1 at once", got.Desired)
	}
}

func TestDecide_FailingRevisionIsNotTriedForRequestsThatAreGone(t *testing.T) {
	in := Input{Now: time.Unix(1000, 0), Reachable: true, Stable: 5, Panic: 5, Failing: true}
	if got, _ := Decide(defaultScale(t, 0), in, State{}); got.Desired != 0 {
		t.Errorf("wants %d, want 0", got.Desired)
	}
	if got, _ := Decide(defaultScale(t, 0, "min-scale", "2"), in, State{}); got.Desired != 2 {
		t.Errorf("with a least number it wants %d, want 2", got.Desired)
	}
	in.Waiting = 1
	if got, _ := Decide(defaultScale(t, 0), in, State{}); got.Desired != 1 {
		t.Errorf("with a request it wants %d, want 1", got.Desired)
	}
}

// TestDecide_KeepsItsPromisesWhateverItSees plays random histories.
func TestDecide_KeepsItsPromisesWhateverItSees(t *testing.T) {
	for seed := range uint64(300) {
		random := rand.New(rand.NewPCG(seed, 0))
		scale := defaultScale(t, int64(random.IntN(20)))
		scale.Min, scale.Max = random.IntN(3), 3+random.IntN(10)
		scale.Initial = random.IntN(4)
		scale.ScaleDownDelay = time.Duration(random.IntN(3)) * time.Minute
		var state State
		now, ready := time.Unix(1000, 0), 0
		for range 200 {
			now = now.Add(time.Duration(random.IntN(5000)) * time.Millisecond)
			in := Input{
				Now: now, Ready: ready, Starting: random.IntN(3), Reachable: random.IntN(4) > 0, Prove: random.IntN(4) == 0,
				Stable: float64(random.IntN(100)), Panic: float64(random.IntN(300)), Failing: random.IntN(5) == 0, Unready: random.IntN(3),
			}
			if random.IntN(3) == 0 {
				in.Stable, in.Panic = 0, 0
			}
			if ready == 0 || random.IntN(5) == 0 {
				in.Waiting = random.IntN(50)
			}
			decision, next := Decide(scale, in, state)
			desired := decision.Desired
			switch {
			case desired < 0 || desired > scale.Max:
				t.Fatalf("seed %d: %d is not between 0 and %d: %+v", seed, desired, scale.Max, in)
			case in.Reachable && desired < scale.Min:
				t.Fatalf("seed %d: %d is less than %d: %+v", seed, desired, scale.Min, in)
			case in.Waiting > 0 && desired == 0:
				t.Fatalf("seed %d: nothing for %d requests that wait: %+v", seed, in.Waiting, in)
			case decision.Panic && desired < state.panicMax && desired < scale.Max:
				t.Fatalf("seed %d: took instances away in panic, %d after %d: %+v", seed, desired, state.panicMax, in)
			}
			state, ready = next, desired
		}
	}
}
