package reconcile

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/berth-run/berth/autoscaler"
	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/serving"
)

func TestSetProbes(t *testing.T) {
	const second = time.Second
	for _, test := range []struct {
		name, container string
		want            engine.Container
	}{
		{"Knative's default is the engine's own", "readinessProbe: {tcpSocket: {}, successThreshold: 1}", engine.Container{}},
		{
			"a readiness probe of the user's", "readinessProbe: {httpGet: {path: /ready, port: http1, host: h, httpHeaders: [{name: X, value: why}]}, successThreshold: 1}",
			engine.Container{ReadinessProbe: &engine.Probe{
				HTTP:             &engine.HTTPProbe{Port: 8080, Path: "/ready", Host: "h", Header: [][2]string{{"X", "why"}}},
				SuccessThreshold: 1,
			}},
		},
		{
			"all numbers", "readinessProbe: {tcpSocket: {port: '9090'}, initialDelaySeconds: 1, periodSeconds: 2, timeoutSeconds: 3, failureThreshold: 4, successThreshold: 5}",
			engine.Container{ReadinessProbe: &engine.Probe{
				TCP:          &engine.TCPProbe{Port: 9090},
				InitialDelay: second, Period: 2 * second, Timeout: 3 * second, FailureThreshold: 4, SuccessThreshold: 5,
			}},
		},
		{
			"startup has Kubernetes' defaults, and stands beside readiness", "startupProbe: {exec: {command: [check, --all]}}, readinessProbe: {grpc: {port: 0, service: s}, periodSeconds: 1}",
			engine.Container{
				StartupProbe:   &engine.Probe{Exec: &engine.ExecProbe{Command: []string{"check", "--all"}}, Period: 10 * second, FailureThreshold: 3},
				ReadinessProbe: &engine.Probe{GRPC: &engine.GRPCProbe{Port: 8080, Service: "s"}, Period: second},
			},
		},
		{
			"startup says what it wants", "startupProbe: {tcpSocket: {}, periodSeconds: 240, timeoutSeconds: 240, failureThreshold: 1}",
			engine.Container{StartupProbe: &engine.Probe{TCP: &engine.TCPProbe{Port: 8080}, Period: 240 * second, Timeout: 240 * second, FailureThreshold: 1}},
		},
		{
			"liveness over TLS, with its grace", "livenessProbe: {httpGet: {scheme: HTTPS, port: 8443}, terminationGracePeriodSeconds: 7}",
			engine.Container{LivenessProbe: &engine.Probe{HTTP: &engine.HTTPProbe{Port: 8443, TLS: true}}, TerminationGrace: 7 * second},
		},
		{"a probe that says nothing asks the port", "livenessProbe: {}", engine.Container{LivenessProbe: &engine.Probe{TCP: &engine.TCPProbe{Port: 8080}}}},
	} {
		var user serving.Container
		if err := yaml.UnmarshalStrict([]byte("{"+test.container+"}"), &user); err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		got := engine.Container{Port: 8080}
		setProbes(&got, user)
		test.want.Port = 8080
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
}

func TestMarkInstances_ARevisionWhoseInstancesAreUnreadyStaysReady(t *testing.T) {
	revision := &serving.Revision{}
	mark := func(status autoscaler.Status) *serving.RevisionStatus {
		revision.Status.InitializeConditions()
		markInstances(&revision.Status, "hello-00001", autoscaler.Revision{}, status, nil)
		return &revision.Status
	}
	s := mark(autoscaler.Status{Ready: 2, Desired: 2, Unready: 1, Proven: true})
	if active := s.GetCondition(serving.RevisionActive); !active.IsTrue() || *s.ActualReplicas != 1 {
		t.Errorf("with one of two unready: active %+v, %d replicas; want true, 1", active, *s.ActualReplicas)
	}
	s = mark(autoscaler.Status{Ready: 1, Desired: 1, Unready: 1, Proven: true})
	active := s.GetCondition(serving.RevisionActive)
	if !active.IsUnknown() || active.Reason != "Unready" || !strings.Contains(active.Message, "Requests wait") {
		t.Errorf("with the only one unready: active %+v, want unknown, and why", active)
	}
	if !s.GetCondition(serving.RevisionReady).IsTrue() {
		t.Errorf("with the only one unready: %+v, want a ready revision", s.Conditions)
	}
}

func TestMarkInstances_ARevisionThatWaitsForMemorySaysSo(t *testing.T) {
	revision := &serving.Revision{}
	mark := func(status autoscaler.Status, declared autoscaler.Revision) *serving.RevisionStatus {
		revision.Status.InitializeConditions()
		status.Short = "memory: 2 of 2 (--instance-memory)"
		markInstances(&revision.Status, "hello-00001", declared, status, nil)
		return &revision.Status
	}
	deploying := autoscaler.Revision{Prove: true, Scale: autoscaler.Scale{Initial: 1}}
	s := mark(autoscaler.Status{Desired: 1}, deploying)
	if ready := s.GetCondition(serving.RevisionReady); !ready.IsUnknown() || !strings.Contains(ready.Message, "Waiting for memory: 2 of 2") {
		t.Errorf("while it is deployed: ready %+v, want unknown, and why", ready)
	}
	s = mark(autoscaler.Status{Desired: 1, Proven: true}, autoscaler.Revision{})
	if active := s.GetCondition(serving.RevisionActive); !active.IsUnknown() || !strings.Contains(active.Message, "memory: 2 of 2") {
		t.Errorf("while requests wait: active %+v, want unknown, and why", active)
	}
	if !s.GetCondition(serving.RevisionReady).IsTrue() {
		t.Errorf("while requests wait: %+v, want a ready revision", s.Conditions)
	}
}
