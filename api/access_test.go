package api_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-run/berth/api"
	"github.com/berth-run/berth/autoscaler"
	"github.com/berth-run/berth/engine"
)

func TestAccess_NeedsTheToken(t *testing.T) {
	var log bytes.Buffer
	s := newServer(t, func(c *api.Config) {
		c.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	for _, path := range []string{services, "/api", "/apis", "/version", "/metrics", "/nothing", "/openapi/v3", "/apis/berth.run/v1/info"} {
		for _, credentials := range []string{"", "Bearer wrong-token", "Bearer ", "Basic eDpzM2NyZXQtdG9rZW4="} {
			a := s.do("GET", path, "", "Authorization", credentials)
			status := a.refused(t, 401, v1.StatusReasonUnauthorized, `"Authorization: Bearer TOKEN"`)
			if strings.Contains(status.Message, "wrong-token") || a.header.Get("WWW-Authenticate") == "" {
				t.Errorf("%s with %q: got %+v", path, credentials, status)
			}
		}
	}
	s.do("GET", services, "", "Authorization", "bearer "+secretToken).want(t, 200)
	if text := log.String(); strings.Contains(text, secretToken) || strings.Contains(text, "wrong-token") {
		t.Errorf("the log holds a token: %s", text)
	}
}

func TestAccess_IsClosedWithoutAToken(t *testing.T) {
	s := newServer(t, func(c *api.Config) { c.Token = "" })
	s.do("GET", services, "", "Authorization", "Bearer ").refused(t, 401, v1.StatusReasonUnauthorized)
}

func TestHealth_NeedsNoToken(t *testing.T) {
	ready := errors.New("the store is being read")
	s := newServer(t, func(c *api.Config) { c.Ready = func() error { return ready } })
	s.do("GET", "/healthz", "", "Authorization", "").want(t, 200)
	s.do("GET", "/readyz", "", "Authorization", "").refused(t, 503, v1.StatusReasonServiceUnavailable, "not ready: the store is being read")
	ready = nil
	if a := s.do("GET", "/readyz", "", "Authorization", "").want(t, 200); a.body != "ok" {
		t.Errorf("got %q", a.body)
	}
}

func TestRegistry_TakesTheTokenAsAPassword(t *testing.T) {
	s := newServer(t, func(c *api.Config) {
		c.Registry = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusAccepted) })
	})
	a := s.do("PUT", "/v2/hello/manifests/latest", "", "Authorization", "").want(t, 401)
	if a.header.Get("WWW-Authenticate") != `Basic realm="berth"` || !strings.Contains(a.body, `"code":"UNAUTHORIZED"`) {
		t.Errorf("got %v %s", a.header, a.body)
	}
	req, err := http.NewRequestWithContext(t.Context(), "PUT", s.URL+"/v2/hello/manifests/latest", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("anyone", secretToken)
	resp, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		t.Errorf("code %d", resp.StatusCode)
	}
	s.do("PUT", "/v2/", strings.Repeat("x", 4<<20)).want(t, 202)
}

func TestDiscovery_ListsEveryKindWithItsVerbs(t *testing.T) {
	s := newServer(t)
	l := decoded[v1.APIResourceList](t, s.do("GET", "/apis/serving.knative.dev/v1", "").want(t, 200))
	verbs := map[string]string{}
	for _, r := range l.APIResources {
		verbs[r.Name] = strings.Join(r.Verbs, " ")
	}
	if verbs["services"] != "create delete deletecollection get list patch update watch" || strings.Contains(verbs["revisions"], "create") ||
		verbs["routes/status"] != "get patch update" {
		t.Errorf("got %v", verbs)
	}
	groups := decoded[v1.APIGroupList](t, s.do("GET", "/apis", "").want(t, 200))
	of := map[string]v1.APIGroup{}
	for _, g := range groups.Groups {
		of[g.Name] = g
	}
	if g := of["serving.knative.dev"]; len(of) != len(groups.Groups) || len(g.Versions) != 2 || g.PreferredVersion.Version != "v1" || g.Versions[1].Version != "v1beta1" {
		t.Errorf("got %+v", groups)
	}
	if g := of["networking.internal.knative.dev"]; g.PreferredVersion.GroupVersion != "networking.internal.knative.dev/v1alpha1" {
		t.Errorf("got %+v", g)
	}
	if versions := decoded[v1.APIVersions](t, s.do("GET", "/api", "").want(t, 200)); len(versions.Versions) != 1 {
		t.Errorf("got %+v", versions)
	}
}

func TestInfoAndInstances_AreListed(t *testing.T) {
	s := newServer(t, func(c *api.Config) {
		c.Instances = func() []autoscaler.InstanceStatus {
			return []autoscaler.InstanceStatus{{ID: "a", Namespace: "default", State: engine.Ready}, {ID: "b", Namespace: "team"}}
		}
	})
	info := decoded[struct{ Info map[string]string }](t, s.do("GET", "/apis/berth.run/v1/info", "").want(t, 200))
	if info.Info["runtime"] != "crun 1.8.1" || info.Info["version"] != "v0.1.0" {
		t.Errorf("got %v", info)
	}
	for path, want := range map[string]string{"instances": "a b", "namespaces/team/instances": "b", "namespaces/x/instances": ""} {
		items := decoded[struct{ Items []autoscaler.InstanceStatus }](t, s.do("GET", "/apis/berth.run/v1/"+path, "").want(t, 200)).Items
		var ids []string
		for _, i := range items {
			ids = append(ids, i.ID)
		}
		if items == nil || strings.Join(ids, " ") != want {
			t.Errorf("%s: got %v, want %s", path, ids, want)
		}
	}
}

func TestLog_SendsLinesOfServicesThatAreOrWere(t *testing.T) {
	kept := logs{"default/gone": {
		{Text: "one", Stream: "stdout", Revision: "gone-00001", Time: time.Now().Add(-24 * time.Hour)}, {Text: "two", Stream: "stderr", Time: time.Now()},
	}}
	s := newServer(t, func(c *api.Config) { c.Engine = kept })
	path := "/apis/berth.run/v1/namespaces/default/services/"
	a := s.do("GET", path+"gone/log", "").want(t, 200)
	lines := strings.Split(strings.TrimSpace(a.body), "\n")
	var first engine.LogLine
	if err := json.Unmarshal([]byte(lines[0]), &first); err != nil || len(lines) != 2 || first.Text != "one" || first.Revision != "gone-00001" {
		t.Errorf("got %q, %v", lines, err)
	}
	if a := s.do("GET", path+"gone/log?tailLines=1&sinceSeconds=60", "").want(t, 200); strings.Count(a.body, "\n") != 1 || !strings.Contains(a.body, "two") {
		t.Errorf("got %q", a.body)
	}
	s.do("GET", path+"never/log", "").refused(t, 404, v1.StatusReasonNotFound, `services.serving.knative.dev "never" not found`)
	if a := s.do("GET", path+"gone/log?sinceSeconds=10000000000", "").want(t, 200); strings.Count(a.body, "\n") != 2 {
		t.Errorf("since longer ago than can be counted: got %q, want all", a.body)
	}
	if a := s.do("GET", path+"gone/log?tailLines=0", "").want(t, 200); a.body != "" {
		t.Errorf("the last 0 lines are %q", a.body)
	}
	s.do("GET", path+"gone/log?tailLines=x", "").refused(t, 400, v1.StatusReasonBadRequest, "tailLines")
	s.created(services, hello("quiet"))
	if a := s.do("GET", path+"quiet/log", "").want(t, 200); a.body != "" {
		t.Errorf("got %q", a.body)
	}
	follow := s.open("GET", path+"gone/log?follow=true", "")
	defer follow.Body.Close()
	got := make([]byte, len(a.body))
	deadline := time.AfterFunc(10*time.Second, func() { follow.Body.Close() })
	defer deadline.Stop()
	if n, err := io.ReadFull(follow.Body, got); err != nil || n != len(got) {
		t.Errorf("a followed log gave %d of %d bytes before it ended: %v", n, len(got), err)
	}
}
