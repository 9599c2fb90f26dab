package server

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestNamedConfig_HasCloudRunsRules(t *testing.T) {
	config, err := NamedConfig("cloudrun")
	if err != nil {
		t.Fatal(err)
	}
	if err := config.check(); err != nil {
		t.Errorf("they cannot be used: %v", err)
	}
	scale, err := config.Scaling.Scale(nil, int64(config.Concurrency))
	if err != nil {
		t.Fatal(err)
	}
	idle := scale.StableWindow + scale.ScaleToZeroGrace
	got := []any{scale.Target, scale.CPUTarget, scale.StableWindow, scale.Min, scale.Max, idle, config.Scaling.StopGrace,
		config.RevisionTimeout, config.MaxRevisionTimeout, config.StartupTimeout, config.QueueWait, config.PrivateCookies, config.Throttling, config.Boost}
	want := []any{0.6 * 80, 0.6, time.Minute, 0, 100, 15 * time.Minute, 10 * time.Second,
		300 * time.Second, time.Hour, 240 * time.Second, QueueWaitAuto, true, true, true}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("contract 1.3 (-want +got):\n%s", diff)
	}
	if wait := config.QueueWait.limit(); wait(4*time.Second) != 14*time.Second || wait(time.Second) != 10*time.Second {
		t.Errorf("a request waits %v where starts take 4 s and %v where they take 1 s", wait(4*time.Second), wait(time.Second))
	}
}

func TestNamedConfig_NamesWhatThereIs(t *testing.T) {
	if _, err := NamedConfig("heroku"); err == nil || !strings.Contains(err.Error(), `"heroku": give knative or cloudrun`) {
		t.Errorf("got %v", err)
	}
}
