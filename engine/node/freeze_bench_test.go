package node

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/engine/enginetest"
)

// BenchmarkFreezer is what the system calls of a freeze and of a thaw take, of one process that sleeps: with version 1, with
// and without a group that is always frozen, and with version 2.
func BenchmarkFreezer(b *testing.B) {
	v2 := cgroupMount
	if _, err := os.Stat(filepath.Join(v2, "cgroup.controllers")); err != nil {
		v2 = filepath.Join(v2, "unified")
	}
	name := fmt.Sprintf("berth-bench-%d", os.Getpid())
	run := func(what string, c *cgroups, root string, always bool) {
		b.Run(what, func(b *testing.B) {
			if _, err := os.Stat(root); root == "" || err != nil {
				b.Skip("it is not mounted")
			}
			group := filepath.Join(root, c.path("a"))
			if err := os.MkdirAll(group, 0o755); err != nil {
				b.Fatal(err)
			}
			sleeper := exec.Command("sleep", "1000")
			if err := sleeper.Start(); err != nil {
				b.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- sleeper.Wait() }()
			defer func() {
				if err := c.sweep(); err != nil {
					b.Error(err)
				}
				<-ended
			}()
			if err := tell(filepath.Join(group, "cgroup.procs"), strconv.Itoa(sleeper.Process.Pid)); err != nil {
				b.Fatal(err)
			}
			if always {
				if err := c.freezable(); err != nil {
					b.Fatal(err)
				}
			}
			var froze, thaw []time.Duration
			for b.Loop() {
				begun := time.Now()
				if err := c.freeze("a"); err != nil {
					b.Fatal(err)
				}
				froze = append(froze, time.Since(begun))
				time.Sleep(time.Millisecond)
				begun = time.Now()
				if err := c.thaw("a"); err != nil {
					b.Fatal(err)
				}
				thaw = append(thaw, time.Since(begun))
			}
			report(b, "freeze", froze)
			report(b, "thaw", thaw)
		})
	}
	hierarchies, err := findCgroups(name)
	if err != nil {
		b.Fatal(err)
	}
	v1 := hierarchies.roots["freezer"]
	run("v1-bare", &cgroups{roots: map[string]string{"freezer": v1}, name: name}, v1, false)
	run("v1", &cgroups{roots: map[string]string{"freezer": v1}, name: name}, v1, true)
	run("v2", &cgroups{v2: true, roots: map[string]string{"": v2}, name: name}, v2, false)
}

// report gives the percentiles of times.
func report(b *testing.B, name string, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1000, name+"-p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1000, name+"-p99-µs")
}

// BenchmarkThaw is the time from the decision to thaw an instance to the answer over a connection that is kept, beside
// that of an instance that was never frozen. Both have rested as long.
func BenchmarkThaw(b *testing.B) {
	s := enginetest.New(b, openEngine(b, b.TempDir()))
	spec := s.Spec(b, nil, "serve")
	var instances [2]engine.Instance // the first is frozen between requests
	var requests [2]func()
	for n := range instances {
		i, err := s.Engine.Prepare(b.Context(), spec)
		if err != nil {
			b.Fatal(err)
		}
		defer i.Stop(0)
		if err := i.Start(b.Context()); err != nil {
			b.Fatal(err)
		}
		conn, err := i.Dial(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close()
		answers := bufio.NewReader(conn)
		instances[n] = i
		requests[n] = func() {
			if _, err := fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: instance\r\n\r\n"); err != nil {
				b.Fatal(err)
			}
			response, err := http.ReadResponse(answers, nil)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := answers.Discard(int(response.ContentLength)); err != nil {
				b.Fatal(err)
			}
		}
		requests[n]()
	}
	var froze, thaw, frozen, running []time.Duration
	for b.Loop() {
		begun := time.Now()
		if err := instances[0].Freeze(); err != nil {
			b.Fatal(err)
		}
		froze = append(froze, time.Since(begun))
		time.Sleep(5 * time.Millisecond)
		begun = time.Now()
		if err := instances[0].Thaw(); err != nil {
			b.Fatal(err)
		}
		thaw = append(thaw, time.Since(begun))
		requests[0]()
		frozen = append(frozen, time.Since(begun))
		time.Sleep(5 * time.Millisecond)
		begun = time.Now()
		requests[1]()
		running = append(running, time.Since(begun))
	}
	report(b, "freeze", froze)
	report(b, "thaw", thaw)
	report(b, "frozen", frozen)
	report(b, "running", running)
}

func BenchmarkUsage(b *testing.B) {
	s := enginetest.New(b, openEngine(b, b.TempDir()))
	i := s.Start(b, nil, "serve")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := i.Usage(); err != nil {
			b.Fatal(err)
		}
	}
}
