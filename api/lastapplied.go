package api

import (
	"encoding/json"
	"net/http"

	"k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/berth-run/berth/serving"
)

// comparesLists tells that an object is read to be compared with a file: kubectl apply replaces the lists of kinds
// that it does not know as a whole, and takes the defaults in a container for a change of the file.
func comparesLists(r *http.Request, kind serving.Kind) bool {
	return kind.Group != "" && r.Header.Get("Kubectl-Command") == "kubectl apply"
}

// asApplied is an object with its lists as they were last applied, without the defaults that were filled in since:
// the same object, because writing it changes nothing. Where it would change something (somebody else wrote
// meanwhile), and where nothing was applied, it is nil.
func (a *api) asApplied(r *http.Request, kind serving.Kind, stored serving.Object) *unstructured.Unstructured {
	var last map[string]any
	if json.Unmarshal([]byte(stored.GetAnnotations()[v1.LastAppliedConfigAnnotation]), &last) != nil {
		return nil
	}
	fields, err := fieldsOf(kind, stored)
	if err != nil {
		return nil
	}
	takeLists(fields.Object["spec"], last["spec"])
	data, err := json.Marshal(fields)
	if err != nil {
		return nil
	}
	again, _, err := decodeObject(kind, data, formatJSON, ignore)
	if err != nil {
		return nil
	}
	if _, err := a.admit(r.Context(), serving.Change{New: again, Old: stored}); err != nil || !equality.Semantic.DeepEqual(again, stored) {
		return nil
	}
	return fields
}

// takeLists replaces the lists in an object by those that another has in the same places.
func takeLists(to, from any) {
	have, _ := to.(map[string]any)
	given, _ := from.(map[string]any)
	for key, value := range given {
		if _, ok := have[key]; !ok {
			continue
		}
		if list, ok := value.([]any); ok {
			have[key] = list
		} else {
			takeLists(have[key], value)
		}
	}
}
