package e2e

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-run/berth/client"
	"github.com/berth-run/berth/server"
	"github.com/berth-run/berth/serving"
)

// What clients are told of full and slow services (contract 1.2, E9 and E10).
const (
	toldFull = "The request was aborted because there was no available instance. The Cloud Run service might have reached its maximum"
	toldSlow = "The request was aborted because there was no available instance"
)

func TestScaling_FollowsTheCPUThatInstancesUse(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	s := service("busy", program(t, "inspect"))
	s.Spec.Template.Annotations = map[string]string{
		"autoscaling.knative.dev/class": "hpa.autoscaling.knative.dev", "autoscaling.knative.dev/target": "50", "autoscaling.knative.dev/max-scale": "2",
	}
	s.Spec.Template.Spec.Containers[0].Resources.Limits = serving.ResourceList{serving.ResourceCPU: resource.MustParse("100m")}
	url := p.deploy(s).Status.URL.String()

	ctx, stop := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() {
		for ctx.Err() == nil {
			if a, err := p.tryGet(url + "/spin?ms=200"); err != nil || a.status != 200 {
				t.Errorf("spinning: %d %q, %v", a.status, a.body, err)
				return
			}
		}
	})
	p.await("a second instance, for the CPU that one request uses", func() error {
		n := p.running("busy")
		return errorUnless(n == 2, "%d instances", n)
	})
	stop()
	group.Wait()
	// It says nothing of zero: it does not go there.
	p.await("one instance to be left", func() error {
		n := p.running("busy")
		return errorUnless(n == 1, "%d instances", n)
	})
}

func TestScaling_RefusesAnnotationsThatNothingScalesBy(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	for _, test := range []struct{ key, value, says string }{
		{"autoscaling.knative.dev/class", "mine.example.com", `class is "mine.example.com": give "kpa.autoscaling.knative.dev" or "hpa.autoscaling.knative.dev"`},
		{"autoscaling.knative.dev/metric", "cpu", "invalid value: cpu: spec.template.metadata.annotations.autoscaling.knative.dev/metric"},
		{"run.googleapis.com/scaling-cpu-target", "2", `scaling-cpu-target is "2": give a number from 0.1 to 0.95, or "disabled"`},
	} {
		s := service("odd", "registry.example/hello")
		s.Spec.Template.Annotations = map[string]string{test.key: test.value}
		if _, _, err := p.Services("default").Apply(t.Context(), s); err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s=%s: %v, want %q", test.key, test.value, err, test.says)
		}
	}
}

func TestScaling_QueueWaitIsAsLongAsStartsTake(t *testing.T) {
	t.Parallel()
	p := start(t, func(c *server.Config) { c.QueueWait, c.Scaling.InitialScale = server.QueueWaitAuto, 0 })
	// Each start takes 11 s. Nobody knows before the first one.
	slow := service("slow", program(t, "hello"))
	slow.Spec.Template.Spec.Containers[0].StartupProbe = &serving.Probe{ProbeHandler: asks("/"), InitialDelaySeconds: 11, PeriodSeconds: 1}
	one := int64(1)
	full := service("full", program(t, "hello"))
	full.Spec.Template.Annotations = map[string]string{"autoscaling.knative.dev/max-scale": "1"}
	full.Spec.Template.Spec.ContainerConcurrency = &one
	slowURL, fullURL := p.deploy(slow).Status.URL.String(), p.deploy(full).Status.URL.String()

	var group sync.WaitGroup
	group.Go(func() {
		if a, err := p.tryGet(fullURL + "/sleep?ms=15000"); err != nil || a.status != 200 {
			t.Errorf("the request that keeps the only instance busy: %d %q, %v", a.status, a.body, err)
		}
	})
	p.await("the only instance to be busy", func() error { return p.inFlight("full", 1) })
	group.Go(func() {
		began := time.Now()
		if a, err := p.tryGet(fullURL); err != nil || a.status != 429 || !strings.HasPrefix(a.body, toldFull) {
			t.Errorf("where there are as many instances as there may be: %d %q, %v", a.status, a.body, err)
		}
		t.Logf("told after %s", time.Since(began))
	})
	if a := p.get(slowURL); a.status != 500 || strings.TrimSpace(a.body) != toldSlow {
		t.Errorf("the first start is slower than requests wait: %d %q", a.status, a.body)
	}
	p.await("the instance to start", func() error {
		out, _, _ := p.berth("instances", "list")
		return errorUnless(strings.Contains(out, "slow-00001") && strings.Contains(out, "ready"), "%s", out)
	})
	p.awaitZero("slow")
	if a := p.get(slowURL); a.status != 200 {
		t.Errorf("once it is known how slow starts are: %d %q", a.status, a.body)
	}
	group.Wait()
}

func TestInstance_CrashLoopIsToldUntilItIsOver(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	s := service("crashing", program(t, "crash"))
	s.Spec.Template.Annotations = map[string]string{"autoscaling.knative.dev/min-scale": "1"}
	url := p.deploy(s).Status.URL.String()
	for range 3 {
		p.await("an instance that takes requests", func() error {
			a := p.get(url)
			return errorUnless(a.status == 200, "%d %q", a.status, a.body)
		})
		p.get(url + "/exit?code=3")
	}
	p.await("the service to say so", func() error {
		list, describe := p.mustBerth("services", "list"), p.mustBerth("services", "describe", "crashing")
		for _, want := range []string{"Crash loop: ", " starts in a row have come to nothing", "exited with code 3", "exiting with code 3 as asked", "InstancesHealthy"} {
			if !strings.Contains(describe, want) {
				return fmt.Errorf("services describe does not say %q:\n%s", want, describe)
			}
		}
		return errorUnless(strings.Contains(list, "CrashLoop"), "services list:\n%s", list)
	})
	p.await("an event", func() error {
		events, _, err := p.Objects(serving.KindEvent, "default").List(t.Context(), client.Selector{})
		if err != nil {
			return err
		}
		for _, o := range events {
			if e := o.(*serving.Event); e.Reason == "CrashLoop" && e.InvolvedObject.Name == "crashing" && strings.Contains(e.Message, "The next one is tried at ") {
				return nil
			}
		}
		return fmt.Errorf("%d events, none of the crash loop", len(events))
	})
	// Nobody ends it any more: it proves itself within ten seconds.
	p.await("the loop to be over", func() error {
		got, err := p.Services("default").Get(t.Context(), "crashing")
		if err != nil {
			return err
		}
		loop := got.Status.GetCondition(serving.ConditionInstancesHealthy)
		return errorUnless(loop == nil && got.IsReady(), "%+v", loop)
	})
}

func TestInstance_ManyCrashLoopsDoNotKeepANeighbourFromWaking(t *testing.T) {
	t.Parallel()
	p := start(t, func(c *server.Config) { c.Scaling.StartsAtOnce = 2 })
	neighbour := p.deploy(service("neighbour", program(t, "hello")))
	exit := program(t, "exit")
	for n := range 8 {
		s := service(fmt.Sprint("failing-", n), exit, "CODE=3", "DELAY=500ms")
		s.Spec.Template.Annotations = map[string]string{"autoscaling.knative.dev/min-scale": "3"}
		p.failed(p.apply(s))
	}
	for n := range 8 {
		p.await("all of them to be in a loop", func() error {
			out := p.mustBerth("services", "describe", fmt.Sprint("failing-", n))
			return errorUnless(strings.Contains(out, "Crash loop: "), "%s", out)
		})
	}
	for range 4 {
		p.awaitZero("neighbour")
		began := time.Now()
		if a := p.get(neighbour.Status.URL.String()); a.status != 200 {
			t.Errorf("waking beside crash loops: %d %q", a.status, a.body)
		}
		t.Logf("woken in %s", time.Since(began))
	}
}

func TestInstance_CrashLoopsOfEveryKindDisturbNoNeighbour(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	neighbour := p.deploy(service("neighbour", program(t, "echo")))
	l := p.startLoad(neighbour.Status.URL.String())
	p.awaitServed(l, neighbour.Status.LatestReadyRevisionName, 1000)
	before := l.slowest()

	steady := map[string]string{"autoscaling.knative.dev/min-scale": "3"}
	failing := service("failing", program(t, "exit"), "CODE=3")
	greedy := service("greedy", program(t, "bloat"), "MB=200")
	greedy.Spec.Template.Spec.Containers[0].Resources.Limits = serving.ResourceList{serving.ResourceMemory: resource.MustParse("64Mi")}
	crashing := service("crashing", program(t, "crash"))
	for _, s := range []*serving.Service{failing, greedy, crashing} {
		s.Spec.Template.Annotations = steady
		p.apply(s)
	}
	p.failed(failing)
	p.failed(greedy)
	url := p.ready(crashing).Status.URL.String()
	p.await("all three to loop", func() error {
		if a, err := p.tryGet(url + "/exit?code=3"); err != nil || a.status != 503 && a.status != 500 {
			return fmt.Errorf("%d %q, %v", a.status, a.body, err)
		}
		for name, how := range map[string]string{"failing": "exited with code 3", "greedy": "used more memory than its limit", "crashing": "exited with code 3"} {
			if out := p.mustBerth("services", "describe", name); !strings.Contains(out, "Crash loop: ") || !strings.Contains(out, how) {
				return fmt.Errorf("%s", out)
			}
		}
		return nil
	})
	deploying := l.slowest()
	p.awaitServed(l, neighbour.Status.LatestReadyRevisionName, 1000)
	t.Logf("99 in 100 requests took at most %s before, %s while three services were deployed, and %s beside crash loops", before, deploying, l.slowest())
	p.unharmed(l)
}
