package bolt

import (
	"slices"

	"k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-run/berth/serving"
)

// graph knows which object has a uid and which objects name it as an owner. Deletions that have consequences for
// other objects put those into unfinished; the committing goroutine works that off, in the same commit where it
// can. Nothing of this is stored: findUnfinished derives it from the objects when a store is opened, so that a
// crash between two commits loses nothing.
type graph struct {
	objects    map[types.UID]key
	dependents map[types.UID][]key // by the owner's uid
	population map[string]int      // objects in each namespace
	unfinished []key
}

func newGraph() graph {
	return graph{
		objects:    make(map[types.UID]key),
		dependents: make(map[types.UID][]key),
		population: make(map[string]int),
	}
}

// replace records that an object's state changed; nil is absent.
func (g *graph) replace(k key, before, after serving.Object) {
	if before != nil {
		delete(g.objects, before.GetUID())
		g.population[k.namespace]--
	}
	if after != nil {
		g.objects[after.GetUID()] = k
		g.population[k.namespace]++
	}
	if g.population[k.namespace] == 0 {
		delete(g.population, k.namespace)
	}
	var old, new []serving.OwnerReference
	if before != nil {
		old = before.GetOwnerReferences()
	}
	if after != nil {
		new = after.GetOwnerReferences()
	}
	if slices.EqualFunc(old, new, sameOwner) {
		return
	}
	for _, owner := range old {
		keys := g.dependents[owner.UID]
		if i := slices.Index(keys, k); i >= 0 {
			keys = slices.Delete(keys, i, i+1)
		}
		if len(keys) == 0 {
			delete(g.dependents, owner.UID)
		} else {
			g.dependents[owner.UID] = keys
		}
	}
	for _, owner := range new {
		if !slices.Contains(g.dependents[owner.UID], k) {
			g.dependents[owner.UID] = append(g.dependents[owner.UID], k)
		}
	}
}

// later notes objects to look at: they may have to be deleted, or their deletion may be complete.
func (g *graph) later(keys ...key) { g.unfinished = append(g.unfinished, keys...) }

// found is what is known of an object that was read from the file.
type found struct {
	key      key
	owners   []serving.OwnerReference
	deleting bool
}

// findUnfinished notes every object whose deletion, or whose owner's, was under way when the store was closed.
func (s *Store) findUnfinished(objects []found) (err error) {
	defer catch(&err)
	b := &batch{store: s}
	anyDeleting := slices.ContainsFunc(objects, func(o found) bool { return o.deleting })
	for _, o := range objects {
		unfinished := o.deleting
		if len(o.owners) > 0 && (anyDeleting || !s.graph.hasAll(o.owners)) {
			owners := b.ownersOf(o.key, &serving.Namespace{ObjectMeta: serving.ObjectMeta{OwnerReferences: o.owners}})
			unfinished = unfinished || owners.gone+owners.waiting > 0
		}
		if unfinished || anyDeleting && b.namespaceEnds(o.key) {
			s.graph.later(o.key)
		}
	}
	return nil
}

// hasAll reports whether every owner is there.
func (g *graph) hasAll(owners []serving.OwnerReference) bool {
	return !slices.ContainsFunc(owners, func(o serving.OwnerReference) bool {
		_, ok := g.objects[o.UID]
		return !ok
	})
}

// collectUnfinished looks at up to n noted objects, and returns which. What it cannot do stays noted.
func (b *batch) collectUnfinished(n int) []key {
	g := &b.store.graph
	var looked []key
	for len(g.unfinished) > 0 && len(looked) < n {
		k := g.unfinished[0]
		g.unfinished = g.unfinished[1:]
		looked = append(looked, k)
		mark := len(b.changes)
		if err := b.collect(k); err != nil {
			b.undo(mark)
			b.store.logger.Error("removing an object whose owner is gone", "error", err)
		}
	}
	if len(g.unfinished) == 0 {
		g.unfinished = nil
	}
	return looked
}

// collect does what the deletions of other objects mean for one.
func (b *batch) collect(k key) (err error) {
	defer catch(&err)
	o := b.get(k)
	if o == nil {
		return nil
	}
	if o.GetDeletionTimestamp() != nil {
		return b.advance(k, o)
	}
	if b.namespaceEnds(k) {
		_, err := b.delete(k, v1.DeletePropagationBackground)
		return err
	}
	owners := b.ownersOf(k, o)
	switch {
	case owners.gone+owners.waiting == 0:
		return nil
	case owners.present > 0: // it stays for the others
		next := clone(o)
		next.SetOwnerReferences(owners.kept)
		return b.put(k, next)
	}
	policy := v1.DeletePropagationBackground
	if owners.waiting > 0 && !b.inCycle(o) {
		policy = v1.DeletePropagationForeground
	}
	_, err = b.delete(k, policy)
	return err
}

// owners counts the owners of an object by their state.
type owners struct {
	present, waiting, gone int                      // waiting: deleted, but waits for its dependents to go first
	kept                   []serving.OwnerReference // of those present
}

// ownersOf sorts an object's owners. One whose kind is not kept here cannot be looked up and counts as present.
// An owner is in the object's namespace, or in none.
func (b *batch) ownersOf(k key, o serving.Object) owners {
	var sorted owners
	for _, reference := range o.GetOwnerReferences() {
		_, known := serving.FindKind(reference.APIVersion, reference.Kind)
		owner, found := b.store.graph.objects[reference.UID]
		found = found && (owner.namespace == "" || owner.namespace == k.namespace)
		switch {
		case !found && known:
			sorted.gone++
		case found && waits(b.get(owner)):
			sorted.waiting++
		default:
			sorted.present++
			sorted.kept = append(sorted.kept, reference)
		}
	}
	return sorted
}

// waits reports whether an object is being deleted and waits for its dependents.
func waits(o serving.Object) bool {
	return o.GetDeletionTimestamp() != nil && slices.Contains(o.GetFinalizers(), v1.FinalizerDeleteDependents)
}

// inCycle reports whether one of an object's dependents waits for its own dependents already: objects that own
// each other would wait for ever.
func (b *batch) inCycle(o serving.Object) bool {
	return slices.ContainsFunc(b.store.graph.dependents[o.GetUID()], func(k key) bool { return waits(b.get(k)) })
}

// delete deletes an object, or marks it as being deleted when something has to happen first. It returns its state
// after that.
func (b *batch) delete(k key, policy v1.DeletionPropagation) (serving.Object, error) {
	o := b.get(k)
	if policy == "" {
		policy = v1.DeletePropagationBackground
		switch finalizers := o.GetFinalizers(); {
		case slices.Contains(finalizers, v1.FinalizerOrphanDependents):
			policy = v1.DeletePropagationOrphan
		case slices.Contains(finalizers, v1.FinalizerDeleteDependents):
			policy = v1.DeletePropagationForeground
		}
	}
	// The two finalizers that carry a policy are the store's own: it sets what is asked for now.
	finalizers := slices.DeleteFunc(slices.Clone(o.GetFinalizers()), func(name string) bool {
		return name == v1.FinalizerOrphanDependents || name == v1.FinalizerDeleteDependents
	})
	switch policy {
	case v1.DeletePropagationOrphan:
		if err := b.orphan(o); err != nil {
			return nil, err
		}
	case v1.DeletePropagationForeground:
		if len(b.blockers(o)) > 0 {
			finalizers = append(finalizers, v1.FinalizerDeleteDependents)
			b.store.graph.later(b.store.graph.dependents[o.GetUID()]...)
		}
	}

	if o.GetDeletionTimestamp() != nil && slices.Equal(finalizers, o.GetFinalizers()) {
		return o, nil
	}
	next := clone(o)
	next.SetFinalizers(finalizers)
	if next.GetDeletionTimestamp() == nil {
		at, grace := now(), int64(0)
		next.SetDeletionTimestamp(&at)
		next.SetDeletionGracePeriodSeconds(&grace)
	}
	if b.finished(k, next) {
		// The last state of an object that goes at once does not say that it was going.
		next.SetDeletionTimestamp(o.GetDeletionTimestamp())
		next.SetDeletionGracePeriodSeconds(o.GetDeletionGracePeriodSeconds())
		return b.removeAs(k, next)
	}
	if namespace, ok := next.(*serving.Namespace); ok {
		namespace.Status.Phase = serving.NamespaceTerminating
		b.store.graph.later(b.contents(k)...)
	}
	if err := b.put(k, next); err != nil {
		return nil, err
	}
	b.store.graph.later(k)
	return next, nil
}

// orphan takes an owner's reference from each of its dependents.
func (b *batch) orphan(owner serving.Object) error {
	for _, k := range slices.Clone(b.store.graph.dependents[owner.GetUID()]) {
		next := clone(b.get(k))
		next.SetOwnerReferences(slices.DeleteFunc(slices.Clone(next.GetOwnerReferences()), func(reference serving.OwnerReference) bool {
			return reference.UID == owner.GetUID()
		}))
		if err := b.put(k, next); err != nil {
			return err
		}
	}
	return nil
}

// blockers returns the dependents that keep an owner from being deleted in the foreground.
func (b *batch) blockers(owner serving.Object) []key {
	var keys []key
	for _, k := range b.store.graph.dependents[owner.GetUID()] {
		blocks := slices.ContainsFunc(b.get(k).GetOwnerReferences(), func(reference serving.OwnerReference) bool {
			return reference.UID == owner.GetUID() && reference.BlockOwnerDeletion != nil && *reference.BlockOwnerDeletion
		})
		if blocks {
			keys = append(keys, k)
		}
	}
	return keys
}

// advance goes on with the deletion of an object that is being deleted.
func (b *batch) advance(k key, o serving.Object) error {
	next := o
	if waits(o) && len(b.blockers(o)) == 0 {
		next = clone(o)
		next.SetFinalizers(slices.DeleteFunc(slices.Clone(o.GetFinalizers()), func(name string) bool {
			return name == v1.FinalizerDeleteDependents
		}))
	}
	if b.finished(k, next) {
		_, err := b.removeAs(k, next)
		return err
	}
	if next != o {
		return b.put(k, next)
	}
	return nil
}

// finished reports whether an object, as it would be stored next, is to be removed instead: it is being deleted,
// and nothing holds it.
func (b *batch) finished(k key, next serving.Object) bool {
	if next.GetDeletionTimestamp() == nil || len(next.GetFinalizers()) > 0 {
		return false
	}
	_, isNamespace := next.(*serving.Namespace)
	return !isNamespace || b.store.graph.population[k.name] == 0
}

// removeAs removes an object whose last state is the given one, and notes whom that concerns.
func (b *batch) removeAs(k key, last serving.Object) (serving.Object, error) {
	last = clone(last) // stored objects are shared and not to be changed
	if err := b.remove(k, last); err != nil {
		return nil, err
	}
	g := &b.store.graph
	g.later(g.dependents[last.GetUID()]...)
	for _, reference := range last.GetOwnerReferences() {
		if owner, ok := g.objects[reference.UID]; ok && b.get(owner).GetDeletionTimestamp() != nil {
			g.later(owner)
		}
	}
	if b.namespaceEnds(k) && g.population[k.namespace] == 0 {
		g.later(namespaceKey(k.namespace))
	}
	return last, nil
}

// namespaceEnds reports whether the namespace that an object is in is being deleted.
func (b *batch) namespaceEnds(k key) bool {
	if k.namespace == "" {
		return false
	}
	namespace := b.get(namespaceKey(k.namespace))
	return namespace != nil && namespace.GetDeletionTimestamp() != nil
}

// contents returns the objects in a namespace.
func (b *batch) contents(namespace key) []key {
	var keys []key
	for kind := range b.store.tables {
		if !serving.Kinds[kind].Namespaced {
			continue
		}
		for _, row := range b.store.tables[kind].in(namespace.name) {
			if k := (key{kind, row.namespace, row.name}); b.has(k) {
				keys = append(keys, k)
			}
		}
	}
	for k, o := range b.pending {
		if o != nil && k.namespace == namespace.name && !b.store.tables[k.kind].has(k.namespace, k.name) {
			keys = append(keys, k)
		}
	}
	return keys
}

// namespaceKey is the key of the namespace with a name.
func namespaceKey(name string) key {
	k, _ := keyOf(serving.KindNamespace, "", name) // its kind is always known
	return k
}
