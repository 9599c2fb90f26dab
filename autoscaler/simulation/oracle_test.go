package simulation

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-run/berth/autoscaler"
)

func TestOracle_CostsWhatIsComputedByHand(t *testing.T) {
	const start = 10 * time.Second
	for _, test := range []struct {
		name     string
		revision Revision
		requests []Request
		want     Result
	}{
		{"one start and one service", Revision{Start: start, Limit: 1}, requests(100, 5),
			Result{Waits: seconds(0), InstanceTime: 15 * time.Second, Starts: 1, Most: 1}},
		{"a short gap is bridged", Revision{Start: start, Limit: 1}, requests(100, 5, 111, 5),
			Result{Waits: seconds(0, 0), InstanceTime: (10 + 5 + 6 + 5) * time.Second, Starts: 1, Most: 1}},
		{"a long one is not", Revision{Start: start, Limit: 1}, requests(100, 5, 150, 5),
			Result{Waits: seconds(0, 0), InstanceTime: 30 * time.Second, Starts: 2, Most: 1}},
		{"two at once are two instances", Revision{Start: start, Limit: 1}, requests(100, 5, 101, 5),
			Result{Waits: seconds(0, 0), InstanceTime: 30 * time.Second, Starts: 2, Most: 2}},
		{"or one that takes two", Revision{Start: start, Limit: 2}, requests(100, 5, 101, 5),
			Result{Waits: seconds(0, 0), InstanceTime: 16 * time.Second, Starts: 1, Most: 1}},
		{"the pace is a limit to it", Revision{Start: start, Pace: 1}, requests(100, 5, 101, 5),
			Result{Waits: seconds(0, 0), InstanceTime: 30 * time.Second, Starts: 2, Most: 2}},
		{"the greatest number makes it wait", Revision{Start: start, Limit: 1, Max: 1}, requests(100, 5, 101, 5),
			Result{Waits: seconds(0, 4), InstanceTime: 20 * time.Second, Starts: 1, Most: 1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, Oracle(test.revision, test.requests)); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
		})
	}
}

// TestOracle_IsABoundForEveryRule plays the beginning of every scenario. No rule makes requests wait less in all, and
// one that makes nobody wait uses no less instance time.
func TestOracle_IsABoundForEveryRule(t *testing.T) {
	const most = 1000
	for _, s := range Scenarios() {
		all := s.Requests()
		all = all[:min(most, len(all))]
		oracle := Oracle(s.Revision, all)
		bound := func(rule string, got Result, exempt int) {
			waited, best := time.Duration(0), time.Duration(0)
			for n := range all {
				waited += got.Waits[n+exempt]
				best += oracle.Waits[n]
			}
			// Times are whole nanoseconds.
			if waited+time.Duration(len(all)) < best {
				t.Errorf("%s: under %s requests waited %s in all, less than the oracle's %s", s.Name, rule, waited, best)
			}
			if waited <= best && got.InstanceTime < oracle.InstanceTime {
				t.Errorf("%s: nobody waits under %s, with %s of instances, less than the oracle's %s", s.Name, rule, got.InstanceTime, oracle.InstanceTime)
			}
		}
		for name, rules := range map[string]Rules{"Berth's rules": BerthRules, "Knative's": KnativeRules, "Cloud Run's": CloudRunRules} {
			rule, err := rules(s, autoscaler.DefaultSettings())
			if err != nil {
				t.Fatal(err)
			}
			if got := Run(s.Revision, all, rule); got.Refused == 0 {
				bound(name, got, 0)
			}
		}
		// A rule that has all instances there from the beginning: the first request, an hour before, starts them.
		early := []Request{{0, 0}}
		for _, r := range all {
			early = append(early, Request{r.At + time.Hour, r.Service})
		}
		end := early[len(early)-1].At + time.Minute
		bound("the most instances", Run(s.Revision, early, fixed{n: 2 * oracle.Most, until: end}), 1)
	}
}
