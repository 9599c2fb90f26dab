package autoscaler

import (
	"testing"

	"github.com/berth-run/berth/engine"
)

func TestWhyUnready_NamesTheContainer(t *testing.T) {
	web := engine.ContainerStatus{Name: "web", Started: true, Ready: true}
	for want, sidecar := range map[string]engine.ContainerStatus{
		"its container db is being started again":       {Name: "db"},
		"the readiness probe of its container db fails": {Name: "db", Started: true},
		"a container is not ready":                      {Name: "db", Started: true, Ready: true},
	} {
		if got := whyUnready([]engine.ContainerStatus{web, sidecar}); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
