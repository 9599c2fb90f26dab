package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/berth-run/berth/client"
	"github.com/berth-run/berth/serving"
)

func TestService_DeploysServesScalesToZeroAndWakes(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	s := p.deploy(service("hello", program(t, "hello")))
	if want := "http://hello.default.localhost:"; !strings.HasPrefix(s.Status.URL.String(), want) {
		t.Fatalf("url %s, want %s…", s.Status.URL, want)
	}
	if a := p.get(s.Status.URL.String()); a.status != 200 || !strings.Contains(a.body, "hello-00001") {
		t.Fatalf("answer %d %q", a.status, a.body)
	}
	for range 2 {
		p.awaitZero("hello")
		if a := p.get(s.Status.URL.String()); a.status != 200 {
			t.Fatalf("from zero: %d %q", a.status, a.body)
		}
	}
	if err := p.Services("default").Delete(t.Context(), "hello", serving.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	p.await("the deleted service to be unknown", func() error {
		a := p.get(s.Status.URL.String())
		return errorUnless(a.status == 404, "answer %d %q", a.status, a.body)
	})
	p.await("its instances to be gone", func() error {
		instances, err := p.Instances(t.Context(), "")
		if err != nil {
			return err
		}
		return errorUnless(len(instances) == 0, "instances %v", instances)
	})
	revisions, _, err := p.Revisions("default").List(t.Context(), selectAll)
	if err != nil || len(revisions) != 0 {
		t.Fatalf("revisions left: %v %v", revisions, err)
	}
}

func TestService_UpdateRollbackSplitAndTag(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	image := program(t, "inspect")
	s := p.deploy(service("web", image, "COLOR=blue"))
	color := func(url string) string {
		t.Helper()
		a := p.get(url)
		if a.status != 200 {
			t.Fatalf("answer %d %q", a.status, a.body)
		}
		for _, c := range []string{"blue", "green"} {
			if strings.Contains(a.body, `"COLOR":"`+c) {
				return c
			}
		}
		return "none"
	}
	url := s.Status.URL.String()
	if got := color(url); got != "blue" {
		t.Fatalf("first revision is %s", got)
	}

	// Deploy green without traffic, reach it by its tag.
	first := s.Status.LatestReadyRevisionName
	s = service("web", image, "COLOR=green")
	hundred := int64(100)
	no := false
	s.Spec.Traffic = []serving.TrafficTarget{
		{RevisionName: first, Percent: &hundred, LatestRevision: &no},
		{Tag: "next", LatestRevision: yes()},
	}
	s = p.deploy(s)
	if got := color(url); got != "blue" {
		t.Fatalf("traffic moved to %s before it should", got)
	}
	tag := ""
	for _, traffic := range s.Status.Traffic {
		if traffic.Tag == "next" {
			tag = traffic.URL.String()
		}
	}
	if want := "http://next-web.default.localhost"; !strings.HasPrefix(tag, want) {
		t.Fatalf("tag url %q", tag)
	}
	if got := color(tag); got != "green" {
		t.Fatalf("tag leads to %s", got)
	}

	// Half and half.
	second := s.Status.LatestReadyRevisionName
	p.mustBerth("services", "update-traffic", "web", "--to-revisions", first+"=50,"+second+"=50")
	seen := map[string]int{}
	for range 60 {
		seen[color(url)]++
	}
	if seen["blue"] < 10 || seen["green"] < 10 || seen["none"] > 0 {
		t.Fatalf("split 50:50 gave %v", seen)
	}
	// All to the latest, then back.
	p.mustBerth("services", "update-traffic", "web", "--to-latest")
	if got := color(url); got != "green" {
		t.Fatalf("latest is %s", got)
	}
	p.mustBerth("services", "update-traffic", "web", "--to-revisions", first+"=100")
	if got := color(url); got != "blue" {
		t.Fatalf("rolled back to %s", got)
	}
}

func TestNamespaces_KeepServicesApart(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	image := program(t, "inspect")
	urls := map[string]string{}
	for _, namespace := range []string{"red", "blue"} {
		if _, err := p.Namespaces().Create(t.Context(), &serving.Namespace{ObjectMeta: serving.ObjectMeta{Name: namespace}}); err != nil {
			t.Fatal(err)
		}
		s := service("web", image, "WHERE="+namespace)
		s.Namespace = namespace
		urls[namespace] = p.deploy(s).Status.URL.String()
	}
	for namespace, url := range urls {
		if a := p.get(url); a.status != 200 || !strings.Contains(a.body, `"WHERE":"`+namespace) {
			t.Fatalf("%s: %d %q", url, a.status, a.body)
		}
	}
	if err := p.Namespaces().Delete(t.Context(), "red", serving.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	p.await("the deleted namespace's service to be gone", func() error {
		a := p.get(urls["red"])
		return errorUnless(a.status == 404, "answer %d", a.status)
	})
	if a := p.get(urls["blue"]); a.status != 200 {
		t.Fatalf("the other namespace answers %d", a.status)
	}
}

func TestService_BurstFromZeroIsAnsweredByAll(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	s := service("hello", program(t, "hello"))
	ten := int64(10)
	s.Spec.Template.Spec.ContainerConcurrency = &ten
	s = p.deploy(s)
	p.awaitZero("hello")
	const requests = 100
	results := make(chan error, requests)
	for range requests {
		go func() {
			a, err := p.tryGet(s.Status.URL.String() + "/sleep?ms=300")
			if err == nil && a.status != 200 {
				err = fmt.Errorf("answer %d %q", a.status, a.body)
			}
			results <- err
		}()
	}
	for range requests {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	p.awaitZero("hello")
}

var selectAll = client.Selector{}

func yes() *bool { v := true; return &v }
