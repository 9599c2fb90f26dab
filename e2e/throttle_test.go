package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/berth-run/berth/client"
	"github.com/berth-run/berth/server"
	"github.com/berth-run/berth/serving"
)

// throttled sets whether a service's instances have no CPU between requests.
func throttled(s *serving.Service, value string) *serving.Service {
	s.Spec.Template.Annotations = map[string]string{serving.AnnotationThrottling: value}
	return s
}

// theOnly is the one instance of a service that runs.
func (p *platform) theOnly(service string) (client.Instance, error) {
	instances, err := p.Instances(p.t.Context(), "")
	if err != nil {
		return client.Instance{}, err
	}
	var found []client.Instance
	for _, i := range instances {
		if i.Service == service && i.State != "prepared" {
			found = append(found, i)
		}
	}
	if len(found) != 1 {
		return client.Instance{}, fmt.Errorf("%d instances run, want one", len(found))
	}
	return found[0], nil
}

// awaitState waits until the one instance of a service is in a state.
func (p *platform) awaitState(service, state string) client.Instance {
	p.t.Helper()
	var i client.Instance
	p.await(fmt.Sprintf("the instance of %s to be %s", service, state), func() (err error) {
		if i, err = p.theOnly(service); err != nil {
			return err
		}
		return errorUnless(string(i.State) == state, "it is %s", i.State)
	})
	return i
}

// slept is how often the threads of a service's instance have gone to sleep: it grows while a program works now and then.
func (p *platform) slept(service string) (n int) {
	p.t.Helper()
	for _, pid := range p.processes(service) {
		files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
		if err != nil {
			p.t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				p.t.Fatal(err)
			}
			for line := range strings.Lines(string(text)) {
				if value, ok := strings.CutPrefix(line, "voluntary_ctxt_switches:"); ok {
					switches, err := strconv.Atoi(strings.TrimSpace(value))
					if err != nil {
						p.t.Fatal(err)
					}
					n += switches
				}
			}
		}
	}
	return n
}

// ticks asks the ticker how far it has counted, and since when it runs.
func (p *platform) ticks(url string) (count int, began string) {
	p.t.Helper()
	a := p.get(url)
	if a.status != 200 {
		p.t.Fatalf("answer %d %q", a.status, a.body)
	}
	if _, err := fmt.Sscan(a.body, &count, &began); err != nil {
		p.t.Fatalf("answer %q: %v", a.body, err)
	}
	return count, began
}

func TestThrottling_BackgroundWorkStandsStillBetweenRequests(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	url := p.deploy(throttled(service("ticker", program(t, "ticker")), "True")).Status.URL.String()
	count, began := p.ticks(url)
	for range 3 {
		idle := p.awaitState("ticker", "idle")
		before := p.slept("ticker")
		time.Sleep(300 * time.Millisecond) // in which the ticker would count 300 times
		if now := p.slept("ticker"); now != before && p.awaitState("ticker", "idle").Since.Equal(idle.Since) {
			t.Errorf("its threads went to sleep %d times while it was idle: it works", now-before)
		}
		if out := p.mustBerth("instances", "list", "--service", "ticker"); !strings.Contains(out, "idle") {
			t.Errorf("berth instances says\n%s", out)
		}
		again, same := p.ticks(url)
		if same != began {
			t.Fatal("another instance has answered")
		}
		if again <= count {
			t.Errorf("it has counted to %d, and to %d before: it did not go on", again, count)
		}
		count = again
	}
	if out := p.mustBerth("services", "describe", "ticker"); !strings.Contains(out, "ticker-00001") {
		t.Errorf("berth services describe says\n%s", out)
	}
	pods := p.kubectl("", "get", "pods", "--no-headers")
	if !strings.Contains(pods, "Running") {
		t.Errorf("kubectl get pods says\n%s", pods)
	}
}

func TestThrottling_ServicesDecideForThemselves(t *testing.T) {
	t.Parallel()
	p := start(t, func(c *server.Config) { c.Throttling = true })
	image := program(t, "ticker")
	on := service("on", image)
	on.Spec.Template.Annotations = map[string]string{serving.AnnotationThrottling: "False", serving.AnnotationMinScale: "1"}
	p.deploy(on)
	silent := service("silent", image)
	silent.Spec.Template.Annotations = map[string]string{serving.AnnotationMinScale: "1"}
	p.deploy(silent)
	p.awaitState("silent", "idle")
	if i := p.awaitState("on", "ready"); i.State != "ready" {
		t.Errorf("it is %s", i.State)
	}
	before := p.slept("on")
	p.await("the always-on service to go on counting", func() error {
		now := p.slept("on")
		return errorUnless(now > before+100, "went to sleep %d times", now-before)
	})
	if i, err := p.theOnly("on"); err != nil || i.State != "ready" {
		t.Errorf("it is %s, %v", i.State, err)
	}
	_, stderr, code := p.berth("deploy", "on", "--cpu-throttling", "--no-cpu-throttling")
	if code != 2 || !strings.Contains(stderr, "exclude each other") {
		t.Errorf("exit %d, %s", code, stderr)
	}
	p.mustBerth("deploy", "on", "--cpu-throttling", "--cpu-boost")
	s, err := p.Services("default").Get(t.Context(), "on")
	if err != nil {
		t.Fatal(err)
	}
	if a := s.Spec.Template.Annotations; a[serving.AnnotationThrottling] != "true" || a[serving.AnnotationBoost] != "true" {
		t.Errorf("annotations %v", a)
	}
	bad := throttled(service("bad", image), "sometimes")
	if _, _, err := p.Services("default").Apply(t.Context(), bad); err == nil || !strings.Contains(err.Error(), `"sometimes" does not say whether the CPU is withheld`) {
		t.Errorf("a bad value: %v", err)
	}
}

func TestThrottling_IdleInstancesGoAfterTheirTime(t *testing.T) {
	t.Parallel()
	p := start(t, func(c *server.Config) { c.Scaling.IdleKeep = 8 * time.Second })
	url := p.deploy(throttled(service("ticker", program(t, "ticker")), "true")).Status.URL.String()
	_, began := p.ticks(url)
	var kept time.Duration // that it was seen idle
	p.await("the instance to go", func() error {
		i, err := p.theOnly("ticker")
		if err != nil {
			return nil
		}
		if i.State == "idle" {
			kept = max(kept, time.Since(i.Since))
		}
		return fmt.Errorf("it is %s", i.State)
	})
	if zero := 3 * time.Second; kept < zero { // windows and grace, after which those go that are not throttled
		t.Errorf("it was kept for %v, want about 8 s", kept)
	}
	if _, other := p.ticks(url); other == began {
		t.Error("the same instance has answered")
	}
}

func TestThrottling_AWebSocketKeepsTheCPU(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	s := p.deploy(throttled(service("echo", program(t, "echo")), "true"))
	p.awaitState("echo", "idle")
	socket := p.dialWebSocket(s.Status.URL.URL())
	for range 5 {
		if i, err := p.theOnly("echo"); err != nil || i.State != "ready" {
			t.Errorf("with an open WebSocket it is %s, %v", i.State, err)
		}
		time.Sleep(200 * time.Millisecond) // longer than instances without requests keep the CPU
		if _, err := socket.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		buffer := make([]byte, 100)
		if n, err := socket.Read(buffer); err != nil || string(buffer[:n]) != "hello" {
			t.Fatalf("echo %q, %v", buffer[:n], err)
		}
	}
	socket.Close()
	p.awaitState("echo", "idle")
}

func TestThrottling_AServerThatIsKilledLeavesNothingFrozen(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	p := spawn(t, dir)
	s := p.deploy(throttled(service("ticker", program(t, "ticker"), traced(dir)), "true"))
	_, began := p.ticks(s.Status.URL.String())
	p.awaitState("ticker", "idle")
	p.kill()
	p = p.again()
	if _, other := p.ticks(s.Status.URL.String()); other == began {
		t.Error("the instance from before has answered")
	}
	p.awaitState("ticker", "idle")
	p.stopped()
}
