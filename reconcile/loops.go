package reconcile

import (
	"context"
	"fmt"
	"strings"
	"time"

	"knative.dev/pkg/apis"

	"github.com/berth-run/berth/autoscaler"
	"github.com/berth-run/berth/serving"
)

// markLoop says that a revision's instances do not stay, or no more that they do not. It says nothing of whether the
// revision is ready: one that was stays so, as in Knative.
func markLoop(s *serving.RevisionStatus, name string, declared autoscaler.Revision, status autoscaler.Status) {
	conditions := (&serving.Revision{}).GetConditionSet().Manage(s)
	if status.Failures < autoscaler.LoopFailures {
		// The error is that it is one of those that make Ready, which it is not.
		_ = conditions.ClearCondition(serving.ConditionInstancesHealthy)
		return
	}
	_, why := explain(name, declared.Spec.Container, status.LastFailure)
	conditions.SetCondition(apis.Condition{
		Type: serving.ConditionInstancesHealthy, Status: "False", Severity: apis.ConditionSeverityWarning,
		Reason: serving.ReasonCrashLoop, Message: loopMessage(status.Failures, status.Next) + " The last one: " + why,
	})
}

// loopMessage tells of a crash loop.
func loopMessage(failures int, next time.Time) string {
	message := fmt.Sprintf("Crash loop: %d starts in a row have come to nothing.", failures)
	if !next.IsZero() {
		message += fmt.Sprintf(" The next one is tried at %s at the earliest, when one is needed.", next.UTC().Format(time.RFC3339))
	}
	return message
}

// tellLoop passes a change of what markLoop says on to the revision's service.
func (r *Reconciler) tellLoop(before, after *serving.Revision) {
	service := after.Labels[serving.LabelService]
	was, is := before.Status.GetCondition(serving.ConditionInstancesHealthy), after.Status.GetCondition(serving.ConditionInstancesHealthy)
	if service != "" && was.GetMessage() != is.GetMessage() {
		r.queue.add(key{serving.KindService.String(), after.Namespace, service})
	}
}

// markServiceLoop says of a service that a revision which gets its requests, or is to get them, is in a crash loop, or no
// more that one is.
func (r *Reconciler) markServiceLoop(ctx context.Context, s *serving.Service) error {
	conditions := s.GetConditionSet().Manage(&s.Status)
	keys := sends(s.Namespace, s.Status.Traffic)
	if latest := s.Status.LatestCreatedRevisionName; latest != "" {
		keys = append(keys, autoscaler.Key{Namespace: s.Namespace, Revision: latest})
	}
	for _, k := range keys {
		revision, err := get[serving.Revision](ctx, r, serving.KindRevision, k.Namespace, k.Revision)
		if err != nil {
			return err
		}
		if revision == nil {
			continue
		}
		if loop := revision.Status.GetCondition(serving.ConditionInstancesHealthy); loop.IsFalse() {
			told := *loop
			told.Message = fmt.Sprintf("Revision %s: %s", revision.Name, strings.TrimSpace(loop.Message))
			conditions.SetCondition(told)
			return nil
		}
	}
	return conditions.ClearCondition(serving.ConditionInstancesHealthy)
}
