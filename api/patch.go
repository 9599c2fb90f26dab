package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/evanphx/json-patch/v5"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

// The formats of patches.
const (
	formatMergePatch     = "application/merge-patch+json"
	formatJSONPatch      = "application/json-patch+json"
	formatStrategicPatch = "application/strategic-merge-patch+json"
)

// patchFormats are the patches that a kind takes. Strategic merge patches are Kubernetes' own for core kinds;
// for ours, as for every custom resource, there are none.
func patchFormats(kind serving.Kind) []string {
	formats := []string{formatJSONPatch, formatMergePatch}
	if kind.Group == "" {
		formats = append(formats, formatStrategicPatch)
	}
	return formats
}

func (a *api) patch(kind serving.Kind, part store.Part) handler {
	return func(w http.ResponseWriter, r *http.Request) (any, error) {
		s, err := strictnessOf(r)
		if err != nil {
			return nil, err
		}
		format := mediaType(r.Header.Get("Content-Type"))
		if !slices.Contains(patchFormats(kind), format) {
			return nil, unsupportedMediaType(format, patchFormats(kind)...)
		}
		data, _, err := readBody(w, r)
		if err != nil {
			return nil, err
		}
		apply, err := readPatch(data, format)
		if err != nil {
			return nil, err
		}
		return a.change(w, r, kind, part, func(old serving.Object) (serving.Object, []string, error) {
			o, warnings, err := patched(kind, old, apply, s)
			if err != nil {
				return nil, nil, err
			}
			return o, warnings, place(o, r)
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
		return nil, nil, failure(http.StatusUnprocessableEntity, "Invalid",
			fmt.Sprintf("the server rejected our request due to an error in our request: applying the patch: %s", err))
	}
	if len(after) > maxBody {
		return nil, nil, failure(http.StatusRequestEntityTooLarge, "RequestEntityTooLarge",
			fmt.Sprintf("the patched object has %d bytes, and %d is the most that is taken", len(after), maxBody))
	}
	return decodeObject(kind, after, formatJSON, s)
}

// readPatch checks a patch and returns what it does to the JSON of an object.
func readPatch(data []byte, format string) (apply func([]byte) ([]byte, error), err error) {
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
		if err := plain(data); err != nil {
			return nil, badRequest("reading the strategic merge patch: %s; send a %s or %s", err, formatMergePatch, formatJSONPatch)
		}
	}
	return func(object []byte) ([]byte, error) { return jsonpatch.MergePatch(object, data) }, nil
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

// plain says why a strategic merge patch is not the same as a merge patch: the two differ only in lists and in
// directives ("$patch" and the like).
func plain(data []byte) error {
	var patch map[string]any
	if err := json.Unmarshal(data, &patch); err != nil {
		return err
	}
	return plainObject(patch)
}

func plainObject(object map[string]any) error {
	for key, value := range object {
		if strings.HasPrefix(key, "$") {
			return fmt.Errorf("directives such as %q are not supported", key)
		}
		switch value := value.(type) {
		case []any:
			return fmt.Errorf("the list %q cannot be merged", key)
		case map[string]any:
			if err := plainObject(value); err != nil {
				return err
			}
		}
	}
	return nil
}
