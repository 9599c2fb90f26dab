package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/berth-run/berth/autoscaler"
	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/image"
	"github.com/berth-run/berth/serving"
)

// fetch is the state of getting a revision's images, from their names to layers on disk. It works in goroutines of
// its own, so that a slow registry holds nobody up.
type fetch struct {
	mu       sync.Mutex
	state    fetchState
	digests  []string // of the containers, in their order: references by digest; nil until all are resolved
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

// fetched tells whether a revision's images are here, and otherwise gets them and says in the status how far that is.
// A revision that was ready before (in an earlier life of the server) counts as fetched: its images are most likely
// on disk, and are looked for in the background.
func (r *Reconciler) fetched(ctx context.Context, d *deployment, revision *serving.Revision) bool {
	f := &d.fetch
	f.mu.Lock()
	defer f.mu.Unlock()
	containers, known := revision.Spec.Containers, revision.Status.ContainerStatuses
	wasReady := revision.IsReady() && len(known) == len(containers)
	if f.state == fetchIdle {
		if f.digests == nil && len(known) == len(containers) {
			for _, status := range known {
				f.digests = append(f.digests, status.ImageDigest)
			}
		}
		f.state = fetchResolving
		f.begin(ctx, r, d, revision)
	}
	if f.digests != nil {
		revision.Status.ContainerStatuses = nil
		for n, c := range containers {
			revision.Status.ContainerStatuses = append(revision.Status.ContainerStatuses, serving.ContainerStatus{Name: c.Name, ImageDigest: f.digests[n]})
		}
	}
	switch f.state {
	case fetchDone:
		return true
	case fetchFailed:
		if !wasReady {
			_, serves := servingContainer(revision)
			reason, message := explainFetch(serves.Image, f.err)
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
		err := r.fetch(ctx, f, d.key, revision, wasReady)
		k := key{serving.KindRevision.String(), d.key.Namespace, d.key.Revision}
		if err == nil {
			f.set(func() { f.state, f.failures, f.stop = fetchDone, 0, nil })
			if wasReady { // the server has begun again, and counted on it
				return
			}
			r.events.note(about, eventNormal, reasonImagePulled, d.key.Revision,
				fmt.Sprintf("Revision %q has its image on this machine after %s: %s", d.key.Revision, time.Since(begun).Round(time.Millisecond), strings.Join(f.digests, ", ")))
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

// imageError is why one of a revision's images cannot be had.
type imageError struct {
	image string // as the user named it
	err   error
}

func (e *imageError) Error() string { return e.err.Error() }
func (e *imageError) Unwrap() error { return e.err }

// fetch resolves and pulls the images of a revision, whose status it leaves alone: that is being written meanwhile.
func (r *Reconciler) fetch(ctx context.Context, f *fetch, id autoscaler.Key, revision *serving.Revision, wasReady bool) error {
	containers := revision.Spec.Containers
	credentials := make([]engine.Credentials, len(containers))
	for n, c := range containers {
		var err error
		if credentials[n], err = r.credentials(ctx, revision, c.Image); err != nil {
			return &imageError{c.Image, err}
		}
	}
	f.mu.Lock()
	digests := f.digests
	f.mu.Unlock()
	if digests == nil {
		var err error
		if digests, err = r.resolve(ctx, containers, credentials); err != nil {
			return err
		}
	}
	f.set(func() { f.digests, f.state = digests, fetchPulling })
	if !wasReady {
		r.queue.add(key{serving.KindRevision.String(), id.Namespace, id.Revision})
	}
	return r.pull(ctx, f, id, containers, digests, credentials)
}

// resolve finds the digests of the containers' images.
func (r *Reconciler) resolve(ctx context.Context, containers []serving.Container, credentials []engine.Credentials) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, r.ResolveTimeout)
	defer cancel()
	digests := make([]string, len(containers))
	for n, c := range containers {
		if same := slices.IndexFunc(containers[:n], func(other serving.Container) bool { return other.Image == c.Image }); same >= 0 {
			digests[n] = digests[same] // also when somebody has moved the tag meanwhile
			continue
		}
		var err error
		if digests[n], err = r.Images.Resolve(ctx, c.Image, image.Credentials(credentials[n])); err != nil {
			return nil, &imageError{c.Image, err}
		}
	}
	return digests, nil
}

// pull pulls the containers' images beside each other, and adds their progress up. The first that fails ends the others.
func (r *Reconciler) pull(ctx context.Context, f *fetch, id autoscaler.Key, containers []serving.Container, digests []string, credentials []engine.Credentials) error {
	ctx, cancel := context.WithTimeout(ctx, r.PullTimeout)
	defer cancel()
	k := key{serving.KindRevision.String(), id.Namespace, id.Revision}
	progress := make([]engine.Progress, len(digests))
	var pulls sync.WaitGroup
	var failed error // guarded by f.mu
	for n, digest := range digests {
		if slices.Contains(digests[:n], digest) {
			continue
		}
		pulls.Go(func() {
			spec := engine.Spec{Namespace: id.Namespace, Revision: id.Revision, Container: engine.Container{Image: digest, Credentials: credentials[n]}}
			err := r.Engine.Pull(ctx, spec, func(p engine.Progress) {
				f.set(func() {
					progress[n] = p
					f.progress = engine.Progress{}
					for _, p := range progress {
						f.progress.Complete, f.progress.Total = f.progress.Complete+p.Complete, f.progress.Total+p.Total
					}
				})
				r.queue.addAfter(k, time.Second) // at most one durable write a second
			})
			f.set(func() {
				if err != nil && failed == nil {
					failed = &imageError{containers[n].Image, err}
					cancel()
				}
			})
		})
	}
	pulls.Wait()
	return failed
}

// explainFetch turns a failure to get an image into a condition's reason and message. ref is the image that the
// failure is about when it names none.
func explainFetch(ref string, err error) (reason, message string) {
	var one *imageError
	if errors.As(err, &one) {
		ref = one.image
	}
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
