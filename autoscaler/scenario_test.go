package autoscaler

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-run/berth/engine"
)

var update = flag.Bool("update", false, "rewrite what the scenarios in testdata expect")

// TestScenarios runs the files in testdata in virtual time. A file holds what is set, a timeline, a line of
// dashes, and the table of what the autoscaler did: one line for each change. Rewrite the tables with -update
// when a rule changes on purpose, and read the difference.
//
//	set KEY VALUE        concurrency (containerConcurrency), start (how long a start takes), reachable and prove
//	                     (yes, no), prepared (most prepared instances), warm (how long a new instance uses its whole
//	                     CPU), or an annotation without its prefix, where that is Knative's
//	TIME requests N      from then on there are N requests at every moment
//	TIME rate N          from then on N requests arrive in a second
//	TIME set KEY VALUE   as above, for reachable and prove
//	TIME failing yes|no  from then on instances do not start
//	TIME cpu N           from then on the requests need N thousandths of a CPU in all; an instance has one CPU
//	TIME memory N        from then on each instance holds N MiB
//	TIME unmeasured yes|no  from then on instances do not say what they use
//	TIME crash [N]       the newest instance exits, or the Nth
//	TIME unready N       from then on the Nth instance takes no requests
//	TIME ready N         from then on the Nth instance takes requests again
//	TIME end
func TestScenarios(t *testing.T) {
	playFiles(t, "testdata/*.txt", play)
}

// playFiles plays the scenarios in files in virtual time, and compares what they led to with the tables that they end in.
func playFiles(t *testing.T, pattern string, play func(t *testing.T, script string) string) {
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("scenarios: %d files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			script, want, _ := strings.Cut(string(content), "----\n")
			var got string
			synctest.Test(t, func(t *testing.T) { got = play(t, script) })
			if *update {
				if err := os.WriteFile(file, []byte(script+"----\n"+got), 0o666); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", file, diff)
			}
		})
	}
}

// scenario is one file that is played.
type scenario struct {
	t          *testing.T
	engine     *fakeEngine
	autoscaler *Autoscaler
	revision   Revision
	pool       *fakePool
	began      time.Time
	rows       []row
}

func play(t *testing.T, script string) string {
	s := &scenario{t: t, engine: &fakeEngine{start: time.Second}, began: time.Now()}
	set, timeline := s.settings(script)
	settings := DefaultSettings()
	settings.PreparedMemory = spares(set.prepared)
	settings.StartsAtOnce = 1000
	s.autoscaler = New(s.engine, settings, testLogger(), nil)
	s.revision, s.pool = revision(t, s.autoscaler, "r", set.concurrency, set.annotations...)
	s.revision.Reachable, s.revision.Prove = set.reachable, set.prove
	s.autoscaler.OnChange = func(Key) { s.line() }
	s.engine.usage, s.pool.use.warm = s.pool.usage, set.warm
	run(t, s.autoscaler)
	s.autoscaler.Apply(s.revision)
	for _, line := range timeline {
		if !s.act(line) {
			break
		}
	}
	// What the autoscaler does after this is the end of the test, not of the story.
	table := fmt.Sprintf("%-8s %8s %8s %8s %8s %8s  %s\n", "time", "requests", "desired", "starting", "ready", "prepared", "notes")
	for _, r := range s.rows {
		table += strings.TrimRight(fmt.Sprintf("%-8s %s", r.at.Round(time.Millisecond), r.text), " ") + "\n"
	}
	return table
}

// row is what the table says of one moment.
type row struct {
	at   time.Duration
	text string
}

type scenarioSettings struct {
	concurrency, prepared int
	reachable, prove      bool
	warm                  time.Duration
	annotations           []string
}

func (s *scenario) settings(script string) (set scenarioSettings, timeline [][]string) {
	set.reachable = true
	for line := range strings.Lines(script) {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		if words[0] != "set" {
			timeline = append(timeline, words)
			continue
		}
		key, value := words[1], words[2]
		switch key {
		case "concurrency":
			set.concurrency = s.number(value)
		case "prepared":
			set.prepared = s.number(value)
		case "start":
			s.engine.start = s.duration(value)
		case "warm":
			set.warm = s.duration(value)
		case "reachable":
			set.reachable = value == "yes"
		case "prove":
			set.prove = value == "yes"
		default:
			set.annotations = append(set.annotations, key, value)
		}
	}
	return set, timeline
}

// act does what a line of the timeline says at its time; false at the end.
func (s *scenario) act(words []string) bool {
	time.Sleep(time.Until(s.began.Add(s.duration(words[0]))))
	synctest.Wait()
	switch words[1] {
	case "requests":
		s.pool.set(s.number(words[2]))
	case "rate":
		s.pool.flow(s.number(words[2]))
	case "cpu":
		s.pool.change(func(u *fakeUse) { u.cpu = s.number(words[2]) })
	case "memory":
		s.pool.change(func(u *fakeUse) { u.memory = int64(s.number(words[2])) << 20 })
	case "unmeasured":
		s.pool.change(func(u *fakeUse) { u.broken = words[2] == "yes" })
	case "set":
		switch words[2] {
		case "reachable":
			s.revision.Reachable = words[3] == "yes"
		case "prove":
			s.revision.Prove = words[3] == "yes"
		default:
			s.t.Fatalf("cannot set %q on the way", words[2])
		}
		s.autoscaler.Apply(s.revision)
	case "failing":
		s.engine.mu.Lock()
		s.engine.startErr = nil
		if words[2] == "yes" {
			s.engine.startErr = func(*fakeInstance) error {
				return &engine.StartError{Reason: engine.ReasonExited, Exit: &engine.Exit{Code: 3}, Port: 8080}
			}
		}
		s.engine.mu.Unlock()
	case "crash":
		crashing := s.engine.newest()
		if len(words) > 2 {
			crashing = s.engine.nth(s.number(words[2]))
		}
		crashing.crash(1)
	case "unready", "ready":
		s.engine.nth(s.number(words[2])).readiness <- words[1] == "ready"
	case "end":
		return false
	default:
		s.t.Fatalf("unknown word %q", words[1])
	}
	synctest.Wait()
	return true
}

// line adds a line to the table. Of several changes at one moment of virtual time, whose order is not ours to
// say, it shows what they led to. It is called by the autoscaler's loop, which owns the fleet.
func (s *scenario) line() {
	status, _ := s.autoscaler.Status(s.revision.Key)
	load := s.pool.Load()
	var notes []string
	s.autoscaler.mu.RLock()
	f := s.autoscaler.fleets[s.revision.Key]
	s.autoscaler.mu.RUnlock()
	if !f.judge.state.panicAt.IsZero() {
		notes = append(notes, "panic")
	}
	if load.Waiting > 0 {
		notes = append(notes, fmt.Sprintf("%d wait", load.Waiting))
	}
	var failure *engine.StartError
	if errors.As(status.Failure, &failure) {
		notes = append(notes, "failure "+failure.Reason)
	}
	if status.Failures > 0 {
		notes = append(notes, fmt.Sprintf("%d in a row", status.Failures))
	}
	unready := 0 // which ones is not told: instances that start at one moment have no order
	for _, i := range s.autoscaler.Instances() {
		if i.Unready {
			unready++
		}
	}
	if unready > 0 {
		notes = append(notes, fmt.Sprintf("%d unready", unready))
	}
	if n := len(s.pool.failed()); n > 0 {
		notes = append(notes, fmt.Sprintf("requests failed %d times", n))
	}
	at := time.Since(s.began)
	if n := len(s.rows); n > 0 && s.rows[n-1].at == at {
		s.rows = s.rows[:n-1]
	}
	s.rows = append(s.rows, row{at, fmt.Sprintf("%8d %8d %8d %8d %8d  %s", load.InFlight+load.Waiting,
		status.Desired, status.Starting, status.Ready, status.Prepared, strings.Join(notes, ", "))})
}

func (s *scenario) number(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

func (s *scenario) duration(text string) time.Duration {
	d, err := time.ParseDuration(text)
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}
