package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

// apply is the PATCH of a server-side apply: the body holds the fields that a manager wants as they are, and no
// others. What the manager applied before and now leaves out goes; what others own is a conflict unless the
// request forces it. An object that is not there is created.
func (a *api) apply(kind serving.Kind, part store.Part) handler {
	return func(w http.ResponseWriter, r *http.Request) (any, error) {
		p, warnings, err := a.applied(w, r, kind, part)
		if err != nil {
			return nil, err
		}
		warn(w, warnings)
		for attempt := 1; ; attempt++ {
			answer, err := a.change(w, r, kind, part, func(old serving.Object) (serving.Object, []string, error) {
				return a.merge(r, kind, p, old)
			})
			if !errors.Is(err, store.ErrNotFound) || part == store.Status || !served(route{kind: kind, method: http.MethodPost}) {
				return answer, err
			}
			if uid := p.object.GetUID(); uid != "" {
				return nil, conflict(kind, p.object.GetName(), fmt.Sprintf("uid mismatch: the provided object specified uid %s, and no existing object was found", uid))
			}
			o, _, err := a.merge(r, kind, p, nil)
			if err != nil {
				return nil, err
			}
			answer, err = a.createObject(w, r, kind, o)
			if !errors.Is(err, store.ErrAlreadyExists) || attempt == attempts {
				return answer, err
			}
		}
	}
}

// application is what one request applies.
type application struct {
	by     writer
	force  bool
	fields *unstructured.Unstructured // the fields that the body holds, and no others
	object serving.Object             // the same as an object
}

func (a *api) applied(w http.ResponseWriter, r *http.Request, kind serving.Kind, part store.Part) (p application, warnings []string, err error) {
	by, err := writerOf(r, part)
	if err != nil {
		return p, nil, err
	}
	if r.URL.Query().Get("fieldManager") == "" {
		return p, nil, fieldManagerRequired()
	}
	force, err := boolean(r, "force")
	if err != nil {
		return p, nil, err
	}
	s, err := strictnessOf(r)
	if err != nil {
		return p, nil, err
	}
	data, _, err := readBody(w, r)
	if err != nil {
		return p, nil, err
	}
	p, warnings, err = readApplication(r, kind, data, s)
	p.by, p.force = by, force
	return p, warnings, err
}

// readApplication reads what is applied from a body.
func readApplication(r *http.Request, kind serving.Kind, data []byte, s strictness) (p application, warnings []string, err error) {
	if p.object, warnings, err = decodeObject(kind, data, formatYAML, s); err != nil {
		return p, nil, err
	}
	if err := place(p.object, r); err != nil {
		return p, nil, err
	}
	if data, err = fromYAML(data, s); err != nil {
		return p, nil, badRequest("reading what is applied: %s", err)
	}
	p.fields = new(unstructured.Unstructured)
	if err := decodeFields(data, p.fields); err != nil {
		return p, nil, badRequest("reading what is applied: %s", err)
	}
	p.fields.SetGroupVersionKind(kind.GroupVersion().WithKind(kind.Name))
	return p, warnings, declared(kind, p.fields, p.object)
}

// merge makes the next object of what is applied and of the stored one, nil if there is none.
func (a *api) merge(r *http.Request, kind serving.Kind, p application, old serving.Object) (serving.Object, []string, error) {
	manager, err := a.converters.fieldManager(kind, p.by.part)
	if err != nil {
		return nil, nil, err
	}
	live, err := fieldsOf(kind, old)
	if err != nil {
		return nil, nil, err
	}
	merged, err := manager.Apply(live, p.fields.DeepCopy(), p.by.manager, p.force)
	var known interface{ Status() v1.Status }
	switch {
	case errors.As(err, &known): // conflicts among them
		return nil, nil, err
	case err != nil:
		return nil, nil, badRequest("applying %s %q: %s", kind, p.object.GetName(), err)
	}
	data, err := json.Marshal(merged)
	if err != nil {
		return nil, nil, fmt.Errorf("encoding %s %q: %w", kind, p.object.GetName(), err)
	}
	if len(data) > maxBody { // each manager may add as much, and its name
		return nil, nil, objectTooLarge("applied", len(data))
	}
	o, _, err := decodeObject(kind, data, formatJSON, ignore)
	if err != nil {
		return nil, nil, err
	}
	return o, nil, place(o, r)
}
