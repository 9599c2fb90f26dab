package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-run/berth/engine"
)

var testLog = logName{"default", "hello", "hello-00001"}

func testLogs(t *testing.T, dir string) *logs {
	t.Helper()
	l, err := openLogs(dir, LeastLogKeep, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// say has a container's output be text, and returns when it is kept.
func say(t *testing.T, l *logs, id, text string) *output {
	t.Helper()
	log := l.use(testLog)
	defer l.done(log)
	o, stdout, stderr, err := openOutput(log, source{id, "web"}, os.Getuid())
	if err != nil {
		t.Fatal(err)
	}
	stderr.Close()
	if _, err := stdout.WriteString(text); err != nil {
		t.Fatal(err)
	}
	stdout.Close()
	o.readers.Wait()
	o.close()
	return o
}

func texts(t *testing.T, l *logs, q engine.LogQuery) []string {
	t.Helper()
	var found []string
	err := l.query(t.Context(), q, func(line engine.LogLine) error {
		found = append(found, line.Text)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestLogs_KeepLinesAcrossRestartsAndCutTheLong(t *testing.T) {
	dir := t.TempDir()
	long := strings.Repeat("x", maxLine+10)
	o := say(t, testLogs(t, dir), "hello-00001-aaaaa", "one\n\n  two spaces \nno newline")
	if diff := cmp.Diff([]string{"one", "", "  two spaces ", "no newline"}, o.lastLines()); diff != "" {
		t.Error(diff)
	}
	say(t, testLogs(t, dir), "hello-00001-bbbbb", long+"\nafter\n")
	want := []string{"one", "", "  two spaces ", "no newline", long[:maxLine], long[maxLine:], "after"}
	if diff := cmp.Diff(want, texts(t, testLogs(t, dir), engine.LogQuery{})); diff != "" {
		t.Error(diff)
	}
}

func TestLogs_HaveStdoutBeforeTheStderrThatCameAfter(t *testing.T) {
	l := testLogs(t, t.TempDir())
	log := l.use(testLog)
	defer l.done(log)
	o, stdout, stderr, err := openOutput(log, source{"hello-00001-aaaaa", "web"}, os.Getuid())
	if err != nil {
		t.Fatal(err)
	}
	const count = 3000
	for i := range count {
		for _, end := range []*os.File{stdout, stderr} {
			if _, err := fmt.Fprintf(end, "%d\n", i); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := stdout.WriteString("no newline"); err != nil {
		t.Fatal(err)
	}
	stdout.Close()
	stderr.Close()
	o.readers.Wait()
	o.close()
	next := map[string]int{}
	err = l.query(t.Context(), engine.LogQuery{}, func(line engine.LogLine) error {
		if line.Text == "no newline" {
			next["end"]++
			return nil
		}
		if line.Text != fmt.Sprint(next[line.Stream]) {
			return fmt.Errorf("%s has %q after %d lines", line.Stream, line.Text, next[line.Stream])
		}
		next[line.Stream]++
		if next["stderr"] > next["stdout"] {
			return fmt.Errorf("line %s of stderr is before that of stdout", line.Text)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if next["stdout"] != count || next["stderr"] != count || next["end"] != 1 {
		t.Errorf("lines are missing: %v", next)
	}
}

func TestLogs_StopReadingWhenClosed(t *testing.T) {
	l := testLogs(t, t.TempDir())
	log := l.use(testLog)
	defer l.done(log)
	o, stdout, stderr, err := openOutput(log, source{"hello-00001-aaaaa", "web"}, os.Getuid())
	if err != nil {
		t.Fatal(err)
	}
	defer stdout.Close()
	defer stderr.Close()
	if _, err := stderr.WriteString("held open"); err != nil {
		t.Fatal(err)
	}
	o.drain(time.Millisecond) // it does not wait for those who hold the pipes
	o.close()
	if _, err := stdout.WriteString("more\n"); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("writing to a closed output: %v", err)
	}
}

func TestLogs_LeaveOutALineThatACrashCutShort(t *testing.T) {
	dir := t.TempDir()
	say(t, testLogs(t, dir), "hello-00001-aaaaa", "one\n")
	name := testLog
	file, err := os.OpenFile(logFile(name.dir(dir), 1), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteString("2026-01-01T00:00:00Z stdo"); err != nil {
		t.Fatal(err)
	}
	file.Close()
	say(t, testLogs(t, dir), "hello-00001-bbbbb", "two\n")
	if diff := cmp.Diff([]string{"one", "two"}, texts(t, testLogs(t, dir), engine.LogQuery{})); diff != "" {
		t.Error(diff)
	}
}

func TestLogs_ForgetTheOldestAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	l := testLogs(t, dir)
	var b strings.Builder
	const count = 20000
	for i := range count {
		fmt.Fprintf(&b, "line %d\n", i)
	}
	say(t, l, "hello-00001-aaaaa", b.String())
	found := texts(t, l, engine.LogQuery{})
	if len(found) == 0 || len(found) == count {
		t.Fatalf("%d of %d lines are kept", len(found), count)
	}
	for i, text := range found {
		if want := fmt.Sprintf("line %d", count-len(found)+i); text != want {
			t.Fatalf("line %d from the end is %q, want %q", len(found)-i, text, want)
		}
	}
	var size int64
	files, err := filepath.Glob(filepath.Join(dir, "*", "*", "*", "*.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	if size > l.keep || size < l.keep/2 {
		t.Errorf("%d bytes are kept, want as many as fit in %d", size, l.keep)
	}
}

func TestLogs_RefuseToKeepLessThanALine(t *testing.T) {
	_, err := openLogs(t.TempDir(), LeastLogKeep-1, slog.Default())
	if err == nil || !strings.Contains(err.Error(), "--log-keep=524287 ") || !strings.Contains(err.Error(), "512Ki") {
		t.Errorf("got %v", err)
	}
	l := testLogs(t, t.TempDir())
	long := strings.Repeat("x", maxLine-1)
	say(t, l, "hello-00001-aaaaa", strings.Repeat(long+"\n", 8))
	if found := texts(t, l, engine.LogQuery{}); len(found) < segments {
		t.Errorf("%d of the longest lines are kept, want at least one in each of %d files", len(found), segments)
	}
}

func TestLogs_AreFoundBelowAnyDirectory(t *testing.T) {
	l := testLogs(t, filepath.Join(t.TempDir(), "[a] *?\\"))
	say(t, l, "hello-00001-aaaaa", "one\n")
	if diff := cmp.Diff([]string{"one"}, texts(t, l, engine.LogQuery{Service: "hello"})); diff != "" {
		t.Error(diff)
	}
}

func TestLogs_TailIsTheLastLinesInOrder(t *testing.T) {
	l := testLogs(t, t.TempDir())
	say(t, l, "hello-00001-aaaaa", "one\ntwo\nthree\nfour\nfive\n")
	for most, want := range map[int][]string{
		1: {"five"}, 2: {"four", "five"}, 3: {"three", "four", "five"}, 5: {"one", "two", "three", "four", "five"}, 1 << 40: {"one", "two", "three", "four", "five"},
	} {
		if diff := cmp.Diff(want, texts(t, l, engine.LogQuery{Tail: most})); diff != "" {
			t.Errorf("tail %d: %s", most, diff)
		}
	}
}

func TestLogs_FollowAcrossFilesWithoutLoss(t *testing.T) {
	l := testLogs(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	const count = 1000
	done := make(chan error, 1)
	seen := make(chan int, 1)
	started := make(chan struct{})
	go func() {
		n := 0
		done <- l.query(ctx, engine.LogQuery{Service: "hello", Follow: true}, func(line engine.LogLine) error {
			if n == 0 {
				close(started)
			}
			if want := fmt.Sprintf("line %d", n); !strings.HasPrefix(line.Text, want+" ") {
				return fmt.Errorf("got %.20q, want %q", line.Text, want)
			}
			if n++; n == count {
				seen <- n
			}
			return nil
		})
	}()
	r := l.use(testLog)
	defer l.done(r)
	padding := strings.Repeat(".", 300)
	for i := range count {
		r.write(source{"hello-00001-aaaaa", "web"}, "stdout", []string{fmt.Sprintf("line %d %s", i, padding)})
		if i == 0 {
			select {
			case <-started:
			case err := <-done:
				t.Fatal(err)
			}
		}
		if i == count/2 && r.number < 2 {
			t.Fatal("all lines are in one file: the test does not test following across files")
		}
	}
	select {
	case <-seen:
	case err := <-done:
		t.Fatal(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestLogs_RemoveThoseOfOneService(t *testing.T) {
	l := testLogs(t, t.TempDir())
	say(t, l, "hello-00001-aaaaa", "one\n")
	if err := l.remove("default", "other", ""); err != nil {
		t.Fatal(err)
	}
	if found := texts(t, l, engine.LogQuery{}); len(found) != 1 {
		t.Errorf("got %q", found)
	}
	if err := l.remove("default", "hello", ""); err != nil {
		t.Fatal(err)
	}
	if found := texts(t, l, engine.LogQuery{}); len(found) != 0 {
		t.Errorf("got %q", found)
	}
}

func TestLogs_RemoveThoseOfOneRevision(t *testing.T) {
	dir := t.TempDir()
	l := testLogs(t, dir)
	for _, revision := range []string{"hello-00001", "hello-00002"} {
		r := l.use(logName{"default", "hello", revision})
		defer l.done(r)
		r.write(source{revision + "-aaaaa", "web"}, "stdout", []string{revision})
	}
	if err := l.remove("default", "hello", "hello-00001"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"hello-00002"}, texts(t, l, engine.LogQuery{})); diff != "" {
		t.Error(diff)
	}
	if err := l.remove("default", "hello", "hello-00002"); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestLogs_FollowAServiceThatIsMadeAgain(t *testing.T) {
	l := testLogs(t, t.TempDir())
	name := testLog
	seen, done := make(chan string), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r := l.use(name)
	r.write(source{"hello-00001-aaaaa", "web"}, "stdout", []string{"first"})
	go func() {
		done <- l.query(ctx, engine.LogQuery{Service: "hello", Follow: true}, func(line engine.LogLine) error {
			seen <- line.Text
			return nil
		})
	}()
	expect := func(want string) {
		t.Helper()
		select {
		case got := <-seen:
			if got != want {
				t.Fatalf("got %.30q, want %.30q", got, want)
			}
		case err := <-done:
			t.Fatal(err)
		case <-time.After(time.Minute):
			t.Fatalf("%.30q did not come", want)
		}
	}
	expect("first")
	// Once in its first file, and once in its second: those that come after have the same numbers.
	padding := strings.Repeat(".", maxLine-100)
	for _, lines := range []int{1, 3} {
		if err := l.remove("default", "hello", ""); err != nil {
			t.Fatal(err)
		}
		l.done(r)
		r = l.use(name)
		for i := range lines {
			text := fmt.Sprintf("line %d of %d %s", i, lines, padding)
			r.write(source{"hello-00001-bbbbb", "web"}, "stdout", []string{text})
			expect(text)
		}
	}
	if r.number != 2 {
		t.Errorf("the log is in file %d: the test does not test what it should", r.number)
	}
	if err := l.remove("default", "hello", ""); err != nil {
		t.Fatal(err)
	}
	l.done(r)
	r = l.use(name)
	defer l.done(r)
	r.write(source{"hello-00001-ccccc", "web"}, "stdout", []string{"last"})
	expect("last")
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestListened_ReadsBothTables(t *testing.T) {
	for line, want := range map[string]string{
		"   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000":                     "127.0.0.1:8080",
		"   0: 00000000000000000000000000000000:0BB8 00000000000000000000000000000000:0000 0A 0": "[::]:3000",
		"   0: 00000000000000000000000001000000:0BB8 00000000000000000000000000000000:0000 0A 0": "[::1]:3000",
		"   0: 0100007F:1F90 0100007F:C001 01 00000000:00000000":                                 "",
		"  sl  local_address rem_address   st tx_queue rx_queue":                                 "",
	} {
		if got, _ := parseListener(line); got != want {
			t.Errorf("%q: got %q, want %q", line, got, want)
		}
	}
}

func TestResolvConf_KeepsSearchAndOptions(t *testing.T) {
	servers, extra := parseResolvConf("# made by hand\nnameserver 127.0.0.53\nnameserver fd00::1\noptions edns0 trust-ad\nsearch lan example.com\n")
	if diff := cmp.Diff([]string{"127.0.0.53:53", "[fd00::1]:53"}, servers); diff != "" {
		t.Error(diff)
	}
	if want := "options edns0 trust-ad\nsearch lan example.com\n"; extra != want {
		t.Errorf("got %q, want %q", extra, want)
	}
}
