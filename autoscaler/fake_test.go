package autoscaler

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berth-run/berth/engine"
)

// fakeEngine runs instances that exist only in memory, and counts what becomes of them.
type fakeEngine struct {
	mu         sync.Mutex
	prepare    time.Duration // how long Prepare takes
	start      time.Duration // how long Start takes
	stop       time.Duration // how long Stop takes
	prepareErr func(spec engine.Spec) error
	startErr   func(*fakeInstance) error
	instances  []*fakeInstance
	starts     []*fakeInstance // in the order that Start was called
	starting   int
	startsMost int // most that were in Start at one moment
	pulls      int
	reclaim    func(*fakeInstance) (int64, error)
	usage      func(*fakeInstance) (engine.Usage, error)
}

func (e *fakeEngine) Pull(context.Context, engine.Spec, func(engine.Progress)) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.pulls++
	return nil
}

func (e *fakeEngine) Prepare(ctx context.Context, spec engine.Spec) (engine.Instance, error) {
	if err := pause(ctx, e.prepare); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.prepareErr != nil {
		if err := e.prepareErr(spec); err != nil {
			return nil, err
		}
	}
	i := &fakeInstance{
		engine: e,
		spec:   spec,
		id:     fmt.Sprintf("%s-%d", spec.Revision, len(e.instances)+1),
		exited: make(chan struct{}),
		gone:   make(chan struct{}),

		readiness: make(chan bool, 1),
	}
	e.instances = append(e.instances, i)
	return i, nil
}

func (e *fakeEngine) Logs(context.Context, engine.LogQuery, func(engine.LogLine) error) error {
	return errors.ErrUnsupported
}
func (e *fakeEngine) Info() map[string]string { return nil }
func (e *fakeEngine) Close() error            { return nil }

// counts returns how many instances were prepared, started and stopped.
func (e *fakeEngine) counts() (prepared, started, stopped int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, i := range e.instances {
		if i.stopped {
			stopped++
		}
	}
	return len(e.instances), len(e.starts), stopped
}

// newest returns the instance that was started last.
func (e *fakeEngine) newest() *fakeInstance {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.starts[len(e.starts)-1]
}

// nth returns the instance that was started nth, from 1.
func (e *fakeEngine) nth(n int) *fakeInstance {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.starts[n-1]
}

type fakeInstance struct {
	engine *fakeEngine
	spec   engine.Spec
	id     string
	exit   engine.Exit
	exited chan struct{}
	gone   chan struct{} // closed when stopped

	readiness chan bool
	restarts  atomic.Int64
	drained   atomic.Bool  // Drain was called
	idleSince atomic.Int64 // see fakePool.Idle, in nanoseconds since 1970
	frozen    atomic.Bool
	reclaims  atomic.Int64

	started, stopped bool // guarded by engine.mu
}

func (i *fakeInstance) ID() string { return i.id }

func (i *fakeInstance) Start(ctx context.Context) error {
	e := i.engine
	e.mu.Lock()
	i.started = true
	e.starts = append(e.starts, i)
	e.starting++
	e.startsMost = max(e.startsMost, e.starting)
	took := e.start
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		e.starting--
		e.mu.Unlock()
	}()
	if err := pause(ctx, took); err != nil {
		return err
	}
	e.mu.Lock()
	startErr := e.startErr
	e.mu.Unlock()
	if startErr != nil {
		return startErr(i)
	}
	return nil
}

func (i *fakeInstance) Dial(context.Context) (net.Conn, error) { return nil, errors.ErrUnsupported }

func (i *fakeInstance) Stop(time.Duration) {
	time.Sleep(i.engine.stop)
	i.engine.mu.Lock()
	defer i.engine.mu.Unlock()
	if !i.stopped {
		i.stopped = true
		close(i.gone)
	}
}

// crash ends user code.
func (i *fakeInstance) crash(code int) {
	i.exit = engine.Exit{Code: code, LastLines: []string{"boom"}}
	close(i.exited)
}

func (i *fakeInstance) Exited() <-chan struct{} { return i.exited }
func (i *fakeInstance) Exit() engine.Exit       { return i.exit }
func (i *fakeInstance) Stages() []engine.Stage {
	return []engine.Stage{{Name: "rootfs", Took: time.Millisecond}, {Name: "listen", Took: i.engine.start}}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// fakePool is a gateway without requests: a script says how many there are. It counts exactly as a gateway does.
type fakePool struct {
	wake func()

	mu          sync.Mutex
	limit       int // requests that one instance takes; 0 is unlimited
	concurrency int // requests that are there
	rate        int // requests that arrive in a second
	instances   map[engine.Instance]bool
	suspended   map[engine.Instance]bool
	order       []engine.Instance                 // of instances, as they were added
	idleSince   map[engine.Instance]time.Time     // of those without requests
	idlest      []engine.Instance                 // see Idlest
	draining    map[engine.Instance]chan struct{} // see hold
	held        bool
	failures    []error
	spread      int
	at          time.Time
	since       time.Time // requests have waited, as seen by Load; zero when none does
	busy        time.Duration
	waited      time.Duration
	requests    float64
	use         fakeUse
}

func newFakePool(limit int) *fakePool {
	return &fakePool{
		limit:     limit,
		instances: make(map[engine.Instance]bool),
		draining:  make(map[engine.Instance]chan struct{}),
		idleSince: make(map[engine.Instance]time.Time),
		at:        time.Now(),
	}
}

// advance adds up the time since the last call.
func (p *fakePool) advance() {
	now := time.Now()
	passed := now.Sub(p.at)
	p.use.burn(p.instances, p.at, now)
	p.at = now
	p.busy += time.Duration(p.concurrency) * passed
	p.waited += time.Duration(p.waiting()) * passed
	p.requests += float64(p.rate) * passed.Seconds()
}

// waiting is how many requests no instance takes. Those on an instance that is suspended begin to wait, unlike a
// gateway's.
func (p *fakePool) waiting() int {
	open := len(p.instances) - len(p.suspended)
	switch {
	case open == 0:
		return p.concurrency
	case p.limit == 0:
		return 0
	default:
		return max(0, p.concurrency-p.limit*open)
	}
}

// set changes how many requests there are, and wakes when some must wait.
func (p *fakePool) set(concurrency int) {
	p.mu.Lock()
	p.advance()
	if concurrency > p.concurrency {
		p.requests += float64(concurrency - p.concurrency)
	}
	p.concurrency = concurrency
	p.settle()
	waiting := p.waiting()
	p.mu.Unlock()
	if waiting > 0 {
		p.wake()
	}
}

// flow changes how many requests arrive in a second.
func (p *fakePool) flow(rate int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.advance()
	p.rate = rate
}

// hold makes instances that are removed from now on keep their requests until release.
func (p *fakePool) hold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = true
}

func (p *fakePool) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = false
	for i, ended := range p.draining {
		close(ended)
		delete(p.draining, i)
	}
}

func (p *fakePool) Add(instance engine.Instance) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.advance()
	if p.instances[instance] {
		panic("instance " + instance.ID() + " added twice")
	}
	p.instances[instance] = true
	p.order = append(p.order, instance)
	p.settle()
}

func (p *fakePool) Remove(instance engine.Instance) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.advance()
	delete(p.instances, instance)
	p.order = slices.DeleteFunc(p.order, func(i engine.Instance) bool { return i == instance })
	delete(p.idleSince, instance)
	p.settle()
	delete(p.suspended, instance)
	ended := make(chan struct{})
	if p.held {
		p.draining[instance] = ended
	} else {
		close(ended)
	}
	return ended
}

func (p *fakePool) Suspend(instance engine.Instance) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.advance()
	if p.suspended[instance] || !p.instances[instance] {
		panic("instance " + instance.ID() + " suspended twice, or after it was taken back")
	}
	if p.suspended == nil {
		p.suspended = map[engine.Instance]bool{}
	}
	p.suspended[instance] = true
}

func (p *fakePool) Resume(instance engine.Instance) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.advance()
	if !p.suspended[instance] {
		panic("instance " + instance.ID() + " resumed and not suspended")
	}
	delete(p.suspended, instance)
}

// Idlest returns the first of those that the test calls idle, and that have not been removed.
func (p *fakePool) Idlest() engine.Instance {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, i := range p.idlest {
		if p.instances[i] && !p.suspended[i] {
			return i
		}
	}
	return nil
}

// Idle tells what the instance tells of itself, which tests set, or whether the requests reach it: they fill one instance
// after the other.
func (p *fakePool) Idle(instance engine.Instance) (since time.Time, frozen bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := instance.(*fakeInstance)
	if !p.instances[instance] || p.suspended[instance] {
		return time.Time{}, false
	}
	if i.idleSince.Load() == 0 {
		return p.idleSince[instance], i.Frozen()
	}
	return time.Unix(0, i.idleSince.Load()), i.Frozen()
}

func (p *fakePool) Spread(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.spread = n
}

// settle records which instances have no requests from now on.
func (p *fakePool) settle() {
	left, each := p.concurrency-p.waiting(), p.limit
	for _, i := range p.order {
		if left <= 0 {
			if _, idle := p.idleSince[i]; !idle {
				p.idleSince[i] = time.Now()
			}
			continue
		}
		delete(p.idleSince, i)
		if each > 0 {
			left -= each
		} else {
			left = 0
		}
	}
}

func (p *fakePool) Fail(err error) {
	if err == nil {
		panic("requests failed without a reason")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.advance()
	if n := p.waiting(); n > 0 {
		p.failures = append(p.failures, err)
		p.concurrency -= n
	}
}

func (p *fakePool) Load() Load {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.advance()
	waiting := p.waiting()
	switch {
	case waiting == 0:
		p.since = time.Time{}
	case p.since.IsZero():
		p.since = p.at
	}
	var longest time.Duration
	if waiting > 0 {
		longest = p.at.Sub(p.since)
	}
	return Load{
		At:       p.at,
		InFlight: p.concurrency - waiting,
		Waiting:  waiting,
		Longest:  longest,
		Busy:     p.busy,
		Waited:   p.waited,
		Requests: uint64(p.requests),
	}
}

// failed returns the reasons that waiting requests were told so far.
func (p *fakePool) failed() []error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failures
}

// ready returns how many instances it was given.
func (p *fakePool) ready() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.instances)
}

func testLogger() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// running starts an autoscaler that stops with the test.
func running(t testing.TB, e *fakeEngine, settings Settings) *Autoscaler {
	t.Helper()
	a := New(e, settings, testLogger(), nil)
	run(t, a)
	return a
}

func run(t testing.TB, a *Autoscaler) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		if err := a.Close(context.Background()); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
}

// revision declares a revision named name with a pool, by annotations given as key, value, …
func revision(t testing.TB, a *Autoscaler, name string, limit int, annotations ...string) (Revision, *fakePool) {
	t.Helper()
	scale, err := a.settings.Scale(annotate(annotations...), int64(limit))
	if err != nil {
		t.Fatal(err)
	}
	pool := newFakePool(limit)
	key := Key{Namespace: "default", Revision: name}
	pool.wake = func() { a.Wake(key) }
	return Revision{
		Key:       key,
		Spec:      engine.Spec{Namespace: "default", Service: "service-of-" + name, Revision: name},
		Scale:     scale,
		Pool:      pool,
		Reachable: true,
	}, pool
}

func (i *fakeInstance) Readiness() <-chan bool { return i.readiness }

func (i *fakeInstance) Drain() { i.drained.Store(true) }

func (*fakeInstance) DialPort(context.Context, int) (net.Conn, error) {
	return nil, errors.ErrUnsupported
}

func (*fakeInstance) Exec(context.Context, engine.Command) (int, error) {
	return 0, errors.ErrUnsupported
}

func (i *fakeInstance) Containers() []engine.ContainerStatus {
	return []engine.ContainerStatus{{Name: "user-container", Restarts: int(i.restarts.Load())}}
}

// restart is a container that is started again in place.
func (i *fakeInstance) restart() { i.restarts.Add(1) }

func (i *fakeInstance) Freeze() error { i.frozen.Store(true); return nil }

func (i *fakeInstance) Thaw() error { i.frozen.Store(false); return nil }

func (i *fakeInstance) Frozen() bool { return i.frozen.Load() }

func (i *fakeInstance) Reclaim() (int64, error) {
	i.reclaims.Add(1)
	return i.engine.reclaim(i)
}

// spares is memory for so many prepared instances of one container.
func spares(n int) Amount { return Amount{Bytes: int64(n) * spareBound} }

func (i *fakeInstance) Usage() (engine.Usage, error) {
	if i.engine.usage == nil {
		return engine.Usage{}, errors.ErrUnsupported
	}
	return i.engine.usage(i)
}
