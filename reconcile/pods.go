package reconcile

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1"
	"knative.dev/pkg/kmeta"

	"github.com/berth-run/berth/autoscaler"
	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

const (
	// podsDelay is how much later than instances their pods change: no cold start competes with a pod's being made,
	// and what changes in one go is written once.
	podsDelay = 250 * time.Millisecond
	// podFinalizer keeps a deleted pod until its instance has ended.
	podFinalizer = "berth.run/instance"
	// userPort is what the port that requests go to is called in pods, as Knative calls it.
	userPort = "user-port"
	// unnamedContainer is what the one container of a revision is called that the user gave no name.
	unnamedContainer = "user-container"
)

// podsKey is the key under which the pods of a revision are reconciled, all at a time.
func podsKey(revision autoscaler.Key) key {
	return key{serving.KindPod.String(), revision.Namespace, revision.Revision}
}

// InstancesChanged tells that instances of a revision began, changed or ended; the autoscaler calls it.
func (r *Reconciler) InstancesChanged(revision autoscaler.Key) {
	r.queue.addAfter(podsKey(revision), podsDelay)
}

// reconcilePods makes the pods of a revision show its instances, and stops the instances whose pods were deleted.
// A pod is there from when its instance begins to start until nothing of it is left.
func (r *Reconciler) reconcilePods(ctx context.Context, id autoscaler.Key) error {
	r.mu.Lock()
	gone := map[string]struct{}{}
	for name := range r.pods[id] {
		gone[name] = struct{}{}
	}
	r.mu.Unlock()

	var errs []error
	for _, instance := range r.Autoscaler.InstancesOf(id) {
		name := podName(instance)
		_, known := gone[name]
		delete(gone, name)
		switch {
		case known:
			errs = append(errs, r.updatePod(ctx, id, name, instance))
		case instance.State == engine.Starting || instance.State == engine.Ready || instance.State == engine.Idle:
			errs = append(errs, r.createPod(ctx, id, instance))
		}
	}
	for name := range gone {
		errs = append(errs, r.removePod(ctx, id, name))
	}
	return errors.Join(errs...)
}

// createPod makes the pod of an instance, unless its revision goes.
func (r *Reconciler) createPod(ctx context.Context, id autoscaler.Key, instance autoscaler.InstanceStatus) error {
	revision, err := get[serving.Revision](ctx, r, serving.KindRevision, id.Namespace, id.Revision)
	if err != nil || revision == nil || revision.DeletionTimestamp != nil {
		return err
	}
	pod := podOf(revision, instance, r.Node)
	_, err = r.Store.Create(ctx, pod)
	if errors.Is(err, store.ErrTerminating) || errors.Is(err, store.ErrNotFound) {
		return nil // the namespace goes, and the revision with it
	}
	if err != nil && !errors.Is(err, store.ErrAlreadyExists) {
		return fmt.Errorf("making pod %s: %w", pod.Name, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pods[id] == nil {
		r.pods[id] = map[string]struct{}{}
	}
	r.pods[id][pod.Name] = struct{}{}
	return nil
}

// updatePod makes a pod's status that of its instance. One of them that ends takes the other along.
func (r *Reconciler) updatePod(ctx context.Context, id autoscaler.Key, name string, instance autoscaler.InstanceStatus) error {
	stored, err := get[serving.Pod](ctx, r, serving.KindPod, id.Namespace, name)
	if err != nil || stored == nil {
		return err
	}
	ends := instance.State == engine.Draining || instance.State == engine.Stopping
	switch {
	case stored.DeletionTimestamp != nil && !ends:
		r.Autoscaler.StopInstance(id, instance.ID, "its pod was deleted")
	case stored.DeletionTimestamp == nil && ends:
		o, err := r.Store.Delete(ctx, serving.KindPod, id.Namespace, name, serving.DeleteOptions{})
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("ending pod %s: %w", name, err)
		}
		stored = o.(*serving.Pod)
	}
	pod := stored.DeepCopy()
	setPodStatus(pod, instance)
	r.tellOfRestarts(id, stored, pod)
	return r.writeStatus(ctx, pod)
}

// removePod removes the pod of an instance that is gone.
func (r *Reconciler) removePod(ctx context.Context, id autoscaler.Key, name string) error {
	stored, err := get[serving.Pod](ctx, r, serving.KindPod, id.Namespace, name)
	if err != nil {
		return err
	}
	if stored != nil {
		pod := stored.DeepCopy()
		pod.Finalizers = nil
		_, err := r.Store.Update(ctx, pod, store.Spec) // removes one that is being deleted
		if err == nil && stored.DeletionTimestamp == nil {
			_, err = r.Store.Delete(ctx, serving.KindPod, id.Namespace, name, serving.DeleteOptions{})
		}
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("removing pod %s: %w", name, err)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.pods[id], name)
	if len(r.pods[id]) == 0 {
		delete(r.pods, id)
	}
	return nil
}

// podName names the pod of an instance.
func podName(instance autoscaler.InstanceStatus) string {
	return podNameOf(instance.Revision, instance.ID)
}

// podLabels are the labels of a revision's pods: the revision's own, which the user's are among, and those that name it.
func podLabels(revision *serving.Revision) map[string]string {
	labels := map[string]string{
		"app":                    revision.Name,
		serving.LabelRevision:    revision.Name,
		serving.LabelRevisionUID: string(revision.UID),
	}
	for name, value := range revision.Labels {
		if name != serving.LabelRoutingState && labels[name] == "" {
			labels[name] = value
		}
	}
	return labels
}

// podOf is a new pod for an instance of a revision.
func podOf(revision *serving.Revision, instance autoscaler.InstanceStatus, node string) *serving.Pod {
	owner := *kmeta.NewControllerRef(revision)
	owner.BlockOwnerDeletion = nil // an instance that drains does not keep its revision
	pod := &serving.Pod{
		ObjectMeta: serving.ObjectMeta{
			Namespace: revision.Namespace, Name: podName(instance), Labels: podLabels(revision),
			Annotations:     map[string]string{serving.AnnotationInstance: instance.ID},
			OwnerReferences: []serving.OwnerReference{owner},
			Finalizers:      []string{podFinalizer},
		},
		Spec: *revision.Spec.PodSpec.DeepCopy(),
	}
	pod.Spec.NodeName = node
	pod.Spec.RestartPolicy = serving.RestartPolicyAlways
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		if c.Name == "" {
			c.Name = unnamedContainer
		}
		if len(pod.Spec.Containers) == 1 || len(instance.Containers) > 0 && c.Name == instance.Containers[0].Name { // requests go to it
			c.Ports = []serving.ContainerPort{{Name: userPort, ContainerPort: int32(servingPort(*c)), Protocol: serving.ProtocolTCP}}
		}
	}
	if len(instance.Containers) > 1 {
		pod.Annotations["kubectl.kubernetes.io/default-container"] = instance.Containers[0].Name
	}
	now := v1.NewTime(time.Now().Truncate(time.Second))
	pod.Status.StartTime = &now
	setPodStatus(pod, instance)
	return pod
}

// setPodStatus makes a pod's status say how its instance is.
func setPodStatus(pod *serving.Pod, instance autoscaler.InstanceStatus) {
	s := &pod.Status
	s.PodIP, s.PodIPs = instance.Address, nil
	if s.PodIP != "" {
		s.PodIPs = []serving.PodIP{{IP: s.PodIP}}
	}
	s.Phase = serving.PodRunning
	waiting, ended, failed, unready := 0, 0, 0, []string(nil)
	before := s.ContainerStatuses
	s.ContainerStatuses = nil
	for _, c := range inOrderOf(pod.Spec.Containers, instance.Containers) {
		status := containerStatus(c, instance)
		for _, old := range before {
			if old.Name == status.Name {
				keepTimes(&status, old)
			}
		}
		for _, declared := range pod.Spec.Containers {
			if declared.Name == c.Name {
				status.Image = declared.Image
			}
		}
		switch {
		case status.State.Waiting != nil && status.RestartCount == 0:
			waiting++
		case status.State.Terminated != nil:
			ended++
			if status.State.Terminated.ExitCode != 0 {
				failed++
			}
		}
		if !status.Ready {
			unready = append(unready, c.Name)
		}
		s.ContainerStatuses = append(s.ContainerStatuses, status)
	}
	switch n := len(s.ContainerStatuses); {
	case waiting > 0 && instance.State == engine.Starting:
		s.Phase = serving.PodPending
	case n > 0 && ended == n && failed > 0:
		s.Phase = serving.PodFailed
	case n > 0 && ended == n:
		s.Phase = serving.PodSucceeded
	}
	reason, message := "", ""
	ready := serving.ConditionTrue
	if len(unready) > 0 {
		ready, reason = serving.ConditionFalse, "ContainersNotReady"
		message = fmt.Sprintf("containers with unready status: [%s]", strings.Join(unready, " "))
	}
	for _, c := range []serving.PodCondition{
		{Type: serving.PodScheduled, Status: serving.ConditionTrue},
		{Type: serving.PodInitialized, Status: serving.ConditionTrue},
		{Type: serving.ContainersReady, Status: ready, Reason: reason, Message: message},
		{Type: serving.PodReady, Status: ready, Reason: reason, Message: message},
	} {
		setPodCondition(s, c)
	}
}

// setPodCondition replaces the condition of a type; its time stays while its status does.
func setPodCondition(s *serving.PodStatus, c serving.PodCondition) {
	c.LastTransitionTime = v1.NewTime(time.Now().Truncate(time.Second))
	for i, old := range s.Conditions {
		if old.Type == c.Type {
			if old.Status == c.Status {
				c.LastTransitionTime = old.LastTransitionTime
			}
			s.Conditions[i] = c
			return
		}
	}
	s.Conditions = append(s.Conditions, c)
}

// inOrderOf sorts containers as a pod declares them; the engine has the one first that requests go to.
func inOrderOf(declared []serving.Container, containers []engine.ContainerStatus) []engine.ContainerStatus {
	var sorted []engine.ContainerStatus
	for _, d := range declared {
		for _, c := range containers {
			if c.Name == d.Name {
				sorted = append(sorted, c)
			}
		}
	}
	return sorted
}

// containerStatus is a container's state in Kubernetes' terms.
func containerStatus(c engine.ContainerStatus, instance autoscaler.InstanceStatus) serving.PodContainerStatus {
	started := c.Started && c.State == engine.ContainerRunning
	status := serving.PodContainerStatus{
		Name: c.Name, ImageID: c.Image, ContainerID: "berth://" + instance.ID + "/" + c.Name,
		Ready: c.Ready, Started: &started, RestartCount: int32(c.Restarts),
	}
	at := v1.NewTime(c.Since.Truncate(time.Second))
	switch c.State {
	case engine.ContainerRunning:
		status.State.Running = &serving.ContainerStateRunning{StartedAt: at}
	case engine.ContainerTerminated:
		status.State.Terminated = terminated(c.Exit, c.Reason)
		status.State.Terminated.FinishedAt = at
	default:
		reason := c.Reason
		if reason == "" {
			reason = "ContainerCreating"
		}
		status.State.Waiting = &serving.ContainerStateWaiting{Reason: reason}
	}
	if c.LastExit != nil {
		last := terminated(c.LastExit, "")
		last.StartedAt, last.FinishedAt = at, at // as good as it is known here
		status.LastTerminationState.Terminated = last
	}
	return status
}

// terminated says how a program ended: as shells and Kubernetes do, 128 + n for signal n.
func terminated(exit *engine.Exit, reason string) *serving.ContainerStateTerminated {
	t := &serving.ContainerStateTerminated{Reason: reason}
	if exit == nil {
		return t
	}
	t.ExitCode, t.Signal, t.Message = int32(exit.Code), int32(exit.Signal), exit.Cause
	if exit.Signal != 0 {
		t.ExitCode = 128 + int32(exit.Signal)
	}
	switch {
	case exit.OOM:
		t.Reason = "OOMKilled"
	case t.Reason != "":
	case t.ExitCode == 0:
		t.Reason = "Completed"
	default:
		t.Reason = "Error"
	}
	return t
}

// keepTimes sets the times of how a container ended from what its status said before: the engine does not tell them
// any more.
func keepTimes(status *serving.PodContainerStatus, old serving.PodContainerStatus) {
	if ended := status.State.Terminated; ended != nil && old.State.Running != nil {
		ended.StartedAt = old.State.Running.StartedAt
	}
	last := status.LastTerminationState.Terminated
	switch {
	case last == nil:
	case old.State.Running != nil && (status.State.Waiting != nil || status.RestartCount > old.RestartCount):
		last.StartedAt = old.State.Running.StartedAt // it ended since
	case old.LastTerminationState.Terminated != nil && status.RestartCount <= old.RestartCount+1:
		last.StartedAt, last.FinishedAt = old.LastTerminationState.Terminated.StartedAt, old.LastTerminationState.Terminated.FinishedAt
	}
}
