package api_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-run/berth/serving"
)

// apply sends a server-side apply of a service.
func (s *server) apply(manager, name, body string, parameters ...string) answer {
	s.t.Helper()
	query := strings.Join(append([]string{"fieldManager=" + manager}, parameters...), "&")
	return s.do("PATCH", services+"/"+name+"?"+query, body, "Content-Type", "application/apply-patch+yaml")
}

// labels is a service that holds labels only, as one of several managers applies it.
func labels(pairs string) string {
	return "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: hello, labels: {" + pairs + "}}\n"
}

func TestApply_CreatesAndThenChangesNothing(t *testing.T) {
	s := newServer(t)
	dry := decoded[serving.Service](t, s.apply("ci", "hello", helloYAML, "dryRun=All").want(t, 201))
	if len(dry.ManagedFields) != 1 {
		t.Errorf("got managedFields %v, want those of one manager", dry.ManagedFields)
	}
	s.do("GET", services+"/hello", "").want(t, 404)
	first := decoded[serving.Service](t, s.apply("ci", "hello", helloYAML).want(t, 201))
	if c := first.Spec.Template.Spec.Containers; len(c) != 1 || c[0].Name != "user-container" || c[0].Resources.Limits == nil {
		t.Errorf("got containers %v, want one with its defaults", c)
	}
	own := first.ManagedFields[0]
	if len(first.ManagedFields) != 1 || own.Manager != "ci" || own.Operation != v1.ManagedFieldsOperationApply || own.Time == nil ||
		strings.Contains(string(own.FieldsV1.Raw), "limits") {
		t.Errorf("got managedFields %v, want what was applied and no defaults", first.ManagedFields)
	}
	again := decoded[serving.Service](t, s.apply("ci", "hello", helloYAML).want(t, 200))
	if again.ResourceVersion != first.ResourceVersion {
		t.Errorf("applied again, the version is %s, want %s", again.ResourceVersion, first.ResourceVersion)
	}
}

func TestApply_GivesUpWhatIsLeftOut(t *testing.T) {
	s := newServer(t)
	s.apply("ci", "hello", strings.Replace(helloYAML, "name: hello\n", "name: hello\n  labels: {a: '1', b: '2'}\n", 1)).want(t, 201)
	s.apply("other", "hello", labels("b: '2', c: '3'")).want(t, 200)
	o := decoded[serving.Service](t, s.apply("ci", "hello", helloYAML).want(t, 200))
	if len(o.Labels) != 2 || o.Labels["b"] != "2" || o.Labels["c"] != "3" {
		t.Errorf("got labels %v, want the other manager's only", o.Labels)
	}
	if len(o.Spec.Template.Spec.Containers) != 1 {
		t.Errorf("got containers %v", o.Spec.Template.Spec.Containers)
	}
}

func TestApply_MergesContainersByTheirNames(t *testing.T) {
	s := newServer(t)
	s.apply("ci", "hello", helloYAML).want(t, 201)
	const env = `{"apiVersion":"serving.knative.dev/v1","kind":"Service","spec":{"template":{"spec":{"containers":[{"name":"user-container","env":[{"name":"A","value":"b"}]}]}}}}`
	o := decoded[serving.Service](t, s.apply("settings", "hello", env).want(t, 200))
	if c := o.Spec.Template.Spec.Containers; len(c) != 1 || c[0].Image != "registry.example/hello" || len(c[0].Env) != 1 {
		t.Errorf("got containers %v, want one with the image of the one manager and the variable of the other", c)
	}
	probe := strings.Replace(helloYAML, "hello\n", "hello\n        readinessProbe: {httpGet: {path: /ready}}\n", 2)
	probe = strings.Replace(probe, "name: hello\n        readinessProbe: {httpGet: {path: /ready}}\n", "name: hello\n", 1)
	o = decoded[serving.Service](t, s.apply("ci", "hello", probe).want(t, 200))
	if p := o.Spec.Template.Spec.Containers[0].ReadinessProbe; p.TCPSocket != nil || p.HTTPGet == nil {
		t.Errorf("got probe %v, want the one that was applied instead of the default", p)
	}
}

func TestApply_ReportsConflictsUnlessForced(t *testing.T) {
	s := newServer(t)
	s.apply("ci", "hello", helloYAML).want(t, 201)
	other := strings.Replace(helloYAML, "/hello\n", "/other\n", 1)
	status := s.apply("intruder", "hello", other).refused(t, 409, v1.StatusReasonConflict, `Apply failed with 1 conflict: conflict with "ci"`)
	want := v1.StatusCause{
		Type: v1.CauseTypeFieldManagerConflict, Message: `conflict with "ci"`,
		Field: `.spec.template.spec.containers[name="user-container"].image`,
	}
	if len(status.Details.Causes) != 1 || status.Details.Causes[0] != want {
		t.Errorf("got causes %v, want %v", status.Details.Causes, want)
	}
	o := decoded[serving.Service](t, s.apply("intruder", "hello", other, "force=true").want(t, 200))
	if o.Spec.Template.Spec.Containers[0].Image != "registry.example/other" || o.Generation != 2 {
		t.Errorf("got %+v", o.Spec)
	}
	s.apply("ci", "hello", helloYAML).refused(t, 409, v1.StatusReasonConflict, `conflict with "intruder"`)
}

func TestApply_SeesWhatOtherWritersOwn(t *testing.T) {
	s := newServer(t)
	s.do("POST", services+"?fieldManager=maker", hello("hello")).want(t, 201)
	s.do("PATCH", services+"/hello?fieldManager=painter", `{"metadata":{"labels":{"colour":"red"}}}`, "Content-Type", "application/merge-patch+json").want(t, 200)
	s.do("PATCH", services+"/hello/status?fieldManager=watcher", `{"status":{"observedGeneration":1}}`, "Content-Type", "application/merge-patch+json").want(t, 200)
	s.apply("ci", "hello", labels("colour: blue")).refused(t, 409, v1.StatusReasonConflict, `conflict with "painter"`)
	o := decoded[serving.Service](t, s.do("GET", services+"/hello", ""))
	var got []string
	for _, entry := range o.ManagedFields {
		got = append(got, entry.Manager+" "+string(entry.Operation)+" "+entry.Subresource)
	}
	if text := strings.Join(got, ", "); text != "maker Update , painter Update , watcher Update status" {
		t.Errorf("got managers %q", text)
	}
}

func TestApply_NamesWhatIsWrong(t *testing.T) {
	s := newServer(t)
	s.apply("ci", "hello", helloYAML).want(t, 201)
	s.do("PATCH", services+"/hello", helloYAML, "Content-Type", "application/apply-patch+yaml").
		refused(t, 422, v1.StatusReasonInvalid, "fieldManager: Required value: is required for apply patch")
	for _, c := range []struct {
		name, manager, body string
		parameters          []string
		code                int
		reason              v1.StatusReason
		part                string
	}{
		{"unknown field", "ci", strings.Replace(helloYAML, "image:", "imagee: x\n        image:", 1), nil, 400, v1.StatusReasonBadRequest, `unknown field "spec.template.spec.containers[0].imagee"`},
		{"wrong type", "ci", strings.Replace(helloYAML, "registry.example/hello", "[]", 1), nil, 400, v1.StatusReasonBadRequest, "cannot unmarshal array"},
		{"two of one name", "ci", helloYAML + "      - image: b\n        name: user-container\n      - image: c\n        name: user-container\n", nil, 400, v1.StatusReasonBadRequest, `duplicate entries for key [name="user-container"]`},
		{"managed fields", "ci", strings.Replace(helloYAML, "name: hello", "name: hello\n  managedFields: [{manager: x}]", 1), nil, 400, v1.StatusReasonBadRequest, "metadata.managedFields must be nil"},
		{"other kind", "ci", strings.Replace(helloYAML, "kind: Service", "kind: Route", 1), nil, 400, v1.StatusReasonBadRequest, `kind "Route"`},
		{"other name", "ci", strings.Replace(helloYAML, "name: hello", "name: other", 1), nil, 400, v1.StatusReasonBadRequest, "does not match the name"},
		{"no image", "new", strings.Replace(helloYAML, "registry.example/hello", "''", 1), []string{"force=true"}, 400, v1.StatusReasonBadRequest, "validation failed: missing field(s): spec.template.spec.containers[0].image"},
		{"empty", "ci", "", nil, 400, v1.StatusReasonBadRequest, "not a JSON object"},
		{"force", "ci", helloYAML, []string{"force=perhaps"}, 400, v1.StatusReasonBadRequest, `force is "perhaps"`},
		{"long manager", strings.Repeat("m", 129), helloYAML, nil, 400, v1.StatusReasonBadRequest, "fieldManager: Too long"},
		{"old version", "ci", strings.Replace(helloYAML, "name: hello", "name: hello\n  resourceVersion: '1'", 1), nil, 409, v1.StatusReasonConflict, "the object has been modified"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.apply(c.manager, "hello", c.body, c.parameters...).refused(t, c.code, c.reason, c.part)
		})
	}
	s.do("PATCH", services+"/hello?force=true", "{}", "Content-Type", "application/merge-patch+json").
		refused(t, 400, v1.StatusReasonBadRequest, "force: Forbidden")
	s.apply("ci", "new", strings.Replace(helloYAML, "name: hello", "name: new\n  uid: x", 1)).refused(t, 409, v1.StatusReasonConflict, "uid mismatch")
	s.do("PATCH", "/apis/serving.knative.dev/v1/namespaces/default/revisions/none?fieldManager=ci",
		"apiVersion: serving.knative.dev/v1\nkind: Revision\n", "Content-Type", "application/apply-patch+yaml").refused(t, 404, v1.StatusReasonNotFound)
}

func TestApply_OwnsASecretsKeysHoweverTheyAreWritten(t *testing.T) {
	s := newServer(t)
	apply := func(body string) serving.Secret {
		t.Helper()
		a := s.do("PATCH", secrets+"/db?fieldManager=ci", "apiVersion: v1\nkind: Secret\n"+body, "Content-Type", "application/apply-patch+yaml")
		if a.code != 200 && a.code != 201 {
			t.Fatal(a.body)
		}
		return decoded[serving.Secret](t, a)
	}
	apply("stringData: {a: one, b: two}\n")
	o := apply("stringData: {a: one}\n")
	if len(o.Data) != 1 || string(o.Data["a"]) != "one" {
		t.Errorf("got data %s, want what was applied last", o.Data)
	}
}

// The owner of a list or probe as a whole is asked whether it agrees with what is stored, which has defaults.
func TestApply_OfTheSameByAnotherIsNoConflict(t *testing.T) {
	s := newServer(t)
	body := strings.Replace(helloYAML, "spec:\n", "spec:\n  traffic: [{percent: 100}]\n", 1) + "        readinessProbe: {httpGet: {path: /}}\n"
	s.apply("one", "hello", body).want(t, 201)
	s.do("PUT", services+"/hello?fieldManager=two", body, "Content-Type", "application/yaml").want(t, 200)
	o := decoded[serving.Service](t, s.apply("three", "hello", body).want(t, 200))
	var managers []string
	for _, entry := range o.ManagedFields {
		managers = append(managers, entry.Manager)
	}
	slices.Sort(managers)
	if want := []string{"one", "three"}; !slices.Equal(managers, want) {
		t.Errorf("the fields are owned by %q, want %q: the second changed nothing", managers, want)
	}
	s.apply("three", "hello", strings.Replace(body, "path: /", "path: /ready", 1)).refused(t, 409, v1.StatusReasonConflict, `conflict with "one"`, "readinessProbe")
}

func TestPut_TakesAListWhoseElementsHaveNoKeys(t *testing.T) {
	s := newServer(t)
	spec := strings.Replace(hello("hello"), `"containers"`, `"imagePullSecrets":[{},{"name":"pull"}],"containers"`, 1)
	o := decoded[serving.Service](t, s.created(services, spec))
	if len(o.Spec.Template.Spec.ImagePullSecrets) != 2 || len(o.ManagedFields) != 1 {
		t.Errorf("got %v, managedFields %v", o.Spec.Template.Spec.ImagePullSecrets, o.ManagedFields)
	}
}

func TestApply_BoundsWhatManyManagersMake(t *testing.T) {
	s := newServer(t)
	s.apply("ci", "hello", helloYAML).want(t, 201)
	const env = `{"apiVersion":"serving.knative.dev/v1","kind":"Service","spec":{"template":{"spec":{"containers":[{"name":"user-container","env":[{"name":%q,"value":%q}]}]}}}}`
	value := strings.Repeat("x", 2<<20)
	s.apply("one", "hello", fmt.Sprintf(env, "ONE", value)).want(t, 200)
	s.apply("two", "hello", fmt.Sprintf(env, "TWO", value)).refused(t, 413, v1.StatusReasonRequestEntityTooLarge, "the applied object has", "3145728 is the most")
}
