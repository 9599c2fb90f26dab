package api_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-run/berth/api"
	"github.com/berth-run/berth/autoscaler"
	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
	"github.com/berth-run/berth/store/bolt"
)

const secretToken = "s3cret-token"

// server is an API on a real socket over a real store.
type server struct {
	*httptest.Server
	t     testing.TB
	store store.Store
	stop  context.CancelFunc // ends what goes on: watches, followed logs
}

func newServer(t testing.TB, options ...func(*api.Config)) *server {
	t.Helper()
	s := prepare(t, options...)
	s.Start()
	return s
}

// newTLSServer is a server over TLS and HTTP/2: kubectl sends no token in clear.
func newTLSServer(t testing.TB, options ...func(*api.Config)) *server {
	t.Helper()
	s := prepare(t, options...)
	s.EnableHTTP2 = true
	s.StartTLS()
	return s
}

func prepare(t testing.TB, options ...func(*api.Config)) *server {
	t.Helper()
	objects, err := bolt.Open(filepath.Join(t.TempDir(), "objects"), bolt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	namespace := &serving.Namespace{ObjectMeta: serving.ObjectMeta{Name: "default"}}
	if _, err := objects.Create(t.Context(), namespace); err != nil {
		t.Fatal(err)
	}
	admission, err := serving.NewAdmission(serving.Settings{
		RevisionTimeout: 300 * time.Second, MaxRevisionTimeout: 3600 * time.Second, CPU: "1", Memory: "512Mi",
	})
	if err != nil {
		t.Fatal(err)
	}
	config := api.Config{
		Store: objects, Engine: logs{}, Instances: func() []autoscaler.InstanceStatus { return nil },
		Admission: admission, Token: secretToken, Version: "v0.1.0",
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, option := range options {
		option(&config)
	}
	base, cancel := context.WithCancel(context.Background())
	s := httptest.NewUnstartedServer(api.New(config))
	s.Config.BaseContext = func(net.Listener) context.Context { return base }
	t.Cleanup(func() {
		cancel()
		s.Close()
		if err := objects.Close(); err != nil {
			t.Error(err)
		}
	})
	return &server{s, t, objects, cancel}
}

// logs is an engine with lines to read.
type logs map[string][]engine.LogLine

func (l logs) Logs(ctx context.Context, q engine.LogQuery, emit func(engine.LogLine) error) error {
	lines := slices.DeleteFunc(slices.Clone(l[q.Namespace+"/"+q.Service]), func(line engine.LogLine) bool {
		return line.Time.Before(q.Since) || q.Container != "" && line.Container != q.Container ||
			q.Instance != "" && line.Instance != q.Instance || q.Streams != nil && !slices.Contains(q.Streams, line.Stream)
	})
	if q.Tail > 0 && q.Tail < len(lines) {
		lines = lines[len(lines)-q.Tail:]
	}
	for _, line := range lines {
		if err := emit(line); err != nil {
			return err
		}
	}
	if q.Follow {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-q.Done:
		}
	}
	return nil
}

func (logs) Info() map[string]string { return map[string]string{"runtime": "crun 1.8.1"} }

// answer is a response that was read.
type answer struct {
	code   int
	header http.Header
	body   string
}

// do sends one request with the token; fields are header names and values by turns.
func (s *server) do(method, path, body string, fields ...string) answer {
	s.t.Helper()
	resp := s.open(method, path, body, fields...)
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(data)}
}

// open sends one request and leaves the answer to be read.
func (s *server) open(method, path, body string, fields ...string) *http.Response {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.URL+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+secretToken)
	for i := 0; i < len(fields); i += 2 {
		req.Header.Set(fields[i], fields[i+1])
	}
	resp, err := s.Client().Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp
}

// want fails unless the answer has a code.
func (a answer) want(t testing.TB, code int) answer {
	t.Helper()
	if a.code != code {
		t.Fatalf("code %d, want %d: %s", a.code, code, a.body)
	}
	return a
}

// refused fails unless the answer is a Status with a code and a reason and all parts in its message.
func (a answer) refused(t testing.TB, code int, reason v1.StatusReason, parts ...string) v1.Status {
	t.Helper()
	a.want(t, code)
	status := decoded[v1.Status](t, a)
	if status.Kind != "Status" || status.APIVersion != "v1" || status.Status != "Failure" || int(status.Code) != code || status.Reason != reason {
		t.Errorf("got %+v, want a Status with code %d and reason %s", status, code, reason)
	}
	for _, part := range parts {
		if !strings.Contains(status.Message, part) {
			t.Errorf("message %q does not contain %q", status.Message, part)
		}
	}
	return status
}

func decoded[T any](t testing.TB, a answer) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(a.body), &v); err != nil {
		t.Fatalf("%v: %s", err, a.body)
	}
	return v
}

const (
	services = "/apis/serving.knative.dev/v1/namespaces/default/services"
	secrets  = "/api/v1/namespaces/default/secrets"
)

// hello is a service as a user writes it.
func hello(name string) string {
	return `{"apiVersion":"serving.knative.dev/v1","kind":"Service","metadata":{"name":"` + name + `","labels":{"team":"a"}},` +
		`"spec":{"template":{"spec":{"containers":[{"image":"registry.example/hello"}]}}}}`
}

func (s *server) created(path, body string) answer {
	s.t.Helper()
	return s.do("POST", path, body, "Content-Type", "application/json").want(s.t, http.StatusCreated)
}

// stream reads the events of a watch.
type stream struct {
	t       testing.TB
	scanner *bufio.Scanner
}

type event struct {
	Type   string
	Object struct {
		v1.TypeMeta
		Metadata v1.ObjectMeta
		Code     int
		Rows     []v1.TableRow
	}
}

func (s *server) watch(path string, fields ...string) stream {
	s.t.Helper()
	resp := s.open("GET", path, "", fields...)
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(resp.Body)
		s.t.Fatalf("code %d: %s", resp.StatusCode, body)
	}
	s.t.Cleanup(func() { resp.Body.Close() })
	return stream{s.t, bufio.NewScanner(resp.Body)}
}

func (s stream) next() (e event) {
	s.t.Helper()
	if !s.scanner.Scan() {
		s.t.Fatalf("the watch ended: %v", s.scanner.Err())
	}
	if err := json.NewDecoder(bytes.NewReader(s.scanner.Bytes())).Decode(&e); err != nil {
		s.t.Fatalf("%v: %s", err, s.scanner.Text())
	}
	return e
}

// want fails unless the next event has a type and is about an object with a name.
func (s stream) want(eventType, name string) event {
	s.t.Helper()
	e := s.next()
	if e.Type != eventType || e.Object.Metadata.Name != name {
		s.t.Fatalf("got %s %q, want %s %q", e.Type, e.Object.Metadata.Name, eventType, name)
	}
	return e
}
