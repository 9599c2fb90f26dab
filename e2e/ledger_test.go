package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"
)

// ledger is what clients, the killer of instances and the access log say of the requests of a soak. A request is known
// to clients and to the access log by the ID of its trace.
type ledger struct {
	mu       sync.Mutex
	tallies  map[string]*tally // by kind of request
	failures []failure         // of all requests that did not end well
	kills    map[string]kill   // by instance
	seen     []sight           // by the number of the request
	odd      map[int]accessed  // lines that do not tell of a request that ended well, by its number
	unread   error             // why no more lines are read
}

// sight is who has told of a request: its client, and how many lines of the access log.
type sight struct{ calls, lines uint8 }

// tally counts the requests of one kind.
type tally struct {
	requests, lost, failed int
	times                  histogram // until the head of the answer, or its first message
}

// call is one request, or one session, as its client sees it.
type call struct {
	kind         string
	number       int    // of all calls
	instance     string // as the answer says; "" when it does not
	began, ended time.Time
	answered     time.Time // zero when there was no answer
}

// trace is the call's trace in W3C form, of which the access log has the ID.
func (c *call) trace() string { return fmt.Sprintf("%032x", c.number) }

// failure is a call that did not end well.
type failure struct {
	call
	err error
}

// refusedError is an answer of the gateway's own, or one that a request should not get.
type refusedError struct {
	status int
	text   string
}

func (e *refusedError) Error() string { return fmt.Sprintf("answer %d %.300q", e.status, e.text) }

// cutError is the end of an answer that had begun well.
type cutError struct{ err error }

func (e *cutError) Error() string { return "the answer was cut: " + e.err.Error() }
func (e *cutError) Unwrap() error { return e.err }

// kill is the end of an instance by a signal.
type kill struct {
	revision, instance string
	signal             syscall.Signal
	sent, ended        time.Time // the process lived until some moment between the two
}

// accessed is a line of the access log.
type accessed struct {
	Time     time.Time
	Path     string
	Status   int
	Duration float64 `json:"duration_ms"`
	Wait     float64 `json:"wait_ms"`
	Cut      bool
	Instance string
}

// claimed is when the request was given to its instance.
func (a accessed) claimed() time.Time {
	return a.Time.Add(time.Duration(a.Wait * float64(time.Millisecond)))
}

func newLedger() *ledger {
	return &ledger{tallies: map[string]*tally{}, kills: map[string]kill{}, odd: map[int]accessed{}}
}

// enter records a call that has ended, with err or well.
func (l *ledger) enter(c call, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.tallies[c.kind]
	if t == nil {
		t = new(tally)
		l.tallies[c.kind] = t
	}
	t.requests++
	l.sight(c.number).calls++
	if !c.answered.IsZero() {
		t.times.add(c.answered.Sub(c.began))
	}
	if err != nil {
		l.failures = append(l.failures, failure{c, err})
	}
}

// sight is called with mu held.
func (l *ledger) sight(number int) *sight {
	if more := number + 1 - len(l.seen); more > 0 {
		l.seen = append(l.seen, make([]sight, more)...)
	}
	return &l.seen[number]
}

func (l *ledger) enterKill(k kill) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kills[k.instance] = k
}

// killedOf tells whether an instance of a revision was killed since a time.
func (l *ledger) killedOf(revision string, since time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range l.kills {
		if k.revision == revision && k.sent.After(since) {
			return true
		}
	}
	return false
}

// read takes the lines of the access log until it ends.
func (l *ledger) read(log *bufio.Reader) {
	for {
		line, err := log.ReadSlice('\n')
		if err != nil {
			l.mu.Lock()
			l.unread = err
			l.mu.Unlock()
			return
		}
		l.mu.Lock()
		err = l.take(line)
		if l.unread = err; err != nil {
			l.mu.Unlock()
			return
		}
		l.mu.Unlock()
	}
}

// take takes one line. It is called with mu held.
func (l *ledger) take(line []byte) error {
	_, id, _ := bytes.Cut(line, []byte(`"trace":"`))
	number, err := strconv.ParseUint(string(id[:min(32, len(id))]), 16, 32)
	if err != nil {
		return fmt.Errorf("reading line %q: %w", line, err)
	}
	l.sight(int(number)).lines++
	if bytes.Contains(line, []byte(`"status":200,`)) && !bytes.Contains(line, []byte(`"cut":true`)) {
		return nil
	}
	var a accessed
	if err := json.Unmarshal(line, &a); err != nil {
		return fmt.Errorf("reading line %q: %w", line, err)
	}
	l.odd[int(number)] = a
	return nil
}

// complete tells whether the access log has one line for each request, and no others.
func (l *ledger) complete() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var strange []string
	for number, seen := range l.seen {
		if seen.calls != seen.lines {
			strange = append(strange, fmt.Sprintf("%d is there %d times for %d calls", number, seen.lines, seen.calls))
		}
	}
	if len(strange) == 0 {
		return nil
	}
	for _, f := range l.failures {
		if s := l.seen[f.number]; s.calls != s.lines {
			strange = append(strange, fmt.Sprintf("%d is %s: %v", f.number, f.kind, f.err))
		}
	}
	return fmt.Errorf("it has %d wrong: %q, %v", len(strange), strange[:min(10, len(strange))], l.unread)
}

func (l *ledger) requests() (n int) {
	for _, t := range l.tallies {
		n += t.requests
	}
	return n
}

// judge tells of each failure whether it belongs to the end of an instance, and reports the others. The access log must
// be complete.
func (l *ledger) judge(t *testing.T) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	known := map[int]bool{}
	wrong := 0
	for _, f := range l.failures {
		known[f.number] = true
		tally := l.tallies[f.kind]
		why := l.undeserved(f)
		if why == "" {
			tally.lost++
			continue
		}
		tally.failed++
		if wrong++; wrong <= 20 {
			t.Errorf("%s, %s to %s, instance %q: %v: %s", f.kind, f.began.Format(clock), f.ended.Format(clock), f.instance, f.err, why)
		}
	}
	if wrong > 20 {
		t.Errorf("… and %d more", wrong-20)
	}
	for number, a := range l.odd {
		if a.Status != 101 && !known[number] {
			t.Errorf("the access log has %+v, whose client saw nothing wrong", a)
		}
	}
}

// clock is a time of day as precise as the access log's.
const clock = "15:04:05.000000"

// undeserved is why a request should not have failed; "" when it was in flight on an instance that was killed, and its
// client was told so.
func (l *ledger) undeserved(f failure) string {
	var refused *refusedError
	var cut *cutError
	switch {
	case errors.As(f.err, &refused):
		if refused.status != 502 && refused.status != 503 || strings.TrimSpace(refused.text) != toldBroken {
			return "that is not what is said of an instance that has ended"
		}
	case !errors.As(f.err, &cut):
		return "neither was it refused, nor was its answer cut"
	}
	line, ok := l.odd[f.number]
	if !ok {
		return "the access log says that it ended well"
	}
	if f.instance != "" && f.instance != line.Instance {
		return fmt.Sprintf("the access log says that it was on instance %q", line.Instance)
	}
	k, ok := l.kills[line.Instance]
	switch {
	case !ok:
		return fmt.Sprintf("it was on instance %q, which was not killed", line.Instance)
	case line.claimed().After(k.ended):
		return fmt.Sprintf("it was given to instance %s at %s, which had ended before %s", k.instance, line.claimed().Format(clock), k.ended.Format(clock))
	case f.ended.Before(k.sent):
		return fmt.Sprintf("it was on instance %s, which was killed at %s", k.instance, k.sent.Format(clock))
	}
	return ""
}

// String is a table of the requests by kind.
func (l *ledger) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "requests\tfailures\tlost by kills\tp50\tp99\tlongest\t")
	row := func(name string, t *tally) {
		fmt.Fprintf(w, "%d\t%d\t%d\t%v\t%v\t%v\t %s\n", t.requests, t.failed, t.lost,
			t.times.quantile(.5), t.times.quantile(.99), t.times.longest.Round(10*time.Microsecond), name)
	}
	var all tally
	for _, kind := range slices.Sorted(maps.Keys(l.tallies)) {
		t := l.tallies[kind]
		row(kind, t)
		all.requests, all.failed, all.lost = all.requests+t.requests, all.failed+t.failed, all.lost+t.lost
		all.times.merge(&t.times)
	}
	row("all", &all)
	w.Flush() // to memory
	return text.String()
}

// histogram counts times in buckets, each a twentieth wider than the one before: from 10 µs to some hours.
type histogram struct {
	counts  [500]int
	total   int
	longest time.Duration
}

const (
	shortest = 10 * time.Microsecond
	wider    = 1.05
)

func (h *histogram) add(d time.Duration) {
	at := 0
	if d > shortest {
		at = min(int(math.Log(float64(d)/float64(shortest))/math.Log(wider)), len(h.counts)-1)
	}
	h.counts[at]++
	h.total++
	h.longest = max(h.longest, d)
}

func (h *histogram) merge(other *histogram) {
	for i, n := range other.counts {
		h.counts[i] += n
	}
	h.total += other.total
	h.longest = max(h.longest, other.longest)
}

// quantile is the time that a part of the times is at most, within a twentieth.
func (h *histogram) quantile(part float64) time.Duration {
	left := int(math.Ceil(part * float64(h.total)))
	for i, n := range h.counts {
		if left -= n; left <= 0 {
			d := float64(shortest) * math.Pow(wider, float64(i+1))
			return min(time.Duration(d), h.longest).Round(10 * time.Microsecond)
		}
	}
	return h.longest
}
