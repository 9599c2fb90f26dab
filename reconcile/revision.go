package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"knative.dev/pkg/apis"

	"github.com/berth-run/berth/autoscaler"
	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

// reconcileRevision brings a revision from its image's name to instances that take requests: resolve the digest,
// pull, prove that an instance can start, then keep it scaled.
func (r *Reconciler) reconcileRevision(ctx context.Context, k key) error {
	id := autoscaler.Key{Namespace: k.namespace, Revision: k.name}
	stored, err := get[serving.Revision](ctx, r, serving.KindRevision, k.namespace, k.name)
	if err != nil {
		return err
	}
	if stored == nil || stored.DeletionTimestamp != nil {
		r.forget(ctx, id)
		return nil
	}
	if stored, err = r.labelRouting(ctx, stored); err != nil {
		return err
	}
	revision := stored.DeepCopy()
	revision.Status.InitializeConditions()
	d := r.deployment(ctx, revision)

	if !r.fetched(ctx, d, revision) {
		return r.finish(ctx, d, revision)
	}
	declared, err := r.declare(ctx, d, revision)
	if err != nil {
		d.undeclared.Store(&err)
		d.activator.Fail(err)
		revision.Status.MarkResourcesAvailableFalse("InvalidSpec", err.Error())
		r.queue.addAfter(k, 10*time.Second) // what it refers to may appear
		return r.finish(ctx, d, revision)
	}
	d.undeclared.Store(nil)
	r.Autoscaler.Apply(declared)
	d.declared.Store(true)
	status, _ := r.Autoscaler.Status(id)
	markInstances(&revision.Status, revision.Name, declared, status, d.failure)
	markLoop(&revision.Status, revision.Name, declared, status)
	defer r.tellLoop(stored, revision)
	return r.finish(ctx, d, revision)
}

// finish stores the status and remembers whether the revision is ready.
func (r *Reconciler) finish(ctx context.Context, d *deployment, revision *serving.Revision) error {
	revision.Status.ObservedGeneration = revision.Generation
	r.mu.Lock()
	turnsReady := revision.IsReady() && !d.ready
	r.mu.Unlock()
	if turnsReady { // whoever has waited for it looks for its pods next
		if err := r.reconcilePods(ctx, d.key); err != nil && !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	if err := r.writeStatus(ctx, revision); err != nil {
		return err
	}
	r.mu.Lock()
	d.ready = revision.IsReady()
	r.mu.Unlock()
	return nil
}

// labelRouting keeps the routing state label true: active while a route sends requests here (or the revision is
// new and may soon get them), reserve otherwise.
func (r *Reconciler) labelRouting(ctx context.Context, revision *serving.Revision) (*serving.Revision, error) {
	have := revision.Labels[serving.LabelRoutingState]
	want := have
	if r.reachable(revision) {
		want = serving.RoutingActive
	} else if c, err := get[serving.Configuration](ctx, r, serving.KindConfiguration, revision.Namespace, revision.Labels[serving.LabelConfiguration]); err != nil {
		return nil, err
	} else if c != nil && c.Status.LatestCreatedRevisionName == revision.Name {
		want = serving.RoutingActive
	} else if have == serving.RoutingActive {
		want = serving.RoutingReserve
	}
	if want == have {
		return revision, nil
	}
	labelled := revision.DeepCopy()
	if labelled.Labels == nil { // a user's write may have taken them
		labelled.Labels = map[string]string{}
	}
	if labelled.Annotations == nil {
		labelled.Annotations = map[string]string{}
	}
	labelled.Labels[serving.LabelRoutingState] = want
	labelled.Annotations[serving.AnnotationRoutingStateModified] = now()
	o, err := r.Store.Update(ctx, labelled, store.Spec)
	if err != nil {
		return nil, err
	}
	return o.(*serving.Revision), nil
}

// reachable tells whether a route sends requests to a revision.
func (r *Reconciler) reachable(revision *serving.Revision) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.routed[autoscaler.Key{Namespace: revision.Namespace, Revision: revision.Name}] > 0
}

// markInstances says how a revision's instances are. before is why it had failed in an earlier life of the server:
// it stays so until an instance proves otherwise.
func markInstances(s *serving.RevisionStatus, name string, declared autoscaler.Revision, status autoscaler.Status, before *apis.Condition) {
	ready, desired := int32(status.Ready-status.Unready), int32(status.Desired)
	s.ActualReplicas, s.DesiredReplicas = &ready, &desired
	switch {
	case declared.Scale.Initial == 0 && declared.Prove && !status.Proven && before != nil:
		s.MarkResourcesAvailableTrue()
		s.MarkContainerHealthyFalse(before.Reason, before.Message)
	case status.Proven || !declared.Prove || declared.Scale.Initial == 0:
		s.MarkResourcesAvailableTrue()
		s.MarkContainerHealthyTrue()
	case status.Failure != nil:
		reason, message := explain(name, declared.Spec.Container, status.Failure)
		s.MarkResourcesAvailableTrue()
		s.MarkContainerHealthyFalse(reason, message)
	case status.Short != "":
		s.MarkResourcesAvailableUnknown(serving.ReasonWaitingForMemory, "Waiting for "+status.Short)
		s.MarkContainerHealthyUnknown(serving.ReasonWaitingForMemory, "Waiting for "+status.Short)
	case status.Waiting != "":
		s.MarkResourcesAvailableTrue()
		s.MarkContainerHealthyUnknown("Starting", "Waiting for "+status.Waiting)
	default:
		s.MarkResourcesAvailableUnknown(serving.ReasonDeploying, "Starting an instance")
		s.MarkContainerHealthyUnknown(serving.ReasonDeploying, "")
	}
	switch {
	case status.Ready > status.Unready:
		s.MarkActiveTrue()
	case status.Ready > 0:
		// As in Knative, a revision that has been ready stays so: it is told here, and requests wait.
		s.MarkActiveUnknown("Unready", "Every instance is unready: its readiness probe fails, or its container is being started again. Requests wait.")
	case status.Short != "" && s.GetCondition(serving.RevisionReady).IsTrue():
		s.MarkActiveUnknown(serving.ReasonWaitingForMemory, "Requests wait. The next instance waits for "+status.Short)
	case status.Failure != nil && s.GetCondition(serving.RevisionReady).IsTrue():
		// It was proven once, and requests come, but no instance starts any more.
		reason, message := explain(name, declared.Spec.Container, status.Failure)
		s.MarkActiveFalse(reason, strings.ReplaceAll(message, "%", "%%")) // it is a format
	case s.GetCondition(serving.RevisionReady).IsTrue():
		s.MarkActiveFalse("NoTraffic", "The target is not receiving traffic.")
	default:
		s.MarkActiveUnknown(serving.ReasonDeploying, "")
	}
}

// explain turns a start failure into a condition's reason and message: the sentence that clients of Knative and
// Cloud Run know (contract 1.2, E1 and E2), then what was seen.
func explain(revision string, container engine.Container, failure error) (reason, message string) {
	var start *engine.StartError
	if !errors.As(failure, &start) {
		return "StartFailed", failure.Error()
	}
	switch {
	case start.Reason == engine.ReasonExited:
		code := start.Exit.Code
		if start.Exit.Signal != 0 {
			code = 128 + int(start.Exit.Signal) // as shells and Kubernetes count
		}
		return serving.ExitCodeReason(int32(code)), serving.RevisionContainerExitingMessage(start.Error())
	case start.Reason == engine.ReasonNotListening && start.Container != "" && start.Container != container.Name:
		return start.Reason, "Container failed to start. What was seen: " + start.Error()
	case start.Reason == engine.ReasonNotListening && !start.LoopbackOnly():
		return start.Reason, fmt.Sprintf("Revision %s is not ready and cannot serve traffic. The user provided container "+
			"failed to start and listen on port defined by PORT=%d environment variable within the allocated timeout. This can "+
			"happen if the port is misconfigured or if the timeout is too short. The healthcheck timeout can be extended. "+
			"What was seen: %s", revision, container.Port, start.Error())
	case slices.Contains([]string{engine.ReasonNotListening, engine.ReasonWrongPlatform, engine.ReasonNotExecutable}, start.Reason):
		return start.Reason, "Container failed to start. Failed to start and then listen on the port defined by the PORT " +
			"environment variable. What was seen: " + start.Error()
	}
	return start.Reason, start.Error()
}
