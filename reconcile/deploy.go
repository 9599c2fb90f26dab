package reconcile

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"knative.dev/pkg/kmeta"

	"github.com/berth-run/berth/autoscaler"
	"github.com/berth-run/berth/gateway"
	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

// reconcileService makes the service's configuration and route, and tells how they are.
func (r *Reconciler) reconcileService(ctx context.Context, k key) error {
	stored, err := get[serving.Service](ctx, r, serving.KindService, k.namespace, k.name)
	if err != nil || stored == nil || stored.DeletionTimestamp != nil {
		return err
	}
	s := stored.DeepCopy()
	s.Status.InitializeConditions()

	configuration, err := ensure(ctx, r, serving.KindConfiguration, s, configurationOf(s))
	if err != nil && !errors.Is(err, errNotOwned) {
		return fmt.Errorf("making the configuration of service %s: %w", s.Name, err)
	}
	route, err := ensure(ctx, r, serving.KindRoute, s, routeOf(s))
	if err != nil && !errors.Is(err, errNotOwned) {
		return fmt.Errorf("making the route of service %s: %w", s.Name, err)
	}
	// The configuration comes last: the condition set last gives Ready its message, and why a revision failed says
	// more than that the route has none.
	markRoute(s, route, configuration)
	markConfiguration(s, configuration)
	if err := r.markServiceLoop(ctx, s); err != nil {
		return err
	}
	s.Status.ObservedGeneration = s.Generation
	return r.writeStatus(ctx, s)
}

// markRoute tells how the service's route is; nil means that it belongs to somebody else.
func markRoute(s *serving.Service, route *serving.Route, configuration *serving.Configuration) {
	switch {
	case route == nil:
		s.Status.MarkRouteNotOwned(s.Name)
	case route.Generation != route.Status.ObservedGeneration:
		s.Status.MarkRouteNotReconciled()
	default:
		s.Status.PropagateRouteStatus(&route.Status)
		if isOfFormerTemplate(route, configuration) {
			s.Status.MarkRouteNotYetReady()
		}
		if route.IsReady() && configuration != nil &&
			!sendsToLatest(s.Spec.Traffic, route.Status.Traffic, configuration.Status.LatestReadyRevisionName) {
			s.Status.MarkRouteNotYetReady()
		}
	}
}

// isOfFormerTemplate tells whether a route has failed because its configuration had, while the configuration is at
// work on another template since: clients take a failed service as final.
func isOfFormerTemplate(route *serving.Route, configuration *serving.Configuration) bool {
	if configuration == nil || configuration.Generation == configuration.Status.ObservedGeneration && configuration.IsFailed() {
		return false
	}
	var failed serving.RouteStatus
	failed.InitializeConditions()
	failed.MarkConfigurationFailed(configuration.Name)
	have, former := route.Status.GetCondition(serving.RouteAllTrafficAssigned), failed.GetCondition(serving.RouteAllTrafficAssigned)
	return have.IsFalse() && have.Reason == former.Reason && have.Message == former.Message
}

// markConfiguration tells how the service's configuration is; nil means that it belongs to somebody else.
func markConfiguration(s *serving.Service, configuration *serving.Configuration) {
	switch {
	case configuration == nil:
		s.Status.MarkConfigurationNotOwned(s.Name)
	case configuration.Generation != configuration.Status.ObservedGeneration:
		s.Status.MarkConfigurationNotReconciled()
	default:
		status := configuration.Status.DeepCopy()
		for i := range status.Conditions { // they become formats
			status.Conditions[i].Message = strings.ReplaceAll(status.Conditions[i].Message, "%", "%%")
		}
		s.Status.PropagateConfigurationStatus(status)
	}
}

// sendsToLatest tells whether every part of the traffic that follows the latest revision reached it.
func sendsToLatest(want, have []serving.TrafficTarget, latest string) bool {
	for i, t := range want {
		if t.LatestRevision != nil && *t.LatestRevision && (i >= len(have) || have[i].RevisionName != latest) {
			return false
		}
	}
	return true
}

// configurationOf is the configuration a service declares.
func configurationOf(s *serving.Service) *serving.Configuration {
	return &serving.Configuration{
		ObjectMeta: childMeta(s, map[string]string{
			serving.LabelService:    s.Name,
			serving.LabelServiceUID: string(s.UID),
			serving.LabelRoute:      s.Name,
		}),
		Spec: *s.Spec.ConfigurationSpec.DeepCopy(),
	}
}

// routeOf is the route a service declares.
func routeOf(s *serving.Service) *serving.Route {
	route := &serving.Route{
		ObjectMeta: childMeta(s, map[string]string{
			serving.LabelService:    s.Name,
			serving.LabelServiceUID: string(s.UID),
		}),
		Spec: *s.Spec.RouteSpec.DeepCopy(),
	}
	for i := range route.Spec.Traffic {
		if t := &route.Spec.Traffic[i]; t.RevisionName == "" {
			t.ConfigurationName = s.Name
		}
	}
	return route
}

// childMeta is the metadata of what a service makes: its own labels and annotations, the given labels, and its
// ownership.
func childMeta(s *serving.Service, labels map[string]string) serving.ObjectMeta {
	all := maps.Clone(s.Labels)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, labels)
	annotations := maps.Clone(s.Annotations)
	delete(annotations, annotationLastApplied)
	return serving.ObjectMeta{
		Namespace: s.Namespace, Name: s.Name, Labels: all, Annotations: annotations,
		OwnerReferences: []serving.OwnerReference{*kmeta.NewControllerRef(s)},
	}
}

// annotationLastApplied is what kubectl apply keeps on the object that its user declared.
const annotationLastApplied = "kubectl.kubernetes.io/last-applied-configuration"

var errNotOwned = errors.New("an object of this name exists and belongs to another owner")

// ensure creates or updates an object that owner declares: its spec, labels and annotations.
func ensure[T any, P interface {
	*T
	serving.Object
}](ctx context.Context, r *Reconciler, kind serving.Kind, owner serving.Object, want P) (P, error) {
	stored, err := get[T](ctx, r, kind, want.GetNamespace(), want.GetName())
	if err != nil {
		return nil, err
	}
	if stored == nil {
		o, err := r.Store.Create(ctx, want)
		if err != nil {
			return nil, err
		}
		r.events.note(subject(owner), eventNormal, reasonCreated, kind.Name, fmt.Sprintf("Created %s %q", kind.Name, want.GetName()))
		return any(o).(P), nil
	}
	have := P(stored)
	if !isControlledBy(have, owner) {
		return nil, errNotOwned
	}
	if maps.Equal(have.GetLabels(), want.GetLabels()) && maps.Equal(have.GetAnnotations(), want.GetAnnotations()) &&
		reflect.DeepEqual(specOf(have), specOf(want)) {
		return have, nil
	}
	want.SetResourceVersion(have.GetResourceVersion())
	want.SetFinalizers(have.GetFinalizers())
	want.SetManagedFields(have.GetManagedFields())
	o, err := r.Store.Update(ctx, want, store.Spec)
	if err != nil {
		return nil, err
	}
	return any(o).(P), nil
}

func specOf(o serving.Object) any {
	switch o := o.(type) {
	case *serving.Configuration:
		return o.Spec
	case *serving.Route:
		return o.Spec
	}
	return nil
}

func isControlledBy(o, owner serving.Meta) bool {
	for _, ref := range o.GetOwnerReferences() {
		if ref.Controller != nil && *ref.Controller {
			return ref.UID == owner.GetUID()
		}
	}
	return false
}

// reconcileConfiguration makes a revision of the newest template and follows which revision is the latest ready.
func (r *Reconciler) reconcileConfiguration(ctx context.Context, k key) error {
	stored, err := get[serving.Configuration](ctx, r, serving.KindConfiguration, k.namespace, k.name)
	if err != nil || stored == nil || stored.DeletionTimestamp != nil {
		return err
	}
	c := stored.DeepCopy()
	c.Status.InitializeConditions()

	latest, err := r.latestCreated(ctx, c)
	var taken *nameTakenError
	switch {
	case errors.As(err, &taken):
		c.Status.MarkRevisionCreationFailed(taken.Error())
		c.Status.ObservedGeneration = c.Generation
		return r.writeStatus(ctx, c)
	case err != nil:
		return fmt.Errorf("making the revision of configuration %s: %w", c.Name, err)
	}
	c.Status.SetLatestCreatedRevisionName(latest.Name)

	ready, err := r.latestReady(ctx, c)
	if err != nil {
		return err
	}
	switch {
	case ready != "":
		c.Status.SetLatestReadyRevisionName(ready)
	case c.Status.LatestReadyRevisionName != "":
		c.Status.MarkLatestReadyDeleted()
		c.Status.LatestReadyRevisionName = ""
	}
	markLatestCreated(c, latest)
	c.Status.ObservedGeneration = c.Generation
	if err := r.writeStatus(ctx, c); err != nil {
		return err
	}
	return r.collectRevisions(ctx, c)
}

// markLatestCreated says why the latest revision has failed, or what it waits for: there users look, and not at the
// revision.
func markLatestCreated(c *serving.Configuration, latest *serving.Revision) {
	ready := latest.Status.GetCondition(serving.RevisionReady)
	conditions := c.GetConditionSet().Manage(&c.Status)
	switch {
	case latest.IsFailed():
		c.Status.MarkLatestCreatedFailed(latest.Name, ready.GetMessage())
	case conditions.GetTopLevelCondition().IsUnknown() && ready.GetMessage() != "":
		conditions.MarkUnknown(serving.ConfigurationReady, ready.GetReason(), "Revision %q is not ready yet: %s", latest.Name, ready.GetMessage())
	}
}

// revisionsOf names the revisions of a configuration, in no order.
func (r *Reconciler) revisionsOf(c *serving.Configuration) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Keys(r.revisions[key{serving.KindConfiguration.String(), c.Namespace, c.Name}]))
}

// latestCreated is the revision of the configuration's present generation, made when it is not there.
func (r *Reconciler) latestCreated(ctx context.Context, c *serving.Configuration) (*serving.Revision, error) {
	name := c.Spec.Template.Name
	if name == "" {
		name = kmeta.ChildName(c.Name, fmt.Sprintf("-%05d", c.Generation))
	}
	revision, err := get[serving.Revision](ctx, r, serving.KindRevision, c.Namespace, name)
	if err != nil {
		return nil, err
	}
	if revision == nil {
		o, err := r.Store.Create(ctx, revisionOf(c, name))
		if err != nil {
			return nil, err
		}
		r.events.note(subject(c), eventNormal, reasonCreated, name, fmt.Sprintf("Created Revision %q", name))
		return o.(*serving.Revision), nil
	}
	if !isControlledBy(revision, c) {
		return nil, &nameTakenError{name: name, owner: revision.Labels[serving.LabelConfiguration]}
	}
	if revision.Labels[serving.LabelConfigurationGeneration] != strconv.FormatInt(c.Generation, 10) &&
		!reflect.DeepEqual(revision.Spec, c.Spec.Template.Spec) {
		return nil, &nameTakenError{name: name, owner: c.Name}
	}
	return revision, nil
}

// nameTakenError: a revision name that the user chose belongs to another revision.
type nameTakenError struct{ name, owner string }

func (e *nameTakenError) Error() string {
	return fmt.Sprintf("revision name %q is taken by another revision of configuration %q; choose another name", e.name, e.owner)
}

// revisionOf is the revision of a configuration's present generation.
func revisionOf(c *serving.Configuration, name string) *serving.Revision {
	labels := maps.Clone(c.Spec.Template.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[serving.LabelConfiguration] = c.Name
	labels[serving.LabelConfigurationUID] = string(c.UID)
	labels[serving.LabelConfigurationGeneration] = strconv.FormatInt(c.Generation, 10)
	labels[serving.LabelRoutingState] = serving.RoutingPending
	for _, l := range []string{serving.LabelService, serving.LabelServiceUID} {
		if v := c.Labels[l]; v != "" {
			labels[l] = v
		}
	}
	annotations := maps.Clone(c.Spec.Template.Annotations)
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[serving.AnnotationRoutingStateModified] = now()
	if modifier := c.Annotations[serving.AnnotationLastModifier]; modifier != "" {
		annotations[serving.AnnotationCreator] = modifier
	}
	return &serving.Revision{
		ObjectMeta: serving.ObjectMeta{
			Namespace: c.Namespace, Name: name, Labels: labels, Annotations: annotations,
			OwnerReferences: []serving.OwnerReference{*kmeta.NewControllerRef(c)},
		},
		Spec: *c.Spec.Template.Spec.DeepCopy(),
	}
}

func now() string { return time.Now().UTC().Format(time.RFC3339) }

// latestReady is the name of the newest ready revision of a configuration that is not older than the present
// latest ready one; "" when there is none.
func (r *Reconciler) latestReady(ctx context.Context, c *serving.Configuration) (string, error) {
	// The index follows the store's events; these two may not have arrived yet.
	names := append(r.revisionsOf(c), c.Status.LatestCreatedRevisionName, c.Status.LatestReadyRevisionName)

	best, bestGeneration := "", int64(-1)
	for _, name := range names {
		if name == "" {
			continue
		}
		revision, err := get[serving.Revision](ctx, r, serving.KindRevision, c.Namespace, name)
		if err != nil {
			return "", err
		}
		if revision == nil || revision.DeletionTimestamp != nil || !isControlledBy(revision, c) {
			continue
		}
		if !revision.IsReady() && name != c.Status.LatestReadyRevisionName {
			continue
		}
		generation, _ := strconv.ParseInt(revision.Labels[serving.LabelConfigurationGeneration], 10, 64)
		if generation > bestGeneration {
			best, bestGeneration = name, generation
		}
	}
	return best, nil
}

// reconcileRoute publishes where requests go. When a part of the traffic has no ready revision, what was published
// before stays.
func (r *Reconciler) reconcileRoute(ctx context.Context, k key) error {
	stored, err := get[serving.Route](ctx, r, serving.KindRoute, k.namespace, k.name)
	if err != nil {
		return err
	}
	if stored == nil || stored.DeletionTimestamp != nil {
		r.setReads(k, nil)
		r.queue.add(r.setSends(k, nil)...)
		return r.lead(k.namespace+"/"+k.name, nil, nil)
	}
	route := stored.DeepCopy()
	route.Status.InitializeConditions()

	r.setReads(k, readsOf(route)) // before they are read: a change in between is not missed
	traffic, problem, err := r.resolveTraffic(ctx, route)
	if err != nil {
		return err
	}
	if problem == nil {
		route.Status.Traffic = traffic
		route.Status.MarkTrafficAssigned()
	} else {
		problem(&route.Status)
	}
	conditions := route.GetConditionSet().Manage(&route.Status)
	switch err := r.publish(ctx, route); {
	case errors.Is(err, gateway.ErrHostTaken):
		conditions.MarkFalse(serving.RouteIngressReady, serving.ReasonNotOwned, "%s", err.Error())
		r.queue.addAfter(k, 5*time.Second) // its owner may give the host up, and then nobody tells
	case err != nil:
		return err
	case len(route.Status.Traffic) > 0:
		conditions.MarkTrue(serving.RouteIngressReady)
	}
	r.describeRoute(route)
	r.queue.add(r.setSends(k, sends(k.namespace, route.Status.Traffic))...)
	r.tellOfTraffic(route, stored.Status.Traffic)
	if err := r.placeholder(ctx, route); errors.Is(err, errNotOwned) {
		route.Status.MarkServiceNotOwned(route.Name)
	} else if err != nil {
		return fmt.Errorf("making the core service of route %s: %w", route.Name, err)
	}
	route.Status.ObservedGeneration = route.Generation
	return r.writeStatus(ctx, route)
}

// sends lists the revisions in a route's traffic, each once.
func sends(namespace string, traffic []serving.TrafficTarget) []autoscaler.Key {
	var keys []autoscaler.Key
	for _, t := range traffic {
		if k := (autoscaler.Key{Namespace: namespace, Revision: t.RevisionName}); !slices.Contains(keys, k) {
			keys = append(keys, k)
		}
	}
	return keys
}
