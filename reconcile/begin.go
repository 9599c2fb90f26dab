package reconcile

import (
	"context"
	"fmt"
	"runtime"
	"sync"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

// watched are the kinds whose objects are looked at when they change, in the order in which they are looked at first:
// requests wait for revisions.
var watched = []serving.Kind{
	serving.KindNamespace, serving.KindServiceAccount, serving.KindRevision, serving.KindRoute, serving.KindConfiguration, serving.KindService,
	serving.KindDomainMapping, serving.KindClusterDomainClaim, serving.KindPod, serving.KindCoreService,
}

// publishAll fills the gateway's table with what the stored routes and domain mappings say that requests are sent to. It
// reads no more than that takes: requests wait for it when the server starts. It returns the version that it began at.
func (r *Reconciler) publishAll(ctx context.Context) (version string, err error) {
	routes, version, err := r.Store.List(ctx, serving.KindRoute, "")
	if err != nil {
		return "", fmt.Errorf("listing %s: %w", serving.KindRoute, err)
	}
	var group sync.WaitGroup
	each := runtime.GOMAXPROCS(0)
	for first := range each {
		group.Go(func() {
			for i := first; i < len(routes) && ctx.Err() == nil; i += each {
				r.republish(ctx, routes[i].(*serving.Route))
			}
		})
	}
	group.Wait()
	for _, kind := range []serving.Kind{serving.KindDomainMapping, serving.KindClusterDomainClaim} {
		objects, _, err := r.Store.List(ctx, kind, "")
		if err != nil {
			return "", fmt.Errorf("listing %s: %w", kind, err)
		}
		for _, o := range objects {
			r.index(store.Added, kind, o)
		}
		for _, o := range objects {
			r.attempt(ctx, keyOf(kind, o))
		}
	}
	return version, nil
}

// republish sends the requests of a route to where its status says that they went before the server ended.
func (r *Reconciler) republish(ctx context.Context, route *serving.Route) {
	if route.DeletionTimestamp != nil {
		return
	}
	k := keyOf(serving.KindRoute, route)
	err := r.safely(func() error { return r.publish(ctx, route) })
	if err != nil {
		r.retry(ctx, k, err)
		return
	}
	r.setReads(k, readsOf(route))
	r.setSends(k, sends(route.Namespace, route.Status.Traffic)) // all revisions are looked at anyway
}

// takeOver puts the stored objects of a kind behind all else that there is to do. The domain mappings are indexed
// already.
func (r *Reconciler) takeOver(ctx context.Context, kind serving.Kind) error {
	objects, _, err := r.Store.List(ctx, kind, "")
	if err != nil {
		return fmt.Errorf("listing %s: %w", kind, err)
	}
	for _, o := range objects {
		if kind.String() == serving.KindRevision.String() {
			r.index(store.Added, kind, o)
		}
		r.queue.addBehind(keyOf(kind, o))
	}
	return nil
}
