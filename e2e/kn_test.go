package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/jsonmergepatch"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/retry"
	"knative.dev/serving/pkg/client/clientset/versioned"

	"github.com/berth-run/berth/serving"
)

// kn makes the calls of Knative's command line, in its order and with its ways of waiting, through the client that it
// is built with. It cannot be built here itself.
type kn struct {
	t       *testing.T
	client  *versioned.Clientset
	dynamic *dynamic.DynamicClient
}

// knWindow is how long kn lets a service be failed before it says so.
const knWindow = 2 * time.Second

func newKn(t *testing.T, p *platform) *kn {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", p.addresses.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	k := &kn{t: t}
	if k.client, err = versioned.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	if k.dynamic, err = dynamic.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	return k
}

// must is for calls that no test expects an error of.
func (k *kn) must(err error) {
	k.t.Helper()
	if err != nil {
		k.t.Fatal(err)
	}
}

// create is "kn service create", which waits.
func (k *kn) create(name, image string) error {
	ctx, services := k.t.Context(), k.client.ServingV1().Services("default")
	if _, err := services.Get(ctx, name, getOptions{}); err == nil {
		return fmt.Errorf("cannot create service %q: it exists", name)
	}
	if _, err := services.Create(ctx, knService(name, image), createOptions{}); err != nil {
		return err
	}
	return k.wait(name)
}

// knService is a service as kn composes it.
func knService(name, image string) *serving.Service {
	s := service(name, image)
	s.Spec.Template.Annotations = map[string]string{
		"client.knative.dev/user-image": image, "client.knative.dev/updateTimestamp": time.Now().UTC().Format(time.RFC3339),
	}
	return s
}

// wait is how kn waits for a service: it reads it, and unless it is ready it watches what changes from then on. Only
// modifications count, and only those whose status is of the newest generation.
func (k *kn) wait(name string) error {
	ctx, cancel := context.WithTimeout(k.t.Context(), patience)
	defer cancel()
	s, err := k.client.ServingV1().Services("default").Get(ctx, name, getOptions{})
	if err != nil || s.IsReady() {
		return err
	}
	changes, err := k.client.ServingV1().Services("default").Watch(ctx, knWatch(name, s.ResourceVersion))
	if err != nil {
		return err
	}
	defer changes.Stop()
	var failure error
	var window <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("timeout: service %q not ready", name)
		case <-window:
			return failure
		case event, ok := <-changes.ResultChan():
			if !ok {
				return errors.New("the watch ended before its time")
			}
			if event.Type != watch.Modified {
				continue
			}
			s := event.Object.(*serving.Service)
			ready := s.Status.GetCondition(serving.ServiceReady)
			switch {
			case s.Status.ObservedGeneration != s.Generation || ready == nil:
			case ready.IsTrue():
				return nil
			case ready.IsUnknown():
				window = nil
			case window == nil:
				failure, window = fmt.Errorf("%s: %s", ready.Reason, ready.Message), time.After(knWindow)
			}
		}
	}
}

// knWatch are the options of kn's watches: with a timeout that is longer than its patience.
func knWatch(name, version string) listOptions {
	seconds := int64((patience + 30*time.Second) / time.Second)
	return listOptions{Watch: true, FieldSelector: "metadata.name=" + name, ResourceVersion: version, TimeoutSeconds: &seconds}
}

// update is "kn service update": whether anything changed shows in the generation that the write answers with.
func (k *kn) update(name string, change func(*serving.Service)) (changed bool, err error) {
	ctx, services := k.t.Context(), k.client.ServingV1().Services("default")
	err = retry.RetryOnConflict(retry.DefaultRetry, func() error {
		s, err := services.Get(ctx, name, getOptions{})
		if err != nil {
			return err
		}
		change(s)
		written, err := services.Update(ctx, s, updateOptions{})
		changed = err == nil && written.Generation != s.Generation
		return err
	})
	if err != nil || !changed {
		return changed, err
	}
	return true, k.wait(name)
}

// pinned is a change that kn makes with another template: the image stays what it was resolved to.
func (k *kn) pinned(change func(*serving.RevisionTemplateSpec)) func(*serving.Service) {
	return func(s *serving.Service) {
		k.t.Helper()
		base, err := k.client.ServingV1().Revisions("default").Get(k.t.Context(), s.Status.LatestCreatedRevisionName, getOptions{})
		k.must(err)
		template := &s.Spec.Template
		template.Annotations["client.knative.dev/updateTimestamp"] = time.Now().UTC().Format(time.RFC3339Nano)
		template.Spec.Containers[0].Image = base.Status.ContainerStatuses[0].ImageDigest
		change(template)
	}
}

// apply is "kn service apply": a merge patch of what the user gave now, what the user gave last, and what there is.
func (k *kn) apply(s *serving.Service) (changed bool, err error) {
	ctx, services := k.t.Context(), k.client.ServingV1().Services("default")
	s = s.DeepCopy()
	serving.KindService.Stamp(s)
	delete(s.Spec.Template.Annotations, "client.knative.dev/updateTimestamp") // apply does not write it
	given := knEncode(k.t, s)
	if s.Annotations == nil {
		s.Annotations = map[string]string{}
	}
	s.Annotations[v1.LastAppliedConfigAnnotation] = string(given)
	current, err := services.Get(ctx, s.Name, getOptions{})
	if err != nil {
		if _, err := services.Create(ctx, s, createOptions{}); err != nil {
			return false, err
		}
		return true, k.wait(s.Name)
	}
	serving.KindService.Stamp(current)
	patch, err := jsonmergepatch.CreateThreeWayJSONMergePatch([]byte(current.Annotations[v1.LastAppliedConfigAnnotation]), knEncode(k.t, s), knEncode(k.t, current))
	if err != nil {
		return false, err
	}
	if string(patch) == "{}" {
		return false, nil
	}
	written, err := services.Patch(ctx, s.Name, mergePatch, patch, patchOptions{})
	if err != nil || written.Generation == written.Status.ObservedGeneration {
		return false, err
	}
	return true, k.wait(s.Name)
}

// knEncode is a service as kn keeps it in the annotation: without status and empty fields.
func knEncode(t *testing.T, s *serving.Service) []byte {
	t.Helper()
	encoded, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(encoded, &fields); err != nil {
		t.Fatal(err)
	}
	delete(fields, "status")
	container := fields["spec"].(map[string]any)["template"].(map[string]any)["spec"].(map[string]any)["containers"].([]any)[0].(map[string]any)
	if resources, _ := container["resources"].(map[string]any); len(resources) == 0 {
		delete(container, "resources")
	}
	if container["name"] == "" {
		delete(container, "name")
	}
	encoded, err = json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	return encoded
}

// deleteAndWait is how kn deletes: it watches from what it read, deletes, and waits for the event.
func (k *kn) deleteAndWait(what string, watching func(context.Context) (watch.Interface, error), remove func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(k.t.Context(), patience)
	defer cancel()
	changes, err := watching(ctx)
	if err != nil {
		return err
	}
	defer changes.Stop()
	if err := remove(ctx); err != nil {
		return err
	}
	for event := range changes.ResultChan() {
		if event.Type == watch.Deleted {
			return nil
		}
	}
	return fmt.Errorf("no event told that %s was deleted", what)
}

// deleteService is "kn service delete --wait".
func (k *kn) deleteService(name string) error {
	services := k.client.ServingV1().Services("default")
	s, err := services.Get(k.t.Context(), name, getOptions{})
	if err != nil {
		return err
	}
	return k.deleteAndWait("service "+name,
		func(ctx context.Context) (watch.Interface, error) {
			return services.Watch(ctx, knWatch(name, s.ResourceVersion))
		},
		func(ctx context.Context) error {
			foreground := foreground
			return services.Delete(ctx, name, serving.DeleteOptions{PropagationPolicy: &foreground})
		})
}

// deleteRevision is "kn revision delete --wait".
func (k *kn) deleteRevision(name string) error {
	revisions := k.client.ServingV1().Revisions("default")
	r, err := revisions.Get(k.t.Context(), name, getOptions{})
	if err != nil {
		return err
	}
	return k.deleteAndWait("revision "+name,
		func(ctx context.Context) (watch.Interface, error) {
			return revisions.Watch(ctx, knWatch(name, r.ResourceVersion))
		},
		func(ctx context.Context) error { return revisions.Delete(ctx, name, serving.DeleteOptions{}) })
}

// revisions are what "kn revision list -s NAME" prints: names and routing states.
func (k *kn) revisions(service string) map[string]string {
	k.t.Helper()
	list, err := k.client.ServingV1().Revisions("default").List(k.t.Context(), listOptions{LabelSelector: serving.LabelService + "=" + service})
	k.must(err)
	states := map[string]string{}
	for _, r := range list.Items {
		states[r.Name] = string(r.GetRoutingState())
	}
	return states
}

// traffic is what "kn service describe" prints of the traffic: "REVISION PERCENT TAG", a revision that is followed as
// the latest with @ before it.
func (k *kn) traffic(name string) (lines []string) {
	k.t.Helper()
	s, err := k.client.ServingV1().Services("default").Get(k.t.Context(), name, getOptions{})
	k.must(err)
	for _, target := range s.Status.Traffic {
		line := target.RevisionName
		if target.LatestRevision != nil && *target.LatestRevision {
			line = "@" + line
		}
		if target.Percent != nil {
			line += fmt.Sprintf(" %d", *target.Percent)
		}
		lines = append(lines, strings.TrimSpace(line+" "+target.Tag))
	}
	return lines
}

// knTarget is one part of the traffic as kn writes it.
func knTarget(revision string, percent int64, tag string) serving.TrafficTarget {
	follows := revision == "@latest"
	target := serving.TrafficTarget{LatestRevision: &follows, Percent: &percent, Tag: tag}
	if !follows {
		target.RevisionName = revision
	}
	return target
}

func TestKn_CreatesUpdatesAndDeletesAService(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	k := newKn(t, p)
	image := program(t, "echo")
	k.must(k.create("hello", image))
	s, err := k.client.ServingV1().Services("default").Get(t.Context(), "hello", getOptions{})
	k.must(err)
	url := s.Status.URL.String()
	if got := p.echoed(url); got.Revision != "hello-00001" {
		t.Errorf("created: %+v", got)
	}
	if err := k.create("hello", image); err == nil {
		t.Error("it was created twice")
	}
	list, err := k.client.ServingV1().Services("default").List(t.Context(), listOptions{FieldSelector: "metadata.name=hello"})
	k.must(err)
	if len(list.Items) != 1 || list.Items[0].Status.LatestReadyRevisionName != "hello-00001" {
		t.Errorf("kn service list hello: %+v", list.Items)
	}
	if list, err = k.client.ServingV1().Services("default").List(t.Context(), listOptions{FieldSelector: "metadata.name=other"}); err != nil || len(list.Items) != 0 {
		t.Errorf("kn service list other: %v, %v", list.Items, err)
	}

	changed, err := k.update("hello", k.pinned(func(template *serving.RevisionTemplateSpec) {
		template.Spec.Containers[0].Env = []v1.EnvVar{{Name: "A", Value: "b"}}
	}))
	k.must(err)
	if got := p.echoed(url); !changed || got.Revision != "hello-00002" {
		t.Errorf("updated: changed %t, %+v", changed, got)
	}
	if changed, err = k.update("hello", func(*serving.Service) {}); err != nil || changed {
		t.Errorf("an update that changes nothing: changed %t, %v", changed, err)
	}
	if _, err = k.update("hello", func(s *serving.Service) { s.Spec.Template.Spec.Containers[0].Image += "no" }); err == nil {
		t.Error("an image by a digest that is none was taken")
	}

	k.must(k.deleteService("hello"))
	if a := p.get(url); a.status != 404 {
		t.Errorf("the deleted service answers %d", a.status)
	}
	if left := k.revisions("hello"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if err := k.deleteService("hello"); err == nil || !strings.Contains(err.Error(), `services.serving.knative.dev "hello" not found`) {
		t.Errorf("deleted twice: %v", err)
	}
}

func TestKn_WaitSaysWhyAServiceFailed(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	k := newKn(t, p)
	err := k.create("hello", program(t, "exit"))
	if err == nil || !strings.Contains(err.Error(), "RevisionFailed: ") || !strings.Contains(err.Error(), "hello-00001") {
		t.Errorf("got %v", err)
	}
}

func TestKn_AppliesByMergePatch(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	k := newKn(t, p)
	declared := knService("hello", program(t, "echo"))
	for i, want := range []bool{true, false} {
		if changed, err := k.apply(declared); err != nil || changed != want {
			t.Fatalf("apply %d: changed %t, %v", i, changed, err)
		}
	}
	declared.Spec.Template.Spec.Containers[0].Env = []v1.EnvVar{{Name: "A", Value: "b"}}
	declared.Labels = map[string]string{"team": "a"}
	changed, err := k.apply(declared)
	k.must(err)
	s, err := k.client.ServingV1().Services("default").Get(t.Context(), "hello", getOptions{})
	k.must(err)
	if !changed || s.Generation != 2 || s.Labels["team"] != "a" {
		t.Errorf("changed %t, generation %d, labels %v", changed, s.Generation, s.Labels)
	}
	// What the user no longer declares is taken away.
	declared.Spec.Template.Spec.Containers[0].Env, declared.Labels = nil, nil
	changed, err = k.apply(declared)
	k.must(err)
	s, err = k.client.ServingV1().Services("default").Get(t.Context(), "hello", getOptions{})
	k.must(err)
	if !changed || len(s.Spec.Template.Spec.Containers[0].Env) > 0 || len(s.Labels) > 0 {
		t.Errorf("changed %t, env %v, labels %v", changed, s.Spec.Template.Spec.Containers[0].Env, s.Labels)
	}
	if got := p.echoed(s.Status.URL.String()); got.Revision != "hello-00003" {
		t.Errorf("got %+v", got)
	}
}

func TestKn_MovesTrafficAndTags(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	k := newKn(t, p)
	k.must(k.create("hello", program(t, "echo")))
	for _, value := range []string{"two", "three"} {
		_, err := k.update("hello", k.pinned(func(template *serving.RevisionTemplateSpec) {
			template.Spec.Containers[0].Env = []v1.EnvVar{{Name: "A", Value: value}}
		}))
		k.must(err)
	}
	for _, step := range []struct {
		targets []serving.TrafficTarget
		want    []string
	}{
		{[]serving.TrafficTarget{knTarget("@latest", 70, ""), knTarget("hello-00001", 30, "")}, []string{"@hello-00003 70", "hello-00001 30"}},
		{[]serving.TrafficTarget{knTarget("@latest", 100, "current"), knTarget("hello-00001", 0, "stable")}, []string{"@hello-00003 100 current", "hello-00001 0 stable"}},
		// The tag moves; nothing is between.
		{[]serving.TrafficTarget{knTarget("@latest", 100, "current"), knTarget("hello-00002", 0, "stable")}, []string{"@hello-00003 100 current", "hello-00002 0 stable"}},
	} {
		if _, err := k.update("hello", func(s *serving.Service) { s.Spec.Traffic = step.targets }); err != nil {
			t.Fatal(err)
		}
		if got := k.traffic("hello"); !slices.Equal(got, step.want) {
			t.Errorf("got %q, want %q", got, step.want)
		}
	}
	s, err := k.client.ServingV1().Services("default").Get(t.Context(), "hello", getOptions{})
	k.must(err)
	for i, want := range []string{"hello-00003", "hello-00002"} {
		if got := p.echoed(s.Status.Traffic[i].URL.String()); got.Revision != want {
			t.Errorf("%s leads to %s, want %s", s.Status.Traffic[i].URL, got.Revision, want)
		}
	}

	p.await("the revision without traffic to be in reserve", func() error {
		states := k.revisions("hello")
		return errorUnless(states["hello-00001"] == "reserve" && states["hello-00002"] == "active" && states["hello-00003"] == "active", "they are %v", states)
	})
	k.must(k.deleteRevision("hello-00001"))
	if states := k.revisions("hello"); len(states) != 2 {
		t.Errorf("after a deletion: %v", states)
	}
	routes, err := k.client.ServingV1().Routes("default").List(t.Context(), listOptions{FieldSelector: "metadata.name=hello"})
	k.must(err)
	if len(routes.Items) != 1 || !routes.Items[0].IsReady() || routes.Items[0].Status.URL.String() != s.Status.URL.String() {
		t.Errorf("kn route list: %+v", routes.Items)
	}
}

func TestKn_MapsDomains(t *testing.T) {
	t.Parallel()
	const host = "shop.example.com"
	p := start(t, nil)
	k := newKn(t, p)
	image := program(t, "echo")
	k.must(k.create("hello", image))
	k.must(k.create("other", image))
	resource := serving.KindService.GroupVersion().WithResource(serving.KindService.Plural)
	found, err := k.dynamic.Resource(resource).Namespace("default").Get(t.Context(), "hello", getOptions{})
	k.must(err)
	m := &serving.DomainMapping{ObjectMeta: serving.ObjectMeta{Namespace: "default", Name: host}}
	m.Spec.Ref.Kind, m.Spec.Ref.APIVersion, m.Spec.Ref.Name, m.Spec.Ref.Namespace = found.GetKind(), found.GetAPIVersion(), found.GetName(), "default"
	domains := k.client.ServingV1beta1().DomainMappings("default")
	_, err = domains.Create(t.Context(), m, createOptions{})
	k.must(err)
	url := p.mapping("default", host, serving.DomainMappingReady, "True").Status.URL.String()
	if got := p.echoed(url); got.Revision != "hello-00001" {
		t.Errorf("created: %+v", got)
	}

	k.must(retry.RetryOnConflict(retry.DefaultRetry, func() error {
		m, err := domains.Get(t.Context(), host, getOptions{})
		k.must(err)
		m.Spec.Ref.Name = "other"
		_, err = domains.Update(t.Context(), m, updateOptions{})
		return err
	}))
	p.mapping("default", host, serving.DomainMappingReady, "True")
	if got := p.echoed(url); got.Revision != "other-00001" {
		t.Errorf("updated: %+v", got)
	}
	list, err := domains.List(t.Context(), listOptions{})
	k.must(err)
	if len(list.Items) != 1 || list.Items[0].Status.URL.String() != url || !list.Items[0].IsReady() {
		t.Errorf("kn domain list: %+v", list.Items)
	}
	k.must(domains.Delete(t.Context(), host, serving.DeleteOptions{}))
	p.await("the host to be nobody's", func() error {
		a := p.get(url)
		return errorUnless(a.status == 404, "it answers %d", a.status)
	})
}
