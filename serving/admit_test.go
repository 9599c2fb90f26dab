package serving_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/berth-run/berth/serving"
)

// settings are the platform's defaults.
func settings() serving.Settings {
	return serving.Settings{
		RevisionTimeout: 300 * time.Second, MaxRevisionTimeout: time.Hour, CPU: "1", Memory: "512Mi",
	}
}

func admission(t testing.TB) *serving.Admission {
	t.Helper()
	a, err := serving.NewAdmission(settings())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// service is a service with one container that has more fields.
func service(t *testing.T, container string) *serving.Service {
	t.Helper()
	return read[serving.Service](t, `
metadata: {name: hello, namespace: default}
spec: {template: {spec: {containers: [{image: registry.example/hello, `+container+`}]}}}`)
}

func read[T any](t testing.TB, text string) *T {
	t.Helper()
	o := new(T)
	if err := yaml.UnmarshalStrict([]byte(text), o); err != nil {
		t.Fatal(err)
	}
	return o
}

// refusal is the Status that a change is refused with.
func refusal(t *testing.T, change serving.Change) v1.Status {
	t.Helper()
	_, err := admission(t).Admit(t.Context(), change)
	var status interface{ Status() v1.Status }
	if !errors.As(err, &status) {
		t.Fatalf("got %v, want an error with a Status", err)
	}
	return status.Status()
}

func TestAdmit_FillsKnativesDefaultsAndThePlatforms(t *testing.T) {
	s := service(t, "")
	warnings, err := admission(t).Admit(t.Context(), serving.Change{New: s, User: "ann"})
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	spec := s.Spec.Template.Spec
	if *spec.TimeoutSeconds != 300 || *spec.ContainerConcurrency != 0 {
		t.Errorf("timeoutSeconds %d, containerConcurrency %d", *spec.TimeoutSeconds, *spec.ContainerConcurrency)
	}
	limits := spec.Containers[0].Resources.Limits
	if limits.Cpu().String() != "1" || limits.Memory().String() != "512Mi" || spec.Containers[0].Name != "user-container" {
		t.Errorf("got limits %v, name %q", limits, spec.Containers[0].Name)
	}
	if len(s.Spec.Traffic) != 1 || *s.Spec.Traffic[0].Percent != 100 || !*s.Spec.Traffic[0].LatestRevision {
		t.Errorf("got traffic %+v", s.Spec.Traffic)
	}
	if a := s.Annotations; a[serving.AnnotationCreator] != "ann" || a[serving.AnnotationLastModifier] != "ann" {
		t.Errorf("got annotations %v", a)
	}
}

func TestAdmit_SaysWhatKnativeSays(t *testing.T) {
	for _, c := range []struct{ container, want, field string }{
		{"ports: [{containerPort: 8080, name: grpc}]", "validation failed: Port name grpc is not allowed: spec.template.spec.containers[0].ports\nName must be empty, or one of: 'h2c', 'http1'", "spec.template.spec.containers[0].ports"},
		{"env: [{name: PORT, value: '1'}]", `validation failed: "PORT" is a reserved environment variable: spec.template.spec.containers[0].env[0].name`, "spec.template.spec.containers[0].env[0].name"},
		{"lifecycle: {preStop: {exec: {command: [x]}}}", "validation failed: must not set the field(s): spec.template.spec.containers[0].lifecycle", "spec.template.spec.containers[0].lifecycle"},
		{"env: [{name: A, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]", "validation failed: must not set the field(s): spec.template.spec.containers[0].env[0].valueFrom.fieldRef", "spec.template.spec.containers[0].env[0].valueFrom.fieldRef"},
	} {
		status := refusal(t, serving.Change{New: service(t, c.container)})
		if status.Message != c.want || status.Code != 400 || status.Reason != v1.StatusReasonBadRequest {
			t.Errorf("%s:\n got %d %s %q\nwant %q", c.container, status.Code, status.Reason, status.Message, c.want)
		}
		if causes := status.Details.Causes; len(causes) != 1 || causes[0].Field != c.field {
			t.Errorf("%s: got causes %+v, want one for %s", c.container, causes, c.field)
		}
	}
}

func TestAdmit_NamesAnInvalidServiceAccountAsTheConformanceSuiteExpects(t *testing.T) {
	s := service(t, "")
	s.Spec.Template.Spec.ServiceAccountName = "foo@bar.baz"
	if message := refusal(t, serving.Change{New: s}).Message; !strings.Contains(message, "foo@bar.baz: spec.template.spec.serviceAccountName\n") {
		t.Errorf("got %q", message)
	}
}

func TestAdmit_RefusesWhatBerthCannotRun(t *testing.T) {
	for container, path := range map[string]string{
		"resources: {limits: {cpu: '0'}}":                                                          "spec.template.spec.containers[0].resources.limits[cpu]",
		"resources: {limits: {cpu: '-1'}}":                                                         "spec.template.spec.containers[0].resources.limits[cpu]",
		"resources: {limits: {memory: '0'}}":                                                       "spec.template.spec.containers[0].resources.limits[memory]",
		"resources: {limits: {memory: 4Mi}}":                                                       "spec.template.spec.containers[0].resources.limits[memory]",
		"resources: {limits: {nvidia.com/gpu: 1}}":                                                 "spec.template.spec.containers[0].resources.limits[nvidia.com/gpu]",
		"ports: [{containerPort: 80}]" + strings.Repeat("}, {image: registry.example/sidecar", 10): "spec.template.spec.containers",
		"ports: [{containerPort: 80}]}], initContainers: [{image: x, name: init":                   "spec.template.spec.initContainers",
	} {
		status := refusal(t, serving.Change{New: service(t, container)})
		found := false
		for _, cause := range status.Details.Causes {
			found = found || cause.Field == path
		}
		if !found || status.Code != 400 || !strings.HasPrefix(status.Message, "validation failed: ") {
			t.Errorf("%s: got %d %q, causes %+v; want one for %s", container, status.Code, status.Message, status.Details.Causes, path)
		}
	}
}

func TestAdmit_TakesSidecarsAndNamesThem(t *testing.T) {
	s := service(t, "ports: [{containerPort: 80}]}, {image: registry.example/sidecar}, {image: registry.example/helper, name: helper")
	warnings, err := admission(t).Admit(t.Context(), serving.Change{New: s})
	if err != nil || len(warnings) > 0 {
		t.Fatalf("got %v and warnings %q", err, warnings)
	}
	var names []string
	for _, c := range s.Spec.Template.Spec.Containers {
		names = append(names, c.Name)
	}
	if want := []string{"user-container-0", "user-container-1", "helper"}; !slices.Equal(names, want) {
		t.Errorf("they are named %q, want %q", names, want)
	}
}

func TestAdmit_RefusesToMakePublicWhatIsToBePrivate(t *testing.T) {
	route := read[serving.Route](t, "metadata: {name: hello, namespace: default}\nspec: {traffic: [{configurationName: hello, percent: 100}]}")
	for _, o := range []serving.Object{service(t, ""), route} {
		plain := o.DeepCopyObject().(serving.Object)
		if _, err := admission(t).Admit(t.Context(), serving.Change{New: plain}); err != nil {
			t.Fatal(err)
		}
		plain.SetResourceVersion("1")
		labelled := plain.DeepCopyObject().(serving.Object)
		labelled.SetLabels(map[string]string{"networking.knative.dev/visibility": "cluster-local"})
		annotated := plain.DeepCopyObject().(serving.Object)
		annotated.SetAnnotations(map[string]string{"run.googleapis.com/ingress": "internal"})
		for path, o := range map[string]serving.Object{
			"metadata.labels[networking.knative.dev/visibility]": labelled,
			"metadata.annotations[run.googleapis.com/ingress]":   annotated,
		} {
			for _, old := range []serving.Object{nil, plain} {
				status := refusal(t, serving.Change{New: o.DeepCopyObject().(serving.Object), Old: old})
				if causes := status.Details.Causes; status.Code != 400 || len(causes) != 1 || causes[0].Field != path {
					t.Errorf("got %d %q, causes %+v; want one for %s", status.Code, status.Message, causes, path)
				}
			}
		}
		annotated.SetAnnotations(map[string]string{"run.googleapis.com/ingress": "all"})
		if _, err := admission(t).Admit(t.Context(), serving.Change{New: annotated}); err != nil {
			t.Errorf("a public service: %v", err)
		}
	}
}

func TestAdmit_TakesThePortsThatKnativeReservesForItsProxy(t *testing.T) {
	for _, port := range []int32{8012, 8013, 8022, 9090, 9091} {
		s := service(t, fmt.Sprintf("ports: [{containerPort: %d}]", port))
		if _, err := admission(t).Admit(t.Context(), serving.Change{New: s}); err != nil {
			t.Error(err)
		}
		if got := s.Spec.Template.Spec.Containers[0].Ports[0].ContainerPort; got != port {
			t.Errorf("got port %d, want %d", got, port)
		}
	}
	status := refusal(t, serving.Change{New: service(t, "ports: [{containerPort: 9090, name: grpc}], env: [{name: PORT, value: '1'}]")})
	if strings.Contains(status.Message, "9090") || len(status.Details.Causes) != 2 {
		t.Errorf("got %q, want the other two mistakes", status.Message)
	}
}

func TestAdmit_TakesEveryProbeThatKubernetesHas(t *testing.T) {
	for _, container := range []string{
		"livenessProbe: {exec: {command: [x]}, terminationGracePeriodSeconds: 1, initialDelaySeconds: 3600, periodSeconds: 1}",
		"readinessProbe: {grpc: {port: 8080, service: s}, periodSeconds: 2, failureThreshold: 5, successThreshold: 2}",
		"startupProbe: {exec: {command: [x, --all]}}, livenessProbe: {tcpSocket: {port: 65535}}",
		"readinessProbe: {httpGet: {scheme: HTTPS, port: http, path: '/a?b=c', httpHeaders: [{name: X-Y, value: z}]}}, ports: [{containerPort: 80}]",
		"ports: [{containerPort: 80}]}, {image: registry.example/sidecar, readinessProbe: {tcpSocket: {port: 81}}, livenessProbe: {exec: {command: [x]}}",
	} {
		_, err := admission(t).Admit(t.Context(), serving.Change{New: service(t, container)})
		if err != nil {
			t.Errorf("%s: %v", container, err)
		}
	}
}

func TestAdmit_RefusesProbesThatKubernetesWould(t *testing.T) {
	for container, path := range map[string]string{
		"livenessProbe: {exec: {command: []}}":                                                            "livenessProbe.exec.command",
		"livenessProbe: {tcpSocket: {}, initialDelaySeconds: -1}":                                         "livenessProbe.initialDelaySeconds",
		"livenessProbe: {tcpSocket: {}, successThreshold: 2}":                                             "livenessProbe.successThreshold",
		"livenessProbe: {tcpSocket: {}, terminationGracePeriodSeconds: 0}":                                "livenessProbe.terminationGracePeriodSeconds",
		"livenessProbe: {tcpSocket: {}, terminationGracePeriodSeconds: 3601}":                             "livenessProbe.terminationGracePeriodSeconds",
		"readinessProbe: {tcpSocket: {}, terminationGracePeriodSeconds: 1}":                               "readinessProbe.terminationGracePeriodSeconds",
		"startupProbe: {tcpSocket: {port: 65536}}":                                                        "startupProbe.tcpSocket.port",
		"startupProbe: {httpGet: {port: -1}}":                                                             "startupProbe.httpGet.port",
		"startupProbe: {httpGet: {port: '70000'}}":                                                        "startupProbe.httpGet.port",
		"readinessProbe: {grpc: {port: 70000}}":                                                           "readinessProbe.grpc.port",
		"readinessProbe: {httpGet: {scheme: FTP}}":                                                        "readinessProbe.httpGet.scheme",
		"readinessProbe: {httpGet: {path: '/%zz'}}":                                                       "readinessProbe.httpGet.path",
		"readinessProbe: {httpGet: {httpHeaders: [{name: 'a b', value: c}]}}":                             "readinessProbe.httpGet.httpHeaders[0].name",
		"ports: [{containerPort: 80}]}, {image: registry.example/b, startupProbe: {grpc: {}}":             "startupProbe.grpc.port",
		"ports: [{containerPort: 80}]}, {image: registry.example/b, startupProbe: {tcpSocket: {port: a}}": "startupProbe.tcpSocket.port",
	} {
		n := strings.Count(container, "image:")
		status := refusal(t, serving.Change{New: service(t, container)})
		found := false
		for _, cause := range status.Details.Causes {
			found = found || cause.Field == fmt.Sprintf("spec.template.spec.containers[%d].%s", n, path)
		}
		if !found {
			t.Errorf("%s: got causes %+v, want one for %s", container, status.Details.Causes, path)
		}
	}
}

func TestAdmit_WarnsOfSettingsWithoutEffect(t *testing.T) {
	const path = "spec.template.spec.containers[0]."
	for container, want := range map[string]string{
		"livenessProbe: {tcpSocket: {}}":                                           "",
		"startupProbe: {tcpSocket: {}}, readinessProbe: {httpGet: {path: /ready}}": "",
		"startupProbe: {tcpSocket: {}}":                                            "",
		"readinessProbe: {httpGet: {path: /ready}}":                                "",
	} {
		s := service(t, container)
		warnings, err := admission(t).Admit(t.Context(), serving.Change{New: s})
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(warnings, "\n"); got != want {
			t.Errorf("%s: got warnings %q, want %q", container, got, want)
		}
	}
	s := service(t, "")
	s.Spec.Template.Annotations = map[string]string{serving.AnnotationProgressDeadline: "30s"}
	warnings, err := admission(t).Admit(t.Context(), serving.Change{New: s})
	if err != nil {
		t.Fatal(err)
	}
	want := "spec.template.metadata.annotations[" + serving.AnnotationProgressDeadline + "] has no effect in this release of Berth"
	if len(warnings) != 1 || warnings[0] != want {
		t.Errorf("got warnings %q, want %q", warnings, want)
	}
}

func TestAdmit_KeepsTheLabelsThatTieARevisionToItsOwners(t *testing.T) {
	old := read[serving.Revision](t, `
metadata:
  name: hello-00001
  namespace: default
  resourceVersion: "1"
  labels: {serving.knative.dev/service: hello, serving.knative.dev/routingState: active, team: a}
spec: {containers: [{name: user-container, image: registry.example/hello}]}`)
	if _, err := admission(t).Admit(t.Context(), serving.Change{New: old}); err != nil {
		t.Fatal(err)
	}
	owned := map[string]string{"serving.knative.dev/service": "hello", "serving.knative.dev/routingState": "active"}
	for _, c := range []struct {
		given, want map[string]string
		warns       int
	}{
		{nil, owned, 1},
		{map[string]string{"serving.knative.dev/service": "other", "serving.knative.dev/new": "b", "team": "b"},
			map[string]string{"serving.knative.dev/service": "hello", "serving.knative.dev/routingState": "active", "team": "b"}, 1},
		{owned, owned, 0},
	} {
		o := old.DeepCopy()
		o.Labels = maps.Clone(c.given)
		warnings, err := admission(t).Admit(t.Context(), serving.Change{New: o, Old: old})
		if err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(o.Labels, c.want) || len(warnings) != c.warns {
			t.Errorf("%v: got %v and warnings %q, want %v and %d", c.given, o.Labels, warnings, c.want, c.warns)
		}
	}
}

func TestAdmit_TakesEnvironmentFromSecretsAndConfigMapsAndWarnsOfFieldsWithoutEffect(t *testing.T) {
	s := service(t, "env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}, {name: B, valueFrom: {configMapKeyRef: {name: s, key: k}}}], "+
		"envFrom: [{secretRef: {name: s}}, {configMapRef: {name: c}}], securityContext: {runAsNonRoot: true, runAsUser: 5}")
	s.Spec.Template.Annotations = map[string]string{serving.AnnotationProgressDeadline: "5m"}
	warnings, err := admission(t).Admit(t.Context(), serving.Change{New: s})
	if err != nil {
		t.Fatal(err)
	}
	want := "spec.template.metadata.annotations[" + serving.AnnotationProgressDeadline + "] has no effect in this release of Berth"
	if len(warnings) != 1 || warnings[0] != want {
		t.Errorf("got warnings %q, want %q", warnings, want)
	}
}

func TestAdmit_RefusesAChangedTemplateUnderTheSameRevisionName(t *testing.T) {
	old := service(t, "")
	old.Spec.Template.Name = "hello-one"
	if _, err := admission(t).Admit(t.Context(), serving.Change{New: old}); err != nil {
		t.Fatal(err)
	}
	old.ResourceVersion = "1"
	same := service(t, "name: user-container, resources: {limits: {cpu: '1', memory: 512Mi}}, readinessProbe: {successThreshold: 1, tcpSocket: {port: 0}}")
	same.Spec.Template.Name, same.ResourceVersion = "hello-one", "1"
	same.Spec.Template.Spec.TimeoutSeconds = old.Spec.Template.Spec.TimeoutSeconds
	same.Spec.Template.Spec.ContainerConcurrency = old.Spec.Template.Spec.ContainerConcurrency
	same.Spec.Template.Spec.EnableServiceLinks = old.Spec.Template.Spec.EnableServiceLinks
	if _, err := admission(t).Admit(t.Context(), serving.Change{New: same, Old: old}); err != nil {
		t.Fatal("the same template is refused:", err)
	}
	changed := old.DeepCopy()
	changed.Spec.Template.Spec.Containers[0].Image = "registry.example/hello:2"
	status := refusal(t, serving.Change{New: changed, Old: old})
	if !strings.HasPrefix(status.Message, "validation failed: Saw the following changes without a name change (-old +new): spec.template.metadata.name") {
		t.Errorf("got %q", status.Message)
	}
}

func TestAdmit_TakesANamedTemplateThatDidNotChange(t *testing.T) {
	first := service(t, "")
	first.Spec.Template.Name = "hello-one"
	if _, err := admission(t).Admit(t.Context(), serving.Change{New: first}); err != nil {
		t.Fatal(err)
	}
	first.ResourceVersion = "1"
	text, err := yaml.Marshal(first)
	if err != nil {
		t.Fatal(err)
	}
	again := read[serving.Service](t, string(text)) // as a client writes back what it was given
	again.Spec.Traffic = []serving.TrafficTarget{{RevisionName: "hello-one", Percent: new(int64(100))}}
	if _, err := admission(t).Admit(t.Context(), serving.Change{New: again, Old: first}); err != nil {
		t.Error(err)
	}
}

func TestAdmit_NotesWhoChangedTheSpecAndKeepsWhoMadeIt(t *testing.T) {
	old := service(t, "")
	if _, err := admission(t).Admit(t.Context(), serving.Change{New: old, User: "ann"}); err != nil {
		t.Fatal(err)
	}
	old.ResourceVersion = "1"
	changed := service(t, "args: [x]") // without annotations, as a user writes it
	changed.ResourceVersion = "1"
	if _, err := admission(t).Admit(t.Context(), serving.Change{New: changed, Old: old, User: "bob"}); err != nil {
		t.Fatal(err)
	}
	if a := changed.Annotations; a[serving.AnnotationCreator] != "ann" || a[serving.AnnotationLastModifier] != "bob" {
		t.Errorf("got annotations %v", a)
	}
	changed.Annotations[serving.AnnotationCreator] = "eve"
	status := refusal(t, serving.Change{New: changed, Old: old, User: "bob"})
	if !strings.Contains(status.Message, "annotation value is immutable: metadata.annotations.serving.knative.dev/creator") {
		t.Errorf("got %q", status.Message)
	}
}

func TestAdmit_RefusesInvalidMetadataAsKubernetesDoes(t *testing.T) {
	s := service(t, "")
	s.Labels = map[string]string{"a b": "c"}
	status := refusal(t, serving.Change{New: s})
	if status.Code != 422 || status.Reason != v1.StatusReasonInvalid || !strings.HasPrefix(status.Message, `Service.serving.knative.dev "hello" is invalid: metadata.labels: Invalid value: "a b"`) {
		t.Errorf("got %d %s %q", status.Code, status.Reason, status.Message)
	}
	s = service(t, "")
	s.Name, s.GenerateName = "", "hello-"
	if _, err := admission(t).Admit(t.Context(), serving.Change{New: s}); err != nil || s.Name != "" {
		t.Errorf("generateName: %v, name %q", err, s.Name)
	}
}

func TestAdmit_MovesASecretsStringDataAndHidesItsContents(t *testing.T) {
	secret := read[serving.Secret](t, "metadata: {name: s, namespace: default}\nstringData: {a: new}\ndata: {a: b2xk, b: Yg==}")
	if _, err := admission(t).Admit(t.Context(), serving.Change{New: secret}); err != nil {
		t.Fatal(err)
	}
	if secret.StringData != nil || string(secret.Data["a"]) != "new" || string(secret.Data["b"]) != "b" || secret.Type != "Opaque" {
		t.Errorf("got %+v", secret)
	}
	bad := read[serving.Secret](t, "metadata: {name: s, namespace: default}\ntype: kubernetes.io/dockerconfigjson\nstringData: {.dockerconfigjson: hunter2}")
	status := refusal(t, serving.Change{New: bad})
	if status.Code != 422 || strings.Contains(status.Message, "hunter2") || status.Details.Causes[0].Field != "data[.dockerconfigjson]" {
		t.Errorf("got %+v", status)
	}
	other := secret.DeepCopy()
	other.Type, other.ResourceVersion = "example.com/other", "1"
	if status := refusal(t, serving.Change{New: other, Old: secret}); !strings.Contains(status.Message, "immutable") {
		t.Errorf("got %q", status.Message)
	}
}

func TestAdmit_KeepsImmutableConfigMaps(t *testing.T) {
	old := read[serving.ConfigMap](t, "metadata: {name: c, namespace: default, resourceVersion: '1'}\nimmutable: true\ndata: {a: b}")
	changed := old.DeepCopy()
	changed.Data["a"] = "c"
	if status := refusal(t, serving.Change{New: changed, Old: old}); status.Code != 422 || status.Details.Causes[0].Field != "data" {
		t.Errorf("got %+v", status)
	}
	labelled := old.DeepCopy()
	labelled.Labels = map[string]string{"a": "b"}
	if _, err := admission(t).Admit(t.Context(), serving.Change{New: labelled, Old: old}); err != nil {
		t.Error(err)
	}
	if status := refusal(t, serving.Change{New: read[serving.ConfigMap](t, "metadata: {name: c, namespace: default}\ndata: {a/b: c}")}); status.Code != 422 {
		t.Errorf("got %+v", status)
	}
}

func TestNewAdmission_SaysWhichSettingIsWrong(t *testing.T) {
	for want, s := range map[string]serving.Settings{
		"revision-cpu-limit":       {CPU: "much"},
		"revision-timeout-seconds": {RevisionTimeout: time.Hour},
		"give whole seconds":       {RevisionTimeout: 1500 * time.Millisecond},
		"container-concurrency":    {ContainerConcurrency: -1},
		"revision-cpu-limit is 0":  {CPU: "0"},
		"give 8Mi or more":         {Memory: "1Mi"},
	} {
		if _, err := serving.NewAdmission(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: got %v, want an error that names %s", s, err, want)
		}
	}
}

func TestAdmit_AdmitsManyAtOnce(t *testing.T) {
	admission := admission(t)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 20 {
				o := service(t, "resources: {limits: {memory: 1Gi}}")
				if _, err := admission.Admit(t.Context(), serving.Change{New: o}); err != nil {
					t.Error(err)
				} else if limits := o.Spec.Template.Spec.Containers[0].Resources.Limits; limits.Cpu().String() != "1" {
					t.Errorf("got limits %v, want the platform's CPU", limits)
				}
			}
		})
	}
	group.Wait()
}

func BenchmarkAdmit(b *testing.B) {
	o := read[serving.Service](b, "metadata: {name: hello, namespace: default}\nspec: {template: {spec: {containers: [{image: registry.example/hello}]}}}")
	admission := admission(b)
	for b.Loop() {
		if _, err := admission.Admit(b.Context(), serving.Change{New: o.DeepCopy()}); err != nil {
			b.Fatal(err)
		}
	}
}

func TestAdmit_WarnsOfScalingAnnotationsThatThereAreNot(t *testing.T) {
	s := service(t, "")
	s.Spec.Template.Annotations = map[string]string{
		"autoscaling.knative.dev/mn-scale": "1", "autoscaling.knative.dev/min-scale": "1", "autoscaling.knative.dev/maxScale": "2",
	}
	warnings, err := admission(t).Admit(t.Context(), serving.Change{New: s})
	if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "annotations[autoscaling.knative.dev/mn-scale] has no effect") {
		t.Errorf("got %v and warnings %q, want one of mn-scale", err, warnings)
	}
}

func TestAdmit_SaysWhichClassTheMetricsOfInstancesNeed(t *testing.T) {
	for class, says := range map[string]bool{"": true, "kpa.autoscaling.knative.dev": true, "hpa.autoscaling.knative.dev": false} {
		s := service(t, "")
		s.Spec.Template.Annotations = map[string]string{"autoscaling.knative.dev/metric": "cpu"}
		if class != "" {
			s.Spec.Template.Annotations["autoscaling.knative.dev/class"] = class
		}
		_, err := admission(t).Admit(t.Context(), serving.Change{New: s})
		const want = `annotation autoscaling.knative.dev/metric is "cpu", which needs the annotation autoscaling.knative.dev/class: hpa.autoscaling.knative.dev`
		if (err != nil) != says || says && !strings.Contains(err.Error(), want) {
			t.Errorf("class %q: got %v", class, err)
		}
	}
}

func TestAdmit_RefusesWhatNothingScalesBy(t *testing.T) {
	conf := settings()
	var asked []string
	conf.Scaling = func(annotations map[string]string, containerConcurrency int64) error {
		asked = append(asked, fmt.Sprint(annotations["autoscaling.knative.dev/class"], containerConcurrency))
		if annotations["autoscaling.knative.dev/class"] == "mine" {
			return errors.Join(errors.New("one"), errors.New("another"))
		}
		return nil
	}
	a, err := serving.NewAdmission(conf)
	if err != nil {
		t.Fatal(err)
	}
	s := service(t, "")
	s.Spec.Template.Annotations = map[string]string{"autoscaling.knative.dev/class": "mine"}
	s.Spec.Template.Spec.ContainerConcurrency = new(int64(5))
	const want = "validation failed: one; another: spec.template.metadata.annotations"
	if _, err := a.Admit(t.Context(), serving.Change{New: s}); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	s.Spec.Template.Annotations["autoscaling.knative.dev/class"] = "hpa.autoscaling.knative.dev"
	if _, err := a.Admit(t.Context(), serving.Change{New: s}); err != nil {
		t.Errorf("a class that there is: %v", err)
	}
	// What Knative refuses is said once, in its words.
	s.Spec.Template.Annotations["autoscaling.knative.dev/metric"] = ""
	if _, err := a.Admit(t.Context(), serving.Change{New: s}); err == nil || !strings.Contains(err.Error(), "invalid value: ") {
		t.Errorf("a metric that there is not: %v", err)
	}
	if diff := cmp.Diff([]string{"mine5", "hpa.autoscaling.knative.dev5"}, asked); diff != "" {
		t.Errorf("asked for (-want +got):\n%s", diff)
	}
}
