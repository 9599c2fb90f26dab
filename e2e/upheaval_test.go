package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/client"
	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/serving"
)

// Between two kills of instances of one revision. Revisions whose instances end again and again soon after their start
// are started with growing pauses, and at last their requests are refused: that is not what is tested here.
const spared = 12 * time.Second

// next declares the next version of a service.
func (s *soak) next(name string) *serving.Service {
	next := service(name, s.image, fmt.Sprint("VERSION=", s.version.Add(1)), traced(s.dir))
	template := &next.Spec.Template
	container := &template.Spec.Containers[0]
	concurrency, annotations := int64(10), map[string]string{}
	switch name {
	case calls:
		container.Ports = []serving.ContainerPort{{Name: "h2c", ContainerPort: 8080}}
	case waves:
		concurrency = 1
		annotations["autoscaling.knative.dev/max-scale"] = "8"
	case moody:
		annotations["autoscaling.knative.dev/min-scale"] = "2"
		container.ReadinessProbe = &serving.Probe{ProbeHandler: asks("/health"), PeriodSeconds: 1, FailureThreshold: 1}
	}
	template.Spec.ContainerConcurrency = &concurrency
	template.Annotations = annotations
	return next
}

// roll replaces a service's revision. The former one has the tag "stable", and at times half of the traffic.
func (s *soak) roll(ctx context.Context, name string) error {
	now, err := s.Services("default").Get(ctx, name)
	if err != nil {
		return err
	}
	former := now.Status.LatestReadyRevisionName
	next, no := s.next(name), false
	percent := int64(100)
	stable := serving.TrafficTarget{RevisionName: former, LatestRevision: &no, Tag: "stable"}
	if rand.IntN(2) == 0 {
		half := int64(50)
		percent, stable.Percent = half, &half
	}
	next.Spec.Traffic = []serving.TrafficTarget{{LatestRevision: yes(), Percent: &percent}, stable}
	if next, _, err = s.Services("default").Apply(ctx, next); err != nil {
		return fmt.Errorf("applying service %s: %w", name, err)
	}
	if err := s.awaitReady(ctx, next); err != nil {
		return err
	}
	s.rollouts.Add(1)
	return nil
}

func (s *soak) awaitReady(ctx context.Context, wanted *serving.Service) error {
	return s.until(ctx, fmt.Sprintf("generation %d of service %s to be ready", wanted.Generation, wanted.Name), func() error {
		got, err := s.Services("default").Get(ctx, wanted.Name)
		if err != nil {
			return err
		}
		ready := got.Generation >= wanted.Generation && got.Status.ObservedGeneration == got.Generation && got.IsReady()
		return errorUnless(ready, "generation %d is %v", got.Status.ObservedGeneration, got.Status.GetCondition(serving.ServiceReady))
	})
}

// killOne ends an instance that is ready, by a signal, and returns when its process has ended.
func (s *soak) killOne(ctx context.Context) error {
	instances, err := s.Instances(ctx, "")
	if err != nil {
		return err
	}
	instances = slices.DeleteFunc(instances, func(i client.Instance) bool {
		return i.State != engine.Ready || s.ledger.killedOf(i.Revision, time.Now().Add(-spared))
	})
	if len(instances) == 0 {
		return nil
	}
	signals := []syscall.Signal{syscall.SIGKILL, syscall.SIGKILL, syscall.SIGTERM, syscall.SIGSEGV}
	i := instances[rand.IntN(len(instances))]
	k := kill{instance: i.ID, revision: i.Revision, signal: signals[rand.IntN(len(signals))]}
	err = s.signal(&k)
	switch {
	case errors.Is(err, errNoProcess): // it has stopped meanwhile
		return nil
	case err != nil:
		return fmt.Errorf("killing instance %s: %w", i.ID, err)
	}
	s.ledger.enterKill(k)
	s.kills.Add(1)
	return nil
}

// errNoProcess says that an instance has no process (any more).
var errNoProcess = errors.New("it has no process")

// signal sends a signal that ends it to the one process of an instance, and returns when that has ended.
func (p *platform) signal(k *kill) error {
	process, err := p.openProcess(k.instance)
	if err != nil {
		return err
	}
	defer unix.Close(process)
	k.sent = time.Now()
	if err := unix.PidfdSendSignal(process, k.signal, nil, 0); err != nil {
		if errors.Is(err, unix.ESRCH) {
			return errNoProcess
		}
		return err
	}
	ends := []unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(ends, int(patience.Milliseconds()))
		if n == 0 && err == nil {
			return fmt.Errorf("signal %d did not end it", k.signal)
		}
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	k.ended = time.Now()
	return nil
}

// openProcess returns a file that stands for the one process of an instance, whatever becomes of its number.
func (p *platform) openProcess(instance string) (int, error) {
	files, err := filepath.Glob("/sys/fs/cgroup/*/berth-" + mark(p.dir) + "/" + instance + "/cgroup.procs")
	if err != nil {
		return 0, err
	}
	v2, err := filepath.Glob("/sys/fs/cgroup/berth-" + mark(p.dir) + "/" + instance + "/cgroup.procs")
	if files = append(files, v2...); err != nil || len(files) == 0 {
		return 0, errors.Join(errNoProcess, err)
	}
	first, err := os.ReadFile(files[0])
	if err != nil || len(first) == 0 {
		return 0, errNoProcess
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(first)))
	if err != nil {
		return 0, fmt.Errorf("reading its one process: %w", err)
	}
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0, errNoProcess
	}
	// The number is still that process's when the cgroup has not changed.
	if again, err := os.ReadFile(files[0]); err != nil || string(again) != string(first) {
		unix.Close(process)
		return 0, errNoProcess
	}
	return process, nil
}

// flip makes an instance unready for a while, and returns when the platform has seen that, or it is too late to.
func (s *soak) flip(ctx context.Context) error {
	a := asker{kind: "to become unready", hosts: s.hosts[moody], transport: newEachTime(), ask: unready, gateway: s.addresses.Gateway, ledger: s.ledger}
	if err := a.once(ctx); err != nil {
		return nil // it was killed, or the ledger tells
	}
	for end := time.Now().Add(unreadyFor); time.Now().Before(end); pace(ctx, 50*time.Millisecond) {
		instances, err := s.Instances(ctx, "")
		if err != nil {
			return err
		}
		if slices.ContainsFunc(instances, func(i client.Instance) bool { return i.Unready }) {
			s.flips.Add(1)
			return nil
		}
	}
	return nil
}

// wave takes a service through its numbers of instances, by its load and by an annotation, until ctx ends and once at
// least.
func (s *soak) wave(ctx context.Context) error {
	for first := true; first || ctx.Err() == nil; first = false {
		if err := s.oneWave(s.t.Context()); err != nil {
			return err
		}
		s.wavesDone.Add(1)
	}
	return nil
}

func (s *soak) oneWave(ctx context.Context) error {
	reach := func(n int) error {
		return s.until(ctx, fmt.Sprintf("%d instances of %s", n, waves), func() error {
			instances, err := s.Instances(ctx, "")
			if err != nil {
				return err
			}
			ready, other := 0, 0
			for _, i := range instances {
				switch {
				case i.Service != waves:
				case i.State == engine.Ready:
					ready++
				case i.State != engine.Prepared:
					other++
				}
			}
			return errorUnless(ready == n && (n > 0 || other == 0), "%d are ready, %d others there", ready, other)
		})
	}
	under := func(clients int, pause time.Duration, ask func(context.Context, *asker, *call) error, n int) error {
		asking, enough := context.WithCancel(ctx)
		var group sync.WaitGroup
		for range clients {
			a := asker{kind: "in waves", hosts: s.hosts[waves], transport: keepsAlive(), pause: pause, ask: ask, gateway: s.addresses.Gateway, ledger: s.ledger}
			group.Go(func() { a.run(asking) })
		}
		err := reach(n)
		enough()
		group.Wait()
		return err
	}
	few, many := work(1, 20), work(100, 200)
	for _, err := range []error{
		under(1, 50*time.Millisecond, few, 1),
		under(8, time.Millisecond, many, 8),
		under(1, 50*time.Millisecond, few, 1),
		reach(0),
	} {
		if err != nil {
			return err
		}
	}
	for _, least := range []string{"4", "0"} {
		next := s.next(waves)
		next.Spec.Template.Annotations["autoscaling.knative.dev/min-scale"] = least
		next, _, err := s.Services("default").Apply(ctx, next)
		if err != nil {
			return fmt.Errorf("applying service %s: %w", waves, err)
		}
		if err := s.awaitReady(ctx, next); err != nil {
			return err
		}
		if least == "4" {
			err = under(1, 50*time.Millisecond, few, 4)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// mapHosts maps hosts to the services that roll, spread over four fifths of a round, and has all of them asked.
func (s *soak) mapHosts(r rhythm) error {
	tick := time.NewTicker(max(time.Millisecond, r.lasts*4/5/time.Duration(r.hosts)))
	defer tick.Stop()
	for n := range r.hosts {
		<-tick.C
		m := mappingOf(fmt.Sprintf("host-%d.example.com", n), []string{rolling, calls}[n%2])
		if _, err := s.DomainMappings("default").Create(s.t.Context(), m); err != nil {
			return fmt.Errorf("mapping host %s: %w", m.Name, err)
		}
		s.mapped.Add(1)
		if n%50 == 49 {
			if _, err := s.askMapped(s.t.Context()); err != nil {
				return err
			}
		}
	}
	return s.until(s.t.Context(), "all mapped hosts to be ready", func() error {
		ready, err := s.askMapped(s.t.Context())
		if err != nil {
			return err
		}
		return errorUnless(ready == r.hosts, "%d of %d are", ready, r.hosts)
	})
}

// askMapped has the mapped hosts asked that are ready, and tells how many these are.
func (s *soak) askMapped(ctx context.Context) (ready int, err error) {
	all, _, err := s.DomainMappings("default").List(ctx, selectAll)
	if err != nil {
		return 0, err
	}
	byService := map[string][]string{}
	for _, m := range all {
		if m.IsReady() {
			byService[m.Spec.Ref.Name] = append(byService[m.Spec.Ref.Name], m.Status.URL.Host)
			ready++
		}
	}
	for name, mapped := range byService {
		s.hosts[name].set(mapped)
	}
	return ready, nil
}
