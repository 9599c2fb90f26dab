package api

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"

	"k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

func (a *api) delete(kind serving.Kind) handler {
	return func(w http.ResponseWriter, r *http.Request) (any, error) {
		v, err := viewOf(r)
		if err != nil {
			return nil, err
		}
		options, err := deleteOptions(w, r)
		if err != nil {
			return nil, err
		}
		namespace, name := r.PathValue("namespace"), r.PathValue("name")
		o, err := a.Store.Get(r.Context(), kind, namespace, name)
		if err != nil {
			return nil, err
		}
		if err := meets(kind, o, options.Preconditions); err != nil {
			return nil, err
		}
		if kind.Name == serving.KindNamespace.Name && (name == "default" || name == serving.SystemNamespace) {
			return nil, forbidden(kind, name, "this namespace may not be deleted")
		}
		if len(options.DryRun) > 0 {
			return one(v, r, kind, o), nil
		}
		o, err = a.Store.Delete(r.Context(), kind, namespace, name, options)
		if err != nil {
			return nil, err
		}
		if goesLater(o) {
			return one(v, r, kind, o), nil
		}
		return deleted(kind, o), nil
	}
}

// goesLater says whether a deletion is only begun: the object waits for its finalizers, a namespace for what is in it.
func goesLater(o serving.Object) bool {
	_, isNamespace := o.(*serving.Namespace)
	return o.GetDeletionTimestamp() != nil && (isNamespace || len(o.GetFinalizers()) > 0)
}

// deleteCollection deletes what the selectors select and answers with the list of it.
func (a *api) deleteCollection(kind serving.Kind) handler {
	return func(w http.ResponseWriter, r *http.Request) (any, error) {
		v, err := viewOf(r)
		if err != nil {
			return nil, err
		}
		s, err := selectionOf(r, kind)
		if err != nil {
			return nil, err
		}
		options, err := deleteOptions(w, r)
		if err != nil {
			return nil, err
		}
		chosen, version, err := a.choose(r, kind, s)
		if err != nil {
			return nil, err
		}
		var gone []serving.Object
		for _, o := range chosen {
			if len(options.DryRun) == 0 {
				o, err = a.Store.Delete(r.Context(), kind, o.GetNamespace(), o.GetName(), options)
				if errors.Is(err, store.ErrNotFound) {
					continue
				}
				if err != nil {
					return nil, err
				}
			}
			gone = append(gone, o)
		}
		return many(v, r, kind, gone, v1.ListMeta{ResourceVersion: version}), nil
	}
}

// deleted is the answer to a deletion that is done.
func deleted(kind serving.Kind, o serving.Object) v1.Status {
	return v1.Status{
		TypeMeta: v1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   v1.StatusSuccess,
		Details:  &v1.StatusDetails{Group: kind.Group, Kind: kind.Plural, Name: o.GetName(), UID: o.GetUID()},
	}
}

// deleteOptions reads the options of a deletion from its body, and from the query what the body leaves open.
func deleteOptions(w http.ResponseWriter, r *http.Request) (options serving.DeleteOptions, err error) {
	data, format, err := readBody(w, r)
	if err != nil {
		return options, err
	}
	if len(bytes.TrimSpace(data)) > 0 {
		if _, err := decode(data, format, ignore, "DeleteOptions", &options); err != nil {
			return options, err
		}
		if options.Kind != "" && options.Kind != "DeleteOptions" {
			return options, badRequest("the body of a deletion is a %q: send DeleteOptions, or nothing", options.Kind)
		}
	}
	q := r.URL.Query()
	if policy := v1.DeletionPropagation(q.Get("propagationPolicy")); policy != "" && options.PropagationPolicy == nil {
		options.PropagationPolicy = &policy
	}
	if len(options.DryRun) == 0 {
		options.DryRun = q["dryRun"]
	}
	if _, err := dryRun(options.DryRun); err != nil {
		return options, err
	}
	if policy := options.PropagationPolicy; policy != nil {
		switch *policy {
		case v1.DeletePropagationBackground, v1.DeletePropagationForeground, v1.DeletePropagationOrphan:
		default:
			return options, badRequest("propagationPolicy is %q: use Background, Foreground or Orphan", *policy)
		}
	}
	return options, nil
}

func meets(kind serving.Kind, o serving.Object, p *v1.Preconditions) error {
	if p == nil {
		return nil
	}
	if p.UID != nil && *p.UID != o.GetUID() {
		return conflict(kind, o.GetName(), fmt.Sprintf("Precondition failed: UID in precondition: %v, UID in object meta: %v", *p.UID, o.GetUID()))
	}
	if p.ResourceVersion != nil && *p.ResourceVersion != o.GetResourceVersion() {
		return conflict(kind, o.GetName(), fmt.Sprintf("Precondition failed: ResourceVersion in precondition: %v, ResourceVersion in object meta: %v", *p.ResourceVersion, o.GetResourceVersion()))
	}
	return nil
}
