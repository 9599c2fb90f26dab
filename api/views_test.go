package api_test

import (
	"bufio"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-run/berth/api"
	"github.com/berth-run/berth/autoscaler"
	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

const (
	pods   = "/api/v1/namespaces/default/pods"
	events = "/api/v1/namespaces/default/events"
	asRows = "application/json;as=Table;v=v1;g=meta.k8s.io"
)

// stores puts an object into the store as the platform does.
func (s *server) stores(o serving.Object) serving.Object {
	s.t.Helper()
	stored, err := s.store.Create(s.t.Context(), o)
	if err != nil {
		s.t.Fatal(err)
	}
	return stored
}

// pod is one of a revision's, with containers.
func pod(name string, phase string, containers ...string) *serving.Pod {
	p := &serving.Pod{ObjectMeta: serving.ObjectMeta{
		Namespace: "default", Name: name,
		Labels:      map[string]string{serving.LabelService: "hello", serving.LabelRevision: "hello-00001"},
		Annotations: map[string]string{serving.AnnotationInstance: "hello-00001-" + name},
	}}
	p.Spec.NodeName = "machine"
	for _, c := range containers {
		p.Spec.Containers = append(p.Spec.Containers, serving.Container{Name: c, Image: "registry.example/" + c})
		p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, serving.PodContainerStatus{Name: c, Ready: phase == "Running"})
	}
	p.Status.Phase, p.Status.PodIP = serving.PodPhase(phase), "10.0.0.1"
	return p
}

// rows are a table's rows as kubectl prints them; with wide columns too when wide.
func (s *server) rows(path string, wide bool) string {
	s.t.Helper()
	t := decoded[v1.Table](s.t, s.do("GET", path, "", "Accept", asRows).want(s.t, 200))
	var lines []string
	line := func(cell func(i int) string) {
		var cells []string
		for i, c := range t.ColumnDefinitions {
			if wide || c.Priority == 0 {
				cells = append(cells, cell(i))
			}
		}
		lines = append(lines, strings.Join(cells, " | "))
	}
	line(func(i int) string { return t.ColumnDefinitions[i].Name })
	for _, row := range t.Rows {
		line(func(i int) string { return fmt.Sprint(row.Cells[i]) })
	}
	return strings.Join(lines, "\n")
}

func TestPods_HaveTheColumnsOfKubectl(t *testing.T) {
	s := newServer(t)
	s.stores(pod("a", "Running", "user-container"))
	failing := pod("b", "Running", "web", "side")
	failing.Status.ContainerStatuses[1] = serving.PodContainerStatus{Name: "side", RestartCount: 3}
	failing.Status.ContainerStatuses[1].State.Waiting = &serving.ContainerStateWaiting{Reason: "CrashLoopBackOff"}
	s.stores(failing)
	leaving := pod("c", "Running", "user-container")
	leaving.Finalizers = []string{"example.com/wait"}
	s.stores(leaving)
	s.do("DELETE", pods+"/c", "").want(t, 200)
	want := `Name | Ready | Status | Restarts | Age | IP | Node
a | 1/1 | Running | 0 | AGE | 10.0.0.1 | machine
b | 1/2 | CrashLoopBackOff | 3 | AGE | 10.0.0.1 | machine
c | 1/1 | Terminating | 0 | AGE | 10.0.0.1 | machine`
	got := s.rows(pods, true)
	for _, age := range []string{"0s", "1s", "2s"} {
		got = strings.ReplaceAll(got, "| "+age+" |", "| AGE |")
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got, _, _ := strings.Cut(s.rows(pods, false), "\n"); got != "Name | Ready | Status | Restarts | Age" {
		t.Errorf("without -o wide the columns are %q", got)
	}
}

func TestViews_AreReadAndDeletedButNotWritten(t *testing.T) {
	s := newServer(t)
	s.stores(pod("a", "Running", "user-container"))
	for path, why := range map[string]string{
		pods:                                  "pods are made by the platform",
		events:                                "events are written by the platform",
		"/api/v1/namespaces/default/services": "serving.knative.dev/v1 (ksvc)",
	} {
		s.do("POST", path, "{}").refused(t, 405, v1.StatusReasonMethodNotAllowed, why)
		for _, method := range []string{"PUT", "PATCH"} {
			s.do(method, path+"/a", "{}").refused(t, 405, v1.StatusReasonMethodNotAllowed, why, "it takes GET, DELETE")
		}
		s.do("GET", path, "").want(t, 200)
		s.do("GET", path+"/none", "").want(t, 404)
	}
	s.do("PUT", pods+"/a/status", "{}").refused(t, 405, v1.StatusReasonMethodNotAllowed, "pods are made by the platform")
	s.do("DELETE", pods+"/a", "").want(t, 200)
	s.do("GET", pods+"/a", "").want(t, 404)

	list := decoded[v1.APIResourceList](t, s.do("GET", "/api/v1", "").want(t, 200))
	for _, r := range list.APIResources {
		if r.Name == "pods" && strings.Join(r.Verbs, " ") != "delete deletecollection get list watch" {
			t.Errorf("discovery says that pods take %v", r.Verbs)
		}
	}
}

func TestServices_OfBothGroupsAreApart(t *testing.T) {
	s := newServer(t)
	s.created(services, hello("one"))
	core := &serving.CoreService{ObjectMeta: serving.ObjectMeta{Namespace: "default", Name: "two"}}
	core.Spec.Type = serving.ServiceTypeLoadBalancer
	core.Spec.Ports = []serving.ServicePort{{Port: 80, NodePort: 31080, Protocol: serving.ProtocolTCP}}
	core.Status.LoadBalancer.Ingress = []serving.LoadBalancerIngress{{IP: "192.0.2.1"}}
	s.stores(core)
	if got, _ := s.names(services); got != "one" {
		t.Errorf("Knative's services are %q", got)
	}
	got := s.rows("/api/v1/services", false)
	if !strings.HasPrefix(got, "Name | Type | Cluster-IP | External-IP | Port(s) | Age\ntwo | LoadBalancer | <none> | 192.0.2.1 | 80:31080/TCP | ") || strings.Contains(got, "\none ") {
		t.Errorf("core services are\n%s", got)
	}
}

func TestFieldSelectors_OfPodsAndEvents(t *testing.T) {
	s := newServer(t)
	s.stores(pod("a", "Running", "user-container"))
	s.stores(pod("b", "Pending", "user-container"))
	for i, reason := range []string{"Created", "Crashed"} {
		e := &serving.Event{ObjectMeta: serving.ObjectMeta{Namespace: "default", Name: fmt.Sprint("e", i)}, Reason: reason, Type: "Normal"}
		e.InvolvedObject = serving.ObjectReference{Kind: "Service", Namespace: "default", Name: fmt.Sprint("hello-", i), UID: "u"}
		s.stores(e)
	}
	for path, want := range map[string]string{
		pods + "?fieldSelector=status.phase%3DRunning":                    "a",
		pods + "?fieldSelector=status.phase!%3DRunning":                   "b",
		pods + "?fieldSelector=spec.nodeName%3Dmachine,metadata.name%3Db": "b",
		pods + "?fieldSelector=status.podIP%3D10.0.0.1":                   "a b",
		events + "?fieldSelector=involvedObject.kind%3DService,involvedObject.name%3Dhello-1,involvedObject.namespace%3Ddefault,involvedObject.uid%3Du": "e1",
		events + "?fieldSelector=reason%3DCreated,type%3DNormal": "e0",
		events + "?fieldSelector=source%3Delsewhere":             "",
	} {
		list := decoded[v1.PartialObjectMetadataList](t, s.do("GET", path, "").want(t, 200))
		var names []string
		for _, item := range list.Items {
			names = append(names, item.Name)
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%s: got %q, want %q", path, got, want)
		}
	}
	s.do("GET", pods+"?fieldSelector=reason%3Dx", "").refused(t, 400, v1.StatusReasonBadRequest, "field label not supported: reason", "status.phase")
	s.do("GET", services+"?watch=1&fieldSelector=status.phase%3Dx", "").refused(t, 400, v1.StatusReasonBadRequest, "field label not supported: status.phase")
}

func TestWatch_WithAFieldSelectorSeesObjectsComeAndGo(t *testing.T) {
	s := newServer(t)
	p := s.stores(pod("a", "Pending", "user-container")).(*serving.Pod)
	w := s.watch(pods + "?watch=true&fieldSelector=status.phase%3DRunning")
	for _, step := range []struct{ phase, event string }{{"Running", "ADDED"}, {"Failed", "DELETED"}} {
		p = p.DeepCopy()
		p.Status.Phase = serving.PodPhase(step.phase)
		p.ResourceVersion = ""
		if _, err := s.store.Update(t.Context(), p, store.Status); err != nil {
			t.Fatal(err)
		}
		w.want(step.event, "a")
	}
}

func TestList_OfAVersionThatIsToCome(t *testing.T) {
	s := newServer(t)
	for _, query := range []string{"?resourceVersion=4000000000", "?resourceVersion=4000000000&resourceVersionMatch=NotOlderThan"} {
		status := s.do("GET", services+query, "").refused(t, 504, v1.StatusReasonTimeout, "Too large resource version: 4000000000")
		if status.Details == nil || len(status.Details.Causes) != 1 || status.Details.Causes[0].Type != v1.CauseTypeResourceVersionTooLarge {
			t.Errorf("details %+v: informers know it by its cause", status.Details)
		}
	}
	s.do("GET", services+"?resourceVersion=0&resourceVersionMatch=NotOlderThan", "").want(t, 200)
	s.do("GET", services+"?resourceVersion=1&resourceVersionMatch=NotOlderThan", "").want(t, 200)
	for query, part := range map[string]string{
		"?resourceVersion=x":                           `resourceVersion is "x"`,
		"?resourceVersionMatch=NotOlderThan":           "resourceVersionMatch is forbidden unless resourceVersion is provided",
		"?resourceVersion=1&resourceVersionMatch=Best": `resourceVersionMatch is "Best"`,
	} {
		s.do("GET", services+query, "").refused(t, 400, v1.StatusReasonBadRequest, part)
	}
}

// podLogs is a server with two pods whose containers wrote.
func podLogs(t *testing.T, running ...engine.ContainerStatus) *server {
	at := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	line := func(instance, container, stream, text string) engine.LogLine {
		at = at.Add(time.Minute)
		return engine.LogLine{Time: at, Instance: "hello-00001-" + instance, Container: container, Stream: stream, Text: text}
	}
	s := newServer(t, func(c *api.Config) {
		c.Engine = logs{"default/hello": {
			line("a", "user-container", "stdout", "one"), line("a", "", "system", "not the container's"),
			line("a", "user-container", "stderr", "two"), line("b", "web", "stdout", "of web"), line("b", "side", "stdout", "of side"),
			line("a", "user-container", "stdout", "three"),
		}}
		c.Instances = func() []autoscaler.InstanceStatus {
			return []autoscaler.InstanceStatus{{ID: "hello-00001-a", Namespace: "default", Containers: running}}
		}
	})
	s.stores(pod("a", "Running", "user-container"))
	s.stores(pod("b", "Running", "web", "side"))
	return s
}

func TestPodLog_IsAsKubernetesHasIt(t *testing.T) {
	s := podLogs(t, engine.ContainerStatus{Name: "user-container", Restarts: 1, Since: time.Date(2026, 1, 31, 12, 5, 0, 0, time.UTC)})
	for query, want := range map[string]string{
		"/a/log":                                "one\ntwo\nthree\n",
		"/a/log?container=user-container":       "one\ntwo\nthree\n",
		"/a/log?tailLines=2":                    "two\nthree\n",
		"/a/log?tailLines=0":                    "",
		"/a/log?limitBytes=6":                   "one\ntw",
		"/a/log?sinceTime=2026-01-31T12:03:00Z": "two\nthree\n",
		"/a/log?sinceSeconds=1":                 "",
		"/a/log?stream=Stderr":                  "two\n",
		"/a/log?tailLines=1&timestamps=true":    "2026-01-31T12:06:00Z three\n",
		"/a/log?previous=true":                  "one\ntwo\n",
		"/a/log?previous=true&tailLines=1":      "two\n",
		"/b/log?container=side":                 "of side\n",
	} {
		a := s.do("GET", pods+query, "").want(t, 200)
		if a.body != want || !strings.HasPrefix(a.header.Get("Content-Type"), "text/plain") {
			t.Errorf("%s: got %s %q, want %q", query, a.header.Get("Content-Type"), a.body, want)
		}
	}
	for query, part := range map[string]string{
		"/b/log":                             "a container name must be specified for pod b, choose one of: [web side]",
		"/a/log?container=side":              "container side is not valid for pod a",
		"/b/log?container=web&previous=true": `previous terminated container "web" in pod "b" not found`,
		"/a/log?limitBytes=0":                "limitBytes",
		"/a/log?tailLines=-1":                "tailLines",
		"/a/log?sinceSeconds=0":              "sinceSeconds",
		"/a/log?sinceTime=yesterday":         "RFC 3339",
		"/a/log?follow=perhaps":              "follow",
		"/a/log?stream=stdin":                "stream",
		"/a/log?sinceSeconds=1&sinceTime=2026-01-31T12:03:00Z": "at most one of `sinceTime` or `sinceSeconds`",
	} {
		s.do("GET", pods+query, "").refused(t, 400, v1.StatusReasonBadRequest, part)
	}
	s.do("GET", pods+"/none/log", "").refused(t, 404, v1.StatusReasonNotFound, `pods "none" not found`)
}

func TestPodLog_FollowedEndsWithThePod(t *testing.T) {
	s := podLogs(t)
	resp := s.open("GET", pods+"/a/log?follow=true&tailLines=2", "")
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for _, want := range []string{"two", "three"} {
		if !lines.Scan() || lines.Text() != want {
			t.Fatalf("got %q, want %q", lines.Text(), want)
		}
	}
	s.do("DELETE", pods+"/b", "").want(t, 200)
	s.do("DELETE", pods+"/a", "").want(t, 200)
	if lines.Scan() {
		t.Errorf("got %q after the pod has gone", lines.Text())
	}
}
