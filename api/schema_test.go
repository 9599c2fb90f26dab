package api

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

// fieldAt is the schema of a field of a kind, by its path.
func fieldAt(t *testing.T, kind serving.Kind, path string) spec.Schema {
	t.Helper()
	all := schemasOf(kind.GroupVersion())
	s := *all[nameOfKind(kind)]
	for key := range strings.SplitSeq(path, ".") {
		for s.Ref.String() != "" || len(s.AllOf) > 0 || s.Items != nil {
			switch {
			case s.Items != nil:
				s = *s.Items.Schema
			case len(s.AllOf) > 0:
				s = s.AllOf[0]
			default:
				s = *all[strings.TrimPrefix(s.Ref.String(), refPrefix)]
			}
		}
		next, ok := s.Properties[key]
		if !ok {
			t.Fatalf("%s has no field %q of %q", kind, key, path)
		}
		s = next
	}
	return s
}

func TestSchemas_SayHowListsAreMerged(t *testing.T) {
	for path, want := range map[string]string{
		"spec.template.spec.containers":                              "map [name]",
		"spec.template.spec.containers.env":                          "map [name]",
		"spec.template.spec.containers.ports":                        "map [containerPort protocol]",
		"spec.template.spec.containers.volumeMounts":                 "map [mountPath]",
		"spec.template.spec.containers.args":                         "atomic <nil>",
		"spec.template.spec.containers.envFrom":                      "atomic <nil>",
		"spec.template.spec.containers.readinessProbe":               "<nil> <nil> atomic",
		"spec.template.spec.containers.resources.claims":             "map [name]",
		"spec.template.spec.volumes":                                 "map [name]",
		"spec.template.spec.volumes.projected.sources":               "atomic <nil>",
		"spec.template.spec.imagePullSecrets":                        "map [name]",
		"spec.template.spec.topologySpreadConstraints":               "map [topologyKey whenUnsatisfiable]",
		"spec.template.spec.nodeSelector":                            "<nil> <nil> atomic",
		"spec.traffic":                                               "atomic <nil>",
		"status.conditions":                                          "map [type]",
		"metadata.ownerReferences":                                   "map [uid]",
		"metadata.finalizers":                                        "set <nil>",
		"metadata.managedFields":                                     "atomic <nil>",
		"metadata.labels":                                            "<nil> <nil>",
		"spec.template.spec.initContainers.volumeMounts":             "map [mountPath]",
		"spec.template.spec.affinity.nodeAffinity":                   "<nil> <nil>",
		"spec.template.spec.containers.securityContext.capabilities": "<nil> <nil>",
	} {
		s := fieldAt(t, serving.KindService, path)
		got := fmt.Sprint(s.Extensions["x-kubernetes-list-type"], " ", s.Extensions["x-kubernetes-list-map-keys"])
		if whole := s.Extensions["x-kubernetes-map-type"]; whole != nil {
			got += fmt.Sprint(" ", whole)
		}
		if got != want {
			t.Errorf("%s is merged as %q, want %q", path, got, want)
		}
	}
}

func TestSchemas_HaveTheTypesOfTheJSON(t *testing.T) {
	for path, want := range map[string]string{
		"spec.template.spec.timeoutSeconds":             "integer int64",
		"spec.template.spec.containers.image":           "string",
		"spec.template.spec.containers.ports.protocol":  "string TCP",
		"spec.template.spec.containers.stdin":           "boolean",
		"spec.template.spec.volumes.secret.defaultMode": "integer int32",
	} {
		s := fieldAt(t, serving.KindService, path)
		got := strings.Join(append(s.Type, s.Format), " ")
		if s.Default != nil {
			got += fmt.Sprint(s.Default)
		}
		if got = strings.TrimSpace(got); got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
	all := schemasOf(serving.KindService.GroupVersion())
	for name, want := range map[string]string{
		"io.k8s.apimachinery.pkg.apis.meta.v1.Time":       `{"type":"string","format":"date-time"}`,
		"io.k8s.apimachinery.pkg.util.intstr.IntOrString": `{"format":"int-or-string","oneOf":[{"type":"integer"},{"type":"string"}]}`,
		"io.k8s.apimachinery.pkg.api.resource.Quantity":   `{"oneOf":[{"type":"string"},{"type":"number"}]}`,
		"dev.knative.pkg.apis.URL":                        `{"type":"string"}`,
		"dev.knative.pkg.apis.VolatileTime":               `{"type":"string"}`,
		"io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1":   `{"type":"object","x-kubernetes-preserve-unknown-fields":true}`,
	} {
		if all[name] == nil {
			t.Errorf("no schema %q", name)
			continue
		}
		s := *all[name]
		s.Description = ""
		data, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, string(data)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestSchemas_AreCompleteAndExplained(t *testing.T) {
	for _, gv := range groupVersions() {
		all := schemasOf(gv)
		for name, s := range all {
			for key, property := range s.Properties {
				if property.Description == "" && strings.HasPrefix(name, "dev.knative") && key != "kind" && key != "apiVersion" {
					t.Errorf("%s.%s has no description", name, key)
				}
				for _, ref := range references(property) {
					if all[strings.TrimPrefix(ref, refPrefix)] == nil {
						t.Errorf("%s.%s refers to %s, which is not there", name, key, ref)
					}
				}
			}
		}
	}
}

func references(s spec.Schema) (found []string) {
	if ref := s.Ref.String(); ref != "" {
		found = append(found, ref)
	}
	for _, part := range s.AllOf {
		found = append(found, references(part)...)
	}
	if s.Items != nil {
		found = append(found, references(*s.Items.Schema)...)
	}
	if s.AdditionalProperties != nil && s.AdditionalProperties.Schema != nil {
		found = append(found, references(*s.AdditionalProperties.Schema)...)
	}
	return found
}

func TestFieldManager_KnowsEveryKind(t *testing.T) {
	var c converters
	for _, kind := range serving.Kinds {
		for _, part := range []store.Part{store.Spec, store.Status} {
			manager, err := c.fieldManager(kind, part)
			if err != nil {
				t.Fatal(err)
			}
			o := kind.New()
			o.SetName("a")
			o.SetLabels(map[string]string{"a": "b"})
			before, err := fieldsOf(kind, nil)
			if err != nil {
				t.Fatal(err)
			}
			after, err := fieldsOf(kind, o)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := manager.Update(before, after, "test"); err != nil {
				t.Errorf("%s: %v", kind, err)
			}
		}
	}
}

func BenchmarkOwn(b *testing.B) {
	a := &api{Config: Config{Logger: slog.New(slog.DiscardHandler)}}
	o := serving.KindService.New().(*serving.Service)
	o.Name = "a"
	o.Spec.Template.Spec.Containers = []serving.Container{{Image: "x", Env: []serving.EnvVar{{Name: "A", Value: "b"}}}}
	b.ReportAllocs()
	for b.Loop() {
		if err := a.own(serving.KindService, writer{"test", store.Spec}, nil, o); err != nil {
			b.Fatal(err)
		}
	}
}
