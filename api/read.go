package api

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

func (a *api) get(kind serving.Kind) handler {
	return func(_ http.ResponseWriter, r *http.Request) (any, error) {
		v, err := viewOf(r)
		if err != nil {
			return nil, err
		}
		o, err := a.Store.Get(r.Context(), kind, r.PathValue("namespace"), r.PathValue("name"))
		if err != nil {
			return nil, err
		}
		if v == whole && comparesLists(r, kind) {
			if applied := a.asApplied(r, kind, o); applied != nil {
				return applied, nil
			}
		}
		return one(v, r, kind, o), nil
	}
}

// list answers a list, or with ?watch=true a watch.
func (a *api) list(kind serving.Kind) handler {
	return func(w http.ResponseWriter, r *http.Request) (any, error) {
		v, err := viewOf(r)
		if err != nil {
			return nil, err
		}
		choose, err := selectionOf(r, kind)
		if err != nil {
			return nil, err
		}
		watch, err := boolean(r, "watch")
		if err != nil {
			return nil, err
		}
		if watch {
			return nil, a.watch(w, r, kind, v, choose)
		}
		q := r.URL.Query()
		p, err := pagingOf(q.Get("limit"), q.Get("continue"))
		if err != nil {
			return nil, err
		}
		page, version, meta, err := a.page(r, kind, choose, p)
		if err != nil {
			return nil, err
		}
		if err := checkVersion(q.Get("resourceVersion"), q.Get("resourceVersionMatch"), q.Get("continue"), version); err != nil {
			return nil, err
		}
		return many(v, r, kind, page, meta), nil
	}
}

// checkVersion says whether a list at the version that there is can be the answer to one that asks for a version.
func checkVersion(want, match, next, have string) error {
	switch v1.ResourceVersionMatch(match) {
	case "":
	case v1.ResourceVersionMatchExact, v1.ResourceVersionMatchNotOlderThan:
		if next != "" {
			return badRequest("resourceVersionMatch is forbidden when continue is provided")
		}
		if want == "" {
			return badRequest("resourceVersionMatch is forbidden unless resourceVersion is provided")
		}
	default:
		return badRequest("resourceVersionMatch is %q: use %s or %s", match, v1.ResourceVersionMatchExact, v1.ResourceVersionMatchNotOlderThan)
	}
	if want == "" || want == "0" {
		return nil // whatever there is
	}
	n, err := strconv.ParseUint(want, 10, 64)
	if err != nil {
		return badRequest("resourceVersion is %q: use one that a list or an event gave", want)
	}
	newest, err := strconv.ParseUint(have, 10, 64)
	switch {
	case err != nil:
		return fmt.Errorf("reading the store's version %q: %w", have, err)
	case n > newest:
		return tooLargeVersion(n, newest)
	case match == string(v1.ResourceVersionMatchExact) && n != newest:
		return expired("the list at resourceVersion " + want + " is no longer kept")
	}
	return nil
}

// choose reads the objects that a request's namespace and selectors select.
func (a *api) choose(r *http.Request, kind serving.Kind, s selection) ([]serving.Object, string, error) {
	if name, ok := s.single(r, kind); ok {
		return a.chooseOne(r, kind, s, name)
	}
	objects, version, err := a.Store.List(r.Context(), kind, r.PathValue("namespace"))
	if err != nil {
		return nil, "", err
	}
	var chosen []serving.Object
	for _, o := range objects {
		if s.matches(o) {
			chosen = append(chosen, o)
		}
	}
	return chosen, version, nil
}

// chooseOne is choose for what only one object can be, as clients ask for that wait for one: the others are not read.
// The version is one at which the object was as it is returned, or before which it was not there any more.
func (a *api) chooseOne(r *http.Request, kind serving.Kind, s selection, name string) ([]serving.Object, string, error) {
	for {
		_, _, version, err := a.Store.Page(r.Context(), serving.KindNamespace, "", types.NamespacedName{}, 0)
		if err != nil {
			return nil, "", err
		}
		o, err := a.Store.Get(r.Context(), kind, r.PathValue("namespace"), name)
		switch {
		case errors.Is(err, store.ErrNotFound):
			return nil, version, nil
		case err != nil:
			return nil, "", err
		case newer(o.GetResourceVersion(), version):
			continue // it was written in between
		case !s.matches(o):
			return nil, version, nil
		}
		return []serving.Object{o}, version, nil
	}
}

// selection is what labelSelector and fieldSelector ask for.
type selection struct {
	labels labels.Selector
	fields fields.Selector
}

func selectionOf(r *http.Request, kind serving.Kind) (s selection, err error) {
	q := r.URL.Query()
	if s.labels, err = labels.Parse(q.Get("labelSelector")); err != nil {
		return s, badRequest("labelSelector is %q: %s", q.Get("labelSelector"), err)
	}
	if s.fields, err = fields.ParseSelector(q.Get("fieldSelector")); err != nil {
		return s, badRequest("fieldSelector is %q: %s", q.Get("fieldSelector"), err)
	}
	return s, checkFields(kind, s.fields)
}

func (s selection) matches(o serving.Object) bool {
	return s.labels.Matches(labels.Set(o.GetLabels())) && (s.fields.Empty() || s.fields.Matches(selectableOf(o)))
}

// single returns the name of the only object that can be selected, if that is so.
func (s selection) single(r *http.Request, kind serving.Kind) (name string, ok bool) {
	name, ok = s.fields.RequiresExactMatch("metadata.name")
	return name, ok && (r.PathValue("namespace") != "" || !kind.Namespaced)
}

// constant says whether an object that is selected, or is not, stays so whatever is written to it.
func (s selection) constant() bool {
	return s.labels.Empty() && !slices.ContainsFunc(s.fields.Requirements(), func(r fields.Requirement) bool {
		return !slices.Contains(constantFields, r.Field)
	})
}

// position is where the next page of a list begins: after this object, at the version of the first page.
type position struct {
	Version   string `json:"v"`
	Namespace string `json:"ns"`
	Name      string `json:"n"`
}

// paging is which part of a list is asked for.
type paging struct {
	limit int       // objects at most; math.MaxInt is all
	after *position // nil is from the first on
}

func pagingOf(limit, after string) (paging, error) {
	p := paging{limit: math.MaxInt}
	if after != "" {
		p.after = &position{}
		data, err := base64.RawURLEncoding.DecodeString(after)
		if err == nil {
			err = json.Unmarshal(data, p.after)
		}
		if err != nil || p.after.Version == "" {
			return p, badRequest("continue key is not valid: %q; take it from the metadata of the page before", after)
		}
	}
	if limit == "" || limit == "0" {
		return p, nil
	}
	n, err := strconv.Atoi(limit)
	if err != nil || n < 0 {
		return p, badRequest("limit is %q: give a number of objects", limit)
	}
	if n > 0 {
		p.limit = n
	}
	return p, nil
}

// page reads one page of what a request's namespace and selectors select, and the version that it was read at. Later
// pages show the objects as they are then; a watch from the first page's version, which the metadata of all pages has,
// makes good for the difference. Objects of other pages are not read: a client that lists by pages reads each once.
func (a *api) page(r *http.Request, kind serving.Kind, s selection, p paging) (chosen []serving.Object, version string, meta v1.ListMeta, err error) {
	var last types.NamespacedName
	more := 0
	if p.after != nil {
		last = types.NamespacedName{Namespace: p.after.Namespace, Name: p.after.Name}
	}
	if _, ok := s.single(r, kind); ok {
		if chosen, version, err = a.choose(r, kind, s); err != nil {
			return nil, "", meta, err
		}
		if p.after != nil && len(chosen) > 0 && !p.after.before(chosen[0]) {
			chosen = nil
		}
	} else {
		for {
			objects, left, at, err := a.Store.Page(r.Context(), kind, r.PathValue("namespace"), last, p.limit-len(chosen))
			if err != nil {
				return nil, "", meta, err
			}
			if version == "" {
				version = at
			}
			for _, o := range objects {
				last = types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
				if s.matches(o) {
					chosen = append(chosen, o)
				}
			}
			if more = left; more == 0 || len(chosen) == p.limit {
				break
			}
		}
	}
	meta.ResourceVersion = version
	if p.after != nil {
		meta.ResourceVersion = p.after.Version
	}
	if more == 0 {
		return chosen, version, meta, nil
	}
	next, err := json.Marshal(position{meta.ResourceVersion, last.Namespace, last.Name})
	if err != nil {
		return nil, "", meta, err
	}
	meta.Continue = base64.RawURLEncoding.EncodeToString(next)
	if s.labels.Empty() && s.fields.Empty() { // else nobody knows
		remaining := int64(more)
		meta.RemainingItemCount = &remaining
	}
	return chosen, version, meta, nil
}

// before says whether o comes after the position.
func (p position) before(o serving.Object) bool {
	if o.GetNamespace() != p.Namespace {
		return o.GetNamespace() > p.Namespace
	}
	return o.GetName() > p.Name
}

// boolean reads a parameter of the query; absent is false.
func boolean(r *http.Request, name string) (bool, error) {
	if !r.URL.Query().Has(name) {
		return false, nil
	}
	value := r.URL.Query().Get(name)
	if value == "" {
		return true, nil // "?watch" is how people write it
	}
	b, err := strconv.ParseBool(value)
	if err != nil {
		return false, badRequest("%s is %q: give true or false", name, value)
	}
	return b, nil
}

// mostSeconds is the longest time that a parameter counts: 68 years, as good as for ever.
const mostSeconds = math.MaxInt32

// seconds reads a parameter of the query that is a number of seconds; absent is -1 s.
func seconds(r *http.Request, name string) (time.Duration, error) {
	n, err := number(r, name)
	return time.Duration(min(n, mostSeconds)) * time.Second, err
}

// number reads a parameter of the query that counts; absent is -1.
func number(r *http.Request, name string) (int, error) {
	value := r.URL.Query().Get(name)
	if value == "" {
		return -1, nil
	}
	n, err := strconv.Atoi(value)
	if err != nil || n < 0 {
		return 0, badRequest("%s is %q: give a whole number", name, value)
	}
	return n, nil
}
