package e2e

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"knative.dev/pkg/apis"

	"github.com/berth-run/berth/client"
	"github.com/berth-run/berth/serving"
)

// mapHost makes a domain mapping of a host to a service.
func (p *platform) mapHost(namespace, host, service string) *serving.DomainMapping {
	p.t.Helper()
	m := mappingOf(host, service)
	m.Namespace = namespace
	made, err := p.DomainMappings(namespace).Create(p.t.Context(), m)
	if err != nil {
		p.t.Fatalf("mapping host %s: %v", host, err)
	}
	return made
}

// mappingOf is a domain mapping of a host to a service in the default namespace, to create.
func mappingOf(host, service string) *serving.DomainMapping {
	m := &serving.DomainMapping{ObjectMeta: serving.ObjectMeta{Namespace: "default", Name: host}}
	m.Spec.Ref.APIVersion, m.Spec.Ref.Kind, m.Spec.Ref.Name = serving.KindService.APIVersion(), serving.KindService.Name, service
	return m
}

// mapping waits until a condition of a domain mapping has a status.
func (p *platform) mapping(namespace, host string, condition apis.ConditionType, status string) *serving.DomainMapping {
	p.t.Helper()
	var last *serving.DomainMapping
	p.await(fmt.Sprintf("%s of the mapping of %s to be %s", condition, host, status), func() error {
		m, err := p.DomainMappings(namespace).Get(p.t.Context(), host)
		if err != nil {
			return err
		}
		last = m
		c := m.Status.GetCondition(condition)
		return errorUnless(m.Generation == m.Status.ObservedGeneration && c != nil && string(c.Status) == status, "it is %v", c)
	})
	return last
}

// echoed is what the program echo says of a request.
func (p *platform) echoed(url string) (request struct{ Host, Revision string }) {
	p.t.Helper()
	a := p.get(url)
	if err := json.Unmarshal([]byte(a.body), &request); err != nil || a.status != 200 {
		p.t.Fatalf("GET %s: %d %q: %v", url, a.status, a.body, err)
	}
	return request
}

func TestDomain_MappedHostReachesTheServiceAndFollowsIt(t *testing.T) {
	t.Parallel()
	const host = "mapped.example.com"
	p := start(t, nil)
	image := program(t, "echo")
	p.mapHost("default", host, "hello")
	m := p.mapping("default", host, serving.DomainMappingReferenceResolved, "False")
	if a := p.get(m.Status.URL.String()); a.status != 404 {
		t.Errorf("before there is a service: %d %q", a.status, a.body)
	}

	p.deploy(service("hello", image))
	url := p.mapping("default", host, serving.DomainMappingReady, "True").Status.URL.String()
	// The program sees the host that the client asked for, as Knative's proxy beside the program has it.
	if got := p.echoed(url); got.Host != strings.TrimPrefix(url, "http://") || got.Revision != "hello-00001" {
		t.Errorf("got %+v", got)
	}
	p.awaitZero("hello")
	if got := p.echoed(url); got.Revision != "hello-00001" {
		t.Errorf("from zero: %+v", got)
	}
	p.deploy(service("hello", image, "A=b"))
	if got := p.echoed(url); got.Revision != "hello-00002" {
		t.Errorf("after a deploy: %+v", got)
	}

	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	p = startIn(t, p.dir, nil)
	url = p.mapping("default", host, serving.DomainMappingReady, "True").Status.URL.String()
	if got := p.echoed(url); got.Revision != "hello-00002" {
		t.Errorf("after a restart: %+v", got)
	}

	if err := p.DomainMappings("default").Delete(t.Context(), host, serving.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	p.await("the host to be nobody's", func() error {
		if a := p.get(url); a.status != 404 {
			return fmt.Errorf("it answers %d", a.status)
		}
		_, err := p.ClusterDomainClaims().Get(t.Context(), host)
		return errorUnless(client.IsNotFound(err), "its claim: %v", err)
	})
}

func TestDomain_NextNamespaceGetsAHostThatIsGivenUp(t *testing.T) {
	t.Parallel()
	const host = "mapped.example.com"
	p := start(t, nil)
	if _, err := p.Namespaces().Create(t.Context(), &serving.Namespace{ObjectMeta: serving.ObjectMeta{Name: "other"}}); err != nil {
		t.Fatal(err)
	}
	image := program(t, "echo")
	p.deploy(service("first", image))
	second := service("second", image)
	second.Namespace = "other"
	p.deploy(second)

	p.mapHost("default", host, "first")
	url := p.mapping("default", host, serving.DomainMappingReady, "True").Status.URL.String()
	p.mapHost("other", host, "second")
	m := p.mapping("other", host, serving.DomainMappingClaimed, "False")
	if c := m.Status.GetCondition(serving.DomainMappingClaimed); c.Message != "The domain name is already in use by another DomainMapping" {
		t.Errorf("got %q", c.Message)
	}
	if got := p.echoed(url); got.Revision != "first-00001" {
		t.Errorf("got %+v", got)
	}
	if err := p.DomainMappings("default").Delete(t.Context(), host, serving.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	p.mapping("other", host, serving.DomainMappingReady, "True")
	if got := p.echoed(url); got.Revision != "second-00001" {
		t.Errorf("got %+v", got)
	}
}

func TestDomain_KubectlAppliesWaitsAndDeletes(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("kubectl"); err != nil {
		t.Skip("kubectl is not installed: it is what this test runs")
	}
	p := start(t, nil)
	p.deploy(service("hello", program(t, "hello")))
	manifest := "apiVersion: serving.knative.dev/v1beta1\nkind: DomainMapping\nmetadata: {name: shop.example.com}\n" +
		"spec: {ref: {name: hello, kind: Service, apiVersion: serving.knative.dev/v1}}\n"
	contains(t, "kubectl apply", p.kubectl(manifest, "apply", "-f", "-"), []string{"domainmapping.serving.knative.dev/shop.example.com created"})
	contains(t, "kubectl wait", p.kubectl("", "wait", "--for=condition=Ready", "dm/shop.example.com", "--timeout=60s"), []string{"condition met"})
	contains(t, "kubectl get", p.kubectl("", "get", "dm"), []string{"NAME", "URL", "READY", "REASON", "shop.example.com", "http://shop.example.com:", "True"})
	contains(t, "kubectl describe", p.kubectl("", "describe", "dm", "shop.example.com"), []string{"DomainClaimed", "ReferenceResolved", "TLSNotEnabled"})
	contains(t, "kubectl get", p.kubectl("", "get", "cdc", "shop.example.com", "-o", "jsonpath={.spec.namespace}"), []string{"default"})
	url := p.kubectl("", "get", "dm", "shop.example.com", "-o", "jsonpath={.status.url}")
	if a := p.get(url); a.status != 200 {
		t.Errorf("the mapped host answers %d %q", a.status, a.body)
	}
	contains(t, "kubectl delete", p.kubectl("", "delete", "dm", "shop.example.com", "--wait", "--timeout=30s"), []string{"deleted"})
	p.await("the host to be nobody's", func() error {
		a := p.get(url)
		return errorUnless(a.status == 404, "it answers %d", a.status)
	})
	p.kubectl("", "wait", "--for=delete", "cdc/shop.example.com", "--timeout=30s")
}
