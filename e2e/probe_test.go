package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/berth-run/berth/client"
	"github.com/berth-run/berth/server"
	"github.com/berth-run/berth/serving"
)

// only waits until a service has one instance that is ready to be looked at, and returns it.
func (p *platform) only(service string) client.Instance {
	p.t.Helper()
	var only client.Instance
	p.await("one instance of "+service, func() error {
		instances, err := p.Instances(p.t.Context(), "")
		if err != nil {
			return err
		}
		n := 0
		for _, i := range instances {
			if i.Service == service && i.State != "prepared" {
				only = i
				n++
			}
		}
		return errorUnless(n == 1, "there are %d", n)
	})
	return only
}

// probed is a service of the program moody that one instance serves all the time.
func probed(name, image string, change func(*serving.Container)) *serving.Service {
	s := service(name, image)
	s.Spec.Template.Annotations = map[string]string{"autoscaling.knative.dev/min-scale": "1", "autoscaling.knative.dev/max-scale": "1"}
	change(&s.Spec.Template.Spec.Containers[0])
	return s
}

func asks(path string) serving.ProbeHandler {
	return serving.ProbeHandler{HTTPGet: &serving.HTTPGetAction{Path: path, Port: intstr.FromInt32(0)}}
}

func TestProbes_AnUnreadyInstanceGetsNoRequests(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	s := p.deploy(probed("moody", program(t, "moody"), func(c *serving.Container) {
		c.ReadinessProbe = &serving.Probe{ProbeHandler: asks("/health?of=ready"), PeriodSeconds: 1, FailureThreshold: 1}
	}))
	address := s.Status.URL.String()
	before := p.only("moody")
	if before.Unready || !before.Containers[0].Ready {
		t.Errorf("after the deploy: %+v", before)
	}
	p.get(address + "/set?of=ready&code=503&ms=4000")
	p.await("the instance to be unready", func() error {
		i := p.only("moody")
		return errorUnless(i.Unready && !i.Containers[0].Ready, "it is %+v", i)
	})
	// The program has not changed its mind yet, and so is not asked before it has.
	if got := p.get(address); got.status != 200 || !strings.HasPrefix(got.body, "ready ") {
		t.Errorf("got %d %q, want an answer of the program when it is ready", got.status, got.body)
	}
	after := p.only("moody")
	if after.ID != before.ID || after.Unready || after.Containers[0].Restarts != 0 {
		t.Errorf("afterwards: %+v, want instance %s, ready and never started again", after, before.ID)
	}
	log := p.mustBerth("logs", "moody")
	contains(t, "the log", log, []string{
		"READINESS HTTP probe failed 1 time consecutively for container user-container on port 8080: GET /health?of=ready on port 8080 answered 503",
		"READINESS HTTP probe passed again",
	})
}

func TestProbes_LivenessStartsTheContainerAgainInItsInstance(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	s := p.deploy(probed("moody", program(t, "moody"), func(c *serving.Container) {
		c.LivenessProbe = &serving.Probe{ProbeHandler: asks("/health?of=live"), PeriodSeconds: 1, FailureThreshold: 2}
	}))
	address := s.Status.URL.String()
	before := p.only("moody")
	for want := range 3 {
		if got := p.get(address); got.body != fmt.Sprintf("ready %d", want) {
			t.Fatalf("got %d %q, want the answer %d", got.status, got.body, want)
		}
	}
	p.get(address + "/set?of=live&code=500")
	p.await("the container to be started again", func() error {
		i := p.only("moody")
		c := i.Containers[0]
		return errorUnless(c.Restarts == 1 && c.Ready && !i.Unready, "it is %+v", i)
	})
	if got := p.get(address); got.status != 200 || got.body != "ready 0" {
		t.Errorf("got %d %q, want the first answer of a new program", got.status, got.body)
	}
	if after := p.only("moody"); after.ID != before.ID {
		t.Errorf("instance %s replaced %s, want the container started again in place", after.ID, before.ID)
	}
	// Contract E16, with what happens here.
	contains(t, "the log", p.mustBerth("logs", "moody"), []string{
		"LIVENESS HTTP probe failed 2 times consecutively for container user-container on port 8080: GET /health?of=live on port 8080 answered 500 Internal Server Error. The container is started again.",
	})
}

func TestProbes_GRPC(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	image := program(t, "moody")
	asking := func(name, of string) *serving.Service {
		return probed(name, image, func(c *serving.Container) {
			c.StartupProbe = &serving.Probe{
				ProbeHandler:  serving.ProbeHandler{GRPC: &serving.GRPCAction{Service: &of}},
				PeriodSeconds: 1, FailureThreshold: 2,
			}
		})
	}
	if got := p.get(p.deploy(asking("up", "")).Status.URL.String()); got.body != "ready 0" {
		t.Errorf("got %d %q", got.status, got.body)
	}
	p.applied(asking("down", "down"), "startup probe", "the gRPC health service on port 8080 answered NOT_SERVING")
}

func TestProbes_StartupThenReadinessBeforeTheFirstRequest(t *testing.T) {
	t.Parallel()
	p := start(t, func(c *server.Config) { c.StartupTimeout = 5 * time.Second })
	image := program(t, "moody")
	both := func(name, ready string) *serving.Service {
		return probed(name, image, func(c *serving.Container) {
			c.StartupProbe = &serving.Probe{ProbeHandler: asks("/health"), PeriodSeconds: 1}
			c.ReadinessProbe = &serving.Probe{ProbeHandler: asks(ready), PeriodSeconds: 1, FailureThreshold: 1}
		})
	}
	p.deploy(both("both", "/health?of=ready"))
	p.applied(both("never", "/health?of=never"), "startup probe", "GET /health?of=never on port 8080 answered 503")
}

func TestProbes_CommandsRunInTheContainer(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	image := program(t, "moody")
	runs := func(name string, command ...string) *serving.Service {
		return probed(name, image, func(c *serving.Container) {
			probe := serving.ProbeHandler{Exec: &serving.ExecAction{Command: command}}
			c.StartupProbe = &serving.Probe{ProbeHandler: probe, PeriodSeconds: 1, TimeoutSeconds: 10, FailureThreshold: 2}
			c.LivenessProbe = &serving.Probe{ProbeHandler: probe, PeriodSeconds: 1, TimeoutSeconds: 10, FailureThreshold: 1}
		})
	}
	address := p.deploy(runs("checks", "/usr/local/bin/moody", "check", "live")).Status.URL.String()
	before := p.only("checks")
	if got := p.get(address); got.body != "ready 0" {
		t.Errorf("got %d %q", got.status, got.body)
	}
	p.get(address + "/set?of=live&code=500")
	p.await("the container to be started again", func() error {
		i := p.only("checks")
		return errorUnless(i.Containers[0].Restarts == 1 && i.Containers[0].Ready, "it is %+v", i)
	})
	if after := p.only("checks"); after.ID != before.ID {
		t.Errorf("instance %s replaced %s, want the container started again in place", after.ID, before.ID)
	}
	contains(t, "the log", p.mustBerth("logs", "checks"), []string{
		`LIVENESS EXEC probe failed 1 time consecutively for container user-container: the command ["/usr/local/bin/moody" "check" "live"] ended with exit code 1: health is 500`,
	})
	p.applied(runs("fails", "/usr/local/bin/moody", "check", "never"), "startup probe did not pass", "exit code 1: health is 503")
	p.applied(runs("missing", "/bin/nothing"), "startup probe did not pass", "/bin/nothing")
}
