package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/berth-run/berth/api"
	"github.com/berth-run/berth/autoscaler"
	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/gateway"
	"github.com/berth-run/berth/image"
	"github.com/berth-run/berth/reconcile"
	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store/bolt"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"berth": func() { os.Exit(Main(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) },
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:  "testdata",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"remove": removeObject},
		Setup: func(env *testscript.Env) error {
			p, err := newPlatform(env.WorkDir)
			if err != nil {
				return err
			}
			env.Defer(p.stop)
			env.Values[platformKey{}] = p
			env.Setenv("BERTH_STATE_DIR", env.WorkDir)
			cache, err := exec.Command("go", "env", "GOCACHE").Output()
			if err != nil {
				return fmt.Errorf("asking go for its cache: %w", err)
			}
			env.Setenv("GOCACHE", strings.TrimSpace(string(cache))) // for --source
			return nil
		},
	})
}

// platformKey is where a script's platform is.
type platformKey struct{}

// removeObject deletes an object as other clients than ours do: remove KIND NAMESPACE NAME.
func removeObject(ts *testscript.TestScript, _ bool, args []string) {
	p := ts.Value(platformKey{}).(*platform)
	for _, kind := range serving.Kinds {
		if kind.Singular == args[0] {
			_, err := p.store.Delete(context.Background(), kind, args[1], args[2], serving.DeleteOptions{})
			ts.Check(err)
			return
		}
	}
	ts.Fatalf("unknown kind %q", args[0])
}

const testToken = "a-token-for-tests-only"

// platform is a whole Berth on a real socket, but for its engine and the image registries, which are fakes.
type platform struct {
	store *bolt.Store
	stop  func()
}

// newPlatform starts one with its state in dir, and writes dir/kubeconfig.
func newPlatform(dir string) (*platform, error) {
	logger := slog.New(slog.DiscardHandler)
	objects, err := bolt.Open(filepath.Join(dir, "objects.db"), bolt.Options{Logger: logger})
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"default", "other"} {
		namespace := &serving.Namespace{ObjectMeta: serving.ObjectMeta{Name: name}}
		if _, err := objects.Create(context.Background(), namespace); err != nil {
			return nil, err
		}
	}
	images, err := image.Open(filepath.Join(dir, "images"), image.Options{Logger: logger})
	if err != nil {
		return nil, err
	}
	fake := &fakeEngine{}
	settings := autoscaler.DefaultSettings()
	table := gateway.New(gateway.Config{Logger: logger})
	scaler := autoscaler.New(fake, settings, logger, prometheus.NewRegistry())
	reconciler := reconcile.New(reconcile.Config{
		Store: objects, Images: fakeRegistry{pushed: images}, Engine: fake, Autoscaler: scaler, Gateway: table,
		Scaling: settings, Logger: logger, URL: func(host string) string { return "http://" + host },
		Domain: "example.com", PullTimeout: time.Minute, StartupTimeout: time.Minute, MaxQueue: 10,
	})
	scaler.OnChange = reconciler.Changed

	admission, err := serving.NewAdmission(serving.Settings{
		RevisionTimeout: 300 * time.Second, MaxRevisionTimeout: time.Hour, CPU: "1", Memory: "512Mi",
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	handler := api.New(api.Config{
		Store: objects, Engine: fake, Token: testToken, Logger: logger, Registry: images.Registry(),
		Admission: admission,
		Instances: scaler.Instances,
	})
	web := httptest.NewUnstartedServer(handler)
	web.Config.BaseContext = func(net.Listener) context.Context { return ctx }
	web.Start()
	var parts sync.WaitGroup
	synced := make(chan struct{})
	parts.Go(func() { reconciler.Run(ctx, func() { close(synced) }) })
	parts.Go(func() { scaler.Run(ctx) })
	<-synced

	kubeconfig := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: berth,
clusters: [{name: berth, cluster: {server: %q}}],
users: [{name: admin, user: {token: %q}}],
contexts: [{name: berth, context: {cluster: berth, user: admin}}]}
`, web.URL, testToken)
	return &platform{store: objects, stop: func() {
		scaler.Close(context.Background())
		cancel()
		web.Close()
		parts.Wait()
		objects.Close()
		images.Close()
	}}, os.WriteFile(filepath.Join(dir, "kubeconfig"), []byte(kubeconfig), 0o600)
}

// fakeRegistry knows every image but those named "missing"; those that were pushed to the platform are real.
type fakeRegistry struct{ pushed *image.Store }

func (r fakeRegistry) Resolve(ctx context.Context, ref string, credentials image.Credentials) (string, error) {
	if strings.HasPrefix(ref, image.LocalRegistry+"/") {
		return r.pushed.Resolve(ctx, ref, credentials)
	}
	if strings.Contains(ref, "missing") {
		return "", &image.NotFoundError{Image: ref, Err: errors.New("not found")}
	}
	repository, _, _ := strings.Cut(ref, "@")
	if colon := strings.LastIndex(repository, ":"); colon > strings.LastIndex(repository, "/") {
		repository = repository[:colon]
	}
	return repository + "@sha256:" + strings.Repeat("ab", 32), nil
}

// fakeEngine starts a web server in this process for each instance; images named "broken" exit with code 3.
type fakeEngine struct {
	mu    sync.Mutex
	count int
}

func (e *fakeEngine) Pull(_ context.Context, _ engine.Spec, report func(engine.Progress)) error {
	report(engine.Progress{Complete: 1 << 20, Total: 4 << 20})
	return nil
}

func (e *fakeEngine) Logs(ctx context.Context, query engine.LogQuery, emit func(engine.LogLine) error) error {
	written := time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	for i, text := range []string{"first", "second", "third"} {
		if query.Tail > 0 && i < 3-query.Tail {
			continue
		}
		line := engine.LogLine{Time: written, Revision: "hello-00001", Instance: "hello-00001-x7k2p", Stream: "stdout", Text: text}
		if query.Revision != "" && query.Revision != line.Revision || query.Instance != "" && query.Instance != line.Instance ||
			written.Before(query.Since) {
			continue
		}
		if err := emit(line); err != nil {
			return err
		}
	}
	if query.Follow {
		<-ctx.Done()
	}
	return nil
}

func (e *fakeEngine) Info() map[string]string { return map[string]string{"runtime": "fake 1.0"} }
func (e *fakeEngine) Close() error            { return nil }

func (e *fakeEngine) Prepare(_ context.Context, spec engine.Spec) (engine.Instance, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.count++
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
		lines := []string{"opening the database", "no database at db.internal"}
		return &engine.StartError{
			Reason: engine.ReasonExited, Exit: &engine.Exit{Code: 3, LastLines: lines}, Port: i.spec.Container.Port, LastLines: lines,
		}
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
func (i *fakeInstance) Stages() []engine.Stage {
	return []engine.Stage{{Name: "create", Took: 1500 * time.Microsecond}, {Name: "listen", Took: 2300 * time.Millisecond}}
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
