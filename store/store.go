// Package store defines where the objects live: versioned, watched, and durable where users declare them. [Store] is shaped so that
// an embedded file (store/bolt) and a Kubernetes API server can both be behind it.
// It stores what it is given: defaulting and validation happen before, in package api and the reconcilers.
package store

import (
	"context"
	"errors"

	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-run/berth/serving"
)

// Errors that every implementation returns, wrapped with the object's kind and name; test with errors.Is.
var (
	ErrNotFound      = errors.New("not found")
	ErrAlreadyExists = errors.New("already exists")
	// ErrConflict: the object changed since the version the caller read; read it again.
	ErrConflict = errors.New("the object has been modified; read it again and apply your change to the newest version")
	// ErrGone: the version to watch from is too old; list again and watch from the list's version.
	ErrGone = errors.New("too old resource version")
	// ErrTerminating: the namespace is being deleted and takes no new objects.
	ErrTerminating = errors.New("the namespace is being deleted")
)

// Store holds objects. All methods may be called concurrently.
//
// Objects that it returns are shared and read-only: DeepCopyObject before changing one.
// Objects that it is given are copied.
type Store interface {
	// Get returns one object, or ErrNotFound.
	Get(ctx context.Context, kind serving.Kind, namespace, name string) (serving.Object, error)

	// List returns the objects of a kind in a namespace ("" is all), ordered by namespace and name, and the
	// version they were read at, to watch from.
	List(ctx context.Context, kind serving.Kind, namespace string) ([]serving.Object, string, error)

	// Page is List of the objects after a name, limit of them at most; more is how many come after those. After the zero
	// name come all. Objects between two pages may change: each is as it was at its page's version.
	Page(ctx context.Context, kind serving.Kind, namespace string, after types.NamespacedName, limit int) (
		objects []serving.Object, more int, version string, err error)

	// Names returns the names of the objects that List returns, and the version. It costs much less.
	Names(ctx context.Context, kind serving.Kind, namespace string) ([]types.NamespacedName, string, error)

	// Create stores a new object and returns it with uid, resourceVersion, creationTimestamp and generation 1.
	// A generateName becomes a name. It is durable when Create returns, unless its kind is ephemeral: such objects
	// are gone after a restart. ErrAlreadyExists when the name is taken.
	Create(ctx context.Context, object serving.Object) (serving.Object, error)

	// Update replaces an object and returns it with a new resourceVersion. When the given resourceVersion is not
	// empty it must be the stored one, else ErrConflict. uid, creationTimestamp and deletionTimestamp are kept.
	// part says what is taken from the given object: a write of Spec keeps the stored status and adds one to
	// generation when the spec changed; a write of Status changes the status, and the managedFields if the given
	// object has any. An update that changes nothing returns the stored object and makes no new version. An object
	// that is being deleted and loses its last finalizer is removed.
	Update(ctx context.Context, object serving.Object, part Part) (serving.Object, error)

	// Delete removes an object and, in the background or before it (see DeleteOptions.PropagationPolicy), the
	// objects it owns. With finalizers, it only sets deletionTimestamp. It returns the object as it last was.
	Delete(ctx context.Context, kind serving.Kind, namespace, name string, options serving.DeleteOptions) (serving.Object, error)

	// Watch returns the changes to a kind in a namespace ("" is all) after a version, in order, each once.
	// Version "" starts with an Added event for each object there is. ErrGone when the version is too old, from
	// before a restart, or one that was never given out.
	Watch(ctx context.Context, kind serving.Kind, namespace, version string) (Watch, error)
}

// Part is the part of an object that an update writes.
type Part int

// The parts of an object.
const (
	Spec   Part = iota // everything but status
	Status             // status, and metadata.managedFields
)

// Watch is a stream of events. It ends when its context does, or when its reader is too slow.
type Watch interface {
	// Events is closed when the watch ends; the reader then starts again from the last version it saw.
	Events() <-chan Event
	// Stop ends the watch. It may be called more than once.
	Stop()
}

// EventType is what happened to an object.
type EventType string

// The event types, as Kubernetes names them on the wire.
const (
	Added    EventType = "ADDED"
	Modified EventType = "MODIFIED"
	Deleted  EventType = "DELETED"
)

// Event is one change. Object is the state after it; for Deleted the last state, with the version of the deletion.
type Event struct {
	Type   EventType
	Object serving.Object
}
