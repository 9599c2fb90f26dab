package reconcile

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

// countingStore counts the objects that are read and those that are written.
type countingStore struct {
	store.Store
	reads, writes atomic.Int64
}

func (s *countingStore) Get(ctx context.Context, kind serving.Kind, namespace, name string) (serving.Object, error) {
	s.reads.Add(1)
	return s.Store.Get(ctx, kind, namespace, name)
}

func (s *countingStore) List(ctx context.Context, kind serving.Kind, namespace string) ([]serving.Object, string, error) {
	objects, version, err := s.Store.List(ctx, kind, namespace)
	s.reads.Add(int64(len(objects)))
	return objects, version, err
}

func (s *countingStore) Page(ctx context.Context, kind serving.Kind, namespace string, after types.NamespacedName, limit int) ([]serving.Object, int, string, error) {
	objects, more, version, err := s.Store.Page(ctx, kind, namespace, after, limit)
	s.reads.Add(int64(len(objects)))
	return objects, more, version, err
}

func (s *countingStore) Names(ctx context.Context, kind serving.Kind, namespace string) ([]types.NamespacedName, string, error) {
	names, version, err := s.Store.Names(ctx, kind, namespace)
	s.reads.Add(int64(len(names)))
	return names, version, err
}

func (s *countingStore) Create(ctx context.Context, o serving.Object) (serving.Object, error) {
	s.writes.Add(1)
	return s.Store.Create(ctx, o)
}

func (s *countingStore) Update(ctx context.Context, o serving.Object, part store.Part) (serving.Object, error) {
	s.writes.Add(1)
	return s.Store.Update(ctx, o, part)
}

// awaitQuiet waits until nothing is left to look at.
func (h *house) awaitQuiet() {
	h.t.Helper()
	q := h.reconciler.queue
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		q.mu.Lock()
		left := len(q.state) + len(q.delayed)
		q.mu.Unlock()
		if left == 0 {
			return
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("%d objects are still to be looked at", left)
		}
	}
}

// awaitStarted waits until services that had an instance when the server ended say that they have none now.
func (h *house) awaitStarted(services int) {
	h.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for i := range services {
		name := fmt.Sprintf("service-%03d-00001", i)
		for {
			o, err := h.store.Get(h.t.Context(), serving.KindRevision, "default", name)
			if err != nil {
				h.t.Fatal(err)
			}
			if n := o.(*serving.Revision).Status.ActualReplicas; n == nil || *n == 0 {
				break
			}
			if time.Now().After(deadline) {
				h.t.Fatalf("revision %s still says that it has instances", name)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	h.awaitQuiet()
}

// declareMany deploys services, and stops.
func declareMany(t *testing.T, dir string, services int) {
	t.Helper()
	h := newHouse(t, dir)
	for i := range services {
		h.declare(fmt.Sprintf("service-%03d", i), "registry/hello", "")
	}
	for i := range services {
		h.settle(fmt.Sprintf("service-%03d", i), ready)
	}
	h.awaitQuiet()
	h.stop()
}

func TestDeploy_ReadsAndWritesAsMuchAmongManyServicesAsAmongFew(t *testing.T) {
	// What is looked at once or twice depends on the order of events: the bounds leave room for that, not for a look at
	// each service.
	const mostReads, mostWrites = 300, 40
	for _, services := range []int{1, 40} {
		dir := t.TempDir()
		declareMany(t, dir, services)
		var counts *countingStore
		h := newHouseOver(t, dir, nil, func(s store.Store) store.Store {
			counts = &countingStore{Store: s}
			return counts
		})
		h.awaitStarted(services)
		for _, image := range []string{"registry/new", "registry/changed"} {
			reads, writes := counts.reads.Load(), counts.writes.Load()
			h.declare("deployed", image, "")
			h.settle("deployed", ready)
			h.awaitQuiet()
			reads, writes = counts.reads.Load()-reads, counts.writes.Load()-writes
			t.Logf("%d services: a deploy of %s reads %d objects and writes %d", services, image, reads, writes)
			if reads > mostReads || writes > mostWrites {
				t.Errorf("among %d services a deploy of %s reads %d objects and writes %d, want at most %d and %d",
					services, image, reads, writes, mostReads, mostWrites)
			}
		}
		h.stop()
	}
}

// heldStore holds up who reads one object.
type heldStore struct {
	store.Store
	kind serving.Kind
	name string
	held chan struct{} // a token for each that is held up
	free chan struct{} // closed to let all go on
}

func (s *heldStore) Get(ctx context.Context, kind serving.Kind, namespace, name string) (serving.Object, error) {
	if kind.String() == s.kind.String() && name == s.name {
		select {
		case s.held <- struct{}{}:
		default:
		}
		<-s.free
	}
	return s.Store.Get(ctx, kind, namespace, name)
}

func TestStart_TakesRequestsAndDeploysBeforeItsBacklogIsDone(t *testing.T) {
	const services = 5
	dir := t.TempDir()
	declareMany(t, dir, services)
	slow := &heldStore{kind: serving.KindConfiguration, name: "service-000", held: make(chan struct{}, 1), free: make(chan struct{})}
	h := newHouseOver(t, dir, nil, func(s store.Store) store.Store {
		slow.Store = s
		return slow
	})
	release := func() {
		select {
		case <-slow.free:
		default:
			close(slow.free)
		}
	}
	defer release()
	<-slow.held // the backlog has begun, and does not get further than the first service
	for i := 1; i < services; i++ {
		host := fmt.Sprintf("service-%03d.default.example.com", i)
		if code, body := h.ask(host); code != http.StatusOK {
			t.Errorf("a request to %s is answered %d %q", host, code, body)
		}
	}
	h.declare("deployed", "registry/new", "")
	h.settle("deployed", ready)
	h.declare("service-004", "registry/changed", "")
	h.settle("service-004", func(s *serving.Service) bool {
		return s.IsReady() && s.Status.LatestReadyRevisionName == "service-004-00002"
	})

	q := h.reconciler.queue
	q.mu.Lock()
	left := len(q.backlog)
	q.mu.Unlock()
	if left == 0 {
		t.Error("the backlog was done before")
	}
	release()
	h.awaitQuiet()
}
