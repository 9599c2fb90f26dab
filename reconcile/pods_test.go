package reconcile

import (
	"testing"
	"time"

	"github.com/berth-run/berth/autoscaler"
	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/serving"
)

// seen is what kubectl shows of a pod with one container.
type seen struct {
	phase       serving.PodPhase
	ready       bool
	state, last string // reasons; "Running" for running
	started     int    // seconds: of the last end
	finished    int
	restarts    int32
}

func TestSetPodStatus_FollowsAContainerThroughRestarts(t *testing.T) {
	begun := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	at := func(second int) time.Time { return begun.Add(time.Duration(second) * time.Second) }
	pod := &serving.Pod{}
	pod.Spec.Containers = []serving.Container{{Name: "web", Image: "example.com/web:1"}}
	exit := &engine.Exit{Code: 3}
	for i, step := range []struct {
		state   engine.State
		unready bool
		c       engine.ContainerStatus
		want    seen
	}{
		{engine.Starting, false, engine.ContainerStatus{State: engine.ContainerWaiting, Since: at(0)},
			seen{phase: serving.PodPending, state: "ContainerCreating"}},
		{engine.Starting, false, engine.ContainerStatus{State: engine.ContainerRunning, Since: at(1)},
			seen{phase: serving.PodRunning, state: "Running"}},
		{engine.Ready, false, engine.ContainerStatus{State: engine.ContainerRunning, Since: at(1), Started: true, Ready: true},
			seen{phase: serving.PodRunning, ready: true, state: "Running"}},
		{engine.Ready, true, engine.ContainerStatus{State: engine.ContainerWaiting, Since: at(5), Reason: "CrashLoopBackOff", LastExit: exit},
			seen{phase: serving.PodRunning, state: "CrashLoopBackOff", last: "Error", started: 1, finished: 5}},
		{engine.Ready, true, engine.ContainerStatus{State: engine.ContainerRunning, Since: at(7), LastExit: exit, Restarts: 1},
			seen{phase: serving.PodRunning, state: "Running", last: "Error", started: 1, finished: 5, restarts: 1}},
		{engine.Ready, false, engine.ContainerStatus{State: engine.ContainerRunning, Since: at(7), Started: true, Ready: true, LastExit: exit, Restarts: 1},
			seen{phase: serving.PodRunning, ready: true, state: "Running", last: "Error", started: 1, finished: 5, restarts: 1}},
		// What came between was too short to be seen.
		{engine.Ready, false, engine.ContainerStatus{State: engine.ContainerRunning, Since: at(9), Started: true, Ready: true, LastExit: &engine.Exit{OOM: true, Signal: 9}, Restarts: 2},
			seen{phase: serving.PodRunning, ready: true, state: "Running", last: "OOMKilled", started: 7, finished: 9, restarts: 2}},
		{engine.Stopping, false, engine.ContainerStatus{State: engine.ContainerTerminated, Since: at(20), Exit: &engine.Exit{}, LastExit: exit, Restarts: 2},
			seen{phase: serving.PodSucceeded, state: "Completed", last: "Error", started: 7, finished: 9, restarts: 2}},
	} {
		step.c.Name = "web"
		setPodStatus(pod, autoscaler.InstanceStatus{ID: "r-x", State: step.state, Unready: step.unready, Containers: []engine.ContainerStatus{step.c}})
		status := pod.Status.ContainerStatuses[0]
		got := seen{phase: pod.Status.Phase, ready: status.Ready, restarts: status.RestartCount}
		switch s := status.State; {
		case s.Running != nil:
			got.state = "Running"
		case s.Waiting != nil:
			got.state = s.Waiting.Reason
		case s.Terminated != nil:
			got.state = s.Terminated.Reason
		}
		if last := status.LastTerminationState.Terminated; last != nil {
			got.last = last.Reason
			got.started, got.finished = int(last.StartedAt.Sub(begun).Seconds()), int(last.FinishedAt.Sub(begun).Seconds())
		}
		if got != step.want {
			t.Errorf("step %d: got %+v, want %+v", i, got, step.want)
		}
		for _, c := range pod.Status.Conditions {
			if c.Type == serving.PodReady && (c.Status == serving.ConditionTrue) != step.want.ready {
				t.Errorf("step %d: condition Ready is %s", i, c.Status)
			}
		}
		if len(pod.Status.Conditions) != 4 {
			t.Errorf("step %d: %d conditions", i, len(pod.Status.Conditions))
		}
	}
}

func TestContainerStatus_SaysWhyTheContainerWasStartedAgain(t *testing.T) {
	const why = "LIVENESS EXEC probe failed 3 times consecutively"
	status := containerStatus(engine.ContainerStatus{LastExit: &engine.Exit{Cause: why}}, autoscaler.InstanceStatus{})
	if last := status.LastTerminationState.Terminated; last == nil || last.Message != why {
		t.Errorf("got %+v, want the message %q", last, why)
	}
}
