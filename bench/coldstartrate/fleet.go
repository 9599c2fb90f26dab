package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/berth-run/berth/bench"
	"github.com/berth-run/berth/client"
	"github.com/berth-run/berth/engine"
)

const (
	// lookEvery is how often the server is asked which services are at zero.
	lookEvery = 250 * time.Millisecond
	// settlePatience is how long the server may take until nothing is under way.
	settlePatience = 5 * time.Minute
	// answerPatience is how long a request may take.
	answerPatience = 30 * time.Second
)

// fleet is the services, and what is known of which are at zero.
type fleet struct {
	server *bench.Server
	urls   map[string]string // by service
	http   *http.Client

	mu    sync.Mutex
	asked map[string]time.Time // when a service that is not known to be at zero was answered; zero while it is asked
	seen  map[string]struct{}  // instances that have answered
	zero  chan string          // services at zero
}

// newFleet deploys the services and waits until they are at zero, each with a prepared instance.
func newFleet(ctx context.Context, s *bench.Server) (*fleet, error) {
	f := &fleet{
		server: s, urls: map[string]string{}, asked: map[string]time.Time{}, seen: map[string]struct{}{}, zero: make(chan string, services),
		http: &http.Client{Timeout: answerPatience, Transport: &http.Transport{DisableKeepAlives: true}},
	}
	url, image, err := s.DeployHello(ctx)
	if err != nil {
		return nil, err
	}
	f.urls["hello"] = url
	for i := 1; i < services; i++ {
		name := fmt.Sprintf("rate-%03d", i)
		if _, err := s.Client.Services("default").Create(ctx, bench.Service(name, image)); err != nil {
			return nil, err
		}
		f.urls[name] = strings.Replace(url, "//hello.", "//"+name+".", 1)
	}
	err = bench.Await(ctx, "all services to be ready", func() (bool, error) {
		list, _, err := s.Client.Services("default").List(ctx, client.Selector{})
		for _, service := range list {
			if !service.IsReady() {
				return false, nil
			}
		}
		return len(list) == services, err
	})
	if err != nil {
		return nil, err
	}
	for name := range f.urls {
		f.asked[name] = time.Now()
	}
	return f, f.rest(ctx)
}

// rest waits until every service is at zero.
func (f *fleet) rest(ctx context.Context) error {
	_, err := f.await(ctx, func(prepared, others int) bool { return others == 0 })
	return err
}

// settle waits until every service is at zero and has its prepared instance, and nothing is under way. Instances are
// prepared at the lowest priority: on a machine with other work that takes its time.
func (f *fleet) settle(ctx context.Context) error {
	states, err := f.await(ctx, func(prepared, others int) bool { return others == 0 && prepared == services })
	if err != nil {
		return fmt.Errorf("%w; instances are %v, where each of the %d services should have a prepared one", err, states, services)
	}
	return nil
}

// await waits until the numbers of instances, prepared ones and others, are as they should be.
func (f *fleet) await(ctx context.Context, done func(prepared, others int) bool) (states map[string]int, err error) {
	ctx, cancel := context.WithTimeout(ctx, settlePatience)
	defer cancel()
	for {
		if states, err = f.server.States(ctx); err != nil {
			return states, fmt.Errorf("waiting for the services to be at zero: %w", err)
		}
		prepared, others := states[string(engine.Prepared)], 0
		for state, n := range states {
			if state != string(engine.Prepared) {
				others += n
			}
		}
		if done(prepared, others) {
			f.look(ctx, time.Now())
			return states, nil
		}
		select {
		case <-ctx.Done():
			return states, fmt.Errorf("waiting for the services to be at zero: %w", ctx.Err())
		case <-time.After(lookEvery):
		}
	}
}

// look finds the services that are back at zero at a time.
func (f *fleet) look(ctx context.Context, at time.Time) {
	instances, err := f.server.Client.Instances(ctx, "default")
	if err != nil {
		return // the next look finds it
	}
	there := map[string]bool{}
	for _, i := range instances {
		there[i.Service] = there[i.Service] || i.State != engine.Prepared
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, answered := range f.asked {
		// An answer comes a moment before its instance is listed.
		if !there[name] && !answered.IsZero() && at.Sub(answered) >= lookEvery {
			delete(f.asked, name)
			f.zero <- name // it has room for all
		}
	}
}

// looking has look run until the function that it returns is called.
func (f *fleet) looking(ctx context.Context) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	group.Go(func() {
		ticker := time.NewTicker(lookEvery)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case at := <-ticker.C:
				f.look(ctx, at)
			}
		}
	})
	return func() {
		cancel()
		group.Wait()
	}
}

// take takes a service that is at zero.
func (f *fleet) take(ctx context.Context) (string, error) {
	select {
	case name := <-f.zero:
		f.mu.Lock()
		defer f.mu.Unlock()
		f.asked[name] = time.Time{}
		return name, nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// ask asks a service that was taken, and checks that the answer is of an instance that was started for it.
func (f *fleet) ask(ctx context.Context, name string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, f.urls[name], nil)
	if err != nil {
		return err
	}
	request.Host = request.URL.Host // *.localhost need not resolve here
	request.URL.Host = "127.0.0.1:" + request.URL.Port()
	answer, err := f.http.Do(request)
	var body []byte
	if err == nil {
		body, err = io.ReadAll(answer.Body)
		answer.Body.Close()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked[name] = time.Now()
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("service %q answered with status %d: %s", name, answer.StatusCode, body)
	}
	_, instance, found := strings.Cut(string(body), "(instance ")
	if _, again := f.seen[instance]; again || !found {
		return fmt.Errorf("the answer of service %q, %q, is not of an instance that was started for it", name, body)
	}
	f.seen[instance] = struct{}{}
	return nil
}

// all asks every service at once, and returns how long it took until all had answered.
func (f *fleet) all(ctx context.Context) (time.Duration, error) {
	var group sync.WaitGroup
	errs := make([]error, services)
	begun := time.Now()
	for i := range services {
		name, err := f.take(ctx)
		if err != nil {
			return 0, err
		}
		group.Go(func() { errs[i] = f.ask(ctx, name) })
	}
	group.Wait()
	return time.Since(begun), errors.Join(errs...)
}

// closedLoop has the workers ask services at zero, one after the other, for a slice.
func (f *fleet) closedLoop(ctx context.Context) sum {
	defer f.looking(ctx)()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var lives atomic.Int64
	var group sync.WaitGroup
	errs := make([]error, workers)
	stop := make(chan struct{})
	for i := range workers {
		group.Go(func() {
			for errs[i] == nil {
				select {
				case <-stop:
					return
				default:
				}
				var name string
				if name, errs[i] = f.take(ctx); errs[i] == nil {
					errs[i] = f.ask(ctx, name)
					lives.Add(1)
				}
			}
		})
	}
	time.Sleep(warmUp)
	n, begun := lives.Load(), time.Now()
	own, children := processCPU(f.server.PID)
	time.Sleep(slice)
	s := sum{lives: int(lives.Load() - n), time: time.Since(begun)}
	ownAfter, childrenAfter := processCPU(f.server.PID)
	s.own, s.children = ownAfter-own, childrenAfter-children
	close(stop)
	group.Wait()
	s.err = errors.Join(errs...)
	return s
}

// openLoop asks services at zero at a rate, for a time, whether those before have been answered or not. It returns how
// long each request took from when it was due.
func (f *fleet) openLoop(ctx context.Context, rate float64, long time.Duration) (waits []time.Duration, failures int, err error) {
	defer f.looking(ctx)()
	n := int(rate * long.Seconds())
	waits = make([]time.Duration, n)
	errs := make([]error, n)
	var group sync.WaitGroup
	begun := time.Now()
	for i := range n {
		due := begun.Add(time.Duration(float64(i) / rate * float64(time.Second)))
		time.Sleep(time.Until(due))
		name, err := f.take(ctx)
		if err != nil {
			return nil, 0, err
		}
		group.Go(func() {
			errs[i] = f.ask(ctx, name)
			waits[i] = time.Since(due)
		})
	}
	group.Wait()
	for _, err := range errs {
		if err != nil {
			if failures++; failures == 1 {
				fmt.Fprintln(os.Stderr, "first failure:", err)
			}
		}
	}
	return waits, failures, nil
}
