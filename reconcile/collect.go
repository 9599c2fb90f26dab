package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

// Which revisions are kept that no route sends requests to: Knative's defaults (contract 1.6).
const (
	keepAtLeast     = 20             // the newest of a configuration
	keepAtMost      = 1000           // of a configuration
	keepSinceMade   = 48 * time.Hour // younger ones, up to keepAtMost
	keepSinceActive = 15 * time.Hour // ones that had requests until a short while ago, up to keepAtMost
	annotationNoGC  = "serving.knative.dev/no-gc"
)

// idleRevision is a revision that no route sends requests to.
type idleRevision struct {
	name      string
	made      time.Time
	idleSince time.Time
}

// stale names the idle revisions of one configuration that are not kept at a time.
func stale(idle []idleRevision, at time.Time) []string {
	slices.SortFunc(idle, func(a, b idleRevision) int { return b.made.Compare(a.made) }) // newest first
	var names []string
	for i, r := range idle {
		old := at.Sub(r.made) > keepSinceMade && at.Sub(r.idleSince) > keepSinceActive
		if i >= keepAtMost || i >= keepAtLeast && old {
			names = append(names, r.name)
		}
	}
	return names
}

// collectRevisions deletes what a configuration's deploys have left behind.
func (r *Reconciler) collectRevisions(ctx context.Context, c *serving.Configuration) error {
	var idle []idleRevision
	for _, name := range r.revisionsOf(c) {
		revision, err := get[serving.Revision](ctx, r, serving.KindRevision, c.Namespace, name)
		if err != nil {
			return err
		}
		switch {
		case revision == nil, revision.DeletionTimestamp != nil, !isControlledBy(revision, c):
		case name == c.Status.LatestCreatedRevisionName, name == c.Status.LatestReadyRevisionName:
		case revision.Annotations[annotationNoGC] == "true":
		case r.reachable(revision), revision.Labels[serving.LabelRoutingState] != serving.RoutingReserve:
		default:
			since, err := time.Parse(time.RFC3339, revision.Annotations[serving.AnnotationRoutingStateModified])
			if err != nil {
				since = revision.CreationTimestamp.Time
			}
			idle = append(idle, idleRevision{name: name, made: revision.CreationTimestamp.Time, idleSince: since})
		}
	}
	for _, name := range stale(idle, time.Now()) {
		r.Logger.Info("deleting an old revision", "revision", name)
		_, err := r.Store.Delete(ctx, serving.KindRevision, c.Namespace, name, serving.DeleteOptions{})
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		r.events.note(subject(c), eventNormal, reasonDeleted, "", fmt.Sprintf("Deleted old Revision %q", name))
	}
	return nil
}
