package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/evanphx/json-patch/v5"
	"k8s.io/apimachinery/pkg/util/strategicpatch"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

// The formats of patches.
const (
	formatMergePatch     = "application/merge-patch+json"
	formatJSONPatch      = "application/json-patch+json"
	formatStrategicPatch = "application/strategic-merge-patch+json"
	formatApply          = "application/apply-patch+yaml"
)

// patchFormats are the patches that a kind takes. Strategic merge patches are Kubernetes' own for core kinds;
// for ours, as for every custom resource, there are none.
func patchFormats(kind serving.Kind) []string {
	formats := []string{formatJSONPatch, formatMergePatch, formatApply}
	if kind.Group == "" {
		formats = append(formats, formatStrategicPatch)
	}
	return formats
}

func (a *api) patch(kind serving.Kind, part store.Part) handler {
	apply := a.apply(kind, part)
	return func(w http.ResponseWriter, r *http.Request) (any, error) {
		format := mediaType(r.Header.Get("Content-Type"))
		if !slices.Contains(patchFormats(kind), format) {
			return nil, unsupportedMediaType(format, patchFormats(kind)...)
		}
		if format == formatApply {
			return apply(w, r)
		}
		if r.URL.Query().Has("force") {
			return nil, badRequest("force: Forbidden: may not be specified for non-apply patch")
		}
		by, err := writerOf(r, part)
		if err != nil {
			return nil, err
		}
		s, err := strictnessOf(r)
		if err != nil {
			return nil, err
		}
		data, _, err := readBody(w, r)
		if err != nil {
			return nil, err
		}
		apply, err := readPatch(kind, data, format)
		if err != nil {
			return nil, err
		}
		return a.change(w, r, kind, part, func(old serving.Object) (serving.Object, []string, error) {
			o, warnings, err := patched(kind, old, apply, s)
			if err != nil {
				return nil, nil, err
			}
			if err := place(o, r); err != nil {
				return nil, nil, err
			}
			return o, warnings, a.own(kind, by, old, o)
		})
	}
}

// patched applies a patch to the JSON of an object.
func patched(kind serving.Kind, old serving.Object, apply func([]byte) ([]byte, error), s strictness) (serving.Object, []string, error) {
	before, err := json.Marshal(stamped(kind, old))
	if err != nil {
		return nil, nil, fmt.Errorf("encoding %s %q: %w", kind, old.GetName(), err)
	}
	after, err := apply(before)
	if err != nil {
		return nil, nil, patchDoesNotApply(kind, old.GetName(), err)
	}
	if len(after) > maxBody {
		return nil, nil, objectTooLarge("patched", len(after))
	}
	o, warnings, err := decodeObject(kind, after, formatJSON, s)
	if err == nil && o.GetName() == "" {
		return nil, nil, badRequest("the patch takes metadata.name away: leave it, or give %q", old.GetName())
	}
	return o, warnings, err
}

// readPatch checks a patch and returns what it does to the JSON of an object.
func readPatch(kind serving.Kind, data []byte, format string) (apply func([]byte) ([]byte, error), err error) {
	if err := shallow(data); err != nil {
		return nil, badRequest("reading the patch: %s", err)
	}
	if format == formatJSONPatch {
		patch, err := jsonpatch.DecodePatch(data)
		if err != nil {
			return nil, badRequest("reading the JSON patch: %s", err)
		}
		if len(patch) > maxPatchSteps {
			return nil, failure(http.StatusRequestEntityTooLarge, "RequestEntityTooLarge",
				fmt.Sprintf("the JSON patch has %d operations, and %d is the most that is taken", len(patch), maxPatchSteps))
		}
		for i, step := range patch {
			if err := checkStep(step); err != nil {
				return nil, badRequest("reading the JSON patch: operation %d: %s", i, err)
			}
		}
		options := jsonpatch.NewApplyOptions()
		options.AccumulatedCopySizeLimit = maxBody
		return func(object []byte) ([]byte, error) { return patch.ApplyWithOptions(object, options) }, nil
	}
	if err := wellFormed(data); err != nil {
		return nil, badRequest("reading the patch: %s", err)
	}
	if !json.Valid(data) {
		return nil, badRequest("reading the patch: it is not valid JSON")
	}
	if format == formatStrategicPatch {
		given := longestList(data)
		return func(object []byte) ([]byte, error) {
			if n := max(given, longestList(object)); n > maxMergedList {
				return nil, fmt.Errorf("a list in the patch or the object has %d elements, and %d is the most that is merged strategically; send a patch of type merge or json", n, maxMergedList)
			}
			return strategicpatch.StrategicMergePatch(object, data, kind.New())
		}, nil
	}
	return func(object []byte) ([]byte, error) { return jsonpatch.MergePatch(object, data) }, nil
}

// longestList counts the elements of the longest list in a JSON document.
func longestList(data []byte) int {
	var document any
	if json.Unmarshal(data, &document) != nil {
		return 0 // whoever reads it next says why
	}
	return longestListOf(document)
}

func longestListOf(value any) (longest int) {
	switch value := value.(type) {
	case map[string]any:
		for _, field := range value {
			longest = max(longest, longestListOf(field))
		}
	case []any:
		longest = len(value)
		for _, element := range value {
			longest = max(longest, longestListOf(element))
		}
	}
	return longest
}

// checkStep checks the form of one operation (RFC 6902, section 4). The whole object as a path, which the RFC
// allows, is of no use here: an object is replaced with PUT.
func checkStep(step jsonpatch.Operation) error {
	if path, err := step.Path(); err != nil || !strings.HasPrefix(path, "/") {
		return fmt.Errorf("its path must begin with %q", "/")
	}
	switch kind := step.Kind(); kind {
	case "add", "replace", "test":
		if _, ok := step["value"]; !ok {
			return fmt.Errorf("%q needs a value", kind)
		}
	case "move", "copy":
		if from, err := step.From(); err != nil || !strings.HasPrefix(from, "/") {
			return fmt.Errorf("%q needs a from that begins with %q", kind, "/")
		}
	case "remove":
	default:
		return fmt.Errorf("its op is %q: use add, remove, replace, move, copy or test", kind)
	}
	return nil
}
