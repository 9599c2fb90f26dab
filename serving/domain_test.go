package serving_test

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-run/berth/serving"
)

func mapping(t *testing.T, name, spec string) *serving.DomainMapping {
	t.Helper()
	return read[serving.DomainMapping](t, `
metadata: {name: `+name+`, namespace: default}
spec: `+spec)
}

const toHello = "{ref: {name: hello, kind: Service, apiVersion: serving.knative.dev/v1}}"

func TestAdmit_FillsADomainMappingAsKnativeDoes(t *testing.T) {
	m := mapping(t, "shop.example.org", toHello)
	if warnings, err := admission(t).Admit(t.Context(), serving.Change{New: m, User: "ann"}); err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	if m.Spec.Ref.Namespace != "default" || m.Annotations[serving.AnnotationCreator] != "ann" {
		t.Errorf("got %+v", m)
	}
	m.ResourceVersion = "1"
	changed := m.DeepCopy()
	changed.Spec.Ref.Name = "other"
	if _, err := admission(t).Admit(t.Context(), serving.Change{New: changed, Old: m, User: "bob"}); err != nil {
		t.Fatal(err)
	}
	if a := changed.Annotations; a[serving.AnnotationCreator] != "ann" || a[serving.AnnotationLastModifier] != "bob" {
		t.Errorf("got annotations %v", a)
	}
}

func TestAdmit_RefusesADomainMappingInKnativesWords(t *testing.T) {
	for _, c := range []struct{ name, spec, want string }{
		{"localhost", toHello, `validation failed: invalid name "localhost": name: Invalid value: "localhost": should be a domain with at least two segments separated by dots: metadata.name`},
		{"a.svc.cluster.local", toHello, `validation failed: invalid name "a.svc.cluster.local": must not be a subdomain of cluster local domain "cluster.local": metadata.name`},
		{"shop.example.org", "{}", "validation failed: missing field(s): spec.ref.apiVersion, spec.ref.kind, spec.ref.name"},
		{"shop.example.org", strings.Replace(toHello, "name: hello", "name: hello, namespace: other", 1), "validation failed: mismatched namespaces: spec.ref.namespace\nparent namespace: \"default\" does not match ref: \"other\""},
		{"shop.example.org", strings.Replace(toHello, "{ref:", "{tls: {secretName: x}, ref:", 1), "validation failed: Berth shows clients the certificates that the server was given (--tls-cert) or orders (--acme), not those of Secrets; remove it: spec.tls"},
	} {
		if status := refusal(t, serving.Change{New: mapping(t, c.name, c.spec)}); status.Message != c.want || status.Code != 400 {
			t.Errorf("%s %s:\n got %d %q\nwant %q", c.name, c.spec, status.Code, status.Message, c.want)
		}
	}
}

func TestAdmit_AsksAClaimForItsNamespace(t *testing.T) {
	claim := read[serving.ClusterDomainClaim](t, "metadata: {name: shop.example.org}")
	status := refusal(t, serving.Change{New: claim})
	want := `ClusterDomainClaim.networking.internal.knative.dev "shop.example.org" is invalid: spec.namespace: Required value`
	if status.Message != want || status.Reason != v1.StatusReasonInvalid {
		t.Errorf("got %s %q, want %q", status.Reason, status.Message, want)
	}
	claim.Spec.Namespace = "default"
	if _, err := admission(t).Admit(t.Context(), serving.Change{New: claim}); err != nil {
		t.Error(err)
	}
}

func TestIsRouteHost_IsThatOfRoutesAndTags(t *testing.T) {
	for host, want := range map[string]bool{
		serving.Host("default", "hello", "", "example.com"):     true,
		serving.Host("default", "hello", "blue", "example.com"): true,
		"example.com":                      false,
		"hello.example.com":                false,
		"www.hello.default.example.com":    false,
		"hello.default.anotherexample.com": false,
		"hello.default.example.org":        false,
	} {
		if got := serving.IsRouteHost(host, "example.com"); got != want {
			t.Errorf("IsRouteHost(%q) = %t", host, got)
		}
	}
}

func TestAdmit_RefusesWhatIsNoWayToTreatRequestsWithoutTLS(t *testing.T) {
	for _, name := range []string{"networking.knative.dev/http-protocol", "networking.knative.dev/httpOption"} {
		for value, refused := range map[string]bool{"Enabled": false, "redirected": false, "disabled": true, "https": true} {
			m := mapping(t, "shop.example.org", toHello)
			m.Annotations = map[string]string{name: value}
			_, err := admission(t).Admit(t.Context(), serving.Change{New: m, User: "ann"})
			if (err != nil) != refused || refused && !strings.Contains(err.Error(), name) {
				t.Errorf("%s: %q: %v", name, value, err)
			}
		}
	}
}
