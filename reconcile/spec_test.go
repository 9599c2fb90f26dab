package reconcile

import (
	"testing"

	"github.com/berth-run/berth/serving"
)

func TestServingPort_IsTheDefaultUnlessNumbered(t *testing.T) {
	for name, test := range map[string]struct {
		ports []serving.ContainerPort
		want  int
	}{
		"no port":     {nil, 8080},
		"a name only": {[]serving.ContainerPort{{Name: "h2c"}}, 8080},
		"a number":    {[]serving.ContainerPort{{ContainerPort: 3000}}, 3000},
		"both":        {[]serving.ContainerPort{{Name: "http1", ContainerPort: 3000}}, 3000},
	} {
		if got := servingPort(serving.Container{Ports: test.ports}); got != test.want {
			t.Errorf("%s: %d, want %d", name, got, test.want)
		}
	}
}
