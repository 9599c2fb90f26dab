package api_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

func TestCreate_IgnoresStatusAndSystemMetadata(t *testing.T) {
	s := newServer(t)
	body := `{"apiVersion":"serving.knative.dev/v1","kind":"Service","metadata":{"name":"hello","uid":"mine","resourceVersion":"77","generation":9,` +
		`"creationTimestamp":"2001-01-01T00:00:00Z","managedFields":[{"manager":"me"}]},` +
		`"spec":{"template":{"spec":{"containers":[{"image":"registry.example/hello"}]}}},"status":{"latestReadyRevisionName":"fake"}}`
	o := decoded[serving.Service](t, s.created(services, body))
	if o.UID == "mine" || o.UID == "" || o.ResourceVersion == "77" || o.Generation != 1 || o.CreationTimestamp.Year() == 2001 ||
		len(o.ManagedFields) != 1 || o.ManagedFields[0].Manager == "me" || o.Status.LatestReadyRevisionName != "" {
		t.Errorf("got metadata %+v, status %+v", o.ObjectMeta, o.Status)
	}
	if o.Kind != "Service" || o.APIVersion != "serving.knative.dev/v1" || o.Annotations[serving.AnnotationCreator] != "admin" {
		t.Errorf("got %+v", o)
	}
	s.do("POST", services, body).refused(t, 409, v1.StatusReasonAlreadyExists, `services.serving.knative.dev "hello" already exists`)
}

func TestCreate_MakesNamesFromGenerateName(t *testing.T) {
	s := newServer(t)
	body := strings.Replace(hello("x"), `"name":"x"`, `"generateName":"hello-"`, 1)
	first, second := decoded[serving.Service](t, s.created(services, body)), decoded[serving.Service](t, s.created(services, body))
	if !strings.HasPrefix(first.Name, "hello-") || first.Name == second.Name {
		t.Errorf("got names %q and %q", first.Name, second.Name)
	}
}

func TestCreate_NamesWhatIsWrongWithTheBody(t *testing.T) {
	s := newServer(t)
	deep := strings.Repeat(`{"a":`, 100) + "1" + strings.Repeat("}", 100)
	for _, c := range []struct {
		name, body, contentType string
		code                    int
		reason                  v1.StatusReason
		part                    string
	}{
		{"unknown field", strings.Replace(hello("a"), `"image"`, `"imag":"x","image"`, 1), "", 400, v1.StatusReasonBadRequest, `strict decoding error: unknown field "spec.template.spec.containers[0].imag"`},
		{"duplicate field", strings.Replace(hello("a"), `"image"`, `"image":"x","image"`, 1), "", 400, v1.StatusReasonBadRequest, `duplicate field "spec.template.spec.containers[0].image"`},
		{"wrong type", strings.Replace(hello("a"), `"registry.example/hello"`, `5`, 1), "", 400, v1.StatusReasonBadRequest, "cannot unmarshal number"},
		{"empty", "", "", 400, v1.StatusReasonBadRequest, "the body is empty"},
		{"list", "[]", "", 400, v1.StatusReasonBadRequest, "not a JSON object"},
		{"cut off", `{"kind":`, "", 400, v1.StatusReasonBadRequest, "unexpected end of JSON input"},
		{"deep", deep, "", 400, v1.StatusReasonBadRequest, "nests deeper than 64 levels"},
		{"form", "a=b", "application/x-www-form-urlencoded", 415, v1.StatusReasonUnsupportedMediaType, "application/json, application/yaml"},
		{"other kind", strings.Replace(hello("a"), `"kind":"Service"`, `"kind":"Route"`, 1), "", 400, v1.StatusReasonBadRequest, `kind "Route"`},
		{"other namespace", strings.Replace(hello("a"), `"name":"a"`, `"name":"a","namespace":"b"`, 1), "", 400, v1.StatusReasonBadRequest, "does not match the namespace"},
		{"no image", strings.Replace(hello("a"), `"registry.example/hello"`, `""`, 1), "", 400, v1.StatusReasonBadRequest, "validation failed: "},
		{"two documents", "kind: Service\n---\nkind: Service\n", "application/yaml", 400, v1.StatusReasonBadRequest, "2 YAML documents"},
		{"no protobuf form", "k8s\x00", "application/vnd.kubernetes.protobuf", 415, v1.StatusReasonUnsupportedMediaType, "application/json"},
		{"large", `{"a":"` + strings.Repeat("x", 3<<20) + `"}`, "", 413, v1.StatusReasonRequestEntityTooLarge, "larger than 3145728 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.do("POST", services, c.body, "Content-Type", c.contentType).refused(t, c.code, c.reason, c.part)
		})
	}
	if list := decoded[struct{ Items []any }](t, s.do("GET", services, "")); len(list.Items) != 0 {
		t.Errorf("%d services were stored", len(list.Items))
	}
}

func TestCreate_DropsUnknownFieldsWhenAskedTo(t *testing.T) {
	s := newServer(t)
	body := func(name string) string { return strings.Replace(hello(name), `"spec"`, `"extra":1,"spec"`, 1) }
	warned := s.do("POST", services+"?fieldValidation=Warn", body("a"), "Content-Type", "application/json").want(t, 201)
	if got := warned.header.Values("Warning"); len(got) != 1 || got[0] != `299 - "unknown field \"extra\""` {
		t.Errorf("got warnings %q", got)
	}
	ignored := s.do("POST", services+"?fieldValidation=Ignore", body("b"), "Content-Type", "application/json").want(t, 201)
	if got := ignored.header.Values("Warning"); len(got) != 0 {
		t.Errorf("got warnings %q", got)
	}
	s.do("POST", services+"?fieldValidation=Maybe", body("c")).refused(t, 400, v1.StatusReasonBadRequest, "Strict, Warn or Ignore")
}

func TestCreate_TakesYAMLAndDryRuns(t *testing.T) {
	s := newServer(t)
	dry := decoded[serving.Service](t, s.do("POST", services+"?dryRun=All", helloYAML, "Content-Type", "application/yaml").want(t, 201))
	if dry.UID == "" || dry.Generation != 1 {
		t.Errorf("got %+v", dry.ObjectMeta)
	}
	s.do("GET", services+"/hello", "").refused(t, 404, v1.StatusReasonNotFound, `services.serving.knative.dev "hello" not found`)
	s.do("POST", services, helloYAML, "Content-Type", "application/yaml").want(t, 201)
	s.do("POST", services+"?dryRun=All", helloYAML, "Content-Type", "application/yaml").refused(t, 409, v1.StatusReasonAlreadyExists)
	s.do("DELETE", services+"/hello?dryRun=All", "").want(t, 200)
	s.do("GET", services+"/hello", "").want(t, 200)
	s.do("DELETE", services+"/hello?dryRun=Some", "").refused(t, 400, v1.StatusReasonBadRequest, `"Some"`)
}

func TestCreate_RefusesRevisionsAndUnknownNamespaces(t *testing.T) {
	s := newServer(t)
	a := s.do("POST", "/apis/serving.knative.dev/v1/namespaces/default/revisions", "{}")
	a.refused(t, 405, v1.StatusReasonMethodNotAllowed, "revisions are made by the platform")
	if a.header.Get("Allow") == "" {
		t.Error("no Allow header")
	}
	s.do("POST", "/apis/serving.knative.dev/v1/namespaces/nowhere/services", hello("a")).
		refused(t, 404, v1.StatusReasonNotFound, `namespaces "nowhere" not found`)
}

func TestRevision_TakesLabelsAndKeepsItsSpec(t *testing.T) {
	s := newServer(t)
	r := &serving.Revision{ObjectMeta: serving.ObjectMeta{Name: "hello-00001", Namespace: "default"}}
	r.Spec.Containers = []serving.Container{{Image: "registry.example/hello"}}
	r.SetDefaults(t.Context())
	stored := new(serving.Revision) // without the empty maps that defaulting leaves, as the platform stores it
	if err := json.Unmarshal(encoded(t, r), stored); err != nil {
		t.Fatal(err)
	}
	if _, err := s.store.Create(t.Context(), stored); err != nil {
		t.Fatal(err)
	}
	path := "/apis/serving.knative.dev/v1/namespaces/default/revisions/hello-00001"
	s.do("PATCH", path, `{"metadata":{"labels":{"a":"b"}}}`, "Content-Type", "application/merge-patch+json").want(t, 200)
	s.do("PATCH", path, `{"spec":{"timeoutSeconds":7}}`, "Content-Type", "application/merge-patch+json").
		refused(t, 400, v1.StatusReasonBadRequest, "validation failed: Immutable fields changed (-old +new): spec")
	s.do("DELETE", path, "").want(t, 200)
}

func TestPut_KeepsStatusAndEnforcesTheVersion(t *testing.T) {
	s := newServer(t)
	o := decoded[serving.Service](t, s.created(services, hello("hello")))
	status := `{"status":{"latestReadyRevisionName":"hello-00001"}}`
	s.do("PATCH", services+"/hello/status", status, "Content-Type", "application/merge-patch+json").want(t, 200)
	o.Status.LatestReadyRevisionName = "fake"
	o.Spec.Template.Spec.Containers[0].Image = "registry.example/hello:2"
	s.do("PUT", services+"/hello", string(encoded(t, o))).refused(t, 409, v1.StatusReasonConflict,
		`Operation cannot be fulfilled on services.serving.knative.dev "hello": the object has been modified`)
	o.ResourceVersion = ""
	changed := decoded[serving.Service](t, s.do("PUT", services+"/hello", string(encoded(t, o))).want(t, 200))
	if changed.Generation != 2 || changed.Status.LatestReadyRevisionName != "hello-00001" || changed.UID != o.UID {
		t.Errorf("got %+v, status %+v", changed.ObjectMeta, changed.Status)
	}
	changed.UID = "other"
	s.do("PUT", services+"/hello", string(encoded(t, changed))).refused(t, 409, v1.StatusReasonConflict, "UID in precondition")
	s.do("PUT", services+"/else", string(encoded(t, o))).refused(t, 400, v1.StatusReasonBadRequest, "does not match the name on the URL (else)")
	o.Name, o.UID = "else", ""
	s.do("PUT", services+"/else", string(encoded(t, o))).refused(t, 404, v1.StatusReasonNotFound)
}

func TestPut_OfAStatusChangesTheStatusOnly(t *testing.T) {
	s := newServer(t)
	o := decoded[serving.Service](t, s.created(services, hello("hello")))
	o.Spec.Template.Spec.Containers[0].Image = "registry.example/other"
	o.Labels = map[string]string{"team": "b"}
	o.Status.LatestReadyRevisionName = "hello-00001"
	changed := decoded[serving.Service](t, s.do("PUT", services+"/hello/status", string(encoded(t, o))).want(t, 200))
	if changed.Status.LatestReadyRevisionName != "hello-00001" || changed.Generation != 1 || changed.Labels["team"] != "a" ||
		changed.Spec.Template.Spec.Containers[0].Image != "registry.example/hello" {
		t.Errorf("got %+v", changed)
	}
}

func TestPatch_TakesMergeAndJSONPatches(t *testing.T) {
	s := newServer(t)
	s.created(services, hello("hello"))
	patch := func(contentType, body string) answer {
		t.Helper()
		return s.do("PATCH", services+"/hello", body, "Content-Type", contentType)
	}
	merged := decoded[serving.Service](t, patch("application/merge-patch+json", `{"metadata":{"labels":{"team":null,"tier":"1"}}}`).want(t, 200))
	if len(merged.Labels) != 1 || merged.Labels["tier"] != "1" || merged.Generation != 1 {
		t.Errorf("got labels %v, generation %d", merged.Labels, merged.Generation)
	}
	edited := decoded[serving.Service](t, patch("application/json-patch+json",
		`[{"op":"test","path":"/metadata/name","value":"hello"},{"op":"add","path":"/spec/template/spec/containers/0/args","value":["x"]}]`).want(t, 200))
	if edited.Generation != 2 || edited.Spec.Template.Spec.Containers[0].Args[0] != "x" {
		t.Errorf("got %+v", edited)
	}
	patch("application/json-patch+json", `[{"op":"test","path":"/metadata/name","value":"no"}]`).refused(t, 422, v1.StatusReasonInvalid, "applying the patch")
	patch("application/json-patch+json", `{}`).refused(t, 400, v1.StatusReasonBadRequest, "reading the JSON patch")
	patch("application/json-patch+json", `[{"op":"test","path":""}]`).refused(t, 400, v1.StatusReasonBadRequest, `operation 0: its path must begin with "/"`)
	patch("application/json-patch+json", `[{"op":"add","path":"/metadata"}]`).refused(t, 400, v1.StatusReasonBadRequest, "missing value")
	patch("application/json-patch+json", `[{"op":"swap","path":"/metadata"}]`).refused(t, 400, v1.StatusReasonBadRequest, `"swap"`)
	patch("application/merge-patch+json", `[]`).refused(t, 400, v1.StatusReasonBadRequest, "not a JSON object")
	patch("application/merge-patch+json", `{"spec":{"templat":{}}}`).refused(t, 400, v1.StatusReasonBadRequest, `unknown field "spec.templat"`)
	patch("application/merge-patch+json", `{"metadata":{"name":"x"}}`).refused(t, 400, v1.StatusReasonBadRequest, "does not match the name")
	patch("application/merge-patch+json", `{"metadata":{"resourceVersion":"1"}}`).refused(t, 409, v1.StatusReasonConflict)
	patch("application/merge-patch+json", `{"metadata":null}`).refused(t, 400, v1.StatusReasonBadRequest, "metadata.name")
	patch("application/strategic-merge-patch+json", `{}`).
		refused(t, 415, v1.StatusReasonUnsupportedMediaType, "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml")
}

func TestPatch_OfASecretTakesStrategicPatches(t *testing.T) {
	s := newServer(t)
	s.created(secrets, `{"metadata":{"name":"db","finalizers":["a/b"]},"stringData":{"a":"1","b":"2"}}`)
	patch := func(body string) answer {
		t.Helper()
		return s.do("PATCH", secrets+"/db", body, "Content-Type", "application/strategic-merge-patch+json")
	}
	changed := decoded[serving.Secret](t, patch(`{"data":{"a":null},"stringData":{"c":"3"},"metadata":{"finalizers":["c/d"]}}`).want(t, 200))
	if len(changed.Data) != 2 || string(changed.Data["c"]) != "3" || len(changed.Finalizers) != 2 {
		t.Errorf("got data %s, finalizers %v, want those of both", changed.Data, changed.Finalizers)
	}
	replaced := decoded[serving.Secret](t, patch(`{"metadata":{"$deleteFromPrimitiveList/finalizers":["a/b"]},"data":{"$patch":"replace","x":"eA=="}}`).want(t, 200))
	if len(replaced.Data) != 1 || string(replaced.Data["x"]) != "x" || len(replaced.Finalizers) != 1 {
		t.Errorf("got data %s, finalizers %v, want what the directives leave", replaced.Data, replaced.Finalizers)
	}
	patch(`{"$patch":"delete"}`).refused(t, 400, v1.StatusReasonBadRequest, "metadata.name")
	patch(`{"metadata":{"$setElementOrder/finalizers":["x"],"finalizers":["y"]}}`).refused(t, 422, v1.StatusReasonInvalid, "applying the patch")
}

func TestPatch_LosesNoChangeWhenManyPatchAtOnce(t *testing.T) {
	s := newServer(t)
	s.created(services, hello("hello"))
	var wg sync.WaitGroup
	const writers = 4
	for i := range writers {
		wg.Go(func() {
			body := fmt.Sprintf(`{"metadata":{"labels":{"writer-%d":"x"}}}`, i)
			if a := s.do("PATCH", services+"/hello", body, "Content-Type", "application/merge-patch+json"); a.code != 200 {
				t.Errorf("code %d: %s", a.code, a.body)
			}
		})
	}
	wg.Wait()
	if o := decoded[serving.Service](t, s.do("GET", services+"/hello", "")); len(o.Labels) != writers+1 {
		t.Errorf("got labels %v", o.Labels)
	}
}

func TestDelete_HonoursPreconditionsAndFinalizers(t *testing.T) {
	s := newServer(t)
	o := decoded[serving.Service](t, s.created(services, strings.Replace(hello("hello"), `"name"`, `"finalizers":["example.com/wait"],"name"`, 1)))
	s.do("DELETE", services+"/hello", `{"preconditions":{"uid":"other"}}`).refused(t, 409, v1.StatusReasonConflict, "UID in precondition: other")
	s.do("DELETE", services+"/hello?propagationPolicy=Sideways", "").refused(t, 400, v1.StatusReasonBadRequest, "Background, Foreground or Orphan")
	marked := decoded[serving.Service](t, s.do("DELETE", services+"/hello", `{"kind":"DeleteOptions","apiVersion":"v1","propagationPolicy":"Foreground"}`).want(t, 200))
	if marked.DeletionTimestamp == nil || marked.UID != o.UID {
		t.Errorf("got %+v", marked.ObjectMeta)
	}
	// With Foreground the store may add a finalizer of its own until what the object owns is gone.
	s.do("PATCH", services+"/hello", `{"metadata":{"finalizers":null}}`, "Content-Type", "application/merge-patch+json").want(t, 200)
	s.do("GET", services+"/hello", "").refused(t, 404, v1.StatusReasonNotFound)

	s.created(services, hello("two"))
	gone := decoded[v1.Status](t, s.do("DELETE", services+"/two", "").want(t, 200))
	if gone.Status != "Success" || gone.Details.Name != "two" || gone.Details.Kind != "services" || gone.Details.UID == "" {
		t.Errorf("got %+v", gone)
	}
	s.do("DELETE", services+"/two", "").refused(t, 404, v1.StatusReasonNotFound)
}

func TestDelete_OfACollectionFollowsTheSelectors(t *testing.T) {
	s := newServer(t)
	s.created(services, hello("one"))
	s.created(services, strings.Replace(hello("two"), `"team":"a"`, `"team":"b"`, 1))
	s.do("DELETE", services+"?labelSelector=team%3Da", "").want(t, 200)
	s.do("GET", services+"/one", "").want(t, 404)
	s.do("GET", services+"/two", "").want(t, 200)
}

func TestDelete_OfANamespaceTakesWhatIsInIt(t *testing.T) {
	s := newServer(t)
	s.do("DELETE", "/api/v1/namespaces/default", "").refused(t, 403, v1.StatusReasonForbidden, `namespaces "default" is forbidden`)
	s.created("/api/v1/namespaces", `{"metadata":{"name":"team"}}`)
	in := "/apis/serving.knative.dev/v1/namespaces/team/services"
	s.created(in, strings.Replace(hello("kept"), `"name"`, `"finalizers":["example.com/wait"],"name"`, 1))
	s.created("/api/v1/namespaces/team/secrets", `{"metadata":{"name":"x"}}`)
	w := s.watch("/api/v1/namespaces?watch=true&fieldSelector=metadata.name%3Dteam")
	w.want("ADDED", "team")
	marked := decoded[serving.Namespace](t, s.do("DELETE", "/api/v1/namespaces/team", "").want(t, 200))
	if marked.Kind != "Namespace" || marked.DeletionTimestamp == nil || marked.Status.Phase != serving.NamespaceTerminating {
		t.Errorf("got %+v, want the namespace as it is while what is in it goes", marked)
	}
	again := decoded[serving.Namespace](t, s.do("DELETE", "/api/v1/namespaces/team", "").want(t, 200))
	if again.DeletionTimestamp == nil || !again.DeletionTimestamp.Equal(marked.DeletionTimestamp) {
		t.Errorf("deleted again it is being deleted since %v, want %v", again.DeletionTimestamp, marked.DeletionTimestamp)
	}
	w.want("MODIFIED", "team")
	s.do("POST", in, hello("new")).refused(t, 403, v1.StatusReasonForbidden, "because it is being terminated")
	s.do("PATCH", in+"/kept", `{"metadata":{"finalizers":null}}`, "Content-Type", "application/merge-patch+json").want(t, 200)
	w.want("DELETED", "team")
	s.do("GET", "/api/v1/namespaces/team", "").want(t, 404)
	s.do("GET", "/api/v1/namespaces/team/secrets/x", "").want(t, 404)
	s.do("DELETE", "/api/v1/namespaces", "").refused(t, 405, v1.StatusReasonMethodNotAllowed)
}

func TestList_SelectsAndPages(t *testing.T) {
	s := newServer(t)
	s.created("/api/v1/namespaces", `{"metadata":{"name":"team"}}`)
	for _, name := range []string{"one", "three", "two"} {
		s.created(services, hello(name))
	}
	s.created("/apis/serving.knative.dev/v1/namespaces/team/services", strings.Replace(hello("other"), `"team":"a"`, `"team":"b"`, 1))
	everywhere := "/apis/serving.knative.dev/v1/services"
	for query, want := range map[string]string{
		everywhere: "one three two other",
		services:   "one three two",
		everywhere + "?labelSelector=team+in+(b)":                                 "other",
		everywhere + "?fieldSelector=metadata.name%3Dtwo":                         "two",
		everywhere + "?fieldSelector=metadata.namespace!%3Ddefault":               "other",
		services + "?labelSelector=team%3Da&fieldSelector=metadata.name!%3Dthree": "one two",
	} {
		if got, _ := s.names(query); got != want {
			t.Errorf("%s: got %q, want %q", query, got, want)
		}
	}
	first, meta := s.names(everywhere + "?limit=3")
	second, last := s.names(everywhere + "?limit=3&continue=" + meta.Continue)
	if first != "one three two" || second != "other" || *meta.RemainingItemCount != 1 || last.Continue != "" || meta.ResourceVersion != last.ResourceVersion {
		t.Errorf("got pages %q %+v and %q %+v", first, meta, second, last)
	}
	for query, part := range map[string]string{
		"?labelSelector=a+b+c":       "labelSelector",
		"?fieldSelector=spec.x%3D1":  "field label not supported: spec.x",
		"?limit=few":                 "limit",
		"?continue=x":                "continue key is not valid",
		"?watch=perhaps":             `watch is "perhaps"`,
		"?watch=1&timeoutSeconds=-1": "timeoutSeconds",
		"?watch=1&sendInitialEvents=x&resourceVersionMatch=Fine": "sendInitialEvents",
	} {
		s.do("GET", services+query, "").refused(t, 400, v1.StatusReasonBadRequest, part)
	}
}

// names lists objects and returns their names.
func (s *server) names(path string) (string, v1.ListMeta) {
	s.t.Helper()
	list := decoded[struct {
		Kind     string
		Metadata v1.ListMeta
		Items    []struct{ Metadata v1.ObjectMeta }
	}](s.t, s.do("GET", path, "").want(s.t, 200))
	if list.Kind != "ServiceList" || list.Metadata.ResourceVersion == "" {
		s.t.Errorf("got kind %q, metadata %+v", list.Kind, list.Metadata)
	}
	var names []string
	for _, item := range list.Items {
		names = append(names, item.Metadata.Name)
	}
	return strings.Join(names, " "), list.Metadata
}

func TestGet_AnswersTablesAndMetadata(t *testing.T) {
	s := newServer(t)
	o := decoded[serving.Service](t, s.created(services, hello("hello")))
	o.Status.LatestReadyRevisionName = "hello-00001"
	if _, err := s.store.Update(t.Context(), &o, store.Status); err != nil {
		t.Fatal(err)
	}
	table := decoded[v1.Table](t, s.do("GET", services, "", "Accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json").want(t, 200))
	if len(table.Rows) != 1 || table.Rows[0].Cells[0] != "hello" || table.Rows[0].Cells[3] != "hello-00001" || table.ColumnDefinitions[3].Name != "LatestReady" {
		t.Errorf("got %+v", table)
	}
	partial := decoded[v1.PartialObjectMetadata](t, s.do("GET", services+"/hello", "", "Accept", "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io").want(t, 200))
	if partial.Kind != "PartialObjectMetadata" || partial.Name != "hello" {
		t.Errorf("got %+v", partial)
	}
	s.do("GET", services, "", "Accept", "application/vnd.kubernetes.protobuf").refused(t, 406, v1.StatusReasonNotAcceptable)
	s.do("GET", services, "", "Accept", "application/vnd.kubernetes.protobuf,application/json").want(t, 200)
}

func TestProtobuf_OfCoreKindsAndDeleteOptionsIsRead(t *testing.T) {
	s := newServer(t)
	envelope := func(kind string, message interface{ Marshal() ([]byte, error) }) string {
		raw, err := message.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		data, err := (&runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: "v1", Kind: kind}, Raw: raw}).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return "k8s\x00" + string(data)
	}
	const protobuf = "application/vnd.kubernetes.protobuf"
	accept := []string{"Content-Type", protobuf, "Accept", protobuf + ",application/json"}
	secret := &serving.Secret{ObjectMeta: serving.ObjectMeta{Name: "db"}, StringData: map[string]string{"a": "b"}}
	o := decoded[serving.Secret](t, s.do("POST", secrets, envelope("Secret", secret), accept...).want(t, 201))
	if string(o.Data["a"]) != "b" || o.Kind != "Secret" {
		t.Errorf("got %+v", o)
	}
	o.Data["a"] = []byte("c")
	s.do("PUT", secrets+"/db", envelope("Secret", &o), accept...).want(t, 200)
	s.do("POST", secrets, envelope("ConfigMap", &serving.ConfigMap{}), accept...).refused(t, 400, v1.StatusReasonBadRequest, `"ConfigMap"`)
	s.do("POST", secrets, "k8s\x00\xff\xff\xff", accept...).refused(t, 400, v1.StatusReasonBadRequest, "protobuf envelope")
	s.do("POST", secrets, "{}", accept...).refused(t, 400, v1.StatusReasonBadRequest, "does not begin with")
	foreground := v1.DeletePropagationForeground
	uid := o.UID + "x"
	options := &serving.DeleteOptions{PropagationPolicy: &foreground, Preconditions: &v1.Preconditions{UID: &uid}}
	s.do("DELETE", secrets+"/db", envelope("DeleteOptions", options), accept...).refused(t, 409, v1.StatusReasonConflict)
	options.Preconditions.UID = &o.UID
	s.do("DELETE", secrets+"/db", envelope("DeleteOptions", options), accept...).want(t, 200)
}

func TestPaths_AnswerAStatusWhateverIsAsked(t *testing.T) {
	s := newServer(t)
	s.do("GET", "/nothing", "").refused(t, 404, v1.StatusReasonNotFound, "/nothing")
	a := s.do("POST", services+"/hello", "")
	a.refused(t, 405, v1.StatusReasonMethodNotAllowed, "it takes")
	if allow := strings.Join(a.header.Values("Allow"), ","); !strings.Contains(allow, "PATCH") {
		t.Errorf("Allow is %q", allow)
	}
	s.do("GET", "/version", "", "X-Long", strings.Repeat("x", 70_000)).refused(t, 431, "RequestHeaderFieldsTooLarge", "65536")
	s.do("POST", services, hello("a"), "Content-Encoding", "gzip").refused(t, 415, v1.StatusReasonUnsupportedMediaType, "Content-Encoding")
}

func encoded(t *testing.T, o any) []byte {
	t.Helper()
	data, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
