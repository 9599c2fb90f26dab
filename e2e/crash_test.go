package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berth-run/berth/client"
	"github.com/berth-run/berth/internal/testimage"
	"github.com/berth-run/berth/serving"
)

// stateDir is a state directory that the test may remove.
func stateDir(t *testing.T) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "state")
}

// acknowledged is the last write of a service that the server said yes to.
type acknowledged struct {
	count   int
	version string
}

func TestKill_DuringWritesLosesNoAcknowledgedWrite(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	image := program(t, "inspect")
	p := spawn(t, dir)
	url := p.deploy(service("steady", image, traced(dir))).Status.URL.String()

	const lives, writers, writes = 2, 4, 60
	acks := make([]acknowledged, writers)
	newest := uint64(0) // resourceVersion of the lives before
	for range lives {
		var done atomic.Int64
		enough := make(chan struct{})
		var group sync.WaitGroup
		for n := range writers {
			group.Go(func() {
				for {
					ack, err := write(t, p.platform, n, acks[n].count+1)
					if err != nil {
						if !isGone(err) {
							t.Errorf("writing service %d: %v", n, err)
						}
						return
					}
					if v := versionOf(t, ack.version); v <= newest || v <= versionOf(t, acks[n].version) {
						t.Errorf("resourceVersion %d follows %d and %s", v, newest, acks[n].version)
					}
					acks[n] = ack
					if done.Add(1) == writes {
						close(enough)
					}
				}
			})
		}
		<-enough
		p.kill()
		group.Wait()

		p = p.again()
		for n, ack := range acks {
			newest = max(newest, versionOf(t, ack.version))
			got, err := p.Services("default").Get(t.Context(), writtenName(n))
			if err != nil {
				t.Fatalf("service %d, acknowledged at version %s: %v", n, ack.version, err)
			}
			count, err := strconv.Atoi(got.Annotations[counter])
			if err != nil || count < ack.count {
				t.Errorf("service %d holds count %q, %d was acknowledged", n, got.Annotations[counter], ack.count)
			}
			if versionOf(t, got.ResourceVersion) < versionOf(t, ack.version) {
				t.Errorf("service %d is at version %s, %s was acknowledged", n, got.ResourceVersion, ack.version)
			}
			acks[n].count = count // a write may have been stored and its answer lost
		}
		if a := p.get(url); a.status != 200 {
			t.Errorf("after the crash: %d %q", a.status, a.body)
		}
	}
	p.stopped()
}

// counter is the annotation that write counts in.
const counter = "example.com/count"

func writtenName(n int) string { return fmt.Sprintf("written-%d", n) }

// write creates a service with a count, or gives it the next. Its image exists nowhere: nothing starts.
func write(t *testing.T, p *platform, n, count int) (acknowledged, error) {
	s := service(writtenName(n), "127.0.0.1:9/none:none")
	s.Annotations = map[string]string{counter: strconv.Itoa(count)}
	s, _, err := p.Services("default").Apply(t.Context(), s)
	if err != nil {
		return acknowledged{}, err
	}
	return acknowledged{count: count, version: s.ResourceVersion}, nil
}

// isGone tells that the server was killed before it answered.
func isGone(err error) bool {
	var unreachable *client.UnreachableError
	return errors.As(err, &unreachable)
}

func versionOf(t *testing.T, resourceVersion string) uint64 {
	t.Helper()
	if resourceVersion == "" {
		return 0
	}
	v, err := strconv.ParseUint(resourceVersion, 10, 64)
	if err != nil {
		t.Errorf("resourceVersion %q: %v", resourceVersion, err)
	}
	return v
}

func TestKill_DuringPullLeavesNoHalfLayer(t *testing.T) {
	t.Parallel()
	slow := newSlowBlobs()
	registry := testimage.Serve(t, testimage.Options{Wrap: slow.wrap})
	image := registry.Push(t, images.Go(t, "examples/hello"), "hello:latest")
	dir := stateDir(t)
	p := spawn(t, dir)
	slow.begin()
	// The user who deploys waits through the crash and is told how it ended.
	type outcome struct {
		said string
		code int
	}
	deployed := make(chan outcome, 1)
	go func(p *process) {
		out, errs, code := p.berth("deploy", "hello", "--image", image, "--set-env-vars", traced(dir))
		deployed <- outcome{out + errs, code}
	}(p)
	<-slow.half
	p.kill()
	slow.end()

	p = p.again()
	if o := <-deployed; o.code != 0 || !strings.Contains(o.said, "is deployed and serves 100 percent of traffic") {
		t.Errorf("the deploy ended with exit code %d: %s", o.code, o.said)
	}
	s, err := p.Services("default").Get(t.Context(), "hello")
	if err != nil {
		t.Fatal(err)
	}
	p.ready(s)
	if a := p.get(s.Status.URL.String()); a.status != 200 {
		t.Errorf("after the crash: %d %q", a.status, a.body)
	}
	wholeLayers(t, filepath.Join(dir, "images"))
	p.stopped()
}

// wholeLayers sees to it that an image store has nothing that is half done.
func wholeLayers(t *testing.T, dir string) {
	t.Helper()
	if left, err := os.ReadDir(filepath.Join(dir, "tmp")); err != nil || len(left) > 0 {
		t.Errorf("work that is not done: %v, %v", left, err)
	}
	layers, err := os.ReadDir(filepath.Join(dir, "layers"))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		if strings.HasSuffix(l.Name(), ".json") {
			continue
		}
		if _, err := os.Stat(filepath.Join(dir, "layers", l.Name()+".json")); err != nil {
			t.Errorf("layer %s is not whole: %v", l.Name(), err)
		}
	}
}

// slowBlobs stands before a registry and, from begin to end, sends only the first half of large blobs.
type slowBlobs struct {
	half  chan struct{} // closed when the first half of a blob is sent
	ended chan struct{}
	slow  atomic.Bool
	once  sync.Once
}

func newSlowBlobs() *slowBlobs {
	return &slowBlobs{half: make(chan struct{}), ended: make(chan struct{})}
}

func (s *slowBlobs) begin() { s.slow.Store(true) }

func (s *slowBlobs) end() {
	s.slow.Store(false)
	close(s.ended)
}

func (s *slowBlobs) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.slow.Load() && r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			w = &halfWriter{ResponseWriter: w, blobs: s, gone: r.Context().Done()}
		}
		next.ServeHTTP(w, r)
	})
}

// halfWriter passes on half of a large response and then waits.
type halfWriter struct {
	http.ResponseWriter
	blobs *slowBlobs
	gone  <-chan struct{}
	left  int // bytes to pass on before waiting
	known bool
}

func (w *halfWriter) Write(p []byte) (int, error) {
	if !w.known {
		w.known = true
		size, _ := strconv.Atoi(w.Header().Get("Content-Length")) // 0 when it does not say
		if w.left = size / 2; size < 64<<10 {
			w.left = 1 << 30 // the image's configuration
		}
	}
	if len(p) <= w.left {
		w.left -= len(p)
		return w.ResponseWriter.Write(p)
	}
	n, err := w.ResponseWriter.Write(p[:w.left])
	if err != nil {
		return n, err
	}
	if err := http.NewResponseController(w.ResponseWriter).Flush(); err != nil {
		return n, err
	}
	w.blobs.once.Do(func() { close(w.blobs.half) })
	select {
	case <-w.gone:
	case <-w.blobs.ended:
	}
	rest, err := w.ResponseWriter.Write(p[n:])
	w.left = 1 << 30
	return n + rest, err
}

func TestKill_DuringStartsLeavesNothingForTheNextLife(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	image := program(t, "hello")
	p := spawn(t, dir)
	// One that runs all the time, one that is woken by a burst when the kill comes.
	steady := service("steady", image, traced(dir))
	steady.Spec.Template.Annotations = map[string]string{"autoscaling.knative.dev/min-scale": "2"}
	one := int64(1)
	burst := service("burst", image, traced(dir))
	burst.Spec.Template.Spec.ContainerConcurrency = &one
	var urls []string
	for _, s := range []*serving.Service{p.apply(steady), p.apply(burst)} {
		urls = append(urls, p.ready(s).Status.URL.String())
	}

	for life := range 3 {
		p.awaitZero("burst")
		var group sync.WaitGroup
		for range 12 {
			group.Go(func() { _, _ = p.tryGet(urls[1] + "/sleep?ms=60000") }) // the kill ends them
		}
		// The first are there, more are on their way: each time the kill comes at another moment.
		p.await("instances to start", func() error {
			n := p.running("burst")
			return errorUnless(n > 2*life, "%d instances", n)
		})
		// Before the kill: after it, any other server that starts removes them.
		if now := traceOf(t, dir); len(now.processes) == 0 || len(now.groups) == 0 || len(now.interfaces) == 0 || len(now.tables) != 1 {
			t.Errorf("the server has made %v: the test does not look where its traces are", now)
		}
		p.kill()
		group.Wait()
		former := traceOf(t, dir)

		p = p.again()
		p.noneOf(former)
		for _, url := range urls {
			if a := p.get(url); a.status != 200 {
				t.Errorf("after the crash: %s: %d %q", url, a.status, a.body)
			}
		}
	}
	p.stopped()
}

func TestKill_DuringItsOwnStartDoesNotHinderTheNext(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	p := spawn(t, dir)
	s := service("hello", program(t, "hello"), traced(dir))
	s.Spec.Template.Annotations = map[string]string{"autoscaling.knative.dev/min-scale": "2"}
	url := p.deploy(s).Status.URL.String()
	p.kill()
	former := traceOf(t, dir)
	// A start takes some 100 ms: the kills meet it at its beginning, in its middle and after its end.
	for delay := time.Duration(0); delay <= 400*time.Millisecond; delay += 50 * time.Millisecond {
		starting := launch(t, dir, p.addresses)
		time.Sleep(delay)
		starting.kill()
	}
	p = p.again()
	p.noneOf(former)
	if a := p.get(url); a.status != 200 {
		t.Errorf("after the crashes: %d %q", a.status, a.body)
	}
	p.stopped()
}

// noneOf sees to it that nothing of a former life of the server is left, and nothing is there twice.
func (p *process) noneOf(former trace) {
	p.t.Helper()
	now := traceOf(p.t, p.dir)
	var left []string
	for _, both := range [][2][]string{{former.processes, now.processes}, {former.interfaces, now.interfaces}, {former.mounts, now.mounts}} {
		left = append(left, common(both[0], both[1])...)
	}
	for _, group := range common(former.groups, now.groups) {
		if filepath.Base(group) != "berth-"+mark(p.dir) { // the engine's own, below which all others are
			left = append(left, group)
		}
	}
	if len(left) > 0 {
		p.t.Errorf("left of the former life:\n%s", strings.Join(left, "\n"))
	}
	if len(now.tables) != 1 || len(now.addresses) != 1 {
		p.t.Errorf("packet rules %q and addresses %q, want one of each", now.tables, now.addresses)
	}
}
