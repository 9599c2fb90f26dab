package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

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
		if kind.Name == serving.KindNamespace.Name && name == "default" {
			return nil, forbidden(kind, name, "this namespace may not be deleted")
		}
		if len(options.DryRun) > 0 {
			return one(v, r, kind, o), nil
		}
		if kind.Name == serving.KindNamespace.Name {
			if err := a.empty(r.Context(), o.(*serving.Namespace)); err != nil {
				return nil, err
			}
		}
		o, err = a.Store.Delete(r.Context(), kind, namespace, name, options)
		if err != nil {
			return nil, err
		}
		if o.GetDeletionTimestamp() != nil && len(o.GetFinalizers()) > 0 {
			return one(v, r, kind, o), nil // it goes when its last finalizer does
		}
		return deleted(kind, o), nil
	}
}

// deleteCollection deletes what the selectors select and answers with the list of it.
func (a *api) deleteCollection(kind serving.Kind) handler {
	return func(w http.ResponseWriter, r *http.Request) (any, error) {
		v, err := viewOf(r)
		if err != nil {
			return nil, err
		}
		s, err := selectionOf(r)
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

// empty deletes all that is in a namespace, after marking it so that nothing new is taken. Objects with finalizers
// stay, and keep the namespace: the deletion is then to be asked for again.
func (a *api) empty(ctx context.Context, namespace *serving.Namespace) error {
	if !terminating(namespace) {
		marked := namespace.DeepCopy()
		marked.Status.Phase = serving.NamespaceTerminating
		marked.ResourceVersion = ""
		if _, err := a.Store.Update(ctx, marked, store.Status); err != nil {
			return fmt.Errorf("marking namespace %q as terminating: %w", namespace.Name, err)
		}
	}
	var left []string
	for _, kind := range serving.Kinds { // owners come before what they own
		if !kind.Namespaced {
			continue
		}
		objects, _, err := a.Store.List(ctx, kind, namespace.Name)
		if err != nil {
			return fmt.Errorf("listing %s in namespace %q: %w", kind, namespace.Name, err)
		}
		for _, o := range objects {
			o, err := a.Store.Delete(ctx, kind, namespace.Name, o.GetName(), serving.DeleteOptions{})
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return fmt.Errorf("deleting %s %q: %w", kind, namespace.Name, err)
			}
			if err == nil && o.GetDeletionTimestamp() != nil && len(o.GetFinalizers()) > 0 {
				left = append(left, fmt.Sprintf("%s %q (%s)", kind, o.GetName(), strings.Join(o.GetFinalizers(), ", ")))
			}
		}
	}
	if len(left) > 0 {
		return conflict(serving.KindNamespace, namespace.Name,
			"objects in it wait for their finalizers: "+strings.Join(left, "; ")+"; remove them and delete the namespace again")
	}
	return nil
}
