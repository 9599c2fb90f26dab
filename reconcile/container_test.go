package reconcile

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/api/core/v1"

	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/serving"
)

func TestContainers_ThatWithAPortServesAndTheOthersGoAlong(t *testing.T) {
	h := newHouse(t, t.TempDir())
	yes := true
	h.declareWith("hello", func(pod *serving.PodSpec) {
		pod.Containers = []serving.Container{
			{Name: "helper", Image: "registry/helper", Args: []string{"help"}, Env: []serving.EnvVar{{Name: "A", Value: "1"}}},
			{Name: "web", Image: "registry/web", Ports: []serving.ContainerPort{{Name: "h2c", ContainerPort: 9090}},
				SecurityContext: &serving.SecurityContext{
					RunAsUser: new(int64(7)), RunAsGroup: new(int64(8)), RunAsNonRoot: &yes, ReadOnlyRootFilesystem: &yes,
					Capabilities: &v1.Capabilities{Drop: []v1.Capability{"ALL"}},
				}},
			{Name: "more", Image: "registry/helper"},
		}
	})
	h.settle("hello", ready)
	o, err := h.store.Get(t.Context(), serving.KindRevision, "default", "hello-00001")
	if err != nil {
		t.Fatal(err)
	}
	var statuses []string
	for _, status := range o.(*serving.Revision).Status.ContainerStatuses {
		repository, _, _ := strings.Cut(status.ImageDigest, "@")
		statuses = append(statuses, status.Name+" "+repository)
	}
	if want := []string{"helper registry/helper", "web registry/web", "more registry/helper"}; !slices.Equal(statuses, want) {
		t.Errorf("container statuses are %q, want %q", statuses, want)
	}
	h.engine.mu.Lock()
	spec := h.engine.specs[0]
	h.engine.mu.Unlock()
	digest := "@sha256:" + strings.Repeat("ab", 32)
	want := engine.Container{
		Name: "web", Image: "registry/web" + digest, Port: 9090, HTTP2: true,
		User: new(int64(7)), Group: new(int64(8)), NonRoot: true, ReadOnly: true, Drop: []string{"ALL"},
	}
	spec.Container.CPU, spec.Container.CPURequest, spec.Container.Memory = 0, 0, 0
	if diff := cmp.Diff(want, spec.Container); diff != "" {
		t.Errorf("the container that serves (-want +got):\n%s", diff)
	}
	if len(spec.Sidecars) != 2 || spec.Sidecars[0].Name != "helper" || spec.Sidecars[1].Name != "more" || spec.Sidecars[0].Port != 0 {
		t.Fatalf("sidecars are %+v", spec.Sidecars)
	}
	if got := spec.Sidecars[0]; got.Image != "registry/helper"+digest || !slices.Equal(got.Args, []string{"help"}) || !slices.Equal(got.Env, []engine.Env{{Name: "A", Value: "1"}}) {
		t.Errorf("the first sidecar is %+v", got)
	}
}

func TestContainers_TheImageThatIsMissingIsNamed(t *testing.T) {
	h := newHouse(t, t.TempDir())
	h.declareWith("hello", func(pod *serving.PodSpec) {
		pod.Containers = []serving.Container{
			{Name: "web", Image: "registry/web", Ports: []serving.ContainerPort{{ContainerPort: 8080}}},
			{Name: "helper", Image: "registry/missing-helper"},
		}
	})
	s := h.settle("hello", failed)
	if message := s.Status.GetCondition(serving.ServiceReady).GetMessage(); !strings.Contains(message, `"registry/missing-helper"`) || strings.Contains(message, "registry/web") {
		t.Errorf("the service says %q", message)
	}
}

func TestExplain_NamesTheSidecar(t *testing.T) {
	web := engine.Container{Name: "web", Port: 8080}
	for _, test := range []struct {
		failure *engine.StartError
		reason  string
		says    string
	}{
		{&engine.StartError{Reason: engine.ReasonExited, Container: "helper", Exit: &engine.Exit{Code: 3}}, "ExitCode3", `the container "helper" exited with code 3 before the instance was ready`},
		{&engine.StartError{Reason: engine.ReasonNotListening, Container: "helper", Port: 9000}, engine.ReasonNotListening, `the container "helper" did not listen on port 9000`},
		{&engine.StartError{Reason: engine.ReasonNotListening, Container: "web", Port: 8080}, engine.ReasonNotListening, "PORT=8080"},
	} {
		reason, message := explain("hello-00001", web, test.failure)
		if reason != test.reason || !strings.Contains(message, test.says) {
			t.Errorf("got %s: %s; want %s and %q", reason, message, test.reason, test.says)
		}
		if test.failure.Container == "helper" && strings.Contains(message, "PORT") {
			t.Errorf("a sidecar has no PORT: %s", message)
		}
	}
}
