package e2e

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berth-run/berth/autoscaler"
	"github.com/berth-run/berth/client"
	"github.com/berth-run/berth/server"
	"github.com/berth-run/berth/serving"
)

// TestMachine_SharesItsMemoryBetweenServicesThatNeverRest has memory for two instances, and three services that always
// have requests. Each gets its turn, there are never more instances than two, and who waits is told why.
func TestMachine_SharesItsMemoryBetweenServicesThatNeverRest(t *testing.T) {
	t.Parallel()
	p := start(t, func(c *server.Config) {
		c.Scaling.InstanceMemory = autoscaler.Amount{Bytes: 1 << 30}
		c.Scaling.PreparedMemory.Bytes = 0
		c.QueueWait = server.QueueWait(time.Second)
	})
	image := program(t, "echo")
	names := []string{"first", "second", "third"}
	urls := map[string]string{}
	for _, name := range names { // each deploy takes the place of one that has nothing to do
		urls[name] = p.deploy(service(name, image)).Status.URL.String()
	}

	var load sync.WaitGroup
	var over atomic.Bool
	defer load.Wait()
	defer over.Store(true)
	var mu sync.Mutex
	answered, told := map[string]time.Time{}, map[string]int{} // guarded by mu
	began := time.Now()
	for _, name := range names {
		for range 3 {
			load.Go(func() {
				for !over.Load() {
					a, err := p.tryGet(urls[name] + "/slow?ms=50")
					mu.Lock()
					switch {
					case err != nil:
						t.Errorf("%s: %v", name, err)
						over.Store(true)
					case a.status == 200:
						answered[name] = time.Now()
					case a.status == 429 && strings.Contains(a.body, "memory that this machine has for instances is used up"):
						told[name]++
					case a.status == 500 && strings.Contains(a.body, "there was no available instance"):
						// Its turn has just come, and the instance does not start before the wait is over (contract E10).
					default:
						t.Errorf("%s answered %d %q", name, a.status, a.body)
						over.Store(true)
					}
					mu.Unlock()
				}
			})
		}
	}
	most := 0
	turns := map[string]int{} // how often each was seen to begin to be served again after it was not
	served := map[string]bool{}
	p.await("every service to have had two turns, and to have been told to wait", func() error {
		if over.Load() {
			t.FailNow()
		}
		instances, err := p.Instances(t.Context(), "")
		if err != nil {
			return err
		}
		most = max(most, len(instances))
		mu.Lock()
		defer mu.Unlock()
		for _, name := range names {
			now := time.Since(answered[name]) < 500*time.Millisecond
			if now && !served[name] {
				turns[name]++
			}
			served[name] = now
		}
		for _, name := range names {
			if turns[name] < 2 || told[name] == 0 {
				return fmt.Errorf("after %s: turns %v, told to wait %v", time.Since(began).Round(time.Second), turns, told)
			}
		}
		return nil
	})
	if most != 2 {
		t.Errorf("there were up to %d instances, want 2", most)
	}
	if out := p.mustBerth("info"); !strings.Contains(out, "instance memory:") || !strings.Contains(out, "of 1Gi") {
		t.Errorf("berth info does not tell of the memory:\n%s", out)
	}
	events, _, err := p.Objects(serving.KindEvent, "default").List(t.Context(), client.Selector{})
	if err != nil {
		t.Fatal(err)
	}
	seen := false
	for _, object := range events {
		event := object.(*serving.Event)
		seen = seen || event.Reason == "InstanceWaitsForMemory" && strings.Contains(event.Message, "--instance-memory")
	}
	if !seen {
		t.Error("no event tells of it")
	}
}

// TestMachine_RefusesAnInstanceLargerThanItself deploys a service whose limit can never be met.
func TestMachine_RefusesAnInstanceLargerThanItself(t *testing.T) {
	t.Parallel()
	p := start(t, func(c *server.Config) { c.Scaling.InstanceMemory = autoscaler.Amount{Bytes: 256 << 20} })
	s := service("hello", program(t, "hello"))
	message := p.failed(p.apply(s))
	for _, word := range []string{"512Mi", "256Mi", "--instance-memory"} {
		if !strings.Contains(message, word) {
			t.Errorf("the message does not name %s: %s", word, message)
		}
	}
}
