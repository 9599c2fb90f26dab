package reconcile

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"k8s.io/apimachinery/pkg/types"
	"knative.dev/pkg/apis"
	"knative.dev/pkg/apis/duck/v1"

	"github.com/berth-run/berth/autoscaler"
	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/gateway"
	"github.com/berth-run/berth/serving"
)

// describeRoute sets the URLs, which follow from the route's name, its tags, and the certificates that there are.
func (r *Reconciler) describeRoute(route *serving.Route) {
	hosts := []string{serving.Host(route.Namespace, route.Name, "", r.Domain)}
	route.Status.URL = r.url(hosts[0])
	route.Status.Address = &v1.Addressable{URL: route.Status.URL}
	for i := range route.Status.Traffic {
		if t := &route.Status.Traffic[i]; t.Tag != "" {
			host := serving.Host(route.Namespace, route.Name, t.Tag, r.Domain)
			t.URL = r.url(host)
			hosts = append(hosts, host)
		}
	}
	r.markCertificates(route.GetConditionSet().Manage(&route.Status), route.Annotations, hosts...)
}

func (r *Reconciler) url(host string) *apis.URL {
	u, err := apis.ParseURL(r.URL(host))
	if err != nil {
		panic(fmt.Sprintf("reconcile: URL of %q: %v", host, err)) // host names are validated, the rest is ours
	}
	return u
}

// mark sets the condition that says what is wrong with a route's traffic.
type mark func(*serving.RouteStatus)

// readsOf lists the objects that resolveTraffic reads.
func readsOf(route *serving.Route) (reads []key) {
	for _, t := range route.Spec.Traffic {
		if t.RevisionName == "" {
			reads = append(reads, key{serving.KindConfiguration.String(), route.Namespace, t.ConfigurationName})
			continue
		}
		reads = append(reads, key{serving.KindRevision.String(), route.Namespace, t.RevisionName})
		if service := route.Labels[serving.LabelService]; service != "" {
			reads = append(reads, key{serving.KindConfiguration.String(), route.Namespace, service})
		}
	}
	return reads
}

// resolveTraffic names the revision of every part of a route's traffic. When one cannot be named, or is not
// ready, it returns how to say so.
func (r *Reconciler) resolveTraffic(ctx context.Context, route *serving.Route) (traffic []serving.TrafficTarget, problem mark, err error) {
	for _, want := range route.Spec.Traffic {
		have := want.DeepCopy()
		have.ConfigurationName = ""
		latest := want.RevisionName == ""
		have.LatestRevision = &latest
		var wrong mark
		if latest {
			have.RevisionName, wrong, err = r.resolveLatest(ctx, route.Namespace, want.ConfigurationName)
		} else {
			wrong, err = r.resolveNamed(ctx, route, want.RevisionName)
		}
		if err != nil {
			return nil, nil, err
		}
		if wrong != nil && problem == nil {
			problem = wrong
		}
		traffic = append(traffic, *have)
	}
	return traffic, problem, nil
}

// resolveLatest names the latest ready revision of a configuration.
func (r *Reconciler) resolveLatest(ctx context.Context, namespace, name string) (string, mark, error) {
	c, err := get[serving.Configuration](ctx, r, serving.KindConfiguration, namespace, name)
	switch {
	case err != nil:
		return "", nil, err
	case c == nil:
		return "", func(s *serving.RouteStatus) { s.MarkMissingTrafficTarget("Configuration", name) }, nil
	case c.Status.LatestReadyRevisionName != "":
		return c.Status.LatestReadyRevisionName, nil, nil
	case c.IsFailed():
		return "", func(s *serving.RouteStatus) { s.MarkConfigurationFailed(name) }, nil
	default:
		return "", func(s *serving.RouteStatus) { s.MarkConfigurationNotReady(name) }, nil
	}
}

// resolveNamed checks that requests can be sent to a revision that the user named.
func (r *Reconciler) resolveNamed(ctx context.Context, route *serving.Route, name string) (mark, error) {
	revision, err := get[serving.Revision](ctx, r, serving.KindRevision, route.Namespace, name)
	switch {
	case err != nil:
		return nil, err
	case revision == nil || revision.DeletionTimestamp != nil:
		missing := func(s *serving.RouteStatus) { s.MarkMissingTrafficTarget("Revision", name) }
		// A service may name in its traffic the revision that it declares with the same write: that one is to come,
		// and clients take a failed service as final.
		c, err := get[serving.Configuration](ctx, r, serving.KindConfiguration, route.Namespace, route.Labels[serving.LabelService])
		if err == nil && c != nil && c.Spec.Template.Name == name && c.Generation != c.Status.ObservedGeneration {
			missing = func(s *serving.RouteStatus) { s.MarkRevisionNotReady(name) }
		}
		return missing, err
	}
	service, owner := route.Labels[serving.LabelService], revision.Labels[serving.LabelService]
	switch {
	case service != "" && service != owner:
		return func(s *serving.RouteStatus) { s.MarkRevisionNotOwned(name, service, owner) }, nil
	case revision.IsReady():
		return nil, nil
	case revision.IsFailed():
		return func(s *serving.RouteStatus) { s.MarkRevisionFailed(name) }, nil
	default:
		return func(s *serving.RouteStatus) { s.MarkRevisionNotReady(name) }, nil
	}
}

// unready is the table's entry of a route that has had no ready revision so far: its URL is known to the user
// already, so it says what is the matter.
func (r *Reconciler) unready(route *serving.Route) map[string]*gateway.Route {
	return map[string]*gateway.Route{serving.Host(route.Namespace, route.Name, "", r.Domain): {
		Unready: fmt.Sprintf("Service %q in namespace %q has no ready revision; the conditions of the service say why.", route.Name, route.Namespace),
	}}
}

// publish puts a route's traffic into the gateway's table: the route's own host with its percentages, and one
// host for each tag.
func (r *Reconciler) publish(ctx context.Context, route *serving.Route) error {
	owner := route.Namespace + "/" + route.Name
	hosts := map[string]*gateway.Route{}
	main := &gateway.Route{}
	for _, t := range route.Status.Traffic {
		revision, err := get[serving.Revision](ctx, r, serving.KindRevision, route.Namespace, t.RevisionName)
		if err != nil {
			return fmt.Errorf("reading revision %s of route %s: %w", t.RevisionName, owner, err)
		}
		if revision == nil {
			continue // deleted under the route's feet: what is left is served
		}
		activator := r.deployment(ctx, revision).activator
		if t.Percent != nil && *t.Percent > 0 {
			main.Splits = append(main.Splits, gateway.Split{Percent: int(*t.Percent), Activator: activator})
		}
		if t.Tag == "" {
			continue
		}
		host := serving.Host(route.Namespace, route.Name, t.Tag, r.Domain)
		if hosts[host] == nil {
			hosts[host] = &gateway.Route{Tag: t.Tag}
		}
		hosts[host].Splits = append(hosts[host].Splits, gateway.Split{Percent: 100, Activator: activator})
	}
	if len(main.Splits) > 0 {
		hosts[serving.Host(route.Namespace, route.Name, "", r.Domain)] = main
	}
	if len(hosts) == 0 {
		hosts = r.unready(route)
	}
	return r.lead(owner, hosts, route.Annotations)
}

// deployment is what is known in memory of one revision.
type deployment struct {
	key       autoscaler.Key
	uid       types.UID // a revision that is made again under its name is another one
	activator *gateway.Activator
	ready     bool // the stored revision is ready. Guarded by Reconciler.mu.
	fetch     fetch
	// spec is what instances run, resolved once: a Secret that changes or goes later does not disturb them. Only the
	// worker that has the revision's key uses it.
	spec *engine.Spec
	// failure is why the revision had failed when it was first seen, nil when it had not.
	failure *apis.Condition
	// declared tells that the autoscaler has been told of the revision.
	declared atomic.Bool
	// undeclared is why the autoscaler does not know the revision, nil when it does.
	undeclared atomic.Pointer[error]
}

// deployment returns the record of a revision, made when it is first asked for.
func (r *Reconciler) deployment(ctx context.Context, revision *serving.Revision) *deployment {
	k := autoscaler.Key{Namespace: revision.Namespace, Revision: revision.Name}
	r.mu.Lock()
	defer r.mu.Unlock()
	d := r.deployments[k]
	if d != nil && d.uid != revision.UID {
		r.retire(ctx, d)
		d = nil
	}
	if d == nil {
		d = &deployment{key: k, uid: revision.UID, activator: gateway.NewActivator(r.gatewayRevision(revision))}
		if revision.IsFailed() {
			d.failure = revision.Status.GetCondition(serving.RevisionReady).DeepCopy()
		}
		r.deployments[k] = d
	}
	return d
}

// forget drops a deleted revision.
func (r *Reconciler) forget(ctx context.Context, k autoscaler.Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if d := r.deployments[k]; d != nil {
		delete(r.deployments, k)
		r.retire(ctx, d)
	}
}

// retire ends what a deleted revision has: requests in flight finish, then its instances end. r.mu is held. The
// autoscaler forgets it before retire returns, so that a revision made again under the name is not taken for it.
func (r *Reconciler) retire(ctx context.Context, d *deployment) {
	d.fetch.cancel()
	d.activator.Close(errors.New("the revision was deleted"))
	wait := r.Autoscaler.Remove(d.key)
	ctx = context.WithoutCancel(ctx) // the autoscaler's own end bounds the wait
	r.fetches.Go(func() {
		if err := wait(ctx); err != nil {
			r.Logger.Warn("stopping the instances of a deleted revision", "revision", d.key.Revision, "error", err)
		}
		r.Gateway.Forget(d.activator)
		if r.RevisionGone != nil {
			r.RevisionGone(d.key.Namespace, d.activator.Revision().Service, d.key.Revision)
		}
	})
}
