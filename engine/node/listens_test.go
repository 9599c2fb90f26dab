package node

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/engine/enginetest"
)

// watchListens opens a watch of its own; the test is skipped where the kernel does not let it.
func watchListens(t *testing.T) *listens {
	t.Helper()
	dir := t.TempDir()
	namespace, err := newMountNamespace(func() error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(namespace.close)
	l, err := openListens(namespace, filepath.Join(dir, "tracing"))
	if err != nil {
		t.Skipf("the kernel does not tell: %v", err)
	}
	t.Cleanup(func() {
		if err := l.close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func namespaceHere(t *testing.T) uint64 {
	t.Helper()
	file, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	return namespaceInode(file)
}

func awaitHeard(t *testing.T, w *listening) {
	t.Helper()
	select {
	case <-w.heard:
	case <-time.After(10 * time.Second):
		t.Fatal("nothing was heard within 10 s")
	}
}

func TestListens_TellsOfAProgramThatBeginsToListen(t *testing.T) {
	l := watchListens(t)
	w := l.watch(namespaceHere(t))
	defer w.end()
	for _, network := range []string{"tcp4", "tcp6", "tcp"} {
		listener, err := net.Listen(network, "localhost:0")
		if err != nil {
			t.Logf("%s: %v", network, err)
			continue
		}
		awaitHeard(t, w)
		listener.Close()
	}
}

func TestListens_TellsOnlyThoseInTheSameNetworkNamespace(t *testing.T) {
	l := &listens{waiting: map[uint64]map[*listening]struct{}{}} // the kernel tells it of nobody else
	apart, done := make(chan uint64), make(chan struct{})
	var thread int
	onOwnThread(func() {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
		}
		var status unix.Stat_t
		if err := unix.Stat("/proc/thread-self/ns/net", &status); err != nil {
			t.Error(err)
		}
		thread = unix.Gettid()
		apart <- status.Ino
		<-done
	})
	here, there := l.watch(namespaceHere(t)), l.watch(<-apart)
	defer here.end()
	defer there.end()
	l.tell(uint32(thread))
	close(done)
	awaitHeard(t, there)
	select {
	case <-here.heard:
		t.Error("who waits for another network namespace was told")
	default:
	}
}

func TestListens_IsOffWhileNobodyWaits(t *testing.T) {
	l := watchListens(t)
	isOn := func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.on
	}
	w, again := l.watch(1), l.watch(1)
	w.end()
	w.end()
	l.turnOff()
	if !isOn() {
		t.Error("it is off while somebody waits")
	}
	again.end()
	l.turnOff()
	if isOn() {
		t.Error("it is on while nobody waits")
	}
	w = l.watch(namespaceHere(t))
	defer w.end()
	listenLocally(t)
	awaitHeard(t, w)
}

func TestListens_WhatIsLostIsToldToAll(t *testing.T) {
	l := watchListens(t)
	one, other := l.watch(1), l.watch(2)
	defer one.end()
	defer other.end()
	l.tell(0)
	awaitHeard(t, one)
	awaitHeard(t, other)
	l.tell(1 << 30) // no thread has this number
	awaitHeard(t, one)
	awaitHeard(t, other)
}

func TestRing_ReadsRecordsAcrossItsEnd(t *testing.T) {
	var head, tail uint64
	words := make([]uint64, 8)
	r := &ring{head: &head, tail: &tail, words: words}
	write := func(record ...uint64) {
		for _, word := range record {
			words[head/8%8] = word
			head += 8
		}
	}
	const sample, lost = uint64(unix.PERF_RECORD_SAMPLE) | 16<<48, uint64(unix.PERF_RECORD_LOST) | 24<<48
	var got []uint32
	for thread := range uint64(5) {
		write(sample, 7|(thread+100)<<32)
		write(lost, 1, 2)
		r.drain(func(thread uint32) { got = append(got, thread) })
	}
	if diff := cmp.Diff([]uint32{100, 0, 101, 0, 102, 0, 103, 0, 104, 0}, got); diff != "" {
		t.Errorf("threads (-want +got):\n%s", diff)
	}
	if head != tail {
		t.Errorf("read up to %d of %d", tail, head)
	}
}

func TestParseProcessors(t *testing.T) {
	for list, want := range map[string][]int{"0": {0}, "0-2": {0, 1, 2}, "0-1,4,6-7": {0, 1, 4, 6, 7}} {
		got, err := parseProcessors(list)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%q: error %v (-want +got):\n%s", list, err, diff)
		}
	}
	for _, list := range []string{"", "a", "3-1", "0-65535", "1-", "-1"} {
		if got, err := parseProcessors(list); err == nil {
			t.Errorf("%q: got %v, want an error", list, got)
		}
	}
}

func TestPauses(t *testing.T) {
	const ms = time.Millisecond
	for _, test := range []struct{ elapsed, polled, told time.Duration }{
		{0, ms / 2, 10 * ms},
		{100 * ms, ms / 2, 10 * ms},
		{200 * ms, ms, 20 * ms},
		{500 * ms, 5 * ms / 2, 50 * ms},
		{10 * time.Second, 5 * ms, 100 * ms},
	} {
		polled, told := polledPauses.after(test.elapsed), toldPauses.after(test.elapsed)
		if polled != test.polled || told != test.told {
			t.Errorf("after %s: %s and %s, want %s and %s", test.elapsed, polled, told, test.polled, test.told)
		}
	}
}

func TestOpening_WhatIsHeardIsTriedSoonAndAgain(t *testing.T) {
	heard := make(chan struct{}, 1)
	heard <- struct{}{}
	wait := &opening{begun: time.Now().Add(-time.Hour), heard: heard}
	if err := wait.pause(t.Context()); err != nil || wait.soon != openPauses {
		t.Fatalf("got error %v, and %d tries that come soon, want %d", err, wait.soon, openPauses)
	}
	for wait.soon > 0 {
		if err := wait.pause(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := wait.pause(ended); err == nil {
		t.Error("it goes on after its context has ended")
	}
}

func TestRelease_OfAnInstanceThatWasStoppedWaitsForNoPort(t *testing.T) {
	t.Parallel()
	e := openEngineWith(t, t.TempDir(), "crun")
	if e.listens == nil {
		t.Skip("the kernel does not tell when programs open their ports")
	}
	i := enginetest.New(t, e).Prepare(t, nil, "serve").(*instance)
	i.Stop(0)
	// As of a Start that is under way meanwhile.
	if err := i.containers[0].life.release(); err == nil {
		t.Error("a container that is gone begins")
	}
	e.listens.mu.Lock()
	defer e.listens.mu.Unlock()
	if left := len(e.listens.waiting); left > 0 {
		t.Errorf("in %d network namespaces somebody still waits for programs to listen", left)
	}
}
