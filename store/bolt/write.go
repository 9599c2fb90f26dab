package bolt

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

// Names made from generateName, as Kubernetes makes them.
const (
	generatedLength = 63 // of the whole name
	randomLength    = 5  // of its random end
	generateTries   = 8
)

// Create implements [store.Store]. The object's namespace must exist; ErrTerminating when it is being deleted.
func (s *Store) Create(ctx context.Context, object serving.Object) (serving.Object, error) {
	return s.create(ctx, object, onDisk)
}

func (s *Store) create(ctx context.Context, object serving.Object, when durability) (serving.Object, error) {
	o := object.DeepCopyObject().(serving.Object)
	k, err := s.keyOfObject(o)
	if err != nil {
		return nil, err
	}
	if err := checkCreate(k, o); err != nil {
		return nil, err
	}
	o.SetUID(newUID())
	o.SetCreationTimestamp(now())
	o.SetGeneration(1)
	o.SetDeletionTimestamp(nil)
	o.SetDeletionGracePeriodSeconds(nil)
	o.SetSelfLink("")
	return s.write(ctx, when, func(b *batch) (serving.Object, error) { return b.create(k, o) })
}

func checkCreate(k key, o serving.Object) error {
	if k.name == "" && o.GetGenerateName() == "" {
		return k.error(errors.New("an object needs metadata.name or metadata.generateName; set one"))
	}
	if namespace := o.GetNamespace(); namespace != k.namespace {
		return k.error(fmt.Errorf("metadata.namespace is %q, but the kind has no namespaces; leave it empty", namespace))
	}
	return checkOwners(k, o)
}

// checkOwners refuses an owner without uid: nothing could ever have it, so the object would be removed at once.
func checkOwners(k key, o serving.Object) error {
	for i, owner := range o.GetOwnerReferences() {
		if owner.UID == "" {
			return k.error(fmt.Errorf("metadata.ownerReferences[%d].uid is empty; set it to the uid of %s %q", i, owner.Kind, owner.Name))
		}
	}
	return nil
}

func (b *batch) create(k key, o serving.Object) (serving.Object, error) {
	if err := b.checkNamespace(k); err != nil {
		return nil, err
	}
	if k.name == "" {
		prefix := o.GetGenerateName()
		prefix = prefix[:min(len(prefix), generatedLength-randomLength)]
		for range generateTries {
			k.name = prefix + rand.String(randomLength)
			if b.get(k) == nil {
				break
			}
		}
		o.SetName(k.name)
	}
	if b.get(k) != nil {
		return nil, k.error(store.ErrAlreadyExists)
	}
	if err := b.put(k, o); err != nil {
		return nil, err
	}
	if len(o.GetOwnerReferences()) > 0 {
		b.store.graph.later(k) // its owner may be gone already
	}
	return o, nil
}

// checkNamespace returns an error unless a new object may be made in the key's namespace.
func (b *batch) checkNamespace(k key) error {
	if !serving.Kinds[k.kind].Namespaced {
		return nil
	}
	n := namespaceKey(k.namespace)
	switch namespace := b.get(n); {
	case namespace == nil:
		return n.error(store.ErrNotFound)
	case namespace.GetDeletionTimestamp() != nil:
		return n.error(fmt.Errorf("%w: %q cannot be created in it", store.ErrTerminating, k.name))
	}
	return nil
}

// Update implements [store.Store].
func (s *Store) Update(ctx context.Context, object serving.Object, part store.Part) (serving.Object, error) {
	return s.update(ctx, object, part, onDisk)
}

func (s *Store) update(ctx context.Context, object serving.Object, part store.Part, when durability) (serving.Object, error) {
	o := object.DeepCopyObject().(serving.Object)
	k, err := s.keyOfObject(o)
	if err != nil {
		return nil, err
	}
	if part == store.Spec {
		if err := checkOwners(k, o); err != nil {
			return nil, err
		}
	}
	return s.write(ctx, when, func(b *batch) (serving.Object, error) { return b.update(k, o, part) })
}

func (b *batch) update(k key, given serving.Object, part store.Part) (serving.Object, error) {
	stored := b.get(k)
	if stored == nil {
		return nil, k.error(store.ErrNotFound)
	}
	if v := given.GetResourceVersion(); v != "" && v != stored.GetResourceVersion() {
		return nil, k.error(store.ErrConflict)
	}
	if uid := given.GetUID(); uid != "" && uid != stored.GetUID() {
		return nil, k.error(fmt.Errorf("%w (uid %s was replaced by %s)", store.ErrConflict, uid, stored.GetUID()))
	}

	next := given
	if part == store.Status {
		next = clone(stored)
		serving.CopyStatus(next, given)
		if owners := given.GetManagedFields(); owners != nil {
			next.SetManagedFields(owners)
		}
	} else {
		serving.CopyStatus(next, stored)
		next.SetNamespace(k.namespace)
		next.SetUID(stored.GetUID())
		next.SetCreationTimestamp(stored.GetCreationTimestamp())
		next.SetDeletionTimestamp(stored.GetDeletionTimestamp())
		next.SetDeletionGracePeriodSeconds(stored.GetDeletionGracePeriodSeconds())
		next.SetSelfLink("")
	}
	before, err := contentOf(stored)
	if err != nil {
		return nil, k.error(err)
	}
	after, err := contentOf(next)
	if err != nil {
		return nil, k.error(err)
	}
	if after == before {
		return stored, nil
	}
	next.SetGeneration(stored.GetGeneration())
	if after.spec != before.spec {
		next.SetGeneration(stored.GetGeneration() + 1)
	}
	if b.finished(k, next) {
		return b.removeAs(k, next)
	}
	if err := b.put(k, next); err != nil {
		return nil, err
	}
	if part == store.Spec && !slices.EqualFunc(stored.GetOwnerReferences(), next.GetOwnerReferences(), sameOwner) {
		b.store.graph.later(k)
	}
	return next, nil
}

func sameOwner(a, b serving.OwnerReference) bool { return a.UID == b.UID }

// Delete implements [store.Store]. Deleting a namespace deletes what is in it.
func (s *Store) Delete(ctx context.Context, kind serving.Kind, namespace, name string, options serving.DeleteOptions) (serving.Object, error) {
	return s.delete(ctx, kind, namespace, name, options, onDisk)
}

func (s *Store) delete(ctx context.Context, kind serving.Kind, namespace, name string, options serving.DeleteOptions, when durability) (serving.Object, error) {
	k, err := keyOf(kind, namespace, name)
	if err != nil {
		return nil, err
	}
	policy, err := policyOf(options)
	if err != nil {
		return nil, k.error(err)
	}
	return s.write(ctx, when, func(b *batch) (serving.Object, error) {
		stored := b.get(k)
		if stored == nil {
			return nil, k.error(store.ErrNotFound)
		}
		if p := options.Preconditions; p != nil {
			if p.UID != nil && *p.UID != stored.GetUID() {
				return nil, k.error(fmt.Errorf("deletion expects uid %s, it has %s: %w", *p.UID, stored.GetUID(), store.ErrConflict))
			}
			if p.ResourceVersion != nil && *p.ResourceVersion != stored.GetResourceVersion() {
				return nil, k.error(fmt.Errorf("deletion expects resourceVersion %s, it has %s: %w",
					*p.ResourceVersion, stored.GetResourceVersion(), store.ErrConflict))
			}
		}
		return b.delete(k, policy)
	})
}

// policyOf returns the propagation policy that options ask for, "" when they leave it to the store.
func policyOf(options serving.DeleteOptions) (v1.DeletionPropagation, error) {
	if options.PropagationPolicy != nil {
		switch policy := *options.PropagationPolicy; policy {
		case v1.DeletePropagationBackground, v1.DeletePropagationForeground, v1.DeletePropagationOrphan:
			return policy, nil
		default:
			return "", fmt.Errorf("propagationPolicy %q is unknown; use %s, %s or %s", policy,
				v1.DeletePropagationBackground, v1.DeletePropagationForeground, v1.DeletePropagationOrphan)
		}
	}
	//lint:ignore SA1019 old clients still send it
	if orphan := options.OrphanDependents; orphan != nil {
		if *orphan {
			return v1.DeletePropagationOrphan, nil
		}
		return v1.DeletePropagationBackground, nil
	}
	return "", nil
}

// now is the time as it reads back from JSON, which has whole seconds.
func now() serving.Time { return v1.NewTime(time.Now().Truncate(time.Second)) }
