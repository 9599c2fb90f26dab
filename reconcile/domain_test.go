package reconcile

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"knative.dev/pkg/apis"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

const host = "shop.example.org"

// namespace makes a namespace.
func (h *house) namespace(name string) {
	h.t.Helper()
	if _, err := h.store.Create(h.t.Context(), &serving.Namespace{ObjectMeta: serving.ObjectMeta{Name: name}}); err != nil {
		h.t.Fatal(err)
	}
}

// mapTo stores a domain mapping of a host to a service, as the API would.
func (h *house) mapTo(namespace, host, service string) {
	h.t.Helper()
	m := &serving.DomainMapping{ObjectMeta: serving.ObjectMeta{Namespace: namespace, Name: host}}
	m.Spec.Ref.Name, m.Spec.Ref.Kind, m.Spec.Ref.APIVersion = service, "Service", "serving.knative.dev/v1"
	h.storeMapping(m)
}

func (h *house) storeMapping(m *serving.DomainMapping) {
	h.t.Helper()
	admission, err := serving.NewAdmission(serving.Settings{})
	if err != nil {
		h.t.Fatal(err)
	}
	if _, err := admission.Admit(h.t.Context(), serving.Change{New: m, User: "tester"}); err != nil {
		h.t.Fatal(err)
	}
	if _, err := h.store.Create(h.t.Context(), m); err != nil {
		h.t.Fatal(err)
	}
}

// settleMapping waits until a domain mapping's status is of its newest generation and satisfies done.
func (h *house) settleMapping(namespace, host string, done func(*serving.DomainMapping) bool) *serving.DomainMapping {
	h.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		o, err := h.store.Get(h.t.Context(), serving.KindDomainMapping, namespace, host)
		if err != nil {
			h.t.Fatal(err)
		}
		m := o.(*serving.DomainMapping)
		if m.Status.ObservedGeneration == m.Generation && done(m) {
			return m
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("domain mapping %s/%s did not settle: %+v", namespace, host, m.Status)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// is satisfies settleMapping when a condition is "True", "False" or "Unknown", and its message holds a text.
func is(condition apis.ConditionType, status, text string) func(*serving.DomainMapping) bool {
	return func(m *serving.DomainMapping) bool {
		c := m.Status.GetCondition(condition)
		return c != nil && string(c.Status) == status && strings.Contains(c.Message, text)
	}
}

func mapped(m *serving.DomainMapping) bool { return m.IsReady() }

func (h *house) delete(kind serving.Kind, namespace, name string) {
	h.t.Helper()
	if _, err := h.store.Delete(h.t.Context(), kind, namespace, name, serving.DeleteOptions{}); err != nil {
		h.t.Fatal(err)
	}
}

// awaitClaim waits until a host is claimed for a namespace, "" for nobody.
func (h *house) awaitClaim(host, namespace string) {
	h.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		have := ""
		o, err := h.store.Get(h.t.Context(), serving.KindClusterDomainClaim, "", host)
		switch {
		case err == nil:
			have = o.(*serving.ClusterDomainClaim).Spec.Namespace
		case !errors.Is(err, store.ErrNotFound):
			h.t.Fatal(err)
		}
		if have == namespace {
			return
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("host %s is claimed for namespace %q, want %q", host, have, namespace)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (h *house) expect(host string, code int, body string) {
	h.t.Helper()
	if gotCode, gotBody := h.ask(host); gotCode != code || !strings.Contains(gotBody, body) {
		h.t.Errorf("%s answered %d %q, want %d %q", host, gotCode, gotBody, code, body)
	}
}

// awaitAnswer waits until a host answers with a code.
func (h *house) awaitAnswer(host string, code int) {
	h.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		got, body := h.ask(host)
		if got == code {
			return
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("%s answered %d %q, want %d", host, got, body, code)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestDomain_LeadsToTheServiceAndFollowsItsTraffic(t *testing.T) {
	h := newHouse(t, t.TempDir())
	h.declare("hello", "registry/hello", "")
	h.settle("hello", ready)
	h.mapTo("default", host, "hello")
	m := h.settleMapping("default", host, mapped)
	h.expect(host, 200, "hello-00001")
	if m.Status.URL.String() != "http://"+host || m.Status.Address == nil || m.Status.Address.URL.String() != "http://"+host {
		t.Errorf("url %v, address %v", m.Status.URL, m.Status.Address)
	}
	var conditions []string
	for _, c := range m.Status.Conditions {
		conditions = append(conditions, string(c.Type)+"="+string(c.Status)+" "+c.Reason)
	}
	want := []string{"CertificateProvisioned=True TLSNotEnabled", "DomainClaimed=True ", "IngressReady=True ", "Ready=True ", "ReferenceResolved=True "}
	if !slices.Equal(conditions, want) {
		t.Errorf("conditions %q, want %q", conditions, want)
	}

	h.await(func() error {
		for _, e := range listEvents(t, h.store, "default") {
			if e.InvolvedObject.Kind == "DomainMapping" && e.InvolvedObject.UID == m.UID && e.Message == `Created ClusterDomainClaim "shop.example.org"` {
				return nil
			}
		}
		return errors.New("no event tells of the claim")
	})

	// What the service's own host does, the mapped one does at the same moment: there is nothing to wait for.
	h.declare("hello", "registry/hello:2", "")
	h.settle("hello", ready)
	h.expect(host, 200, "hello-00002")
	half := int64(50)
	h.declare("hello", "registry/hello:2", "", serving.TrafficTarget{RevisionName: "hello-00001", Percent: &half},
		serving.TrafficTarget{RevisionName: "hello-00002", Percent: &half})
	h.settle("hello", ready)
	answers := map[string]int{}
	for range 200 {
		_, body := h.ask(host)
		answers[body]++
	}
	if len(answers) != 2 || answers["hello-00001"] < 50 || answers["hello-00002"] < 50 {
		t.Errorf("200 answers came from %v", answers)
	}
}

func TestDomain_HealsWhenItsServiceAppears(t *testing.T) {
	h := newHouse(t, t.TempDir())
	h.mapTo("default", host, "hello")
	h.settleMapping("default", host, is(serving.DomainMappingReferenceResolved, "False", `services.serving.knative.dev "hello" not found`))
	h.expect(host, 404, "")
	h.awaitClaim(host, "default") // Knative claims first, too

	h.declare("hello", "registry/broken", "")
	h.settleMapping("default", host, is(serving.DomainMappingIngressReady, "False", "hello"))
	h.expect(host, 503, "no ready revision")

	h.declare("hello", "registry/hello", "")
	h.settleMapping("default", host, mapped)
	h.expect(host, 200, "hello-00002")

	h.delete(serving.KindService, "default", "hello")
	h.settleMapping("default", host, is(serving.DomainMappingReady, "False", "not found"))
	h.expect(host, 404, "")
}

func TestDomain_MapsARouteAndNamesWhatItCannotMap(t *testing.T) {
	h := newHouse(t, t.TempDir())
	h.declare("hello", "registry/hello", "")
	h.settle("hello", ready)
	for i, ref := range []struct{ version, kind, name, problem string }{
		{"serving.knative.dev/v1", "Route", "hello", ""},
		{"v1", "Service", "hello", ""}, // the route's placeholder
		{"v1", "Service", "nobody", `failed to get object default/nobody: services "nobody" not found`},
		{"serving.knative.dev/v1", "Revision", "hello-00001", "spec.ref is a Revision of serving.knative.dev/v1"},
	} {
		m := &serving.DomainMapping{ObjectMeta: serving.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("%d.example.org", i)}}
		m.Spec.Ref.Name, m.Spec.Ref.Kind, m.Spec.Ref.APIVersion = ref.name, ref.kind, ref.version
		h.storeMapping(m)
		if ref.problem == "" {
			h.settleMapping("default", m.Name, mapped)
			h.expect(m.Name, 200, "hello-00001")
			continue
		}
		h.settleMapping("default", m.Name, is(serving.DomainMappingReferenceResolved, "False", ref.problem))
		h.expect(m.Name, 404, "")
	}
}

func TestDomain_SecondNamespaceWaitsForTheHostAndGetsIt(t *testing.T) {
	h := newHouse(t, t.TempDir())
	h.namespace("other")
	h.declare("hello", "registry/hello", "")
	h.settle("hello", ready)
	h.mapTo("default", host, "hello")
	h.settleMapping("default", host, mapped)

	h.mapTo("other", host, "hello")
	h.settleMapping("other", host, is(serving.DomainMappingClaimed, "False", "The domain name is already in use by another DomainMapping"))
	h.expect(host, 200, "hello-00001")

	h.delete(serving.KindDomainMapping, "default", host)
	h.settleMapping("other", host, is(serving.DomainMappingClaimed, "True", ""))
	h.awaitClaim(host, "other")
	h.awaitAnswer(host, 404) // there is no service hello in this namespace

	h.delete(serving.KindDomainMapping, "other", host)
	h.awaitClaim(host, "")
}

func TestDomain_AdministratorsClaimIsRespectedAndStays(t *testing.T) {
	h := newHouse(t, t.TempDir())
	h.declare("hello", "registry/hello", "")
	h.settle("hello", ready)
	claim := &serving.ClusterDomainClaim{ObjectMeta: serving.ObjectMeta{Name: host}}
	claim.Spec.Namespace = "other"
	o, err := h.store.Create(t.Context(), claim)
	if err != nil {
		t.Fatal(err)
	}
	h.mapTo("default", host, "hello")
	h.settleMapping("default", host, is(serving.DomainMappingClaimed, "False", "already in use"))
	h.expect(host, 404, "")

	claim = o.DeepCopyObject().(*serving.ClusterDomainClaim)
	claim.Spec.Namespace = "default"
	if _, err := h.store.Update(t.Context(), claim, store.Spec); err != nil {
		t.Fatal(err)
	}
	h.settleMapping("default", host, mapped)
	h.expect(host, 200, "hello-00001")
	h.delete(serving.KindDomainMapping, "default", host)
	h.awaitAnswer(host, 404)
	h.awaitClaim(host, "default")
}

func TestDomain_ClaimThatIsDeletedUnderAMappingIsMadeAgain(t *testing.T) {
	h := newHouse(t, t.TempDir())
	h.declare("hello", "registry/hello", "")
	h.settle("hello", ready)
	h.mapTo("default", host, "hello")
	h.settleMapping("default", host, mapped)
	h.delete(serving.KindClusterDomainClaim, "", host)
	h.awaitClaim(host, "default")
	h.settleMapping("default", host, mapped)
	h.expect(host, 200, "hello-00001")
}

func TestDomain_NeverTakesAHostOfTheFormThatServicesHave(t *testing.T) {
	h := newHouse(t, t.TempDir())
	h.declare("hello", "registry/hello", "")
	h.settle("hello", ready)
	for _, host := range []string{"hello.default.example.com", "later.default.example.com"} {
		h.mapTo("default", host, "hello")
		h.settleMapping("default", host, is(serving.DomainMappingClaimed, "False", "choose a host of another form"))
	}
	h.expect("later.default.example.com", 404, "")
	h.declare("later", "registry/hello", "")
	h.settle("later", ready)
	h.expect("later.default.example.com", 200, "later-00001")
	h.awaitClaim("later.default.example.com", "")

	h.mapTo("default", "hello.example.com", "hello") // one label less is not such a host
	h.settleMapping("default", "hello.example.com", mapped)
	h.expect("hello.example.com", 200, "hello-00001")
}

func TestDomain_RestartKeepsWhoHasAHost(t *testing.T) {
	dir := t.TempDir()
	h := newHouse(t, dir)
	h.namespace("another") // before "default" in every list
	h.declare("hello", "registry/hello", "")
	h.settle("hello", ready)
	h.mapTo("default", host, "hello")
	h.settleMapping("default", host, mapped)
	h.mapTo("another", host, "hello")
	h.settleMapping("another", host, is(serving.DomainMappingClaimed, "False", ""))
	h.stop()

	h = newHouse(t, dir) // a request may come as soon as this returns
	h.expect(host, 200, "hello-00001")
	h.settleMapping("another", host, is(serving.DomainMappingClaimed, "False", ""))
	h.settleMapping("default", host, mapped)
}

func TestDomain_ClaimWhoseMappingWentWhileTheServerWasDownEnds(t *testing.T) {
	dir := t.TempDir()
	h := newHouse(t, dir)
	h.mapTo("default", host, "hello")
	h.awaitClaim(host, "default")
	h.namespace("other")
	h.mapTo("other", host, "hello")
	h.settleMapping("other", host, is(serving.DomainMappingClaimed, "False", ""))
	h.stop()

	h = newHouseWith(t, dir, func(objects store.Store) {
		if _, err := objects.Delete(t.Context(), serving.KindDomainMapping, "default", host, serving.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	})
	h.settleMapping("other", host, is(serving.DomainMappingClaimed, "True", ""))
	h.awaitClaim(host, "other")
}

func TestDomain_HostHasOneHolderHoweverManyWantIt(t *testing.T) {
	h := newHouse(t, t.TempDir())
	namespaces := []string{"one", "two", "three"}
	hosts := []string{"a.example.org", "b.example.org"}
	for _, name := range namespaces {
		h.namespace(name)
	}
	random := rand.New(rand.NewPCG(1, 2))
	there := map[[2]string]bool{}
	for range 60 {
		k := [2]string{namespaces[random.IntN(len(namespaces))], hosts[random.IntN(len(hosts))]}
		if there[k] {
			h.delete(serving.KindDomainMapping, k[0], k[1])
		} else {
			h.mapTo(k[0], k[1], "hello")
		}
		there[k] = !there[k]
	}
	for _, host := range hosts {
		var holders, claimants []string
		for _, namespace := range namespaces {
			if there[[2]string{namespace, host}] {
				claimants = append(claimants, namespace)
			}
		}
		for _, namespace := range claimants {
			m := h.settleMapping(namespace, host, func(m *serving.DomainMapping) bool {
				claim, err := h.store.Get(t.Context(), serving.KindClusterDomainClaim, "", host)
				if err != nil {
					return false
				}
				holder := claim.(*serving.ClusterDomainClaim).Spec.Namespace
				return slices.Contains(claimants, holder) && (holder == namespace) == m.Status.GetCondition(serving.DomainMappingClaimed).IsTrue()
			})
			if m.Status.GetCondition(serving.DomainMappingClaimed).IsTrue() {
				holders = append(holders, namespace)
			}
		}
		if len(claimants) > 0 && len(holders) != 1 {
			t.Errorf("%s is wanted by %q and had by %q", host, claimants, holders)
		}
		for _, namespace := range claimants {
			h.delete(serving.KindDomainMapping, namespace, host)
		}
		h.awaitClaim(host, "")
	}
}
