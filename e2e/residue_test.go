package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/berth-run/berth/client"
	"github.com/berth-run/berth/serving"
)

// residue is what a server has while it has nothing to do.
type residue struct {
	goroutines, files, threads int
	links, mounts, groups      int // of instances, used or kept
	heap, memory               int // bytes that Go has in use, and that the machine holds for the process
}

// What may be more than before. Links to instances are kept for the next ones, and there are as many as there were
// instances at once; a link is two files. Connections of this client's to the API come and go, and so does what the
// collector has not looked at yet: an hour of a soak has no more of either than its first minutes.
const (
	moreLinks      = 16
	moreFiles      = 2*moreLinks + 8
	moreGoroutines = 8
	moreMemory     = 16 << 20
)

func (r *residue) String() string {
	return fmt.Sprintf("%d goroutines, %d open files, %d threads, %d links, %d mounts, %d cgroups, %.1f MiB of heap, %.1f MiB of memory",
		r.goroutines, r.files, r.threads, r.links, r.mounts, r.groups, float64(r.heap)/(1<<20), float64(r.memory)/(1<<20))
}

// check compares what is there with what was before; memory only where it can be compared.
func (r *residue) check(before *residue, memory bool) error {
	var errs []error
	for _, thing := range []struct {
		name             string
		before, now, may int
	}{
		{"goroutines", before.goroutines, r.goroutines, moreGoroutines},
		{"open files", before.files, r.files, moreFiles},
		{"links", before.links, r.links, moreLinks},
		{"mounts", before.mounts, r.mounts, 0},
		{"cgroups", before.groups, r.groups, 0},
		{"bytes of memory", before.memory, r.memory, moreMemory},
	} {
		if thing.now > thing.before+thing.may && (memory || thing.may != moreMemory) {
			errs = append(errs, fmt.Errorf("there were %d %s, there are %d", thing.before, thing.name, thing.now))
		}
	}
	return errors.Join(errs...)
}

// residue looks at the server's process, and asks it.
func (p *process) residue(ctx context.Context) (*residue, error) {
	r := new(residue)
	directory := fmt.Sprintf("/proc/%d/", p.cmd.Process.Pid)
	files, err := os.ReadDir(directory + "fd")
	if err != nil {
		return nil, err
	}
	threads, err := os.ReadDir(directory + "task")
	if err != nil {
		return nil, err
	}
	mounts, err := os.ReadFile(directory + "mountinfo")
	if err != nil {
		return nil, err
	}
	sizes, err := os.ReadFile(directory + "smaps_rollup")
	if err != nil {
		return nil, err
	}
	r.files, r.threads, r.mounts = len(files), len(threads), strings.Count(string(mounts), "\n")
	for line := range strings.Lines(string(sizes)) {
		if size, ok := strings.CutPrefix(line, "Pss:"); ok {
			kib, err := strconv.Atoi(strings.Fields(size)[0])
			if err != nil {
				return nil, err
			}
			r.memory = kib << 10
		}
	}
	trace := traceOf(p.t, p.dir)
	r.links = len(trace.interfaces)
	for _, group := range trace.groups {
		if filepath.Base(group) != "berth-"+mark(p.dir) { // the engine's own, below which all others are
			r.groups++
		}
	}
	measured, err := p.metrics(ctx, "go_goroutines", "go_memstats_heap_inuse_bytes")
	if err != nil {
		return nil, err
	}
	r.goroutines, r.heap = int(measured[0]), int(measured[1])
	return r, nil
}

// metrics reads some of the server's metrics that have no labels.
func (p *platform) metrics(ctx context.Context, names ...string) ([]float64, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.Server()+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+p.Token())
	reply, err := p.Transport().RoundTrip(request)
	if err != nil {
		return nil, err
	}
	defer reply.Body.Close()
	values := make([]float64, len(names))
	found := 0
	lines := bufio.NewScanner(reply.Body)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		for i := range names {
			if names[i] == name {
				if values[i], err = strconv.ParseFloat(value, 64); err != nil {
					return nil, fmt.Errorf("reading metric %s: %w", name, err)
				}
				found++
			}
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	return values, errorUnless(found == len(names), "of the metrics %q there are %d, status %d", names, found, reply.StatusCode)
}

// deleteAll deletes what a round has made, as users do, and the events that tell of it.
func (s *soak) deleteAll() {
	s.t.Helper()
	for _, kind := range []serving.Kind{serving.KindService, serving.KindDomainMapping, serving.KindEvent} {
		objects := s.Objects(kind, "default")
		s.await("no "+kind.Plural+" to be left", func() error {
			all, _, err := objects.List(s.t.Context(), selectAll)
			if err != nil {
				return err
			}
			for _, o := range all {
				if err := objects.Delete(s.t.Context(), o.GetName(), serving.DeleteOptions{}); err != nil && !client.IsNotFound(err) {
					return err
				}
			}
			return errorUnless(len(all) == 0 || kind.Plural == serving.KindEvent.Plural, "%d are", len(all))
		})
	}
}

// settle waits until the server has nothing to do, and has no more than before, and returns what it has. What does not
// go in time stays in it.
func (s *soak) settle(before *residue, memory bool) *residue {
	s.t.Helper()
	s.await("the access log to have all requests", s.ledger.complete)
	s.await("every instance to be gone", func() error {
		instances, err := s.Instances(s.t.Context(), "")
		if err != nil {
			return err
		}
		return errorUnless(len(instances) == 0, "%d instances", len(instances))
	})
	var last *residue
	for end := time.Now().Add(patience); ; pace(s.t.Context(), time.Second) {
		if c, ok := s.Transport().(interface{ CloseIdleConnections() }); ok {
			c.CloseIdleConnections()
		}
		now, err := s.residue(s.t.Context())
		if err != nil {
			s.t.Fatal(err)
		}
		// Memory goes back to the machine when nothing has happened for some seconds.
		quiet := last != nil && now.memory >= last.memory-(1<<20) && now.goroutines >= last.goroutines
		if last = now; time.Now().After(end) || quiet && (before == nil || now.check(before, memory) == nil) && now.groups == 0 {
			return now
		}
	}
}
