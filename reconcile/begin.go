package reconcile

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

// watched are the kinds whose objects are looked at when they change.
var watched = []serving.Kind{
	serving.KindNamespace, serving.KindServiceAccount, serving.KindRevision, serving.KindRoute, serving.KindConfiguration, serving.KindService,
	serving.KindDomainMapping, serving.KindClusterDomainClaim, serving.KindPod, serving.KindCoreService,
}

// publishAll fills the gateway's table with what the stored routes and domain mappings say that requests are sent to. It
// reads no more than that takes: requests wait for it when the server starts. It returns the version that it began at.
func (r *Reconciler) publishAll(ctx context.Context) (version string, err error) {
	routes, version, err := r.Store.Names(ctx, serving.KindRoute, "")
	if err != nil {
		return "", fmt.Errorf("listing %s: %w", serving.KindRoute, err)
	}
	var group sync.WaitGroup
	each := runtime.GOMAXPROCS(0)
	for first := range each {
		group.Go(func() {
			for i := first; i < len(routes) && ctx.Err() == nil; i += each {
				r.republish(ctx, key{serving.KindRoute.String(), routes[i].Namespace, routes[i].Name})
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
func (r *Reconciler) republish(ctx context.Context, k key) {
	err := r.safely(func() error {
		route, err := get[serving.Route](ctx, r, serving.KindRoute, k.namespace, k.name)
		if err != nil || route == nil || route.DeletionTimestamp != nil {
			return err
		}
		if err := r.publish(ctx, route); err != nil {
			return err
		}
		for _, t := range route.Status.Traffic { // they have just been read
			if revision, err := get[serving.Revision](ctx, r, serving.KindRevision, k.namespace, t.RevisionName); err == nil && revision != nil {
				r.index(store.Added, serving.KindRevision, revision)
			}
		}
		r.setReads(k, readsOf(route))
		r.setSends(k, sends(route.Namespace, route.Status.Traffic)) // all revisions are looked at anyway
		return nil
	})
	if err != nil {
		r.retry(ctx, k, err)
	}
}

// takeOver puts the stored objects behind all else that there is to do: those of namespaces first, which others need, then
// service by service, so that what is read for one object is there for the next. The domain mappings are indexed
// already, routes' core services are looked at with their routes, and no pods outlive the server.
func (r *Reconciler) takeOver(ctx context.Context) error {
	services, err := r.indexRevisions(ctx)
	if err != nil {
		return err
	}
	for _, kind := range []serving.Kind{serving.KindNamespace, serving.KindServiceAccount} {
		if err := r.takeOverNames(ctx, kind, func(name types.NamespacedName) { r.queue.addBehind(nameKey(kind, name)) }); err != nil {
			return err
		}
	}
	// A revision first: what its route and configuration say follows from it.
	for _, kind := range []serving.Kind{serving.KindRoute, serving.KindConfiguration, serving.KindService} {
		add := func(name types.NamespacedName) { services[name] = append(services[name], nameKey(kind, name)) }
		if err := r.takeOverNames(ctx, kind, add); err != nil {
			return err
		}
	}
	names := slices.SortedFunc(maps.Keys(services), func(a, b types.NamespacedName) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	for _, name := range names {
		for _, k := range services[name] {
			r.queue.addBehind(k)
		}
	}
	for _, kind := range []serving.Kind{serving.KindDomainMapping, serving.KindClusterDomainClaim} {
		if err := r.takeOverNames(ctx, kind, func(name types.NamespacedName) { r.queue.addBehind(domainKey(name.Name)) }); err != nil {
			return err
		}
	}
	return nil
}

// takeOverNames calls add with the name of each stored object of a kind.
func (r *Reconciler) takeOverNames(ctx context.Context, kind serving.Kind, add func(types.NamespacedName)) error {
	names, _, err := r.Store.Names(ctx, kind, "")
	if err != nil {
		return fmt.Errorf("listing %s: %w", kind, err)
	}
	for _, name := range names {
		add(name)
	}
	return nil
}

// nameKey is keyOf for an object that is known by its name.
func nameKey(kind serving.Kind, name types.NamespacedName) key {
	switch kind.String() {
	case serving.KindNamespace.String():
		return accountKey(name.Name)
	case serving.KindServiceAccount.String():
		return accountKey(name.Namespace)
	}
	return key{kind.String(), name.Namespace, name.Name}
}

// indexRevisions completes the list of each configuration's revisions with those that publishAll had no reason to read,
// and returns the keys of all by their configurations' names.
func (r *Reconciler) indexRevisions(ctx context.Context) (map[types.NamespacedName][]key, error) {
	known := map[types.NamespacedName]string{} // the configuration
	r.mu.Lock()
	for configuration, revisions := range r.revisions {
		for name := range revisions {
			known[types.NamespacedName{Namespace: configuration.namespace, Name: name}] = configuration.name
		}
	}
	r.mu.Unlock()
	services := map[types.NamespacedName][]key{}
	err := r.takeOverNames(ctx, serving.KindRevision, func(name types.NamespacedName) {
		configuration, ok := known[name]
		if !ok {
			o, err := r.Store.Get(ctx, serving.KindRevision, name.Namespace, name.Name)
			if err != nil { // it is deleted meanwhile, or damaged, which the worker that looks at it tells
				r.queue.addBehind(nameKey(serving.KindRevision, name))
				return
			}
			r.index(store.Added, serving.KindRevision, o)
			configuration = o.GetLabels()[serving.LabelConfiguration]
		}
		of := types.NamespacedName{Namespace: name.Namespace, Name: configuration}
		services[of] = append(services[of], nameKey(serving.KindRevision, name))
	})
	return services, err
}
