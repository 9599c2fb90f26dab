package reconcile

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"strconv"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"knative.dev/pkg/kmeta"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

// The core service that tells clients where the gateway is: they look for the one of their cluster's ingress.
const (
	gatewayNamespace = serving.SystemNamespace
	gatewayService   = "gateway"
)

// gatewayKey is the key of the gateway's own core service.
func gatewayKey() key {
	return key{serving.KindCoreService.String(), gatewayNamespace, gatewayService}
}

// reconcileCoreService keeps the gateway's core service true; those of routes are their routes' concern.
func (r *Reconciler) reconcileCoreService(ctx context.Context, k key) error {
	if k != gatewayKey() || r.GatewayAddress == "" {
		return nil
	}
	host, text, err := net.SplitHostPort(r.GatewayAddress)
	if err != nil {
		return fmt.Errorf("reading the gateway's address %q: %w", r.GatewayAddress, err)
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		return fmt.Errorf("reading the gateway's address %q: %w", r.GatewayAddress, err)
	}
	want := &serving.CoreService{ObjectMeta: serving.ObjectMeta{Namespace: k.namespace, Name: k.name}}
	want.Spec = serving.CoreServiceSpec{Type: serving.ServiceTypeLoadBalancer, Ports: httpPort(port)}
	ingress := serving.LoadBalancerIngress{Hostname: host}
	if net.ParseIP(host) != nil {
		ingress = serving.LoadBalancerIngress{IP: host}
	}
	want.Status.LoadBalancer.Ingress = []serving.LoadBalancerIngress{ingress}

	stored, err := get[serving.CoreService](ctx, r, serving.KindCoreService, k.namespace, k.name)
	switch {
	case err != nil:
		return err
	case stored == nil:
		_, err = r.Store.Create(ctx, want)
		return err
	case !equality.Semantic.DeepEqual(stored.Spec, want.Spec):
		if _, err := r.Store.Update(ctx, want, store.Spec); err != nil {
			return err
		}
	}
	want.ResourceVersion = ""
	return r.writeStatus(ctx, want)
}

// httpPort is the port of a core service that requests go to.
func httpPort(node int) []serving.ServicePort {
	return []serving.ServicePort{{Name: "http2", Protocol: serving.ProtocolTCP, Port: 80, TargetPort: intstr.FromInt32(80), NodePort: int32(node)}}
}

// placeholder makes a route's core service, as Knative has one: it holds the name in the namespace, and other clients'
// rules find the route by its labels. What a user once gave the route stays on it. The error is errNotOwned when
// another one has the name.
func (r *Reconciler) placeholder(ctx context.Context, route *serving.Route) error {
	labels := maps.Clone(route.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[serving.LabelRoute] = route.Name
	annotations := maps.Clone(route.Annotations)
	delete(annotations, annotationLastApplied)
	want := &serving.CoreService{
		ObjectMeta: serving.ObjectMeta{
			Namespace: route.Namespace, Name: route.Name, Labels: labels, Annotations: annotations,
			OwnerReferences: []serving.OwnerReference{*kmeta.NewControllerRef(route)},
		},
		Spec: serving.CoreServiceSpec{
			Type: serving.ServiceTypeExternalName, ExternalName: serving.Host(route.Namespace, route.Name, "", r.Domain), Ports: httpPort(0),
		},
	}
	if service := route.Labels[serving.LabelService]; service != "" {
		// For clients that look for the pods of a service, as kubectl port-forward does.
		want.Spec.Selector = map[string]string{serving.LabelService: service}
		want.Spec.Ports[0].TargetPort = intstr.FromString(userPort)
	}
	stored, err := get[serving.CoreService](ctx, r, serving.KindCoreService, route.Namespace, route.Name)
	if err != nil {
		return err
	}
	if stored == nil {
		_, err := r.Store.Create(ctx, want)
		if errors.Is(err, store.ErrTerminating) {
			return nil // the route goes with its namespace
		}
		return err
	}
	if !isControlledBy(stored, route) {
		return errNotOwned
	}
	want.Labels, want.Annotations = union(stored.Labels, want.Labels), union(stored.Annotations, want.Annotations)
	if maps.Equal(stored.Labels, want.Labels) && maps.Equal(stored.Annotations, want.Annotations) &&
		equality.Semantic.DeepEqual(stored.Spec, want.Spec) {
		return nil
	}
	want.ResourceVersion, want.Finalizers = stored.ResourceVersion, stored.Finalizers
	_, err = r.Store.Update(ctx, want, store.Spec)
	return err
}

// union is what was once given and what is given now. Where that is more than an object's annotations may be, which it
// becomes when each deploy brings a name of its own, what was given before goes.
func union(before, now map[string]string) map[string]string {
	all, size := kmeta.UnionMaps(before, now), 0
	for name, value := range all {
		size += len(name) + len(value)
	}
	if size > validation.TotalAnnotationSizeLimitB {
		return now
	}
	return all
}
