package reconcile

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

// await polls until check returns nil.
func (h *house) await(check func() error) {
	h.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			h.t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// pods waits until there are so many pods, of which none is being deleted.
func (h *house) pods(n int) []*serving.Pod {
	h.t.Helper()
	var pods []*serving.Pod
	h.await(func() error {
		objects, _, err := h.store.List(h.t.Context(), serving.KindPod, "")
		pods = nil
		for _, o := range objects {
			if o.GetDeletionTimestamp() == nil {
				pods = append(pods, o.(*serving.Pod))
			}
		}
		if err == nil && (len(pods) != n || len(pods) != len(objects)) {
			err = fmt.Errorf("%d pods, %d of them to stay, want %d", len(objects), len(pods), n)
		}
		return err
	})
	return pods
}

func (h *house) coreService(namespace, name string) *serving.CoreService {
	h.t.Helper()
	o, err := h.store.Get(h.t.Context(), serving.KindCoreService, namespace, name)
	if err != nil {
		h.t.Fatal(err)
	}
	return o.(*serving.CoreService)
}

func TestPods_ShowTheInstancesOfARevision(t *testing.T) {
	h := newHouse(t, t.TempDir())
	h.declare("hello", "registry/hello", "")
	s := h.settle("hello", ready)
	pod := h.pods(1)[0]
	id := pod.Annotations[serving.AnnotationInstance]
	if want := "hello-00001-deployment" + strings.TrimPrefix(id, "hello-00001"); pod.Name != want {
		t.Errorf("the pod of instance %s is named %s, want %s", id, pod.Name, want)
	}
	want := map[string]string{
		"app": "hello-00001", serving.LabelRevision: "hello-00001", serving.LabelConfiguration: "hello",
		serving.LabelConfigurationGeneration: "1", serving.LabelService: "hello", serving.LabelServiceUID: string(s.UID),
	}
	for k, v := range want {
		if pod.Labels[k] != v {
			t.Errorf("label %s is %q, want %q", k, pod.Labels[k], v)
		}
	}
	if len(pod.OwnerReferences) != 1 || pod.OwnerReferences[0].Kind != "Revision" || pod.OwnerReferences[0].Name != "hello-00001" {
		t.Errorf("owners %+v, want the revision", pod.OwnerReferences)
	}
	if ports := pod.Spec.Containers[0].Ports; len(ports) != 1 || ports[0].Name != "user-port" || ports[0].ContainerPort != 8080 {
		t.Errorf("ports %+v", ports)
	}
	if pod.Spec.Containers[0].Name != "user-container" || pod.Spec.NodeName != "machine" {
		t.Errorf("container %q on node %q", pod.Spec.Containers[0].Name, pod.Spec.NodeName)
	}

	if _, err := h.store.Delete(t.Context(), serving.KindService, "default", "hello", serving.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	h.pods(0)
}

// Who waits for a service names its pod next, to read its log or to run a command in it.
func TestPods_AreThereWhenTheirServiceIsReady(t *testing.T) {
	h := newHouse(t, t.TempDir())
	h.declare("hello", "registry/hello", "")
	h.settle("hello", ready)
	pods, _, err := h.store.List(t.Context(), serving.KindPod, "default")
	if err != nil {
		t.Fatal(err)
	}
	if len(pods) != 1 {
		t.Errorf("the service is ready and has %d pods, want 1", len(pods))
	}
}

func TestPods_DeletingOneReplacesItsInstance(t *testing.T) {
	h := newHouse(t, t.TempDir())
	s := &serving.Service{ObjectMeta: serving.ObjectMeta{Namespace: "default", Name: "hello"}}
	s.Spec.Template.Annotations = map[string]string{serving.AnnotationMinScale: "1"}
	s.Spec.Template.Spec.Containers = []serving.Container{{Image: "registry/hello"}}
	h.write(s)
	h.settle("hello", ready)
	first := h.pods(1)[0]
	if _, err := h.store.Delete(t.Context(), serving.KindPod, "default", first.Name, serving.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	h.await(func() error {
		if next := h.pods(1)[0]; next.Name == first.Name {
			return fmt.Errorf("pod %s is still there", next.Name)
		}
		return nil
	})
	if code, _ := h.ask("hello.default.example.com"); code != 200 {
		t.Errorf("answer %d", code)
	}
}

func TestPods_ThatANamespaceTakesAlongEndTheirInstances(t *testing.T) {
	h := newHouse(t, t.TempDir())
	h.declare("hello", "registry/hello", "")
	h.settle("hello", ready)
	h.pods(1)
	if _, err := h.store.Delete(t.Context(), serving.KindNamespace, "", "default", serving.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	h.pods(0)
	h.await(func() error {
		if _, err := h.store.Get(t.Context(), serving.KindNamespace, "", "default"); err == nil {
			return fmt.Errorf("the namespace is still there")
		}
		return nil
	})
}

func TestPlaceholder_KeepsWhatTheRouteOnceHad(t *testing.T) {
	h := newHouse(t, t.TempDir())
	s := &serving.Service{ObjectMeta: serving.ObjectMeta{Namespace: "default", Name: "hello"}}
	s.Labels = map[string]string{"fruit": "juicy", "size": "1"}
	s.Annotations = map[string]string{"example.com/fruit": "juicy", annotationLastApplied: "{}"}
	s.Spec.Template.Spec.Containers = []serving.Container{{Image: "registry/hello"}}
	h.write(s)
	h.settle("hello", ready)
	s = h.settle("hello", ready).DeepCopy()
	s.Labels = map[string]string{"size": "2"}
	delete(s.Annotations, "example.com/fruit")
	if _, err := h.store.Update(t.Context(), s, store.Spec); err != nil {
		t.Fatal(err)
	}
	h.await(func() error {
		if size := h.coreService("default", "hello").Labels["size"]; size != "2" {
			return fmt.Errorf("label size is %q", size)
		}
		return nil
	})
	got := h.coreService("default", "hello")
	wantLabels := map[string]string{
		"fruit": "juicy", "size": "2", serving.LabelService: "hello", serving.LabelRoute: "hello", serving.LabelServiceUID: string(s.UID),
	}
	if diff := cmp.Diff(wantLabels, got.Labels); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
	wantAnnotations := map[string]string{
		"example.com/fruit": "juicy", serving.AnnotationCreator: "tester", serving.AnnotationLastModifier: "tester",
	}
	if diff := cmp.Diff(wantAnnotations, got.Annotations); diff != "" {
		t.Errorf("annotations (-want +got):\n%s", diff)
	}
	if got.Spec.ExternalName != "hello.default.example.com" {
		t.Errorf("it points to %q", got.Spec.ExternalName)
	}

	if _, err := h.store.Delete(t.Context(), serving.KindCoreService, "default", "hello", serving.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	h.await(func() error { // its route makes it again
		_, err := h.store.Get(t.Context(), serving.KindCoreService, "default", "hello")
		return err
	})
	if _, err := h.store.Delete(t.Context(), serving.KindService, "default", "hello", serving.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	h.await(func() error {
		left, _, err := h.store.List(t.Context(), serving.KindCoreService, "default")
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("%s is still there", left[0].GetName())
		}
		return err
	})
}

func TestPlaceholder_OfAnotherMakesTheRouteUnready(t *testing.T) {
	h := newHouseWith(t, t.TempDir(), func(s store.Store) {
		other := &serving.CoreService{ObjectMeta: serving.ObjectMeta{Namespace: "default", Name: "hello"}}
		if _, err := s.Create(t.Context(), other); err != nil {
			t.Fatal(err)
		}
	})
	h.declare("hello", "registry/hello", "")
	s := h.settle("hello", failed)
	if message := s.Status.GetCondition(serving.ServiceRoutesReady).GetMessage(); !strings.Contains(message, `existing placeholder Service "hello"`) {
		t.Errorf("message %q", message)
	}
}

func TestGatewayService_SaysWhereTheGatewayIs(t *testing.T) {
	h := newHouse(t, t.TempDir())
	check := func() error {
		o, err := h.store.Get(t.Context(), serving.KindCoreService, serving.SystemNamespace, "gateway")
		if err != nil {
			return err
		}
		s := o.(*serving.CoreService)
		if len(s.Spec.Ports) != 1 || s.Spec.Ports[0].Port != 80 || s.Spec.Ports[0].NodePort != 8080 {
			return fmt.Errorf("ports %+v", s.Spec.Ports)
		}
		if in := s.Status.LoadBalancer.Ingress; len(in) != 1 || in[0].IP != "127.0.0.1" {
			return fmt.Errorf("ingress %+v", in)
		}
		return nil
	}
	if err := check(); err != nil { // as soon as the server is ready
		t.Fatal(err)
	}
	if _, err := h.store.Delete(t.Context(), serving.KindCoreService, serving.SystemNamespace, "gateway", serving.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	h.await(check)
}

func TestPlaceholder_KeepsNoMoreThanKubernetesAllows(t *testing.T) {
	h := newHouse(t, t.TempDir())
	s := h.declare("hello", "registry/hello", "")
	h.settle("hello", ready)
	// Each of the values is as large as all annotations of an object may be, but for the platform's own.
	for _, name := range []string{"example.com/first", "example.com/second"} {
		o, err := h.store.Get(t.Context(), serving.KindService, s.Namespace, s.Name)
		if err != nil {
			t.Fatal(err)
		}
		s = o.DeepCopyObject().(*serving.Service)
		for _, old := range []string{"example.com/first", "example.com/second"} {
			delete(s.Annotations, old)
		}
		s.Annotations[name] = strings.Repeat("x", 250<<10)
		h.write(s)
		h.await(func() error {
			if h.coreService("default", "hello").Annotations[name] == "" {
				return fmt.Errorf("the core service lacks %q", name)
			}
			return nil
		})
	}
	kept := h.coreService("default", "hello").Annotations
	if kept["example.com/first"] != "" || kept[serving.AnnotationCreator] != "tester" {
		t.Errorf("the core service has grown to %d annotations, made by %q", len(kept), kept[serving.AnnotationCreator])
	}
}
