package api

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-run/berth/serving"
)

// FuzzDecodeObject: whatever a body holds, it is refused, or becomes an object that encodes to what decodes again
// to the same; and admission has an answer to it.
func FuzzDecodeObject(f *testing.F) {
	formats := []string{formatJSON, formatYAML, formatProtobuf}
	for _, seed := range []string{
		`{"apiVersion":"serving.knative.dev/v1","kind":"Service","metadata":{"name":"a"},"spec":{"template":{"spec":{"containers":[{"image":"x"}]}}}}`,
		`{"spec":{"traffic":[{"percent":50,"tag":"a"},{"latestRevision":true}],"template":{"spec":{"containers":[{"readinessProbe":{"httpGet":{"port":"x"}}}]}}}}`,
		`{"spec":{"template":{"metadata":{"annotations":{"autoscaling.knative.dev/min-scale":"-1"}},"spec":{"timeoutSeconds":-5,"containers":[{},{}]}}}}`,
		`{"metadata":{"name":"a"},"data":{"a":"Yg=="},"stringData":{"c":"d"}}`,
		"metadata:\n  name: a\n  labels: {a: &x b, c: *x}\n", "a: [", "null", `"`, "{}{}", "k8s\x00\n\x0f\n\x02v1\x12\x06Secret\x12\x05\n\x03\n\x01a",
	} {
		for format := range formats {
			f.Add([]byte(seed), byte(format))
		}
	}
	admission, err := serving.NewAdmission(serving.Settings{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte, format byte) {
		for _, kind := range serving.Kinds {
			o, _, err := decodeObject(kind, data, formats[int(format)%len(formats)], strict)
			if err != nil {
				if o != nil || err.Error() == "" {
					t.Fatalf("got an object %v with error %q", o, err)
				}
				continue
			}
			text, err := json.Marshal(o)
			if err != nil {
				continue // a protobuf may hold times that JSON cannot
			}
			again, _, err := decodeObject(kind, text, formatJSON, strict)
			if err != nil {
				t.Fatalf("decoding %s again: %v", text, err)
			}
			if text2 := raw(again); string(text) != string(text2) {
				t.Fatalf("the object changed: %s", cmp.Diff(string(text), string(text2)))
			}
			if kind.Name == serving.KindRevision.Name {
				continue // users do not make revisions
			}
			again.SetNamespace("default")
			_, _ = admission.Admit(t.Context(), serving.Change{New: again, User: "fuzz"})
		}
	})
}

// FuzzPatch: whatever a patch holds, it is refused, or makes an object of the same kind.
func FuzzPatch(f *testing.F) {
	formats := []string{formatMergePatch, formatJSONPatch, formatStrategicPatch}
	for _, seed := range []string{
		`{"metadata":{"labels":{"a":null}}}`, `{"spec":null}`, `{"spec":{"template":{"spec":{"containers":[null]}}}}`, `[]`, `null`, `{"$patch":"delete"}`,
		`[{"op":"copy","from":"/spec","path":"/spec/template/spec/containers/-"}]`, `[{"op":"remove","path":""}]`, `[{"op":"add","path":"","value":1}]`,
		`[{"op":"move","from":"/spec","path":"/spec/template"}]`, `[{"op":"test","path":"/metadata/name","value":"a"}]`, `[{"op":"replace","path":"/-1","value":{}}]`, `[null]`, `[{}]`, `[{"op":"test","path":""}]`,
	} {
		for format := range formats {
			f.Add([]byte(seed), byte(format))
		}
	}
	old := serving.KindService.New().(*serving.Service)
	old.Name, old.Namespace = "a", "default"
	old.Spec.Template.Spec.Containers = []serving.Container{{Image: "x"}}
	f.Fuzz(func(t *testing.T, data []byte, format byte) {
		before := raw(old)
		apply, err := readPatch(serving.KindService, data, formats[int(format)%len(formats)])
		if err != nil {
			return
		}
		o, _, err := patched(serving.KindService, old, apply, strict)
		if err == nil && o.GetObjectKind().GroupVersionKind() != serving.KindService.GroupVersion().WithKind("Service") {
			t.Fatalf("the patch made a %v", o.GetObjectKind().GroupVersionKind())
		}
		if string(before) != string(raw(old)) {
			t.Fatal("the patch changed the stored object")
		}
	})
}
