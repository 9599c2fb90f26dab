package enginetest

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/berth-run/berth/engine"
)

// patience is how long the suite waits for what an engine does in its own time.
const patience = time.Minute

// awaitReadiness waits until an instance says that it takes requests, or that it takes none. It may repeat itself.
func awaitReadiness(t *testing.T, i engine.Instance, want bool) {
	t.Helper()
	late := time.After(patience)
	for {
		select {
		case got := <-i.Readiness():
			if got == want {
				return
			}
		case <-i.Exited():
			t.Fatalf("it ended: %v", i.Exit())
		case <-late:
			t.Fatalf("it never said that it is ready: %t", want)
		}
	}
}

func wantLog(t *testing.T, s *Suite, i engine.Instance, parts ...string) {
	t.Helper()
	var text string
	for _, line := range logLines(t, s, engine.LogQuery{Instance: i.ID()}) {
		text += line.Text + "\n"
	}
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("the log does not say %q:\n%s", part, text)
		}
	}
}

func onlyContainer(t *testing.T, i engine.Instance) engine.ContainerStatus {
	t.Helper()
	all := i.Containers()
	if len(all) != 1 {
		t.Fatalf("it has containers %+v, want one", all)
	}
	return all[0]
}

func readinessTurnsWithItsProbe(t *testing.T, s *Suite) {
	i := s.Start(t, func(spec *engine.Spec) {
		spec.Container.ReadinessProbe = &engine.Probe{
			HTTP: &engine.HTTPProbe{Port: port, Path: "/health"}, Period: 20 * time.Millisecond, FailureThreshold: 2, SuccessThreshold: 2,
		}
	}, "serve")
	if c := onlyContainer(t, i); !c.Ready {
		t.Errorf("after the start it is %+v, want ready", c)
	}
	Request(t, i, http.MethodPost, "/health?code=503")
	awaitReadiness(t, i, false)
	if c := onlyContainer(t, i); c.Ready || c.State != engine.ContainerRunning || c.Restarts != 0 {
		t.Errorf("while the probe fails it is %+v, want running and not ready", c)
	}
	Request(t, i, http.MethodPost, "/health?code=200")
	awaitReadiness(t, i, true)
	if c := onlyContainer(t, i); !c.Ready {
		t.Errorf("when the probe passes again it is %+v, want ready", c)
	}
	wantLog(t, s, i, "READINESS HTTP probe failed 2 times consecutively for container user-container on port 8080: GET /health on port 8080 answered 503",
		"READINESS HTTP probe passed again")
}

func readinessProbeMustPassBeforeTheFirstRequest(t *testing.T, s *Suite) {
	i := s.Prepare(t, func(spec *engine.Spec) {
		spec.StartupTimeout = 5 * time.Second
		spec.Container.StartupProbe = &engine.Probe{HTTP: &engine.HTTPProbe{Port: port, Path: "/status?code=200"}}
		spec.Container.ReadinessProbe = &engine.Probe{HTTP: &engine.HTTPProbe{Port: port, Path: "/status?code=503"}, FailureThreshold: 1}
	}, "serve")
	failure := startError(t, i, engine.ReasonNotListening)
	if !strings.Contains(failure.Error(), "GET /status?code=503 on port 8080 answered 503") {
		t.Errorf("the error does not say what the readiness probe saw: %v", failure)
	}
}

func livenessStartsTheContainerAgain(t *testing.T, s *Suite) {
	i := s.Start(t, func(spec *engine.Spec) {
		spec.Container.LivenessProbe = &engine.Probe{
			HTTP: &engine.HTTPProbe{Port: port, Path: "/health"}, Period: 20 * time.Millisecond, FailureThreshold: 3,
		}
	}, "serve")
	id, host := i.ID(), Inspect(t, i).Hostname
	for n := range 2 { // the second time, the new life's probe sees to it
		Request(t, i, http.MethodPost, "/health?code=500")
		awaitReadiness(t, i, false)
		awaitReadiness(t, i, true)
		if got := Get(t, i, "/health"); got != "200" {
			t.Errorf("its program is the old one: health %s", got)
		}
		if c := onlyContainer(t, i); c.Restarts != n+1 || !c.Ready || c.LastExit == nil {
			t.Errorf("after restart %d it is %+v", n+1, c)
		}
	}
	if i.ID() != id || Inspect(t, i).Hostname != host {
		t.Errorf("the instance is another one")
	}
	wantLog(t, s, i, "LIVENESS HTTP probe failed 3 times consecutively for container user-container on port 8080: GET /health on port 8080 answered 500")
	begun := time.Now()
	i.Stop(0)
	if took := time.Since(begun); took > patience {
		t.Errorf("stopping took %s", took)
	}
}

func stopDuringARestartLeavesNothing(t *testing.T, s *Suite) {
	i := s.Start(t, func(spec *engine.Spec) {
		spec.Container.TerminationGrace = time.Hour
		spec.Container.LivenessProbe = &engine.Probe{
			HTTP: &engine.HTTPProbe{Port: port, Path: "/health"}, Period: 20 * time.Millisecond, FailureThreshold: 1,
		}
	}, "stubborn")
	Request(t, i, http.MethodPost, "/health?code=500")
	awaitReadiness(t, i, false)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		i.Stop(0)
	}()
	select {
	case <-stopped:
	case <-time.After(patience):
		t.Fatal("Stop waits for the grace of a restart")
	}
}

func grpcProbeAsksTheHealthService(t *testing.T, s *Suite) {
	probe := func(service string) func(*engine.Spec) {
		return func(spec *engine.Spec) {
			spec.StartupTimeout = 10 * time.Second
			spec.Container.StartupProbe = &engine.Probe{
				GRPC: &engine.GRPCProbe{Port: port, Service: service}, Period: 50 * time.Millisecond, FailureThreshold: 5,
			}
		}
	}
	s.Start(t, probe(""), "serve")
	failure := startError(t, s.Prepare(t, probe("down"), "serve"), engine.ReasonNotListening)
	if !strings.Contains(failure.Error(), "the gRPC health service on port 8080 answered NOT_SERVING") {
		t.Errorf("the error does not say what the probe saw: %v", failure)
	}
}

func probesOfADrainingInstanceEnd(t *testing.T, s *Suite) {
	i := s.Start(t, func(spec *engine.Spec) {
		spec.Container.LivenessProbe = &engine.Probe{
			HTTP: &engine.HTTPProbe{Port: port, Path: "/health"}, Period: 20 * time.Millisecond, FailureThreshold: 1,
		}
	}, "serve")
	drains, ok := i.(interface{ Drain() })
	if !ok {
		t.Skip("this engine does not want to know")
	}
	drains.Drain()
	Request(t, i, http.MethodPost, "/health?code=500")
	before := Get(t, i, "/asked")
	for range 10 { // each takes longer than it would take to be probed
		time.Sleep(20 * time.Millisecond)
	}
	if after := Get(t, i, "/asked"); after != before {
		t.Errorf("it was probed: asked %s times before, %s after", before, after)
	}
	if c := onlyContainer(t, i); c.Restarts != 0 || !c.Ready {
		t.Errorf("it is %+v, want ready and never started again", c)
	}
}

func execProbeRunsInTheContainer(t *testing.T, s *Suite) {
	probe := func(command ...string) func(*engine.Spec) {
		return func(spec *engine.Spec) {
			spec.Container.Env = []engine.Env{{Name: "MINE", Value: "yes"}}
			check := &engine.Probe{
				Exec: &engine.ExecProbe{Command: command}, Period: 100 * time.Millisecond, Timeout: 20 * time.Second, FailureThreshold: 2,
			}
			spec.Container.StartupProbe, spec.Container.LivenessProbe = check, check
		}
	}
	i := s.Start(t, probe("/bin/program", "healthy"), "serve")
	Request(t, i, http.MethodPost, "/health?code=500")
	awaitReadiness(t, i, false)
	awaitReadiness(t, i, true)
	wantLog(t, s, i, `LIVENESS EXEC probe failed 2 times consecutively for container user-container: the command ["/bin/program" "healthy"] ended with exit code 7: health is 500, MINE is yes`)
	failure := startError(t, s.Prepare(t, probe("/bin/program", "exit", "3"), "serve"), engine.ReasonNotListening)
	if !strings.Contains(failure.Error(), `the command ["/bin/program" "exit" "3"] ended with exit code 3: about to exit`) {
		t.Errorf("the error does not say what the probe saw: %v", failure)
	}
}

func execProbeThatHangsIsEnded(t *testing.T, s *Suite) {
	i := s.Prepare(t, func(spec *engine.Spec) {
		spec.Container.StartupProbe = &engine.Probe{
			Exec: &engine.ExecProbe{Command: []string{"/bin/program", "silent"}}, Timeout: time.Second, Period: time.Second, FailureThreshold: 2,
		}
	}, "serve")
	failure := startError(t, i, engine.ReasonNotListening)
	if !strings.Contains(failure.Error(), "did not answer within 1s") {
		t.Errorf("the error does not say that the command hangs: %v", failure)
	}
}
