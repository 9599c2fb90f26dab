package simulation

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// Function is one function of a trace: how often it was called in each minute of a day, and how long it took.
type Function struct {
	Name      string // owner, app and function
	Trigger   string
	Calls     [minutesOfDay]int
	Durations [len(durationRanks)]time.Duration // at the ranks of durationRanks
	Memory    float64                           // MiB of the function's app on average; 0 is not known
}

const minutesOfDay = 24 * 60

// durationRanks are the percentiles of durations that the trace holds.
var durationRanks = [...]int{0, 1, 25, 50, 75, 99, 100}

// Columns of the Azure Functions 2019 trace (Azure/AzurePublicDataset, AzureFunctionsDataset2019.md). There is a file of
// each kind for each day.
const (
	invocationsFile = "invocations_per_function_md.anon.d%02d.csv"
	durationsFile   = "function_durations_percentiles.anon.d%02d.csv"
	memoryFile      = "app_memory_percentiles.anon.d%02d.csv"
)

func invocationColumns() []string {
	columns := []string{"HashOwner", "HashApp", "HashFunction", "Trigger"}
	for m := 1; m <= minutesOfDay; m++ {
		columns = append(columns, strconv.Itoa(m))
	}
	return columns
}

func durationColumns() []string {
	columns := []string{"HashOwner", "HashApp", "HashFunction", "Average", "Count", "Minimum", "Maximum"}
	for _, rank := range durationRanks {
		columns = append(columns, fmt.Sprintf("percentile_Average_%d", rank))
	}
	return columns
}

func memoryColumns() []string {
	columns := []string{"HashOwner", "HashApp", "SampleCount", "AverageAllocatedMb"}
	for _, rank := range []int{1, 5, 25, 50, 75, 95, 99, 100} {
		columns = append(columns, fmt.Sprintf("AverageAllocatedMb_pct%d", rank))
	}
	return columns
}

// Limits on what a file may hold; the real ones have some ten thousand functions.
const (
	traceRows    = 1_000_000
	traceCalls   = 10_000_000 // of one function in one minute
	traceMilli   = 1e9        // 11 days
	traceMemory  = 1e7        // MiB
	traceDays    = 14
	traceMissing = 0.25 // part of the functions with calls that may have no durations
)

// Trace is a day of functions.
type Trace struct {
	Functions []Function
	Unknown   int // functions with calls that the trace has no durations of; they are left out
}

// LoadTrace reads a day of a trace in the Azure Functions 2019 format from a folder. The memory file may be missing, as it
// is for the last two days; an error names the file, the line and the column of what is wrong.
func LoadTrace(folder string, day int) (Trace, error) {
	if day < 1 || day > traceDays {
		return Trace{}, fmt.Errorf("day is %d: give a number from 1 to %d", day, traceDays)
	}
	var calls []Function
	err := readFile(filepath.Join(folder, fmt.Sprintf(invocationsFile, day)), invocationColumns(), 3, func(r row) error {
		f := Function{Name: r.key, Trigger: r.fields[3]}
		for m := range f.Calls {
			n, err := r.number(4+m, traceCalls)
			if err != nil {
				return err
			}
			if n != float64(int(n)) {
				return r.refuse(4+m, "give a whole number")
			}
			f.Calls[m] = int(n)
		}
		calls = append(calls, f)
		return nil
	})
	if err != nil {
		return Trace{}, err
	}
	durations := map[string][len(durationRanks)]time.Duration{}
	err = readFile(filepath.Join(folder, fmt.Sprintf(durationsFile, day)), durationColumns(), 3, func(r row) error {
		var ranks [len(durationRanks)]time.Duration
		for i := range ranks {
			ms, err := r.number(7+i, traceMilli)
			if err != nil {
				return err
			}
			ranks[i] = time.Duration(ms * float64(time.Millisecond))
			if i > 0 && ranks[i] < ranks[i-1] {
				return r.refuse(7+i, "it is less than the percentile before it")
			}
		}
		durations[r.key] = ranks
		return nil
	})
	if err != nil {
		return Trace{}, err
	}
	memory := map[string]float64{}
	err = readFile(filepath.Join(folder, fmt.Sprintf(memoryFile, day)), memoryColumns(), 2, func(r row) (err error) {
		memory[r.key], err = r.number(3, traceMemory)
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return Trace{}, err
	}
	return join(calls, durations, memory)
}

// join gives functions their durations, and the memory of their app.
func join(calls []Function, durations map[string][len(durationRanks)]time.Duration, memory map[string]float64) (Trace, error) {
	var t Trace
	for _, f := range calls {
		ranks, ok := durations[f.Name]
		if !ok {
			t.Unknown++
			continue
		}
		f.Durations, f.Memory = ranks, memory[appOf(f.Name)]
		t.Functions = append(t.Functions, f)
	}
	if len(t.Functions) == 0 || float64(t.Unknown) > traceMissing*float64(len(calls)) {
		return Trace{}, fmt.Errorf("joining the trace's files: %d of %d functions have no durations: are the files of the same day?", t.Unknown, len(calls))
	}
	return t, nil
}

// row is one line of a file.
type row struct {
	file    string
	line    int
	columns []string
	fields  []string
	key     string // the columns that name what the line is about
}

func (r row) refuse(column int, want string) error {
	return fmt.Errorf("%s, line %d, column %s: %q: %s", r.file, r.line, r.columns[column], r.fields[column], want)
}

func (r row) number(column int, most float64) (float64, error) {
	n, err := strconv.ParseFloat(r.fields[column], 64)
	// The comparison is written so that NaN does not pass.
	if err != nil || !(n >= 0 && n <= most) {
		return 0, r.refuse(column, fmt.Sprintf("give a number from 0 to %.0f", most))
	}
	return n, nil
}

func readFile(path string, columns []string, keys int, each func(row) error) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("opening the trace: %w", err)
	}
	defer file.Close()
	return readRows(file, filepath.Base(path), columns, keys, each)
}

// readRows reads comma-separated lines under a line with exactly these columns. The first of them, as many as keys, must
// be different in each line.
func readRows(from io.Reader, name string, columns []string, keys int, each func(row) error) error {
	lines := csv.NewReader(from)
	lines.ReuseRecord = true
	lines.FieldsPerRecord = -1
	head, err := lines.Read()
	if err != nil {
		return fmt.Errorf("%s, line 1: reading the names of columns: %w", name, err)
	}
	for i, column := range columns {
		if i >= len(head) || head[i] != column {
			return fmt.Errorf("%s, line 1: column %d is not %q: is it a file of the Azure Functions 2019 trace?", name, i+1, column)
		}
	}
	if len(head) > len(columns) {
		return fmt.Errorf("%s, line 1: column %q is unknown", name, head[len(columns)])
	}
	seen := map[string]int{}
	for {
		fields, err := lines.Read()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("%s: %w", name, err)
		}
		line, _ := lines.FieldPos(0)
		if len(fields) != len(columns) {
			return fmt.Errorf("%s, line %d: %d columns, want %d", name, line, len(fields), len(columns))
		}
		r := row{file: name, line: line, columns: columns, fields: fields}
		for i, field := range fields[:keys] {
			if field == "" {
				return r.refuse(i, "it is empty")
			}
			r.key += "/" + field
		}
		r.key = r.key[1:]
		if before, twice := seen[r.key]; twice {
			return fmt.Errorf("%s, line %d: %s is in line %d too", name, line, r.key, before)
		}
		if seen[r.key] = line; len(seen) > traceRows {
			return fmt.Errorf("%s has more than %d lines", name, traceRows)
		}
		if err := each(r); err != nil {
			return err
		}
	}
}

// appOf is the name of a function's app: its name without the last part. Names of parts have no slashes: a hash has none,
// and a part that has one makes an app that no memory is known of.
func appOf(function string) string {
	for i := len(function) - 1; i >= 0; i-- {
		if function[i] == '/' {
			return function[:i]
		}
	}
	return function
}
