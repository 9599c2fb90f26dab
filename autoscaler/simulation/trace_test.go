package simulation

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-run/berth/autoscaler"
)

// folder returns a folder with a small valid trace, of which edit changes a file.
func folder(t *testing.T, file string, edit func(string) string) string {
	t.Helper()
	dir := t.TempDir()
	if err := WriteSynthetic(dir, 20, 1); err != nil {
		t.Fatal(err)
	}
	if file != "" {
		path := filepath.Join(dir, file)
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(edit(string(content))), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestLoadTrace_JoinsTheFilesOfADay(t *testing.T) {
	trace, err := LoadTrace(folder(t, "", nil), 1)
	if err != nil {
		t.Fatal(err)
	}
	if len(trace.Functions) != 20 || trace.Unknown != 0 {
		t.Fatalf("%d functions, %d unknown, want 20 and 0", len(trace.Functions), trace.Unknown)
	}
	for _, f := range trace.Functions {
		if f.Trigger == "" || f.Durations[3] <= 0 || f.Memory <= 0 || strings.Count(f.Name, "/") != 2 {
			t.Errorf("function %+v lacks something", f)
		}
	}
}

func TestLoadTrace_SaysWhereAFileIsWrong(t *testing.T) {
	calls, durations, memory := "invocations_per_function_md.anon.d01.csv", "function_durations_percentiles.anon.d01.csv", "app_memory_percentiles.anon.d01.csv"
	// second replaces a column of the second line.
	second := func(column int, value string) func(string) string {
		return func(content string) string {
			lines := strings.Split(content, "\n")
			fields := strings.Split(lines[1], ",")
			fields[column] = value
			lines[1] = strings.Join(fields, ",")
			return strings.Join(lines, "\n")
		}
	}
	for _, test := range []struct {
		name, file string
		edit       func(string) string
		want       string
	}{
		{"no number", calls, second(9, "x"), calls + `, line 2, column 6: "x": give a number from 0 to 10000000`},
		{"a part of a call", calls, second(4, "0.5"), calls + `, line 2, column 1: "0.5": give a whole number`},
		{"less than none", calls, second(4, "-1"), calls + `, line 2, column 1: "-1": give a number from 0 to 10000000`},
		{"no name", calls, second(1, ""), calls + `, line 2, column HashApp: "": it is empty`},
		{"not a number", durations, second(10, "NaN"), durations + `, line 2, column percentile_Average_50: "NaN": give a number from 0 to 1000000000`},
		{"percentiles that fall", durations, second(12, "0"), durations + `, line 2, column percentile_Average_99: "0": it is less than the percentile before it`},
		{"another file", calls, func(string) string { return "a,b\n1,2\n" }, calls + `, line 1: column 1 is not "HashOwner": is it a file of the Azure Functions 2019 trace?`},
		{"a column too many", memory, func(s string) string { return strings.Replace(s, "pct100", "pct100,more", 1) }, memory + `, line 1: column "more" is unknown`},
		{"a short line", memory, func(s string) string { return s + "a,b,1\n" }, memory + ", line 9: 3 columns, want 12"},
		{"a line twice", memory, func(s string) string { return s + strings.Split(s, "\n")[1] + "\n" }, "is in line 2 too"},
		{"nothing", durations, func(string) string { return "" }, durations + ", line 1: reading the names of columns: EOF"},
		{"a quote", memory, func(s string) string { return s + "\"a\n" }, memory},
		{"another day", durations, func(s string) string { return strings.SplitAfter(s, "\n")[0] }, "20 of 20 functions have no durations"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := LoadTrace(folder(t, test.file, test.edit), 1)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, want %q", err, test.want)
			}
		})
	}
	if _, err := LoadTrace(t.TempDir(), 1); err == nil || !strings.Contains(err.Error(), calls) {
		t.Errorf("without files the error is %v, want it to name %s", err, calls)
	}
	if _, err := LoadTrace(t.TempDir(), 15); err == nil {
		t.Error("day 15 was taken")
	}
}

func TestLoadTrace_DoesWithoutMemory(t *testing.T) {
	dir := folder(t, "", nil)
	if err := os.Remove(filepath.Join(dir, "app_memory_percentiles.anon.d01.csv")); err != nil {
		t.Fatal(err)
	}
	if trace, err := LoadTrace(dir, 1); err != nil || trace.Functions[0].Memory != 0 {
		t.Errorf("%v, want functions of no known memory", err)
	}
}

func TestSyntheticTrace_IsWhatItsGeneratorWrites(t *testing.T) {
	dir := t.TempDir()
	if err := WriteSynthetic(dir, 200, 1); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("testdata/*.csv")
	if err != nil || len(files) != 3 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(dir, filepath.Base(file)))
		if err != nil || string(got) != string(want) {
			t.Errorf("%s differs (%v): write it with go run ./bench/autoscaler -synthesize", file, err)
		}
	}
}

func FuzzReadRows(f *testing.F) {
	f.Add("a,b,n\nx,y,1\n")
	f.Add("a,b,n\nx,y,1\nx,y,2\n")
	f.Add("a,b,n\n\"x\ny\",z,NaN\n")
	f.Fuzz(func(t *testing.T, content string) {
		err := readRows(strings.NewReader(content), "file", []string{"a", "b", "n"}, 2, func(r row) error {
			if len(r.fields) != 3 || r.line < 2 || r.fields[0] == "" || r.fields[1] == "" {
				t.Errorf("row %+v", r)
			}
			n, err := r.number(2, 100)
			if err == nil && !(n >= 0 && n <= 100) {
				t.Errorf("number %v", n)
			}
			return err
		})
		if err != nil && !strings.HasPrefix(err.Error(), "file") {
			t.Errorf("error does not name the file: %v", err)
		}
	})
}

func TestFunction_RequestsAreThoseOfItsMinutes(t *testing.T) {
	f := Function{Durations: [...]time.Duration{0, seconds(0.01)[0], seconds(0.02)[0], seconds(0.03)[0], seconds(0.04)[0], seconds(0.05)[0], seconds(0.1)[0]}}
	f.Calls[3], f.Calls[7] = 1000, 2
	var counts [minutesOfDay]int
	last := time.Duration(0)
	short := 0
	for _, r := range f.Requests(1) {
		counts[r.At/time.Minute]++
		if r.At < last || r.Service < leastDuration || r.Service > 100*time.Millisecond {
			t.Errorf("request %+v after %s", r, last)
		}
		last = r.At
		if r.Service <= 30*time.Millisecond {
			short++
		}
	}
	if diff := cmp.Diff(f.Calls, counts); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	if short < 430 || short > 570 {
		t.Errorf("%d of 1002 are below the median", short)
	}
}

func TestReplay_MakesTheGeometricMeanOfFunctions(t *testing.T) {
	// One call a day each, of 1 s and of 100 ms, that wait for a start of 1 s: slowdowns of 2 and 11.
	a, b := Function{Name: "a"}, Function{Name: "b"}
	for i := range durationRanks {
		a.Durations[i], b.Durations[i] = time.Second, 100*time.Millisecond
	}
	a.Calls[5], b.Calls[700] = 1, 1
	got, err := Replay(Trace{Functions: []Function{a, b, {Name: "never called"}}}, ReplayRevision(time.Second), BerthRules, autoscaler.DefaultSettings())
	if err != nil {
		t.Fatal(err)
	}
	if want := math.Sqrt(2 * 11); math.Abs(got.Mean-want) > 1e-9 || math.Abs(got.P99-11) > 1e-9 || got.Functions != 2 || got.Requests != 2 {
		t.Errorf("slowdown is %v, p99 %v of %d functions, want %v and 11 of 2", got.Mean, got.P99, got.Functions, want)
	}
	oracle, err := Replay(Trace{Functions: []Function{a, b}}, ReplayRevision(time.Second), nil, autoscaler.Settings{})
	if err != nil || oracle.Mean != 1 {
		t.Errorf("the oracle's slowdown is %v (%v), want 1", oracle.Mean, err)
	}
}
