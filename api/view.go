package api

import (
	"mime"
	"net/http"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-run/berth/serving"
)

// view is the form in which a client wants objects.
type view int

const (
	whole    view = iota // the objects
	table                // rows for kubectl get
	metadata             // metadata only
)

// viewOf reads the Accept header: its first form that is known.
func viewOf(r *http.Request) (view, error) {
	header := strings.Join(r.Header.Values("Accept"), ",")
	if strings.TrimSpace(header) == "" {
		return whole, nil
	}
	for part := range strings.SplitSeq(header, ",") {
		media, params, err := mime.ParseMediaType(part)
		if err != nil || !slices.Contains([]string{"application/json", "application/*", "*/*"}, media) {
			continue
		}
		switch params["as"] {
		case "":
			return whole, nil
		case "Table":
			if params["v"] == "v1" {
				return table, nil
			}
		case "PartialObjectMetadata", "PartialObjectMetadataList":
			if params["v"] == "v1" {
				return metadata, nil
			}
		}
	}
	return whole, notAcceptable(header)
}

// list is the JSON of a list of any kind.
type list struct {
	v1.TypeMeta
	Metadata v1.ListMeta `json:"metadata"`
	Items    []any       `json:"items"`
}

// one is an object in the form that the client wants.
func one(v view, r *http.Request, kind serving.Kind, o serving.Object) any {
	switch v {
	case table:
		return tableOf(r, kind, []serving.Object{o}, v1.ListMeta{ResourceVersion: o.GetResourceVersion()})
	case metadata:
		return metadataOf(o)
	}
	return stamped(kind, o)
}

// many are objects in the form that the client wants.
func many(v view, r *http.Request, kind serving.Kind, objects []serving.Object, meta v1.ListMeta) any {
	if v == table {
		return tableOf(r, kind, objects, meta)
	}
	l := list{
		TypeMeta: v1.TypeMeta{APIVersion: kind.APIVersion(), Kind: kind.Name + "List"},
		Metadata: meta, Items: make([]any, 0, len(objects)),
	}
	if v == metadata {
		l.TypeMeta = v1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "PartialObjectMetadataList"}
	}
	for _, o := range objects {
		if v == metadata {
			l.Items = append(l.Items, metadataOf(o))
		} else {
			l.Items = append(l.Items, stamped(kind, o))
		}
	}
	return l
}

// stamped is o with its kind, which it has unless a store left it out.
func stamped(kind serving.Kind, o serving.Object) serving.Object {
	if o.GetObjectKind().GroupVersionKind().Kind == kind.Name {
		return o
	}
	o = o.DeepCopyObject().(serving.Object)
	kind.Stamp(o)
	return o
}

func metadataOf(o serving.Object) *v1.PartialObjectMetadata {
	m := &v1.PartialObjectMetadata{TypeMeta: v1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "PartialObjectMetadata"}}
	if accessor, ok := o.(v1.ObjectMetaAccessor); ok {
		if meta, ok := accessor.GetObjectMeta().(*v1.ObjectMeta); ok {
			m.ObjectMeta = *meta
		}
	}
	return m
}
