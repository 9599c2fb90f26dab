package api

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
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

// fuzzed is an API without a store, as the fuzz tests drive it.
func fuzzed(f *testing.F) *api {
	f.Helper()
	admission, err := serving.NewAdmission(serving.Settings{CPU: "1", Memory: "512Mi"})
	if err != nil {
		f.Fatal(err)
	}
	return &api{Config: Config{Admission: admission, User: "fuzz", Logger: slog.New(slog.DiscardHandler)}}
}

// store does what a write does between its body and the store, and checks what would be stored: it is valid, it
// survives being written and read, and writing it again changes nothing but what defaults fill in.
func (a *api) store(t *testing.T, kind serving.Kind, old, o serving.Object) serving.Object {
	t.Helper()
	if old == nil {
		setSystem(o, kind.New())
	} else {
		setSystem(o, old)
	}
	if _, err := a.admit(t.Context(), serving.Change{New: o, Old: old}); err != nil {
		return nil
	}
	if old == nil {
		o.SetUID("e")
		o.SetResourceVersion("1")
	}
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatalf("what would be stored has no JSON: %v", err)
	}
	again, _, err := decodeObject(kind, text, formatJSON, strict)
	if err != nil {
		t.Fatalf("reading %s again: %v", text, err)
	}
	if _, err := a.admit(t.Context(), serving.Change{New: again, Old: o}); err != nil {
		t.Fatalf("writing %s again: %v", text, err)
	}
	if second := raw(again); string(text) != string(second) {
		t.Fatalf("written again it changed: %s", cmp.Diff(string(text), string(second)))
	}
	return o
}

// patchSeeds are objects that are patched and applied to.
func patchSeeds() []serving.Object {
	service := serving.KindService.New().(*serving.Service)
	service.Spec.Template.Spec.Containers = []serving.Container{{
		Image: "x", Env: []serving.EnvVar{{Name: "A", Value: "b"}, {Name: "C", Value: "d"}}, Ports: []serving.ContainerPort{{ContainerPort: 8080}},
	}}
	secret := serving.KindSecret.New().(*serving.Secret)
	secret.Data, secret.Finalizers = map[string][]byte{"a": []byte("b")}, []string{"a/b", "c/d"}
	secret.OwnerReferences = []serving.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: "c", UID: "d"}}
	config := serving.KindConfigMap.New().(*serving.ConfigMap)
	config.Data = map[string]string{"a": "b"}
	seeds := []serving.Object{service, secret, config}
	for _, o := range seeds {
		serving.KindOf(o).Stamp(o)
		o.SetName("a")
		if serving.KindOf(o).Namespaced {
			o.SetNamespace("default")
		}
		o.SetUID("e")
		o.SetResourceVersion("1")
	}
	return seeds
}

// FuzzPatch: whatever a patch holds, it is refused, or makes an object of the same kind that may be stored.
func FuzzPatch(f *testing.F) {
	formats := []string{formatMergePatch, formatJSONPatch, formatStrategicPatch}
	for _, seed := range []string{
		`{"metadata":{"labels":{"a":null}}}`, `{"spec":null}`, `{"spec":{"template":{"spec":{"containers":[null]}}}}`, `[]`, `null`, `{"$patch":"delete"}`,
		`[{"op":"copy","from":"/spec","path":"/spec/template/spec/containers/-"}]`, `[{"op":"remove","path":""}]`, `[{"op":"add","path":"","value":1}]`,
		`[{"op":"move","from":"/spec","path":"/spec/template"}]`, `[{"op":"test","path":"/metadata/name","value":"a"}]`, `[{"op":"replace","path":"/-1","value":{}}]`, `[null]`, `[{}]`, `[{"op":"test","path":""}]`,
		`{"metadata":{"finalizers":["e/f"],"$setElementOrder/finalizers":["e/f","a/b"],"$deleteFromPrimitiveList/finalizers":["c/d"]}}`,
		`{"metadata":{"ownerReferences":[{"uid":"d","$patch":"delete"},{"uid":"x","name":"y"}]},"data":{"$patch":"replace","x":"eA=="}}`,
		`{"$retainKeys":["data"],"data":{"$retainKeys":["a"],"b":null},"stringData":{"c":"d"}}`,
		`[{"op":"replace","path":"/metadata/managedFields","value":[{}]}]`,
		`{"metadata":{"managedFields":[{"manager":"m","operation":"Apply","apiVersion":"v1","fieldsType":"FieldsV1","fieldsV1":{"f:data":{"k:{\"a\":1}":{}}}}]}}`,
	} {
		for format := range formats {
			for object := range patchSeeds() {
				f.Add([]byte(seed), byte(format), byte(object))
			}
		}
	}
	a := fuzzed(f)
	f.Fuzz(func(t *testing.T, data []byte, format, object byte) {
		objects := patchSeeds()
		old := objects[int(object)%len(objects)]
		kind, before := serving.KindOf(old), raw(old)
		apply, err := readPatch(kind, data, formats[int(format)%len(formats)])
		if err != nil {
			return
		}
		o, _, err := patched(kind, old, apply, strict)
		if string(before) != string(raw(old)) {
			t.Fatal("the patch changed the stored object")
		}
		if err != nil || place(o, requestFor(t, old)) != nil {
			return
		}
		if o.GetObjectKind().GroupVersionKind() != kind.GroupVersion().WithKind(kind.Name) {
			t.Fatalf("the patch made a %v", o.GetObjectKind().GroupVersionKind())
		}
		if err := a.own(kind, writer{"fuzz", store.Spec}, old, o); err != nil {
			t.Fatal(err)
		}
		a.store(t, kind, old, o)
	})
}

// requestFor is a request to an object's address.
func requestFor(t *testing.T, o serving.Object) *http.Request {
	r := httptest.NewRequestWithContext(t.Context(), "PATCH", "/", nil)
	r.SetPathValue("namespace", o.GetNamespace())
	r.SetPathValue("name", o.GetName())
	return r
}

// FuzzApply: two managers apply, and the first applies again. Whatever they apply is refused, or makes an object
// that may be stored; and who applies the same again, with nobody in between, changes nothing.
func FuzzApply(f *testing.F) {
	for _, seed := range [][2]string{
		{"spec: {template: {spec: {containers: [{image: x}]}}}", "spec: {template: {spec: {containers: [{image: y}]}}}"},
		{"spec: {template: {spec: {containers: [{name: a, image: x}, {name: b, image: y}]}}}", "metadata: {labels: {a: b}}"},
		{"spec: {template: {spec: {containers: [{image: x}, {image: x}]}}}", "spec: {template: {spec: {containers: [{image: x, name: user-container-0}]}}}"},
		{"spec: {template: {spec: {containers: [{image: x, env: [{name: A, value: b}, {name: A, value: c}]}]}}}", "{}"},
		{"spec: {template: {spec: {containers: [{image: x, ports: [{containerPort: 8080}]}]}}}", "spec: {template: {spec: {containers: [{ports: [{containerPort: 8080, protocol: TCP, name: h2c}]}]}}}"},
		{"spec: {template: {spec: {containers: [{image: x, readinessProbe: {httpGet: {port: a}}}]}}, traffic: [{percent: 100}]}", "spec: {traffic: [{latestRevision: true, percent: 100}]}"},
		{"stringData: {a: b}", "data: {a: Yg==, c: Yg==}"}, {"data: {a: b}", "data: {a: c}\nimmutable: true"}, {"metadata: {finalizers: [a/b, a/b]}", "metadata: {finalizers: [c/d], ownerReferences: [{}]}"},
		{"metadata: null", "spec: null"}, {"spec: {template: {spec: {containers: [null]}}}", "spec: {template: []}"}, {"data: {a: null}", "metadata: {labels: {a: null}, annotations: null}"},
		{"metadata: {managedFields: []}", "metadata: {managedFields: null}"}, {"spec: {template: {spec: {timeoutSeconds: 9007199254740993}}}", "spec: {template: {spec: {timeoutSeconds: 1.5}}}"},
	} {
		for object := range patchSeeds() {
			f.Add([]byte(seed[0]), []byte(seed[1]), byte(object), object == 0)
		}
	}
	a := fuzzed(f)
	f.Fuzz(func(t *testing.T, first, second []byte, object byte, force bool) {
		objects := patchSeeds()
		place := objects[int(object)%len(objects)]
		kind, r := serving.KindOf(place), requestFor(t, place)
		apply := func(manager string, body []byte, old serving.Object) serving.Object {
			t.Helper()
			p, _, err := readApplication(r, kind, body, strict)
			if err != nil {
				return nil
			}
			p.by, p.force = writer{manager, store.Spec}, force
			o, _, err := a.merge(r, kind, p, old)
			if err != nil {
				return nil
			}
			return a.store(t, kind, old, o)
		}
		one := apply("one", first, nil)
		if one == nil || len(one.GetManagedFields()) == 0 { // an object nobody owns gets an owner when it is applied again
			return
		}
		if again := apply("one", first, one); again == nil || content(again) != content(one) {
			t.Fatalf("applied again it changed: %s", cmp.Diff(content(one), content(again)))
		}
		two := apply("two", second, one)
		if two == nil {
			return
		}
		if again := apply("two", second, two); again == nil || content(again) != content(two) {
			t.Fatalf("applied again by the other it changed: %s", cmp.Diff(content(two), content(again)))
		}
		apply("one", first, two)
	})
}

// content is an object without the times of its managed fields.
func content(o serving.Object) string {
	if o == nil {
		return ""
	}
	o = copied(o)
	entries := o.GetManagedFields()
	for i := range entries {
		entries[i].Time = nil
	}
	o.SetManagedFields(entries)
	return string(raw(o))
}
