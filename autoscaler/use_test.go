package autoscaler

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-run/berth/engine"
)

// fakeUse is what the instances of a fakePool use: CPU for its requests, spread evenly as far as each has one CPU, and
// the same memory in each. Its fields are guarded by the pool's lock.
type fakeUse struct {
	cpu    int           // that all requests need, in thousandths
	warm   time.Duration // for how long a new instance uses its whole CPU
	memory int64         // bytes in each
	broken bool          // nobody can say what is used

	added map[engine.Instance]time.Time
	spent map[engine.Instance]time.Duration
}

// burn lets instances work from before until now.
func (u *fakeUse) burn(instances map[engine.Instance]bool, before, now time.Time) {
	passed := now.Sub(before)
	for i := range instances {
		if u.spent == nil {
			u.added, u.spent = map[engine.Instance]time.Time{}, map[engine.Instance]time.Duration{}
		}
		if u.added[i].IsZero() {
			u.added[i] = before
		}
		warming := max(0, min(passed, u.added[i].Add(u.warm).Sub(before)))
		u.spent[i] += min(passed, warming+passed*time.Duration(u.cpu)/time.Duration(1000*len(instances)))
	}
}

// change changes what instances use from now on.
func (p *fakePool) change(by func(*fakeUse)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.advance()
	by(&p.use)
}

// usage is what an instance says of itself.
func (p *fakePool) usage(i *fakeInstance) (engine.Usage, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.advance()
	if p.use.broken {
		return engine.Usage{}, errors.New("no cgroup")
	}
	return engine.Usage{CPU: p.use.spent[i], Memory: p.use.memory}, nil
}

func TestDecide_FollowsWhatInstancesUse(t *testing.T) {
	hpa := []string{"class", hpa}
	for _, test := range []struct {
		name        string
		annotations []string
		in          Input
		want        int
	}{
		{"no more than they are for", hpa, Input{Ready: 2, Used: Used{Known: true, Short: 1.9, Stable: 1.9}}, 2},
		{"more, and it is tolerated", hpa, Input{Ready: 2, Used: Used{Known: true, Short: 2.15, Stable: 2}}, 2},
		{"more than that", hpa, Input{Ready: 2, Used: Used{Known: true, Short: 2.3, Stable: 2}}, 3},
		{"much more", hpa, Input{Ready: 2, Used: Used{Known: true, Short: 7.1, Stable: 2}}, 8},
		{"the greatest number", append(hpa, "max-scale", "3"), Input{Ready: 2, Used: Used{Known: true, Short: 7.1}}, 3},
		{"less lately", hpa, Input{Ready: 4, Used: Used{Known: true, Short: 1, Stable: 3.4}}, 4},
		{"less", hpa, Input{Ready: 4, Used: Used{Known: true, Short: 1, Stable: 1.5}}, 2},
		{"less, and one is new", hpa, Input{Ready: 4, Used: Used{Known: true, Short: 1, Stable: 1.5, Young: 1}}, 3},
		{"more, and one is new", hpa, Input{Ready: 4, Used: Used{Known: true, Short: 4.5, Stable: 4.5, Young: 1}}, 5},
		{"nothing is known", hpa, Input{Ready: 4}, 4},
		{"nothing", hpa, Input{Ready: 4, Used: Used{Known: true}}, 1},
		{"some wait meanwhile", append(hpa, "target", "50"), Input{Ready: 1, Waiting: 300, Used: Used{Known: true, Short: 1}}, 3},
		{"requests are the reason", []string{"target", "10"}, Input{Ready: 1, InFlight: 20, Used: Used{Known: true, Short: 1}}, 3},
		{"CPU is the reason", nil, Input{Ready: 1, InFlight: 20, Used: Used{Known: true, Short: 1.6}}, 2},
		{"requests do not count", []string{"target", "1", concurrencyTarget, "disabled"}, Input{Ready: 1, InFlight: 20, Used: Used{Known: true, Short: 1.6}}, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			settings := DefaultSettings()
			settings.CPUTarget = 0.6
			scale, err := settings.Scale(annotate(test.annotations...), 0)
			if err != nil {
				t.Fatal(err)
			}
			in := test.in
			in.Now, in.Reachable = time.Unix(1000, 0), true
			in.Stable = float64(max(1, in.InFlight))
			if got, _ := Decide(scale, in, State{}); got.Desired != test.want {
				t.Errorf("%d, want %d", got.Desired, test.want)
			}
			in.Stable, in.InFlight, in.Waiting = 0, 0, 0
			if got := byUse(in); got != 0 {
				t.Errorf("without requests use wants %d, want 0", got)
			}
		})
	}
}

func TestCPUs_CountsWhatContainersHave(t *testing.T) {
	spec := engine.Spec{
		Container: engine.Container{CPU: 2000, CPURequest: 500},
		Sidecars:  []engine.Container{{CPU: 250}, {}, {CPURequest: 100}},
	}
	if diff := cmp.Diff([]float64{2 + 0.25 + 1 + 0.1, 0.5 + 0.25 + 1 + 0.1}, []float64{cpus(spec, false), cpus(spec, true)}); diff != "" {
		t.Errorf("limits and requests (-want +got):\n%s", diff)
	}
}
