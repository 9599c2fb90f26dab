package autoscaler

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func TestAutoscaler_TellsWhatThoseWhoWaitCanExpect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		settings := DefaultSettings()
		settings.PreparedMemory = Amount{}
		e := &fakeEngine{start: 4 * time.Second}
		a := New(e, settings, testLogger(), prometheus.NewRegistry())
		run(t, a)
		r, pool := revision(t, a, "r", 1)
		r.Scale.Max = 4
		if got := a.Outlook(r.Key); got != (Outlook{}) {
			t.Errorf("before it is declared: %+v", got)
		}
		a.Apply(r)
		pool.set(1)
		after(time.Second)
		if got := a.Outlook(r.Key); got != (Outlook{}) {
			t.Errorf("while the first starts: %+v", got)
		}
		after(10 * time.Second)
		first := a.Outlook(r.Key)
		if first.Full || first.AverageStart < 4*time.Second || first.AverageStart > 5*time.Second {
			t.Errorf("after the first started: %+v", first)
		}
		pool.set(20)
		after(time.Second)
		if got := a.Outlook(r.Key); !got.Full {
			t.Errorf("while as many start as there may be: %+v", got)
		}
	})
}

func TestFleet_AveragesTheTimesOfStarts(t *testing.T) {
	f := &fleet{}
	f.took(8 * time.Second)
	if f.averageStart != 8*time.Second {
		t.Errorf("after one start: %v", f.averageStart)
	}
	f.took(16 * time.Second)
	if f.averageStart != 9*time.Second {
		t.Errorf("after a slower one: %v", f.averageStart)
	}
	for range 100 {
		f.took(time.Second)
	}
	if f.averageStart > 1100*time.Millisecond {
		t.Errorf("after many fast ones: %v", f.averageStart)
	}
}
