package bolt

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

// Bytes that one idle service may take in all, of its four objects, their history and the file's mapping.
const serviceBudget = 40 << 10

func TestStore_KeepsThousandsOfIdleServicesInLittleMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 16,000 objects")
	}
	const services = 2000
	path := newPath(t)
	s := open(t, path, Options{})
	create(t, s, namespace("default"))
	before, mapped := heap(), mappedBytes(t, path)
	var group sync.WaitGroup
	for writer := range 50 {
		group.Go(func() {
			for i := range services / 50 {
				deployIdle(t, s, fmt.Sprintf("service-%d-%d", writer, i))
			}
		})
	}
	group.Wait()
	report := func(when string, s *Store, before, mapped uint64) {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		heap, mapping := (heap()-before)/services, (mappedBytes(t, path)-mapped)/services
		t.Logf("%s: %d bytes of heap and %d mapped per service; %d on disk; %d events of %d bytes",
			when, heap, mapping, info.Size()/services, len(s.history.records), s.history.bytes)
		if heap+mapping > serviceBudget {
			t.Errorf("%s: an idle service takes %d bytes, more than %d", when, heap+mapping, serviceBudget)
		}
	}
	report("after the deployments", s, before, mapped)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	*s = Store{close: s.close}
	before = heap()
	again := open(t, path, Options{})
	report("after a restart", again, before, 0)
	runtime.KeepAlive(again)
}

// deployIdle stores what a deployed service consists of, in the steps in which the reconcilers do.
func deployIdle(t *testing.T, s *Store, name string) {
	meta := func(name string, owner serving.Object) serving.ObjectMeta {
		m := serving.ObjectMeta{
			Namespace: "default", Name: name,
			Labels: map[string]string{serving.LabelService: name, "cloud.googleapis.com/location": "local"},
			Annotations: map[string]string{
				serving.AnnotationCreator: "admin", serving.AnnotationLastModifier: "admin", serving.AnnotationMinScale: "0",
				"kubectl.kubernetes.io/last-applied-configuration": `{"apiVersion":"serving.knative.dev/v1","kind":"Service","metadata":{"annotations":{},"name":"` + name + `","namespace":"default"},"spec":{"template":{"spec":{"containers":[{"image":"ghcr.io/berth-run/hello:latest"}]}}}}`,
			},
		}
		if owner != nil {
			kind, yes := serving.KindOf(owner), true
			m.OwnerReferences = []serving.OwnerReference{{APIVersion: kind.APIVersion(), Kind: kind.Name, Name: owner.GetName(),
				UID: owner.GetUID(), Controller: &yes, BlockOwnerDeletion: &yes}}
			return m
		}
		at := now()
		m.ManagedFields = []v1.ManagedFieldsEntry{{Manager: "kubectl", Operation: "Apply", APIVersion: "serving.knative.dev/v1", Time: &at,
			FieldsType: "FieldsV1", FieldsV1: &v1.FieldsV1{Raw: []byte(`{"f:metadata":{"f:annotations":{".":{},"f:kubectl.kubernetes.io/last-applied-configuration":{}}},"f:spec":{"f:template":{"f:spec":{"f:containers":{"k:{\"name\":\"user-container\"}":{".":{},"f:env":{},"f:image":{},"f:name":{},"f:ports":{},"f:resources":{}}}}}}}`)}}}
		return m
	}
	var template serving.RevisionTemplateSpec
	template.Labels = map[string]string{"client.knative.dev/nonce": name}
	timeout, concurrency := int64(300), int64(80)
	template.Spec.TimeoutSeconds, template.Spec.ContainerConcurrency = &timeout, &concurrency
	template.Spec.Containers = []serving.Container{{
		Name: "user-container", Image: "ghcr.io/berth-run/hello@sha256:7c1fa2f1c5a4f2c3a5b0d9c7e6f4f3d2a1b0c9d8e7f6a5b4c3d2e1f0a9b8c7d6",
		Env:   []serving.EnvVar{{Name: "TARGET", Value: name}, {Name: "LOG_LEVEL", Value: "info"}},
		Ports: []serving.ContainerPort{{Name: "http1", ContainerPort: 8080, Protocol: "TCP"}},
		ReadinessProbe: &serving.Probe{SuccessThreshold: 1,
			ProbeHandler: serving.ProbeHandler{TCPSocket: &serving.TCPSocketAction{}}},
	}}

	service := &serving.Service{ObjectMeta: meta(name, nil)}
	service.Spec.Template = template
	service = create(t, s, service).(*serving.Service).DeepCopy()
	configuration := &serving.Configuration{ObjectMeta: meta(name, service)}
	configuration.Spec.Template = template
	configuration = create(t, s, configuration).(*serving.Configuration).DeepCopy()
	route := &serving.Route{ObjectMeta: meta(name, service)}
	all, latest := int64(100), true
	traffic := serving.TrafficTarget{LatestRevision: &latest, Percent: &all}
	route.Spec.Traffic = []serving.TrafficTarget{traffic}
	route = create(t, s, route).(*serving.Route).DeepCopy()
	revision := &serving.Revision{ObjectMeta: meta(name+"-00001", configuration)}
	revision.Spec = template.Spec
	revision = create(t, s, revision).(*serving.Revision).DeepCopy()

	revision.Status.ContainerStatuses = []serving.ContainerStatus{{Name: "user-container", ImageDigest: template.Spec.Containers[0].Image}}
	revision.Status.MarkResourcesAvailableTrue()
	revision.Status.MarkContainerHealthyTrue()
	update(t, s, revision)
	configuration.Status.SetLatestCreatedRevisionName(revision.Name)
	configuration.Status.SetLatestReadyRevisionName(revision.Name)
	update(t, s, configuration)
	route.Status.Traffic = []serving.TrafficTarget{traffic}
	route.Status.MarkTrafficAssigned()
	update(t, s, route)
	service.Status.LatestReadyRevisionName = revision.Name
	service.Status.PropagateConfigurationStatus(&configuration.Status)
	service.Status.PropagateRouteStatus(&route.Status)
	update(t, s, service)
}

func update(t testing.TB, s *Store, o serving.Object) {
	t.Helper()
	if _, err := s.Update(t.Context(), o, store.Status); err != nil {
		t.Fatal(err)
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// mappedBytes returns how much of a file's mapping is in this process's memory.
func mappedBytes(t *testing.T, path string) uint64 {
	t.Helper()
	data, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Skip(err)
	}
	var bytesMapped uint64
	inside := false
	for line := range bytes.Lines(data) {
		fields := strings.Fields(string(line))
		switch {
		case len(fields) > 0 && strings.Contains(fields[0], "-"):
			inside = len(fields) > 5 && fields[5] == path
		case inside && fields[0] == "Pss:":
			n, err := strconv.ParseUint(fields[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			bytesMapped += n << 10
		}
	}
	return bytesMapped
}
