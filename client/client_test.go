package client_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-run/berth/api"
	"github.com/berth-run/berth/autoscaler"
	"github.com/berth-run/berth/client"
	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store/bolt"
)

const token = "a-token-for-tests-only"

// quiet is an engine of which nothing is asked but its log.
type quiet struct{}

func (quiet) Info() map[string]string { return map[string]string{"runtime": "none"} }

func (quiet) Logs(ctx context.Context, query engine.LogQuery, emit func(engine.LogLine) error) error {
	for i := range 3 {
		if err := emit(engine.LogLine{Revision: query.Revision, Text: fmt.Sprintf("line %d", i)}); err != nil {
			return err
		}
	}
	if query.Follow {
		<-ctx.Done()
	}
	return nil
}

// newServer serves the real API on a real socket, and returns a client of it.
func newServer(t *testing.T) *client.Client {
	t.Helper()
	logger := slog.New(slog.DiscardHandler)
	objects, err := bolt.Open(filepath.Join(t.TempDir(), "objects.db"), bolt.Options{Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { objects.Close() })
	namespace := &serving.Namespace{ObjectMeta: serving.ObjectMeta{Name: "default"}}
	if _, err := objects.Create(t.Context(), namespace); err != nil {
		t.Fatal(err)
	}
	admission, err := serving.NewAdmission(serving.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewUnstartedServer(api.New(api.Config{
		Store: objects, Engine: quiet{}, Admission: admission, Token: token, Logger: logger,
		Instances: func() []autoscaler.InstanceStatus {
			return []autoscaler.InstanceStatus{{
				ID: "hello-00001-x", Namespace: "default", State: engine.Ready, StartTook: time.Second,
				Stages: []engine.Stage{{Name: "network", Took: time.Millisecond}},
			}}
		},
	}))
	ctx, cancel := context.WithCancel(context.Background())
	web.Config.BaseContext = func(net.Listener) context.Context { return ctx }
	web.Start()
	t.Cleanup(func() { cancel(); web.Close() })
	return newClient(t, web.URL)
}

func newClient(t *testing.T, url string) *client.Client {
	t.Helper()
	c, err := client.New(client.Config{Server: url, Token: token})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func configMap(name, value string) *serving.ConfigMap {
	return &serving.ConfigMap{ObjectMeta: serving.ObjectMeta{Name: name}, Data: map[string]string{"key": value}}
}

func TestResource_CreatesReadsChangesAndDeletes(t *testing.T) {
	maps := newServer(t).ConfigMaps("default")
	ctx := t.Context()
	created, err := maps.Create(ctx, configMap("one", "a"))
	if err != nil {
		t.Fatal(err)
	}
	if created.UID == "" || created.Kind != "ConfigMap" || created.Namespace != "default" {
		t.Errorf("created %+v", created)
	}
	if _, err := maps.Create(ctx, configMap("one", "a")); !client.IsAlreadyExists(err) || client.IsConflict(err) {
		t.Errorf("creating it again: %v", err)
	}
	if _, err := maps.Patch(ctx, "one", []byte(`{"data":{"more":"b"}}`)); err != nil {
		t.Fatal(err)
	}
	created.Data["key"] = "stale"
	if _, err := maps.Update(ctx, created); !client.IsConflict(err) {
		t.Errorf("updating an old version: %v", err)
	}
	got, err := maps.Get(ctx, "one")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"key": "a", "more": "b"}, got.Data); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	list, version, err := maps.List(ctx, client.Selector{})
	if err != nil || len(list) != 1 || list[0].Name != "one" || version == "" {
		t.Errorf("list %v at %q, error %v", list, version, err)
	}
	if err := maps.Delete(ctx, "one", serving.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err = maps.Get(ctx, "one")
	if !client.IsNotFound(err) || err.Error() != `configmaps "one" not found` {
		t.Errorf("reading what is gone: %v", err)
	}
}

func TestResource_ModifyLosesNoChangeOfOthers(t *testing.T) {
	maps := newServer(t).ConfigMaps("default")
	if _, err := maps.Create(t.Context(), configMap("one", "")); err != nil {
		t.Fatal(err)
	}
	var writers sync.WaitGroup
	for i := range 4 {
		writers.Go(func() {
			_, err := maps.Modify(t.Context(), "one", func(m *serving.ConfigMap) error {
				m.Data[fmt.Sprintf("writer-%d", i)] = "was here"
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	writers.Wait()
	got, err := maps.Get(t.Context(), "one")
	if err != nil || len(got.Data) != 5 {
		t.Errorf("data %v, error %v", got.Data, err)
	}
}

func TestResource_ApplyCreatesAndThenReplaces(t *testing.T) {
	objects := newServer(t).Objects(serving.KindConfigMap, "default")
	if _, created, err := objects.Apply(t.Context(), configMap("one", "a")); err != nil || !created {
		t.Errorf("created %t, error %v", created, err)
	}
	result, created, err := objects.Apply(t.Context(), configMap("one", "b"))
	if err != nil || created || result.(*serving.ConfigMap).Data["key"] != "b" {
		t.Errorf("created %t, error %v, result %v", created, err, result)
	}
}

func TestClient_SaysWhatSomethingElseAnswered(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadGateway)
		io.WriteString(w, "<html>\n<h1>no</h1>")
	}))
	defer web.Close()
	_, err := newClient(t, web.URL).Services("default").Get(t.Context(), "hello")
	want := `GET /apis/serving.knative.dev/v1/namespaces/default/services/hello: the server answered 502 Bad Gateway: "<html>"`
	if err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestClient_PassesTheServersWarningsOn(t *testing.T) {
	var warnings []string
	c, err := client.New(client.Config{Server: newServer(t).Server(), Token: token, Warn: func(w string) { warnings = append(warnings, w) }})
	if err != nil {
		t.Fatal(err)
	}
	s := &serving.Service{ObjectMeta: serving.ObjectMeta{Name: "hello"}}
	s.Spec.Template.Spec.Containers = []serving.Container{{Image: "registry.example/hello"}}
	s.Spec.Template.Annotations = map[string]string{serving.AnnotationProgressDeadline: "60s"}
	if _, err := c.Services("default").Create(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	want := []string{"spec.template.metadata.annotations[serving.knative.dev/progress-deadline] has no effect in this release of Berth"}
	if diff := cmp.Diff(want, warnings); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestClient_PassesWarningsOfARefusalOnAndNoOtherHeaders(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for _, header := range []string{`299 - "a \"quoted\" one"`, `110 cache "Response is Stale"`, `299`, `299 - "another"`} {
			w.Header().Add("Warning", header)
		}
		w.WriteHeader(http.StatusBadRequest)
	}))
	defer web.Close()
	var warnings []string
	c, err := client.New(client.Config{Server: web.URL, Warn: func(w string) { warnings = append(warnings, w) }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Services("default").Get(t.Context(), "hello"); err == nil {
		t.Error("no error")
	}
	if diff := cmp.Diff([]string{`a "quoted" one`, "another"}, warnings); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestClient_SaysThatNobodyAnswers(t *testing.T) {
	web := httptest.NewServer(nil)
	web.Close()
	_, err := newClient(t, web.URL).Info(t.Context())
	if unreachable, ok := errors.AsType[*client.UnreachableError](err); !ok || unreachable.Server != web.URL {
		t.Errorf("error %v", err)
	}
}

func TestClient_WrongTokenIsAStatus(t *testing.T) {
	c, err := client.New(client.Config{Server: newServer(t).Server(), Token: "wrong"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Info(t.Context())
	if status, ok := errors.AsType[*client.StatusError](err); !ok || status.Code != http.StatusUnauthorized {
		t.Errorf("error %v", err)
	}
}

func TestNew_RefusesWhatIsNoURL(t *testing.T) {
	for _, server := range []string{"", "127.0.0.1:8081", "localhost", "ftp://x", "http://"} {
		if _, err := client.New(client.Config{Server: server}); err == nil {
			t.Errorf("%q was taken for a server's URL", server)
		}
	}
}

func TestClient_TrustsTheGivenAuthorityOnly(t *testing.T) {
	var asked atomic.Int32
	web := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		io.WriteString(w, `{"info":{}}`)
	}))
	defer web.Close()
	web.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	for _, test := range []struct {
		config client.Config
		fails  bool
	}{
		{client.Config{}, true},
		{client.Config{Insecure: true}, false},
		{client.Config{CA: pemOf(web)}, false},
	} {
		test.config.Server = web.URL
		c, err := client.New(test.config)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Info(t.Context()); (err != nil) != test.fails {
			t.Errorf("CA %t, insecure %t: error %v", test.config.CA != nil, test.config.Insecure, err)
		}
	}
	if asked.Load() != 2 {
		t.Errorf("%d requests reached the server, want 2", asked.Load())
	}
}

func TestClient_InfoAndInstances(t *testing.T) {
	c := newServer(t)
	info, err := c.Info(t.Context())
	if err != nil || info["runtime"] != "none" {
		t.Errorf("info %v, error %v", info, err)
	}
	for namespace, want := range map[string]int{"": 1, "default": 1, "elsewhere": 0} {
		instances, err := c.Instances(t.Context(), namespace)
		if namespace == "elsewhere" && client.IsNotFound(err) {
			continue // an API may say that there is no such namespace
		}
		if err != nil || len(instances) != want {
			t.Fatalf("namespace %q: instances %v, error %v", namespace, instances, err)
		}
		if want == 1 && (instances[0].State != engine.Ready || instances[0].StartTook != time.Second || instances[0].Stages[0].Took != time.Millisecond) {
			t.Errorf("instance %+v", instances[0])
		}
	}
}

func TestClient_LogYieldsLinesAndFollows(t *testing.T) {
	c := newServer(t)
	service := &serving.Service{ObjectMeta: serving.ObjectMeta{Name: "hello"}}
	service.Spec.Template.Spec.Containers = []serving.Container{{Image: "registry.example.com/hello"}}
	if _, err := c.Services("default").Create(t.Context(), service); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line, err := range c.Log(t.Context(), "default", "hello", client.LogOptions{Revision: "r"}) {
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, line.Revision+" "+line.Text)
	}
	if diff := cmp.Diff([]string{"r line 0", "r line 1", "r line 2"}, lines); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var last error
	count := 0
	for _, err := range c.Log(ctx, "default", "hello", client.LogOptions{Follow: true}) {
		if count++; count == 3 {
			cancel()
		}
		last = err
	}
	if count != 4 || !errors.Is(last, context.Canceled) {
		t.Errorf("%d lines, last error %v", count, last)
	}
}

func TestLoad_FollowsTheCurrentContext(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("ca.pem", "PEM")
	write("token", "from-a-file\n")
	path := write("kubeconfig", `
apiVersion: v1
kind: Config
current-context: two
contexts:
- {name: one, context: {cluster: c1, user: u1}}
- {name: two, context: {cluster: c2, user: u2, namespace: ns}}
clusters:
- {name: c1, cluster: {server: "http://one"}}
- {name: c2, cluster: {server: "https://two:8443", certificate-authority: ca.pem, insecure-skip-tls-verify: true}}
users:
- {name: u1, user: {token: t1}}
- {name: u2, user: {tokenFile: token}}
`)
	got, err := client.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	want := client.Config{Server: "https://two:8443", Token: "from-a-file", CA: []byte("PEM"), Insecure: true, Namespace: "ns"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	for text, says := range map[string]string{
		"clusters: []":       "no current-context",
		"current-context: x": `current-context "x" is not among its contexts`,
		"{current-context: x, contexts: [{name: x, context: {cluster: c}}]}":                                                                    `cluster "c" of context "x" is not among its clusters`,
		"{current-context: x, contexts: [{name: x, context: {cluster: c}}], clusters: [{name: c, cluster: {certificate-authority-data: '*'}}]}": "decoding certificate-authority-data",
		"\tx": "parsing kubeconfig",
	} {
		if _, err := client.Load(write("bad", text)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: error %v, want %q in it", text, err, says)
		}
	}
	if _, err := client.Load(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestInstance_ReadsWhatTheAPIWrites(t *testing.T) {
	want := autoscaler.InstanceStatus{ID: "a", Namespace: "b", Service: "c", Revision: "d", State: engine.Draining, StartTook: 5, Created: time.Unix(1, 0).UTC(), Since: time.Unix(2, 0).UTC()}
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got client.Instance
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(client.Instance(want), got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func pemOf(web *httptest.Server) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate().Raw})
}

func TestClient_SaysWhichSchemeAndCertificateTheServerWants(t *testing.T) {
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	defer secure.Close()
	secure.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	for name, test := range map[string]struct {
		config client.Config
		want   string
	}{
		"HTTP to a server with HTTPS": {client.Config{Server: strings.Replace(secure.URL, "https:", "http:", 1)}, "use https://"},
		"HTTPS to a server with HTTP": {client.Config{Server: strings.Replace(plain.URL, "http:", "https:", 1)}, "use http://"},
		"an unknown authority":        {client.Config{Server: secure.URL}, "--kubeconfig a copy of the server's kubeconfig"},
		"another name": {
			client.Config{Server: strings.Replace(secure.URL, "127.0.0.1", "localhost", 1), CA: pemOf(secure)},
			"use a name that the certificate is for",
		},
	} {
		c, err := client.New(test.config)
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Info(t.Context())
		if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), test.config.Server) {
			t.Errorf("%s: got error %v, want one with %q and %s", name, err, test.want, test.config.Server)
		}
		if _, ok := errors.AsType[*client.UnreachableError](err); ok {
			t.Errorf("%s: the server answered, and the error says that it did not: %v", name, err)
		}
	}
}
