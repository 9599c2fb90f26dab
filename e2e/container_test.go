package e2e

import (
	"strings"
	"syscall"
	"testing"

	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/serving"
)

// withSidecar is a service whose requests go to the program inspect at port 9090, beside another program.
func withSidecar(t *testing.T, name string, sidecar serving.Container) *serving.Service {
	s := service(name, program(t, "inspect"))
	s.Spec.Template.Annotations = map[string]string{"autoscaling.knative.dev/min-scale": "1", "autoscaling.knative.dev/max-scale": "1"}
	web := s.Spec.Template.Spec.Containers[0]
	web.Name, web.Ports = "web", []serving.ContainerPort{{ContainerPort: 9090}}
	s.Spec.Template.Spec.Containers = []serving.Container{sidecar, web}
	return s
}

func TestSidecar_IsReachedAtLocalhostAndStartedAgainWhenItEnds(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	s := p.deploy(withSidecar(t, "pair", serving.Container{
		Name: "helper", Image: program(t, "echo"), Env: []serving.EnvVar{{Name: "PORT", Value: "8080"}},
	}))
	address := s.Status.URL.String()
	p.await("the sidecar to be reached at localhost", func() error {
		answer := p.try(address, "/dial", "address", "localhost:8080")
		return errorUnless(answer.Error == "", "%s", answer.Error)
	})
	if seen := p.inspect(address); seen.Env["PORT"] != "9090" {
		t.Errorf("PORT is %q, want 9090", seen.Env["PORT"])
	}
	revision, err := p.Revisions("default").Get(t.Context(), s.Status.LatestReadyRevisionName)
	if err != nil {
		t.Fatal(err)
	}
	if got := revision.Status.ContainerStatuses; len(got) != 2 || got[0].Name != "helper" || got[1].Name != "web" {
		t.Errorf("container statuses are %+v", got)
	}
	before := p.only("pair")
	if c := before.Containers; len(c) != 2 || c[0].Name != "web" || c[1].Name != "helper" || c[1].State != engine.ContainerRunning {
		t.Fatalf("containers are %+v", c)
	}
	for _, pid := range p.processesIn(before.ID + ".helper") {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	p.await("the sidecar to be started again", func() error {
		helper := p.only("pair").Containers[1]
		return errorUnless(helper.Restarts == 1 && helper.State == engine.ContainerRunning, "it is %+v", helper)
	})
	p.await("the sidecar to be reached again", func() error {
		answer := p.try(address, "/dial", "address", "localhost:8080")
		return errorUnless(answer.Error == "", "%s", answer.Error)
	})
	if after := p.only("pair"); after.ID != before.ID || after.Containers[0].Restarts != 0 {
		t.Errorf("the instance is %+v, was %+v", after, before)
	}
	contains(t, "the log", p.mustBerth("logs", "pair"), []string{`the container "helper" was killed by signal 9`})
	contains(t, "berth instances list", p.mustBerth("instances", "list"), []string{"RESTARTS", before.ID})
}

func TestSidecar_ThatEndsIsNamedInTheConditions(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	sidecar := serving.Container{Name: "helper", Image: program(t, "exit"), Env: []serving.EnvVar{{Name: "CODE", Value: "7"}}}
	sidecar.StartupProbe = &serving.Probe{ProbeHandler: serving.ProbeHandler{Exec: &serving.ExecAction{Command: []string{"/nothing"}}}}
	s := p.apply(withSidecar(t, "pair", sidecar))
	message := p.failed(s)
	for _, want := range []string{`the container "helper" exited with code 7`, "about to exit"} {
		if !strings.Contains(message, want) {
			t.Errorf("the service does not say %q: %s", want, message)
		}
	}
}
