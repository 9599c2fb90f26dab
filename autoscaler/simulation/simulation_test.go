package simulation

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// fixed is a rule that always wants the same.
type fixed struct {
	n      int
	until  time.Duration // none after
	manner Manner
}

func (f fixed) Manner() Manner { return f.manner }

func (f fixed) Look(seen Seen) (int, time.Duration) {
	if seen.Now >= f.until {
		return 0, Never
	}
	return f.n, f.until
}

func seconds(s ...float64) []time.Duration {
	var all []time.Duration
	for _, v := range s {
		all = append(all, time.Duration(v*float64(time.Second)))
	}
	return all
}

// requests are at, service, at, service … in seconds.
func requests(s ...float64) []Request {
	var all []Request
	for i := 0; i < len(s); i += 2 {
		d := seconds(s[i], s[i+1])
		all = append(all, Request{d[0], d[1]})
	}
	return all
}

// TestRun_ServesAsComputedByHand has queues that are small enough to follow with a pencil.
func TestRun_ServesAsComputedByHand(t *testing.T) {
	const start = 2 * time.Second
	for _, test := range []struct {
		name     string
		revision Revision
		requests []Request
		rule     fixed
		want     Result
	}{
		{
			// Ready at 2; served 2-5, 5-8, 8-11 and, after a pause, 20-23.
			"one place, in order of arrival",
			Revision{Start: start, Limit: 1}, requests(0, 3, 1, 3, 4, 3, 20, 3), fixed{n: 1, until: 30 * time.Second},
			Result{Waits: seconds(2, 4, 4, 0), InstanceTime: 30 * time.Second, Starts: 1, Most: 1, Reversals: 1},
		},
		{
			"two places on one instance",
			Revision{Start: start, Limit: 2}, requests(0, 3, 0, 1, 0, 1), fixed{n: 1, until: 10 * time.Second},
			Result{Waits: seconds(2, 2, 3), InstanceTime: 10 * time.Second, Starts: 1, Most: 1, Reversals: 1},
		},
		{
			"two instances",
			Revision{Start: start, Limit: 1}, requests(0, 3, 0, 1, 0, 1), fixed{n: 2, until: 10 * time.Second},
			Result{Waits: seconds(2, 2, 3), InstanceTime: 20 * time.Second, Starts: 2, Most: 2, Reversals: 1},
		},
		{
			// Alone from 2 to 3, then two share until 5: each has got 2 s by then. The second is alone from then on.
			"more than the pace share it",
			Revision{Start: start, Pace: 1}, requests(0, 2, 3, 2), fixed{n: 1, until: 10 * time.Second},
			Result{Waits: seconds(3, 1), InstanceTime: 10 * time.Second, Starts: 1, Most: 1, Reversals: 1},
		},
		{
			"an instance that goes finishes what it has",
			Revision{Start: start, Limit: 1}, requests(0, 9), fixed{n: 1, until: 5 * time.Second},
			Result{Waits: seconds(2), InstanceTime: 11 * time.Second, Starts: 1, Most: 1, Reversals: 1},
		},
		{
			// The third has waited for 4 s at 4.
			"patience ends",
			Revision{Start: start, Limit: 1}, requests(0, 1.5, 0, 1.5, 0, 1.5),
			fixed{n: 1, until: 10 * time.Second, manner: Manner{Patience: 4 * time.Second}},
			Result{Waits: seconds(2, 3.5, 4), InstanceTime: 10 * time.Second, Starts: 1, Most: 1, Refused: 1, Reversals: 1},
		},
		{
			"no more than the greatest number",
			Revision{Start: start, Limit: 1, Max: 1}, requests(0, 1, 0, 1), fixed{n: 5, until: 10 * time.Second},
			Result{Waits: seconds(2, 3), InstanceTime: 10 * time.Second, Starts: 1, Most: 1, Reversals: 1},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := Run(test.revision, test.requests, test.rule)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRun_AgreesWithQueueingTheory(t *testing.T) {
	// One instance with one place, Poisson arrivals and constant service: M/D/1 waits ρ/(2(1-ρ)) services on average.
	service, rho := 10*time.Millisecond, 0.7
	all := Poisson(3, 40*time.Minute, Constant(rho/service.Seconds()), rho/service.Seconds(), Exactly(service))
	got := Scored(Run(Revision{Limit: 1}, all, fixed{n: 1, until: 3 * time.Hour}))
	want := time.Duration(rho / (2 * (1 - rho)) * float64(service))
	if off := float64(got.Mean-want) / float64(want); off > 0.05 || off < -0.05 {
		t.Errorf("mean wait is %s, theory says %s", got.Mean, want)
	}
}

func TestRun_RequestsThatGoStraightToInstancesWaitThere(t *testing.T) {
	direct := Manner{Direct: func() bool { return true }}
	all := Poisson(3, time.Minute, Constant(10), 10, Exponential(200*time.Millisecond))
	apart := Scored(Run(Revision{Limit: 1}, all, fixed{n: 4, until: 2 * time.Minute, manner: direct}))
	together := Scored(Run(Revision{Limit: 1}, all, fixed{n: 4, until: 2 * time.Minute}))
	if apart.Mean <= together.Mean {
		t.Errorf("apart they wait %s, in one queue %s: want longer", apart.Mean, together.Mean)
	}
}
