package reconcile

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/berth-run/berth/autoscaler"
	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

// workers is how many objects are reconciled at the same time. Reconciling waits for the disk, not the CPU.
const workers = 8

// key names an object of a kind, which is written with its group: "services.serving.knative.dev".
type key struct{ kind, namespace, name string }

func (k key) String() string { return k.kind + " " + k.namespace + "/" + k.name }

// Run reconciles until ctx ends, and then returns nil. It calls synced once, when the gateway's table is complete. What
// else there is to do for the objects that were stored at the start follows, after what users do meanwhile.
func (r *Reconciler) Run(ctx context.Context, synced func()) error {
	defer r.fetches.Wait()
	defer r.queue.close()

	version, err := r.publishAll(ctx)
	switch {
	case ctx.Err() != nil:
		return nil
	case err != nil:
		return err
	}
	r.attempt(ctx, gatewayKey())
	synced()

	var done sync.WaitGroup
	defer done.Wait()
	defer r.queue.close()
	done.Go(func() { r.events.run(ctx) })
	for range workers {
		done.Go(func() { r.work(ctx) })
	}
	for _, kind := range watched {
		if kind.String() != serving.KindRevision.String() {
			done.Go(func() { r.watch(ctx, kind, version) })
		}
	}
	if err := r.takeOver(ctx); err != nil && ctx.Err() == nil {
		return err
	}
	done.Go(func() { r.watch(ctx, serving.KindRevision, version) }) // not before: the index follows the events
	<-ctx.Done()
	return nil
}

// work reconciles what is queued, until the queue is closed.
func (r *Reconciler) work(ctx context.Context) {
	for {
		k, ok := r.queue.next()
		if !ok {
			return
		}
		r.attempt(ctx, k)
		r.queue.done(k)
	}
}

// attempt reconciles one object, and again later when that did not work.
func (r *Reconciler) attempt(ctx context.Context, k key) {
	err := r.safely(func() error { return r.reconcile(ctx, k) })
	if err == nil {
		r.queue.forget(k)
		return
	}
	r.retry(ctx, k, err)
}

// retry looks at an object again because of an error.
func (r *Reconciler) retry(ctx context.Context, k key, err error) {
	switch {
	case ctx.Err() != nil:
	case errors.Is(err, store.ErrConflict):
		r.queue.add(k) // somebody wrote in between: read again
	default:
		wait := r.queue.addBackoff(k)
		r.Logger.Warn("reconciling", "object", k.String(), "error", err, "again", wait)
	}
}

// safely turns a panic into an error: one object that nobody thought of must not stop the platform, and stop it again
// at every start.
func (r *Reconciler) safely(work func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return work()
}

// watch queues what changes, and what depends on it, until ctx ends.
func (r *Reconciler) watch(ctx context.Context, kind serving.Kind, version string) {
	for ctx.Err() == nil {
		w, err := r.Store.Watch(ctx, kind, "", version)
		if err != nil {
			version = r.relist(ctx, kind)
			continue
		}
		for e := range w.Events() {
			version = e.Object.GetResourceVersion()
			r.index(e.Type, kind, e.Object)
			r.affected(kind, e.Object)
		}
		w.Stop()
	}
}

// relist queues every object of a kind, when a watch could not tell what changed.
func (r *Reconciler) relist(ctx context.Context, kind serving.Kind) string {
	objects, version, err := r.Store.List(ctx, kind, "")
	if err != nil {
		if ctx.Err() == nil {
			r.Logger.Error("listing objects", "kind", kind.String(), "error", err)
			sleep(ctx, time.Second)
		}
		return ""
	}
	for _, o := range objects {
		r.index(store.Modified, kind, o)
		r.affected(kind, o)
	}
	// What was deleted meanwhile is known only from what is held for it.
	r.mu.Lock()
	defer r.mu.Unlock()
	for k := range r.deployments {
		r.queue.add(key{serving.KindRevision.String(), k.Namespace, k.Revision})
	}
	for route := range r.reads {
		r.queue.add(route)
	}
	for host := range r.domains {
		r.queue.add(domainKey(host))
	}
	return version
}

// index keeps the lists of each configuration's revisions and of each host's domain mappings.
func (r *Reconciler) index(event store.EventType, kind serving.Kind, o serving.Object) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch kind.String() {
	case serving.KindRevision.String():
		owner := key{serving.KindConfiguration.String(), o.GetNamespace(), o.GetLabels()[serving.LabelConfiguration]}
		enter(r.revisions, event, owner, o.GetName())
	case serving.KindDomainMapping.String():
		enter(r.domains, event, o.GetName(), o.GetNamespace())
	}
}

// enter follows an event of one name in an index.
func enter[K comparable](index map[K]map[string]struct{}, event store.EventType, owner K, name string) {
	if event == store.Deleted {
		delete(index[owner], name)
		if len(index[owner]) == 0 {
			delete(index, owner)
		}
		return
	}
	if index[owner] == nil {
		index[owner] = map[string]struct{}{}
	}
	index[owner][name] = struct{}{}
}

// keyOf is what to look at when an object changed: the object, but for domain mappings and claims, which are looked
// at together with all others of their host, pods, with all others of their revision, and namespaces and service
// accounts, of which the namespace's own account is looked at.
func keyOf(kind serving.Kind, o serving.Object) key {
	switch kind.String() {
	case serving.KindDomainMapping.String(), serving.KindClusterDomainClaim.String():
		return domainKey(o.GetName())
	case serving.KindNamespace.String():
		return accountKey(o.GetName())
	case serving.KindServiceAccount.String():
		return accountKey(o.GetNamespace())
	case serving.KindPod.String():
		return podsKey(autoscaler.Key{Namespace: o.GetNamespace(), Revision: o.GetLabels()[serving.LabelRevision]})
	}
	return key{kind.String(), o.GetNamespace(), o.GetName()}
}

// affected queues an object that changed, its owner, and the routes and domain mappings that read it.
func (r *Reconciler) affected(kind serving.Kind, o serving.Object) {
	if kind.String() == serving.KindPod.String() && o.GetDeletionTimestamp() == nil {
		return // it is the reconciler's own change
	}
	self := keyOf(kind, o)
	r.queue.add(self)
	for _, owner := range o.GetOwnerReferences() {
		if k, ok := serving.FindKind(owner.APIVersion, owner.Kind); ok {
			r.queue.add(key{k.String(), o.GetNamespace(), owner.Name})
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for reader := range r.readers[self] {
		r.queue.add(reader)
	}
}

// setReads records which objects a route or a host's domain mapping reads, so that it is looked at again when they change.
func (r *Reconciler) setReads(route key, objects []key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, o := range r.reads[route] {
		delete(r.readers[o], route)
		if len(r.readers[o]) == 0 {
			delete(r.readers, o)
		}
	}
	delete(r.reads, route)
	if len(objects) == 0 {
		return
	}
	r.reads[route] = objects
	for _, o := range objects {
		if r.readers[o] == nil {
			r.readers[o] = map[key]struct{}{}
		}
		r.readers[o][route] = struct{}{}
	}
}

// setSends records which revisions a route sends requests to, and returns those that gained their first route or
// lost their last one.
func (r *Reconciler) setSends(route key, revisions []autoscaler.Key) (turned []key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	changed := map[autoscaler.Key]struct{}{}
	for _, k := range revisions {
		if r.routed[k]++; r.routed[k] == 1 {
			changed[k] = struct{}{}
		}
	}
	for _, k := range r.sends[route] {
		if r.routed[k]--; r.routed[k] == 0 {
			delete(r.routed, k)
			changed[k] = struct{}{}
		}
	}
	if len(revisions) == 0 {
		delete(r.sends, route)
	} else {
		r.sends[route] = revisions
	}
	for k := range changed {
		turned = append(turned, key{serving.KindRevision.String(), k.Namespace, k.Revision})
	}
	return turned
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
