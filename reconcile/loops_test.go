package reconcile

import (
	"strings"
	"testing"
	"time"

	"knative.dev/pkg/apis"

	"github.com/berth-run/berth/autoscaler"
	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/serving"
)

func TestMarkLoop_TellsFromTheSecondFailureUntilTheEnd(t *testing.T) {
	failure := &engine.StartError{
		Reason: engine.ReasonExited, Exit: &engine.Exit{Code: 3}, Port: 8080, LastLines: []string{"no database, 100% sure"},
	}
	next := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	revision := &serving.Revision{}
	revision.Status.InitializeConditions()
	revision.Status.MarkResourcesAvailableTrue()
	revision.Status.MarkContainerHealthyTrue()
	mark := func(failures int, next time.Time) *apis.Condition {
		status := autoscaler.Status{Failures: failures, Next: next, Proven: true}
		if failures > 0 {
			status.LastFailure = failure
		}
		markLoop(&revision.Status, "hello-00001", autoscaler.Revision{}, status)
		return revision.Status.GetCondition(serving.ConditionInstancesHealthy)
	}
	if told := mark(1, next); told != nil {
		t.Errorf("one failure is told as a loop: %+v", told)
	}
	told := mark(4, next)
	if !told.IsFalse() || told.Reason != "CrashLoop" || told.Severity != apis.ConditionSeverityWarning {
		t.Fatalf("four failures are told as %+v", told)
	}
	for _, want := range []string{
		"Crash loop: 4 starts in a row have come to nothing. The next one is tried at 2030-01-02T03:04:05Z at the earliest",
		"exited with code 3", "no database, 100% sure",
	} {
		if !strings.Contains(told.Message, want) {
			t.Errorf("it does not say %q: %s", want, told.Message)
		}
	}
	if told := mark(4, time.Time{}); strings.Contains(told.Message, "The next one") {
		t.Errorf("while one is tried it speaks of the next: %s", told.Message)
	}
	if !revision.IsReady() {
		t.Errorf("a revision that was ready is so no more: %+v", revision.Status.Conditions)
	}
	if told := mark(0, time.Time{}); told != nil {
		t.Errorf("when it is over: %+v", told)
	}
}
