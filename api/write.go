package api

import (
	"context"
	"errors"
	"net/http"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

// attempts is how often a write is tried that does not say which version it changes, before its conflict is
// the client's.
const attempts = 5

func (a *api) create(kind serving.Kind) handler {
	return func(w http.ResponseWriter, r *http.Request) (any, error) {
		by, err := writerOf(r, store.Spec)
		if err != nil {
			return nil, err
		}
		o, warnings, err := a.body(w, r, kind)
		if err != nil {
			return nil, err
		}
		warn(w, warnings)
		if err := a.own(kind, by, nil, o); err != nil {
			return nil, err
		}
		return a.createObject(w, r, kind, o)
	}
}

// createObject admits and stores a new object.
func (a *api) createObject(w http.ResponseWriter, r *http.Request, kind serving.Kind, o serving.Object) (any, error) {
	v, err := viewOf(r)
	if err != nil {
		return nil, err
	}
	dry, err := dryRun(r.URL.Query()["dryRun"])
	if err != nil {
		return nil, err
	}
	if err := a.takesObjects(r.Context(), kind, o.GetNamespace()); err != nil {
		return nil, err
	}
	setSystem(o, kind.New())
	serving.CopyStatus(o, kind.New())
	warnings, err := a.admit(r.Context(), serving.Change{New: o})
	warn(w, warnings)
	if err != nil {
		return nil, aboutObject(kind, o, err)
	}
	var created serving.Object
	if dry {
		created, err = a.pretendCreate(r.Context(), kind, o)
	} else {
		created, err = a.Store.Create(r.Context(), o)
	}
	if err != nil {
		return nil, aboutObject(kind, o, err)
	}
	return reply{http.StatusCreated, one(v, r, kind, created)}, nil
}

// put replaces an object, or its status.
func (a *api) put(kind serving.Kind, part store.Part) handler {
	return func(w http.ResponseWriter, r *http.Request) (any, error) {
		by, err := writerOf(r, part)
		if err != nil {
			return nil, err
		}
		given, warnings, err := a.body(w, r, kind)
		if err != nil {
			return nil, err
		}
		return a.change(w, r, kind, part, func(old serving.Object) (serving.Object, []string, error) {
			o := copied(given)
			return o, warnings, a.own(kind, by, old, o)
		})
	}
}

// next makes the new object, with its managedFields, of a stored one, which it only reads.
type next func(old serving.Object) (o serving.Object, warnings []string, err error)

// change reads an object, makes the next one of it, and stores that if nobody was faster; else it starts again.
func (a *api) change(w http.ResponseWriter, r *http.Request, kind serving.Kind, part store.Part, next next) (any, error) {
	v, err := viewOf(r)
	if err != nil {
		return nil, err
	}
	dry, err := dryRun(r.URL.Query()["dryRun"])
	if err != nil {
		return nil, err
	}
	for attempt := 1; ; attempt++ {
		old, err := a.Store.Get(r.Context(), kind, r.PathValue("namespace"), r.PathValue("name"))
		if err != nil {
			return nil, err
		}
		o, warnings, err := a.next(r.Context(), kind, part, old, next)
		if err == nil && !dry {
			o, err = a.Store.Update(r.Context(), o, part)
			if errors.Is(err, store.ErrConflict) && attempt < attempts {
				continue
			}
		}
		warn(w, warnings)
		if err != nil {
			return nil, err
		}
		return one(v, r, kind, o), nil
	}
}

// next makes and admits the object that a write of one part stores. A resourceVersion or uid that the user gave
// must be the stored one's.
func (a *api) next(ctx context.Context, kind serving.Kind, part store.Part, old serving.Object, next next) (serving.Object, []string, error) {
	o, warnings, err := next(old)
	if err != nil {
		return nil, warnings, err
	}
	if err := sameObject(kind, o, old); err != nil {
		return nil, warnings, err
	}
	setSystem(o, old)
	if part == store.Status {
		written := o
		o = copied(old)
		serving.CopyStatus(o, written)
		o.SetManagedFields(written.GetManagedFields())
	} else {
		serving.CopyStatus(o, old)
	}
	more, err := a.admit(ctx, serving.Change{New: o, Old: old, Status: part == store.Status})
	return o, append(warnings, more...), err
}

// body reads the object of a request and gives it the namespace and name of the request's path.
func (a *api) body(w http.ResponseWriter, r *http.Request, kind serving.Kind) (o serving.Object, warnings []string, err error) {
	s, err := strictnessOf(r)
	if err != nil {
		return nil, nil, err
	}
	data, format, err := readBody(w, r)
	if err != nil {
		return nil, nil, err
	}
	o, warnings, err = decodeObject(kind, data, format, s)
	if err != nil {
		return nil, nil, err
	}
	return o, warnings, place(o, r)
}

// place checks that the object is where the request's path says.
func place(o serving.Object, r *http.Request) error {
	if ns := r.PathValue("namespace"); o.GetNamespace() == "" {
		o.SetNamespace(ns)
	} else if o.GetNamespace() != ns {
		return badRequest("the namespace of the provided object does not match the namespace sent on the request: %q in the body, %q in the path", o.GetNamespace(), ns)
	}
	if name := r.PathValue("name"); name == "" {
		return nil
	} else if o.GetName() == "" {
		o.SetName(name)
	} else if o.GetName() != name {
		return badRequest("the name of the object (%s) does not match the name on the URL (%s)", o.GetName(), name)
	}
	return nil
}

func sameObject(kind serving.Kind, o, old serving.Object) error {
	if uid := o.GetUID(); uid != "" && uid != old.GetUID() {
		return conflict(kind, old.GetName(), "Precondition failed: UID in precondition: "+string(uid)+", UID in object meta: "+string(old.GetUID()))
	}
	if version := o.GetResourceVersion(); version != "" && version != old.GetResourceVersion() {
		return conflict(kind, old.GetName(), "the object has been modified; please apply your changes to the latest version and try again")
	}
	return nil
}

// admit fills defaults and refuses what may not be stored.
func (a *api) admit(ctx context.Context, change serving.Change) (warnings []string, err error) {
	change.User = a.User
	return a.Admission.Admit(ctx, change)
}

// takesObjects says why a namespace takes no new objects.
func (a *api) takesObjects(ctx context.Context, kind serving.Kind, namespace string) error {
	if !kind.Namespaced {
		return nil
	}
	o, err := a.Store.Get(ctx, serving.KindNamespace, "", namespace)
	if errors.Is(err, store.ErrNotFound) {
		return notFound(serving.KindNamespace, namespace)
	}
	if err != nil {
		return err
	}
	if o.GetDeletionTimestamp() != nil {
		return forbidden(kind, "", "unable to create new content in namespace "+namespace+" because it is being terminated")
	}
	return nil
}

// pretendCreate is a creation with dryRun: what would be stored, and nothing is.
func (a *api) pretendCreate(ctx context.Context, kind serving.Kind, o serving.Object) (serving.Object, error) {
	if o.GetName() != "" {
		_, err := a.Store.Get(ctx, kind, o.GetNamespace(), o.GetName())
		if err == nil {
			return nil, store.ErrAlreadyExists
		}
		if !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
	}
	o.SetUID(uuid.NewUUID())
	o.SetCreationTimestamp(v1.NewTime(time.Now().Truncate(time.Second)))
	o.SetGeneration(1)
	return o, nil
}

// dryRun reads the dryRun parameters: none, or All.
func dryRun(values []string) (bool, error) {
	for _, value := range values {
		if value != v1.DryRunAll {
			return false, badRequest("dryRun is %q: the one value there is is %q", value, v1.DryRunAll)
		}
	}
	return len(values) > 0, nil
}

// aboutObject names the object in an error of its creation, whose path has no name.
func aboutObject(kind serving.Kind, o serving.Object, err error) error {
	name := o.GetName()
	if name == "" {
		name = o.GetGenerateName()
	}
	return &objectError{&statusError{statusOf(err, kind, name)}, err}
}
