package api_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What a client is told, for each kind of mistake: code and reason for programs, the message and the causes, which
// kubectl shows instead of it when there are any, for people.
func TestRefusals_SayWhatWasSeenAndWhere(t *testing.T) {
	s := newServer(t)
	s.created(services, hello("hello"))
	s.created(secrets, `{"metadata":{"name":"fixed"},"data":{"a":"Yg=="},"immutable":true}`)
	change := func(old, new string) string { return strings.Replace(hello("a"), old, new, 1) }
	const image = `"image":"registry.example/hello"`
	for _, c := range []struct {
		name, method, path, body, format string
		code                             int
		reason                           v1.StatusReason
		message                          string
		causes                           []v1.StatusCause
	}{
		{
			"unknown field", "POST", services, change(image, `"imag":"x",`+image), "", 400, v1.StatusReasonBadRequest,
			`Service in version "v1" cannot be handled as a Service: strict decoding error: unknown field "spec.template.spec.containers[0].imag"`, nil,
		}, {
			"wrong type", "POST", services, change(image, `"image":5`), "", 400, v1.StatusReasonBadRequest,
			"cannot unmarshal number into Go struct field Container.spec.ConfigurationSpec.template.spec.PodSpec.containers.image of type string", nil,
		}, {
			"bad enum", "POST", services, change(image, image+`,"ports":[{"containerPort":80,"name":"ftp"}]`), "", 400, v1.StatusReasonBadRequest,
			"validation failed: Port name ftp is not allowed: spec.template.spec.containers[0].ports\nName must be empty, or one of: 'h2c', 'http1'",
			[]v1.StatusCause{{Type: v1.CauseTypeFieldValueInvalid, Message: "Port name ftp is not allowed\nName must be empty, or one of: 'h2c', 'http1'", Field: "spec.template.spec.containers[0].ports"}},
		}, {
			"missing field", "POST", services, change(image, `"name":"x"`), "", 400, v1.StatusReasonBadRequest,
			"validation failed: missing field(s): spec.template.spec.containers[0].image",
			[]v1.StatusCause{{Type: v1.CauseTypeFieldValueInvalid, Message: "missing field(s)", Field: "spec.template.spec.containers[0].image"}},
		}, {
			"out of bounds", "POST", services, change(`"containers"`, `"containerConcurrency":-1,"containers"`), "", 400, v1.StatusReasonBadRequest,
			"validation failed: expected 0 <= -1 <= 1000: spec.template.spec.containerConcurrency",
			[]v1.StatusCause{{Type: v1.CauseTypeFieldValueInvalid, Message: "expected 0 <= -1 <= 1000", Field: "spec.template.spec.containerConcurrency"}},
		}, {
			"name too long", "POST", services, hello(strings.Repeat("a", 64)), "", 400, v1.StatusReasonBadRequest,
			"validation failed: not a DNS 1035 label: [must be no more than 63 characters]: metadata.name",
			[]v1.StatusCause{{Type: v1.CauseTypeFieldValueInvalid, Message: "not a DNS 1035 label: [must be no more than 63 characters]", Field: "metadata.name"}},
		}, {
			"name of another form", "POST", secrets, `{"metadata":{"name":"A b"}}`, "", 422, v1.StatusReasonInvalid,
			`Secret "A b" is invalid: metadata.name: Invalid value: "A b"`,
			[]v1.StatusCause{{Type: v1.CauseTypeFieldValueInvalid, Field: "metadata.name"}},
		}, {
			"no name", "POST", secrets, `{}`, "", 422, v1.StatusReasonInvalid, "name or generateName is required",
			[]v1.StatusCause{{Type: v1.CauseTypeFieldValueRequired, Message: "Required value: name or generateName is required", Field: "metadata.name"}},
		}, {
			"label", "POST", services, change(`"team":"a"`, `"team":"a b"`), "", 422, v1.StatusReasonInvalid, `Invalid value: "a b"`,
			[]v1.StatusCause{{Type: v1.CauseTypeFieldValueInvalid, Field: "metadata.labels"}},
		}, {
			"immutable", "PUT", secrets + "/fixed", `{"metadata":{"name":"fixed"},"data":{"a":"Yw=="},"immutable":true}`, "", 422, v1.StatusReasonInvalid,
			"field is immutable when `immutable` is set",
			[]v1.StatusCause{{Type: "FieldValueForbidden", Message: "Forbidden: field is immutable when `immutable` is set", Field: "data"}},
		}, {
			"old version", "PUT", services + "/hello", change(`"name":"a"`, `"name":"hello","resourceVersion":"1"`), "", 409, v1.StatusReasonConflict,
			`Operation cannot be fulfilled on services.serving.knative.dev "hello": the object has been modified; please apply your changes to the latest version and try again`, nil,
		}, {
			"name taken", "POST", services, hello("hello"), "", 409, v1.StatusReasonAlreadyExists, `services.serving.knative.dev "hello" already exists`, nil,
		}, {
			"no namespace", "POST", "/api/v1/namespaces/nowhere/secrets", `{"metadata":{"name":"a"}}`, "", 404, v1.StatusReasonNotFound, `namespaces "nowhere" not found`, nil,
		}, {
			"patch that does not apply", "PATCH", services + "/hello", `[{"op":"remove","path":"/spec/nothing"}]`, "application/json-patch+json", 422, v1.StatusReasonInvalid, "applying the patch",
			[]v1.StatusCause{{Type: v1.CauseTypeFieldValueInvalid, Field: "patch"}},
		}, {
			"too deep", "PATCH", services + "/hello", strings.Repeat(`{"a":`, 65) + "1" + strings.Repeat("}", 65), "application/merge-patch+json", 400, v1.StatusReasonBadRequest, "deeper than 64 levels", nil,
		}, {
			"too deep in YAML", "PATCH", services + "/hello?fieldManager=x", strings.Repeat("{a: ", 65) + "1" + strings.Repeat("}", 65), "application/apply-patch+yaml", 400, v1.StatusReasonBadRequest, "deeper than 64 levels", nil,
		}, {
			"too large", "PATCH", services + "/hello?fieldManager=x", `{"a":"` + strings.Repeat("x", 3<<20) + `"}`, "application/apply-patch+yaml", 413, v1.StatusReasonRequestEntityTooLarge, "larger than 3145728 bytes", nil,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			status := s.do(c.method, c.path, c.body, "Content-Type", c.format).refused(t, c.code, c.reason, c.message)
			var causes []v1.StatusCause
			if status.Details != nil {
				causes = status.Details.Causes
			}
			for i := range min(len(causes), len(c.causes)) {
				if c.causes[i].Message == "" {
					causes[i].Message = "" // Kubernetes' own, and long
				}
			}
			if diff := cmp.Diff(c.causes, causes); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestPatch_BoundsTheListsThatAreMergedStrategically(t *testing.T) {
	s := newServer(t)
	s.created("/api/v1/namespaces/default/configmaps", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"}}`)
	owners := func(n int) string {
		var list []string
		for i := range n {
			list = append(list, fmt.Sprintf(`{"apiVersion":"example.com/v1","kind":"Owner","name":"owner","uid":"%d"}`, i))
		}
		return `{"metadata":{"ownerReferences":[` + strings.Join(list, ",") + `]}}`
	}
	patch := func(kind, body string) answer {
		return s.do("PATCH", "/api/v1/namespaces/default/configmaps/a", body, "Content-Type", "application/"+kind+"+json")
	}
	patch("strategic-merge-patch", owners(1000)).want(t, 200)
	patch("strategic-merge-patch", owners(1001)).refused(t, 422, v1.StatusReasonInvalid, "has 1001 elements, and 1000 is the most")
	patch("merge-patch", owners(1001)).want(t, 200)
	patch("strategic-merge-patch", owners(1)).refused(t, 422, v1.StatusReasonInvalid, "has 1001 elements, and 1000 is the most")
}
