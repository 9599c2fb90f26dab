package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"knative.dev/pkg/apis/duck/v1"

	"github.com/berth-run/berth/gateway"
	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

// domainKey names a host: its domain mappings, of which namespaces may each have one, and its claim are looked at
// together, so that one decision is made about who has the host.
func domainKey(host string) key { return key{kind: serving.KindDomainMapping.String(), name: host} }

// reconcileDomain decides which of a host's domain mappings has it, leads the host's requests to what that one refers
// to, and tells all of them how they are.
func (r *Reconciler) reconcileDomain(ctx context.Context, k key) error {
	mappings, err := r.mappingsOf(ctx, k.name)
	if err != nil {
		return err
	}
	own := serving.IsRouteHost(k.name, r.Domain)
	candidates := mappings
	if own {
		candidates = nil
	}
	claim, err := r.claim(ctx, k.name, candidates)
	if err != nil {
		return fmt.Errorf("claiming host %s: %w", k.name, err)
	}
	var holder *serving.DomainMapping
	for _, m := range candidates {
		if claim.Spec.Namespace == m.Namespace {
			holder = m
		}
	}
	if holder == nil { // given up before another one is told that it may have it
		r.setReads(k, nil)
		if err := r.lead(publisher(k.name), nil, nil); err != nil {
			return err
		}
	}
	for _, m := range mappings {
		m.Status.InitializeConditions()
		switch {
		case m == holder:
			m.Status.MarkDomainClaimed()
			if err := r.publishDomain(ctx, k, m); err != nil {
				return err
			}
		case own:
			m.Status.MarkIngressNotConfigured()
			m.Status.MarkDomainClaimFailed(fmt.Sprintf("%q has the form of the hosts that services have without a mapping, "+
				"NAME.NAMESPACE.%s; choose a host of another form", m.Name, r.Domain))
		default:
			m.Status.MarkIngressNotConfigured()
			m.Status.MarkDomainClaimNotOwned()
		}
		url := r.url(m.Name)
		m.Status.URL, m.Status.Address = url, &v1.Addressable{URL: url}
		r.markCertificates(m.GetConditionSet().Manage(&m.Status), m.Annotations, m.Name)
		m.Status.ObservedGeneration = m.Generation
		if err := r.writeStatus(ctx, m); err != nil {
			return fmt.Errorf("writing the status of the domain mapping in namespace %s: %w", m.Namespace, err)
		}
	}
	return nil
}

// publisher is the name under which a mapped host is published; no route has such a name.
func publisher(host string) string { return mappingOwner + host }

const mappingOwner = "domain mapping "

// mappingsOf returns copies of a host's domain mappings, the oldest first, without those that are being deleted.
func (r *Reconciler) mappingsOf(ctx context.Context, host string) (mappings []*serving.DomainMapping, err error) {
	r.mu.Lock()
	var namespaces []string
	for namespace := range r.domains[host] {
		namespaces = append(namespaces, namespace)
	}
	r.mu.Unlock()
	for _, namespace := range namespaces {
		stored, err := get[serving.DomainMapping](ctx, r, serving.KindDomainMapping, namespace, host)
		if err != nil {
			return nil, fmt.Errorf("reading the domain mapping of host %s in namespace %s: %w", host, namespace, err)
		}
		if stored != nil && stored.DeletionTimestamp == nil {
			mappings = append(mappings, stored.DeepCopy())
		}
	}
	slices.SortFunc(mappings, func(a, b *serving.DomainMapping) int {
		if older := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); older != 0 {
			return older
		}
		return strings.Compare(a.Namespace, b.Namespace)
	})
	return mappings, nil
}

// claim returns who may have a host. When nobody may, the first of the candidates is given it. A claim that was made
// here ends with the mapping it was made for; one that somebody else made, or changed, stays as it is. It is nil when
// there are no candidates and no claim.
func (r *Reconciler) claim(ctx context.Context, host string, candidates []*serving.DomainMapping) (*serving.ClusterDomainClaim, error) {
	claim, err := get[serving.ClusterDomainClaim](ctx, r, serving.KindClusterDomainClaim, "", host)
	if err != nil {
		return nil, err
	}
	if claim != nil && isOurs(claim) &&
		!slices.ContainsFunc(candidates, func(m *serving.DomainMapping) bool { return m.Namespace == claim.Spec.Namespace }) {
		unchanged := serving.Preconditions{UID: &claim.UID, ResourceVersion: &claim.ResourceVersion}
		_, err := r.Store.Delete(ctx, serving.KindClusterDomainClaim, "", host, serving.DeleteOptions{Preconditions: &unchanged})
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
		// Somebody's finalizer may keep it for a while.
		if claim, err = get[serving.ClusterDomainClaim](ctx, r, serving.KindClusterDomainClaim, "", host); err != nil {
			return nil, err
		}
	}
	if claim != nil || len(candidates) == 0 {
		return claim, nil
	}
	claim = &serving.ClusterDomainClaim{ObjectMeta: serving.ObjectMeta{
		Name: host, Labels: map[string]string{serving.LabelDomainMappingNamespace: candidates[0].Namespace},
	}}
	claim.Spec.Namespace = candidates[0].Namespace
	o, err := r.Store.Create(ctx, claim)
	if err != nil {
		return nil, err
	}
	r.events.note(subject(candidates[0]), eventNormal, reasonCreated, serving.KindClusterDomainClaim.Name,
		fmt.Sprintf("Created %s %q", serving.KindClusterDomainClaim.Name, host))
	return o.(*serving.ClusterDomainClaim), nil
}

// isOurs tells a claim that was made for a mapping that had none from those that administrators make or change.
func isOurs(claim *serving.ClusterDomainClaim) bool {
	return claim.Labels[serving.LabelDomainMappingNamespace] == claim.Spec.Namespace
}

// publishDomain leads the host of a domain mapping that has it to what the mapping refers to.
func (r *Reconciler) publishDomain(ctx context.Context, k key, m *serving.DomainMapping) error {
	route, err := r.resolveReference(ctx, k, m)
	if err != nil {
		return err
	}
	if route == nil {
		m.Status.MarkIngressNotConfigured()
		return r.lead(publisher(m.Name), nil, nil)
	}
	hosts := map[string]*gateway.Route{m.Name: {Follow: serving.Host(route.Namespace, route.Name, "", r.Domain)}}
	routable := route.Status.GetCondition(serving.RouteIngressReady)
	if routable.IsFalse() { // its own host is another route's
		hosts = nil
	}
	if err := r.lead(publisher(m.Name), hosts, m.Annotations); err != nil {
		return err
	}
	conditions := m.GetConditionSet().Manage(&m.Status)
	why := routable
	if !routable.IsFalse() {
		why = route.Status.GetCondition(serving.RouteReady) // it says why there is no traffic yet
	}
	switch {
	case routable.IsTrue():
		conditions.MarkTrue(serving.DomainMappingIngressReady)
	case why.IsFalse():
		conditions.MarkFalse(serving.DomainMappingIngressReady, why.Reason, "%s", why.Message)
	default:
		m.Status.MarkIngressNotConfigured()
	}
	return nil
}

// resolveReference finds the route that a domain mapping refers to: by its name, that of its service, or that of its
// placeholder among the core services, which is the same. It is nil when there is none, or not yet, which the
// conditions say then.
func (r *Reconciler) resolveReference(ctx context.Context, k key, m *serving.DomainMapping) (*serving.Route, error) {
	ref := &m.Spec.Ref
	refers := func(kind serving.Kind) bool { return ref.APIVersion == kind.APIVersion() && ref.Kind == kind.Name }
	if !refers(serving.KindService) && !refers(serving.KindRoute) && !refers(serving.KindCoreService) {
		r.setReads(k, nil)
		m.Status.MarkReferenceNotResolved(fmt.Sprintf("a host is mapped to a Service or a Route of %s; spec.ref is a %s of %s",
			serving.KindService.APIVersion(), ref.Kind, ref.APIVersion))
		return nil, nil
	}
	service := key{serving.KindService.String(), m.Namespace, ref.Name}
	route := key{serving.KindRoute.String(), m.Namespace, ref.Name}
	r.setReads(k, []key{service, route}) // before they are read: a change in between is not missed

	target, err := get[serving.Route](ctx, r, serving.KindRoute, m.Namespace, ref.Name)
	if err != nil {
		return nil, err
	}
	var address *v1.Addressable
	kind, found := serving.KindRoute, target != nil && target.DeletionTimestamp == nil
	if found {
		address = target.Status.Address
	}
	switch {
	case refers(serving.KindCoreService):
		kind = serving.KindCoreService
	case refers(serving.KindService):
		s, err := get[serving.Service](ctx, r, serving.KindService, m.Namespace, ref.Name)
		if err != nil {
			return nil, err
		}
		kind, found = serving.KindService, s != nil && s.DeletionTimestamp == nil
		if found {
			address = s.Status.Address // none while a route of its name is not its own
		}
	}
	switch {
	case !found:
		m.Status.MarkReferenceNotResolved(fmt.Sprintf("failed to get object %s/%s: %s %q not found", m.Namespace, ref.Name, kind, ref.Name))
		return nil, nil
	case address == nil || target == nil:
		// It was made this moment, and clients take what is false as final.
		m.GetConditionSet().Manage(&m.Status).MarkUnknown(serving.DomainMappingReferenceResolved, "AddressNotSet", "address not set for %s", ref)
		return nil, nil
	}
	m.Status.MarkReferenceResolved()
	return target, nil
}
