package reconcile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"knative.dev/pkg/apis"

	"github.com/berth-run/berth/autoscaler"
	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/gateway"
	"github.com/berth-run/berth/identity"
	"github.com/berth-run/berth/image"
	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
	"github.com/berth-run/berth/store/bolt"
)

// house is a reconciler with everything around it, but for a fake engine and a fake registry.
type house struct {
	t       *testing.T
	store   *bolt.Store
	gateway *gateway.Gateway
	engine  *fakeEngine
	stop    func()

	reconciler *Reconciler
}

func newHouse(t *testing.T, dir string) *house {
	t.Helper()
	return newHouseWith(t, dir, nil)
}

// newHouseWith is newHouse on a store that before, when not nil, has changed while no reconciler ran.
func newHouseWith(t *testing.T, dir string, before func(store.Store)) *house {
	t.Helper()
	return newHouseOver(t, dir, before, func(s store.Store) store.Store { return s })
}

// newHouseOver is newHouseWith whose reconciler sees the store through another.
func newHouseOver(t *testing.T, dir string, before func(store.Store), over func(store.Store) store.Store) *house {
	t.Helper()
	logger := slog.New(slog.NewTextHandler(io.Discard, nil))
	objects, err := bolt.Open(dir+"/objects.db", bolt.Options{Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"default", serving.SystemNamespace} {
		namespace := &serving.Namespace{ObjectMeta: serving.ObjectMeta{Name: name}}
		if _, err := objects.Create(t.Context(), namespace); err != nil && !errors.Is(err, store.ErrAlreadyExists) {
			t.Fatal(err)
		}
	}
	if before != nil {
		before(objects)
	}
	h := &house{t: t, store: objects, engine: &fakeEngine{}}
	h.gateway = gateway.New(gateway.Config{Logger: logger})
	settings := autoscaler.DefaultSettings()
	issuer, err := identity.Open(dir+"/identity.pem", "https://berth.example")
	if err != nil {
		t.Fatal(err)
	}
	scaler := autoscaler.New(h.engine, settings, logger, prometheus.NewRegistry())
	r := New(Config{
		Store: over(objects), Images: fakeRegistry{}, Engine: h.engine, Autoscaler: scaler, Gateway: h.gateway,
		Identity: issuer, Scaling: settings, Logger: logger, URL: func(host string) string { return "http://" + host },
		GatewayAddress: "127.0.0.1:8080", Node: "machine",
		Domain: "example.com", PullTimeout: time.Minute, StartupTimeout: time.Minute, MaxQueue: 10,
	})
	scaler.OnChange, scaler.OnInstances = r.Changed, r.InstancesChanged
	scaler.OnEvent = r.Happened
	h.reconciler = r
	ctx, cancel := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	synced := make(chan struct{})
	parts.Go(func() { r.Run(ctx, func() { close(synced) }) })
	parts.Go(func() { scaler.Run(ctx) })
	<-synced
	h.stop = sync.OnceFunc(func() {
		scaler.Close(context.Background())
		cancel()
		parts.Wait()
		objects.Close()
	})
	t.Cleanup(h.stop)
	return h
}

// fakeRegistry knows every image but those named "missing".
type fakeRegistry struct{}

func (fakeRegistry) Resolve(ctx context.Context, ref string, _ image.Credentials) (string, error) {
	if strings.Contains(ref, "missing") {
		return "", &image.NotFoundError{Image: ref}
	}
	repository, _, _ := strings.Cut(ref, ":")
	return repository + "@sha256:" + strings.Repeat("ab", 32), nil
}

// fakeEngine starts a web server in this process for each instance; images named "broken" exit with code 3.
type fakeEngine struct {
	mu    sync.Mutex
	count int
	specs []engine.Spec // of all instances
}

func (e *fakeEngine) Pull(context.Context, engine.Spec, func(engine.Progress)) error { return nil }
func (e *fakeEngine) Logs(context.Context, engine.LogQuery, func(engine.LogLine) error) error {
	return nil
}
func (e *fakeEngine) Info() map[string]string { return nil }
func (e *fakeEngine) Close() error            { return nil }
func (e *fakeEngine) Prepare(_ context.Context, spec engine.Spec) (engine.Instance, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.count++
	e.specs = append(e.specs, spec)
	return &fakeInstance{id: fmt.Sprintf("%s-%d", spec.Revision, e.count), spec: spec, exited: make(chan struct{})}, nil
}

type fakeInstance struct {
	id     string
	spec   engine.Spec
	server *httptest.Server
	exited chan struct{}
	once   sync.Once
}

func (i *fakeInstance) ID() string { return i.id }
func (i *fakeInstance) Start(context.Context) error {
	if strings.Contains(i.spec.Container.Image, "broken") {
		return &engine.StartError{Reason: engine.ReasonExited, Exit: &engine.Exit{Code: 3}, Port: i.spec.Container.Port, LastLines: []string{"no database"}}
	}
	i.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, i.spec.Revision) }))
	return nil
}
func (i *fakeInstance) Dial(ctx context.Context) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", i.server.Listener.Addr().String())
}
func (i *fakeInstance) Stop(time.Duration) {
	i.once.Do(func() {
		close(i.exited)
		if i.server != nil {
			i.server.Close()
		}
	})
}
func (i *fakeInstance) Exited() <-chan struct{} { return i.exited }
func (i *fakeInstance) Exit() engine.Exit       { return engine.Exit{} }
func (i *fakeInstance) Stages() []engine.Stage  { return nil }

// declare stores a service as the API would.
func (h *house) declare(name, image, revision string, traffic ...serving.TrafficTarget) *serving.Service {
	h.t.Helper()
	s := &serving.Service{ObjectMeta: serving.ObjectMeta{Namespace: "default", Name: name}}
	s.Spec.Template.Name = revision
	s.Spec.Template.Spec.Containers = []serving.Container{{Image: image}}
	s.Spec.Traffic = traffic
	return h.write(s)
}

func (h *house) write(s *serving.Service) *serving.Service {
	h.t.Helper()
	admission, err := serving.NewAdmission(serving.Settings{})
	if err != nil {
		h.t.Fatal(err)
	}
	if _, err := admission.Admit(h.t.Context(), serving.Change{New: s, User: "tester"}); err != nil {
		h.t.Fatal(err)
	}
	o, err := h.store.Create(h.t.Context(), s)
	if errors.Is(err, store.ErrAlreadyExists) {
		o, err = h.store.Update(h.t.Context(), s, store.Spec)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	return o.(*serving.Service)
}

// settle waits until a service's status is of its newest generation and satisfies done.
func (h *house) settle(name string, done func(*serving.Service) bool) *serving.Service {
	h.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		o, err := h.store.Get(h.t.Context(), serving.KindService, "default", name)
		if err != nil {
			h.t.Fatal(err)
		}
		s := o.(*serving.Service)
		if s.Status.ObservedGeneration == s.Generation && done(s) {
			return s
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("service %s did not settle: %+v", name, s.Status)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func ready(s *serving.Service) bool  { return s.IsReady() }
func failed(s *serving.Service) bool { return s.IsFailed() }

// ask sends a request to the gateway for a host.
func (h *house) ask(host string) (int, string) {
	h.t.Helper()
	request := httptest.NewRequest(http.MethodGet, "http://"+host+"/", nil)
	recorder := httptest.NewRecorder()
	h.gateway.ServeHTTP(recorder, request)
	return recorder.Code, recorder.Body.String()
}

func TestDeploy_ReadyMeansRoutable(t *testing.T) {
	h := newHouse(t, t.TempDir())
	h.declare("hello", "registry/hello", "")
	s := h.settle("hello", ready)
	if got := s.Status.URL.String(); got != "http://hello.default.example.com" {
		t.Errorf("url %q", got)
	}
	if code, body := h.ask("hello.default.example.com"); code != 200 || body != "hello-00001" {
		t.Errorf("answer %d %q", code, body)
	}
	if s.Status.LatestReadyRevisionName != "hello-00001" || s.Status.LatestCreatedRevisionName != "hello-00001" {
		t.Errorf("latest ready %q, created %q", s.Status.LatestReadyRevisionName, s.Status.LatestCreatedRevisionName)
	}
	o, err := h.store.Get(t.Context(), serving.KindRevision, "default", "hello-00001")
	if err != nil {
		t.Fatal(err)
	}
	revision := o.(*serving.Revision)
	if got := revision.Labels[serving.LabelRoutingState]; got != serving.RoutingActive {
		t.Errorf("routing state %q", got)
	}
	if got := revision.Status.ContainerStatuses; len(got) != 1 || !strings.Contains(got[0].ImageDigest, "@sha256:") {
		t.Errorf("container statuses %v", got)
	}
}

func TestDeploy_RevisionThatExitsLeavesTrafficAndSaysWhy(t *testing.T) {
	h := newHouse(t, t.TempDir())
	h.declare("hello", "registry/hello", "")
	h.settle("hello", ready)
	h.declare("hello", "registry/broken", "")
	s := h.settle("hello", failed)
	message := s.Status.GetCondition(serving.ServiceReady).GetMessage()
	for _, want := range []string{"hello-00002", "exited with code 3", "no database"} {
		if !strings.Contains(message, want) {
			t.Errorf("the service does not say %q: %q", want, message)
		}
	}
	if s.Status.LatestReadyRevisionName != "hello-00001" || s.Status.LatestCreatedRevisionName != "hello-00002" {
		t.Errorf("latest ready %q, created %q", s.Status.LatestReadyRevisionName, s.Status.LatestCreatedRevisionName)
	}
	if code, body := h.ask("hello.default.example.com"); code != 200 || body != "hello-00001" {
		t.Errorf("answer %d %q", code, body)
	}
}

func TestDeploy_AfterOneThatFailedHasNotFailedBeforeItIsTried(t *testing.T) {
	h := newHouse(t, t.TempDir())
	h.declare("hello", "registry/broken", "")
	h.settle("hello", failed)
	watch, err := h.store.Watch(t.Context(), serving.KindService, "default", "")
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Stop()
	h.declare("hello", "registry/hello", "")
	for event := range watch.Events() {
		s := event.Object.(*serving.Service)
		if s.Generation == 1 || s.Status.ObservedGeneration != s.Generation {
			continue
		}
		if s.IsFailed() {
			t.Fatalf("the second deploy is said to have failed: %v", s.Status.Conditions)
		}
		if s.IsReady() {
			return
		}
	}
	t.Fatal("the watch ended")
}

func TestDeploy_MissingImageFailsAllTheWayUp(t *testing.T) {
	h := newHouse(t, t.TempDir())
	h.declare("hello", "registry/missing", "")
	// The service has failed as soon as its configuration has; its route follows.
	s := h.settle("hello", func(s *serving.Service) bool {
		return s.IsFailed() && s.Status.GetCondition(serving.ServiceRoutesReady).IsFalse()
	})
	for _, kind := range []apis.ConditionType{serving.ServiceConfigurationsReady, serving.ServiceRoutesReady, serving.ServiceReady} {
		if c := s.Status.GetCondition(kind); !c.IsFalse() || c.Reason == "" || c.Message == "" {
			t.Errorf("condition %s is not false with a reason: %v", kind, c)
		}
	}
	if code, body := h.ask("hello.default.example.com"); code != 503 || !strings.Contains(body, "no ready revision") {
		t.Errorf("answer %d %q", code, body)
	}
}

func TestTraffic_StatusNamesRevisionsTagsAndPercent(t *testing.T) {
	h := newHouse(t, t.TempDir())
	h.declare("hello", "registry/one", "hello-one")
	h.settle("hello", ready)
	yes, no := true, false
	percent := func(n int64) *int64 { return &n }
	h.declare("hello", "registry/two", "hello-two",
		serving.TrafficTarget{RevisionName: "hello-one", Percent: percent(100), LatestRevision: &no},
		serving.TrafficTarget{Tag: "next", LatestRevision: &yes, Percent: percent(0)})
	s := h.settle("hello", ready)
	want := []serving.TrafficTarget{
		{RevisionName: "hello-one", Percent: percent(100), LatestRevision: &no},
		{RevisionName: "hello-two", Percent: percent(0), LatestRevision: &yes, Tag: "next"},
	}
	got := s.DeepCopy().Status.Traffic
	for i := range got {
		got[i].URL = nil
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("status.traffic (-want +got):\n%s", diff)
	}
	if _, body := h.ask("hello.default.example.com"); body != "hello-one" {
		t.Errorf("main host answers %q", body)
	}
	if _, body := h.ask("next-hello.default.example.com"); body != "hello-two" {
		t.Errorf("tag answers %q", body)
	}
}

func TestTraffic_ToARevisionThatIsMissingKeepsWhatWasServed(t *testing.T) {
	h := newHouse(t, t.TempDir())
	h.declare("hello", "registry/hello", "hello-one")
	h.settle("hello", ready)
	no, hundred := false, int64(100)
	h.declare("hello", "registry/hello", "hello-one", serving.TrafficTarget{RevisionName: "hello-none", Percent: &hundred, LatestRevision: &no})
	s := h.settle("hello", failed)
	if message := s.Status.GetCondition(serving.ServiceReady).GetMessage(); !strings.Contains(message, "hello-none") {
		t.Errorf("message %q", message)
	}
	if code, body := h.ask("hello.default.example.com"); code != 200 || body != "hello-one" {
		t.Errorf("answer %d %q", code, body)
	}
}

func TestRestart_ServesWhatWasReadyAndWritesNothing(t *testing.T) {
	dir := t.TempDir()
	h := newHouse(t, dir)
	h.declare("hello", "registry/hello", "")
	h.settle("hello", ready)
	h.declare("failing", "registry/broken", "")
	h.settle("failing", failed)
	h.stop()

	h = newHouse(t, dir) // returns when synced
	if code, body := h.ask("hello.default.example.com"); code != 200 || body != "hello-00001" {
		t.Fatalf("after the restart: %d %q", code, body)
	}
	h.settle("hello", ready)
}

func TestDelete_TakesRouteAndInstancesAway(t *testing.T) {
	h := newHouse(t, t.TempDir())
	h.declare("hello", "registry/hello", "")
	h.settle("hello", ready)
	if _, err := h.store.Delete(t.Context(), serving.KindService, "default", "hello", serving.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		code, _ := h.ask("hello.default.example.com")
		left, _, err := h.store.List(t.Context(), serving.KindRevision, "")
		if err != nil {
			t.Fatal(err)
		}
		if code == 404 && len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("answer %d, revisions %v", code, left)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestRevisionName_TakenByAnotherServiceIsRefused(t *testing.T) {
	h := newHouse(t, t.TempDir())
	h.declare("a", "registry/hello", "a-b-one")
	h.settle("a", ready)
	h.declare("a-b", "registry/hello", "a-b-one")
	s := h.settle("a-b", failed)
	if message := s.Status.GetCondition(serving.ServiceReady).GetMessage(); !strings.Contains(message, `"a-b-one" is taken`) {
		t.Errorf("message %q", message)
	}
}

func TestEnv_OfASecretIsReadOnceAndItsLaterLossDisturbsNobody(t *testing.T) {
	dir := t.TempDir()
	h := newHouse(t, dir)
	secret := &serving.Secret{ObjectMeta: serving.ObjectMeta{Namespace: "default", Name: "password"}, Data: map[string][]byte{"value": []byte("x")}}
	if _, err := h.store.Create(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	s := &serving.Service{ObjectMeta: serving.ObjectMeta{Namespace: "default", Name: "hello"}}
	from := &serving.EnvVarSource{SecretKeyRef: &serving.SecretKeySelector{Key: "value"}}
	from.SecretKeyRef.Name = "password"
	s.Spec.Template.Spec.Containers = []serving.Container{{Image: "registry/hello", Env: []serving.EnvVar{{Name: "PASSWORD", ValueFrom: from}}}}
	h.write(s)
	h.settle("hello", ready)
	if _, err := h.store.Delete(t.Context(), serving.KindSecret, "default", "password", serving.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	// Something that makes the revision be looked at again.
	no, hundred := false, int64(100)
	h.declare("other", "registry/other", "")
	h.settle("other", ready)
	o, err := h.store.Get(t.Context(), serving.KindService, "default", "hello")
	if err != nil {
		t.Fatal(err)
	}
	pinned := o.(*serving.Service).DeepCopy()
	pinned.Spec.Traffic = []serving.TrafficTarget{{RevisionName: "hello-00001", Percent: &hundred, LatestRevision: &no, Tag: "kept"}}
	if _, err := h.store.Update(t.Context(), pinned, store.Spec); err != nil {
		t.Fatal(err)
	}
	h.settle("hello", ready)
	if code, _ := h.ask("kept-hello.default.example.com"); code != 200 {
		t.Errorf("answer %d", code)
	}

	// After a restart the value cannot be read: requests are told at once, not after their timeout.
	h.stop()
	h = newHouse(t, dir)
	h.settle("hello", failed)
	if code, _ := h.ask("hello.default.example.com"); code != 500 {
		t.Errorf("answer %d without the secret, want 500 at once", code)
	}
}

func TestRevision_WithoutLabelsStopsNothing(t *testing.T) {
	h := newHouse(t, t.TempDir())
	h.declare("hello", "registry/hello", "")
	h.settle("hello", ready)
	o, err := h.store.Get(t.Context(), serving.KindRevision, "default", "hello-00001")
	if err != nil {
		t.Fatal(err)
	}
	bare := o.(*serving.Revision).DeepCopy()
	bare.Labels, bare.Annotations = nil, nil
	if _, err := h.store.Update(t.Context(), bare, store.Spec); err != nil {
		t.Fatal(err)
	}
	h.declare("next", "registry/hello", "")
	h.settle("next", ready)
	if code, _ := h.ask("hello.default.example.com"); code != 200 {
		t.Errorf("answer %d", code)
	}
}

func TestHost_TakenByAnotherServiceIsServedOnceItIsFree(t *testing.T) {
	h := newHouse(t, t.TempDir())
	h.declare("a-b", "registry/first", "")
	h.settle("a-b", ready)
	yes, hundred := true, int64(100)
	h.declare("b", "registry/second", "", serving.TrafficTarget{LatestRevision: &yes, Percent: &hundred, Tag: "a"})
	s := h.settle("b", failed)
	if message := s.Status.GetCondition(serving.ServiceReady).GetMessage(); !strings.Contains(message, "a-b.default.example.com") {
		t.Errorf("message %q", message)
	}
	if _, err := h.store.Delete(t.Context(), serving.KindService, "default", "a-b", serving.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	h.settle("b", ready)
	if code, body := h.ask("a-b.default.example.com"); code != 200 || body != "b-00001" {
		t.Errorf("answer %d %q", code, body)
	}
}

func (*fakeInstance) Readiness() <-chan bool { return nil }

func (*fakeInstance) DialPort(context.Context, int) (net.Conn, error) {
	return nil, errors.ErrUnsupported
}

func (*fakeInstance) Exec(context.Context, engine.Command) (int, error) {
	return 0, errors.ErrUnsupported
}

func (*fakeInstance) Containers() []engine.ContainerStatus { return nil }

func (*fakeInstance) Freeze() error { return nil }

func (*fakeInstance) Thaw() error { return nil }

func (*fakeInstance) Frozen() bool { return false }

func (*fakeInstance) Reclaim() (int64, error) { return 0, errors.ErrUnsupported }

func (*fakeInstance) Usage() (engine.Usage, error) { return engine.Usage{}, errors.ErrUnsupported }
