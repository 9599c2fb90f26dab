package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"knative.dev/pkg/apis"

	"github.com/berth-run/berth/autoscaler"
	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/image"
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
	status, _ := r.Autoscaler.Status(id)
	markInstances(&revision.Status, revision.Name, declared, status, d.failure)
	return r.finish(ctx, d, revision)
}

// finish stores the status and remembers whether the revision is ready.
func (r *Reconciler) finish(ctx context.Context, d *deployment, revision *serving.Revision) error {
	revision.Status.ObservedGeneration = revision.Generation
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
		reason, message := explain(name, declared.Spec.Container.Port, status.Failure)
		s.MarkResourcesAvailableTrue()
		s.MarkContainerHealthyFalse(reason, message)
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
	case status.Failure != nil && s.GetCondition(serving.RevisionReady).IsTrue():
		// It was proven once, and requests come, but no instance starts any more.
		reason, message := explain(name, declared.Spec.Container.Port, status.Failure)
		s.MarkActiveFalse(reason, strings.ReplaceAll(message, "%", "%%")) // it is a format
	case s.GetCondition(serving.RevisionReady).IsTrue():
		s.MarkActiveFalse("NoTraffic", "The target is not receiving traffic.")
	default:
		s.MarkActiveUnknown(serving.ReasonDeploying, "")
	}
}

// explain turns a start failure into a condition's reason and message: the sentence that clients of Knative and
// Cloud Run know (contract 1.2, E1 and E2), then what was seen.
func explain(revision string, port int, failure error) (reason, message string) {
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
	case start.Reason == engine.ReasonNotListening && !start.LoopbackOnly():
		return start.Reason, fmt.Sprintf("Revision %s is not ready and cannot serve traffic. The user provided container "+
			"failed to start and listen on port defined by PORT=%d environment variable within the allocated timeout. This can "+
			"happen if the port is misconfigured or if the timeout is too short. The healthcheck timeout can be extended. "+
			"What was seen: %s", revision, port, start.Error())
	case slices.Contains([]string{engine.ReasonNotListening, engine.ReasonWrongPlatform, engine.ReasonNotExecutable}, start.Reason):
		return start.Reason, "Container failed to start. Failed to start and then listen on the port defined by the PORT " +
			"environment variable. What was seen: " + start.Error()
	}
	return start.Reason, start.Error()
}

// fetch is the state of getting a revision's image, from its name to layers on disk. It works in a goroutine of
// its own, so that a slow registry holds nobody up.
type fetch struct {
	mu       sync.Mutex
	state    fetchState
	digest   string // reference by digest, once resolved
	progress engine.Progress
	err      error
	failures int
	stop     context.CancelFunc
}

type fetchState int

const (
	fetchIdle fetchState = iota
	fetchResolving
	fetchPulling
	fetchFailed
	fetchDone
)

func (f *fetch) cancel() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stop != nil {
		f.stop()
	}
}

// set changes the state under the lock.
func (f *fetch) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// fetched tells whether a revision's image is here, and otherwise gets it and says in the status how far that is.
// A revision that was ready before (in an earlier life of the server) counts as fetched: its image is most likely
// on disk, and is looked for in the background.
func (r *Reconciler) fetched(ctx context.Context, d *deployment, revision *serving.Revision) bool {
	f := &d.fetch
	f.mu.Lock()
	defer f.mu.Unlock()
	container := revision.Spec.Containers[0]
	wasReady := revision.IsReady() && len(revision.Status.ContainerStatuses) > 0
	if f.state == fetchIdle {
		if len(revision.Status.ContainerStatuses) > 0 {
			f.digest = revision.Status.ContainerStatuses[0].ImageDigest
		}
		f.state = fetchResolving
		f.begin(ctx, r, d, revision)
	}
	if f.digest != "" {
		revision.Status.ContainerStatuses = []serving.ContainerStatus{{Name: container.Name, ImageDigest: f.digest}}
	}
	switch f.state {
	case fetchDone:
		return true
	case fetchFailed:
		if !wasReady {
			reason, message := explainFetch(container.Image, f.err)
			revision.Status.MarkContainerHealthyFalse(reason, message)
		}
	case fetchResolving:
		if !wasReady {
			revision.Status.MarkResourcesAvailableUnknown(serving.ReasonResolvingDigests, "Resolving the image")
			revision.Status.MarkContainerHealthyUnknown(serving.ReasonResolvingDigests, "")
		}
	case fetchPulling:
		if !wasReady {
			revision.Status.MarkResourcesAvailableUnknown("PullingImage", pullMessage(f.progress))
			revision.Status.MarkContainerHealthyUnknown(serving.ReasonDeploying, "")
		}
	}
	return wasReady
}

// begin starts getting the image. f.mu is held.
func (f *fetch) begin(ctx context.Context, r *Reconciler, d *deployment, revision *serving.Revision) {
	ctx, f.stop = context.WithCancel(ctx)
	cancel := f.stop
	about, wasReady := subject(revision), revision.IsReady()
	r.fetches.Go(func() {
		defer cancel()
		begun := time.Now()
		err := r.fetch(ctx, f, d.key, revision)
		k := key{serving.KindRevision.String(), d.key.Namespace, d.key.Revision}
		if err == nil {
			f.set(func() { f.state, f.failures = fetchDone, 0 })
			if !wasReady { // else the server has begun again
				r.events.note(about, eventNormal, reasonImagePulled, d.key.Revision,
					fmt.Sprintf("Revision %q has its image on this machine after %s: %s", d.key.Revision, time.Since(begun).Round(time.Millisecond), f.digest))
			}
			r.queue.add(k)
			return
		}
		if ctx.Err() != nil {
			return
		}
		r.events.note(about, eventWarning, reasonImagePullFailed, d.key.Revision,
			fmt.Sprintf("Revision %q does not get its image: %s", d.key.Revision, err))
		var again time.Duration
		f.set(func() {
			f.state, f.err = fetchFailed, err
			again = min(10*time.Second<<min(f.failures, 6), 5*time.Minute)
			f.failures++
		})
		r.queue.add(k)
		time.AfterFunc(again, func() {
			f.set(func() {
				if f.state == fetchFailed {
					f.state = fetchIdle
				}
			})
			r.queue.add(k)
		})
	})
}

// fetch resolves and pulls the image of a revision.
func (r *Reconciler) fetch(ctx context.Context, f *fetch, id autoscaler.Key, revision *serving.Revision) error {
	credentials, err := r.credentials(ctx, revision)
	if err != nil {
		return err
	}
	f.mu.Lock()
	digest := f.digest
	f.mu.Unlock()
	if digest == "" {
		resolving, cancel := context.WithTimeout(ctx, r.ResolveTimeout)
		defer cancel()
		digest, err = r.Images.Resolve(resolving, revision.Spec.Containers[0].Image, image.Credentials{
			Username: credentials.Username, Password: credentials.Password, Token: credentials.Token, Insecure: credentials.Insecure,
		})
		if err != nil {
			return err
		}
	}
	k := key{serving.KindRevision.String(), id.Namespace, id.Revision}
	f.set(func() { f.digest, f.state = digest, fetchPulling })
	r.queue.add(k)

	pulling, cancel := context.WithTimeout(ctx, r.PullTimeout)
	defer cancel()
	spec := engine.Spec{Namespace: id.Namespace, Revision: id.Revision, Container: engine.Container{Image: digest, Credentials: credentials}}
	return r.Engine.Pull(pulling, spec, func(p engine.Progress) {
		f.set(func() { f.progress = p })
		r.queue.addAfter(k, time.Second) // at most one durable write a second
	})
}

// explainFetch turns a failure to get an image into a condition's reason and message.
func explainFetch(ref string, err error) (reason, message string) {
	var platform *image.PlatformError
	if errors.As(err, &platform) {
		return engine.ReasonWrongPlatform, "Container failed to start. Failed to start and then listen on the port defined by " +
			"the PORT environment variable. What was seen: " + err.Error()
	}
	seen := strings.TrimPrefix(err.Error(), fmt.Sprintf("image %q: ", ref)) // Knative's sentence names it already
	return serving.ReasonContainerMissing, serving.RevisionContainerMissingMessage(ref, seen)
}

// pullMessage says how far a pull is: "Pulling the image: 12.3 of 45.6 MiB".
func pullMessage(p engine.Progress) string {
	const mib = 1 << 20
	if p.Total == 0 {
		return "Pulling the image"
	}
	return fmt.Sprintf("Pulling the image: %.1f of %.1f MiB", float64(p.Complete)/mib, float64(p.Total)/mib)
}
