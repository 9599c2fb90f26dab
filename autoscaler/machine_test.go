package autoscaler

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berth-run/berth/engine"
)

// TestMachines runs the files in testdata/machine in virtual time: several revisions on a machine whose memory they
// share. A file holds what is set, the revisions, a timeline, a line of dashes, and the table of what there was: one
// line for each second in which something changed. At no moment may there be instances with more memory than is set.
//
//	set KEY VALUE        memory (of all instances), start and stop (how long they take)
//	revision NAME [memory=512Mi] [concurrency=N] [ANNOTATION=VALUE]
//	TIME NAME requests N from then on there are N requests at every moment
//	TIME NAME crashing yes|no   from then on its instances exit as soon as they are ready
//	TIME NAME remove
//	TIME end
//
// In the table, "4/3+1-2 w7" is a revision that should have 4 instances, has 3 ready, 1 starting, 2 that go, and 7
// requests that wait; "!" is one that says that it waits for memory.
func TestMachines(t *testing.T) {
	playFiles(t, "testdata/machine/*.txt", playMachine)
}

// machine is one file that is played.
type machine struct {
	t          *testing.T
	engine     *fakeEngine
	settings   Settings
	autoscaler *Autoscaler
	names      []string
	revisions  map[string]Revision
	pools      map[string]*fakePool
	crashing   map[string]bool
	began      time.Time
	table      strings.Builder
	last       string
	next       time.Duration // when it is looked at
}

func playMachine(t *testing.T, script string) string {
	m := &machine{t: t, engine: &fakeEngine{start: 100 * time.Millisecond, stop: 50 * time.Millisecond}, settings: DefaultSettings(), began: time.Now(), next: 50 * time.Millisecond,
		revisions: map[string]Revision{}, pools: map[string]*fakePool{}, crashing: map[string]bool{}}
	m.settings.StartsAtOnce = 1000
	m.settings.PreparedMemory = Amount{}
	for line := range strings.Lines(script) {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
		case words[0] == "set":
			m.set(words[1], words[2])
		case words[0] == "revision":
			m.declare(words[1], words[2:])
		case !m.act(words):
			return m.table.String()
		}
	}
	t.Fatal("the timeline has no end")
	return ""
}

func (m *machine) set(key, value string) {
	switch key {
	case "memory":
		m.check(m.settings.InstanceMemory.UnmarshalText([]byte(value)))
	case "prepared":
		m.check(m.settings.PreparedMemory.UnmarshalText([]byte(value)))
	case "start":
		m.engine.start = m.duration(value)
	case "stop":
		m.engine.stop = m.duration(value)
	default:
		m.t.Fatalf("cannot set %q", key)
	}
}

func (m *machine) declare(name string, options []string) {
	if m.autoscaler == nil {
		m.autoscaler = New(m.engine, m.settings, testLogger(), nil)
		run(m.t, m.autoscaler)
	}
	concurrency, memory := 1, Amount{Bytes: 512 << 20}
	var annotations []string
	for _, option := range options {
		key, value, _ := strings.Cut(option, "=")
		switch key {
		case "memory":
			m.check(memory.UnmarshalText([]byte(value)))
		case "concurrency":
			n, err := strconv.Atoi(value)
			m.check(err)
			concurrency = n
		default:
			annotations = append(annotations, key, value)
		}
	}
	r, pool := revision(m.t, m.autoscaler, name, concurrency, annotations...)
	r.Spec.Container.Memory = memory.Bytes
	m.names, m.revisions[name], m.pools[name] = append(m.names, name), r, pool
	m.autoscaler.Apply(r)
}

// act does what a line of the timeline says at its time, having looked at each second before; false at the end.
func (m *machine) act(words []string) bool {
	const every = 100 * time.Millisecond
	// Looked at ten times a second, told of once; between the ticks of the autoscaler, which are at the tenths.
	at := m.duration(words[0])
	for next := m.next; next < at; next += every {
		time.Sleep(time.Until(m.began.Add(next)))
		synctest.Wait()
		m.crash()
		m.look(next%time.Second == every/2)
		m.next = next + every
	}
	time.Sleep(time.Until(m.began.Add(at)))
	synctest.Wait()
	if words[1] == "end" {
		return false
	}
	pool := m.pools[words[1]]
	switch words[2] {
	case "requests":
		n, err := strconv.Atoi(words[3])
		m.check(err)
		pool.set(n)
	case "crashing":
		m.crashing[words[1]] = words[3] == "yes" // noticed within a tenth of a second
	case "remove":
		m.autoscaler.Remove(m.revisions[words[1]].Key)
	default:
		m.t.Fatalf("unknown word %q", words[2])
	}
	synctest.Wait()
	return true
}

// crash ends the ready instances of revisions that crash.
func (m *machine) crash() {
	for _, i := range m.autoscaler.Instances() {
		if m.crashing[i.Revision] && i.State == engine.Ready {
			m.autoscaler.Instance(i.ID).(*fakeInstance).crash(1)
		}
	}
	synctest.Wait()
}

// look checks that the memory is kept to, and adds a line to the table when something changed.
func (m *machine) look(tell bool) {
	var sum int64
	m.engine.mu.Lock()
	for _, i := range m.engine.instances {
		if i.started && !i.stopped {
			sum += sizeOf(i.spec)
		}
	}
	m.engine.mu.Unlock()
	limit := m.settings.InstanceMemory.Of(0)
	if status := m.autoscaler.Memory(); sum > limit || status.Used > limit || status.Used < sum {
		m.t.Errorf("at %s there are instances with %s, and %s is counted, of %s", time.Since(m.began), inBytes(sum), inBytes(status.Used), inBytes(limit))
	}
	if !tell {
		return
	}
	var line strings.Builder
	for _, name := range m.names {
		key := m.revisions[name].Key
		status, _ := m.autoscaler.Status(key)
		going := 0
		for _, i := range m.autoscaler.InstancesOf(key) {
			if i.State == engine.Draining || i.State == engine.Stopping {
				going++
			}
		}
		cell := fmt.Sprintf("%d/%d", status.Desired, status.Ready)
		if status.Starting > 0 {
			cell += fmt.Sprintf("+%d", status.Starting)
		}
		if going > 0 {
			cell += fmt.Sprintf("-%d", going)
		}
		if n := m.pools[name].Load().Waiting; n > 0 {
			cell += fmt.Sprintf(" w%d", n)
		}
		if status.Short != "" {
			cell += " !"
		}
		var failure *engine.StartError
		if errors.As(status.Failure, &failure) {
			cell += " " + failure.Reason
		}
		fmt.Fprintf(&line, " %-16s", cell)
	}
	if line.String() == m.last {
		return
	}
	if m.last == "" {
		fmt.Fprintf(&m.table, "%-6s", "time")
		for _, name := range m.names {
			fmt.Fprintf(&m.table, " %-16s", name)
		}
		m.table.WriteString("\n")
	}
	m.last = line.String()
	m.table.WriteString(strings.TrimRight(fmt.Sprintf("%-6s%s", time.Since(m.began).Truncate(time.Second), m.last), " ") + "\n")
}

func (m *machine) duration(text string) time.Duration {
	d, err := time.ParseDuration(text)
	m.check(err)
	return d
}

func (m *machine) check(err error) {
	if err != nil {
		m.t.Helper()
		m.t.Fatal(err)
	}
}
