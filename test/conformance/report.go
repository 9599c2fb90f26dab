package main

import (
	"fmt"
	"strings"
)

// event is one line of go tool test2json.
type event struct {
	Action  string
	Test    string // empty for what concerns the package
	Output  string
	Elapsed float64 // seconds, without those that a test waits for its turn or for subtests beside it
}

// tally counts tests by how they ended. A test with a skipped subtest is skipped: not all of it was run.
type tally struct {
	passed, failed, skipped int
}

func (t *tally) add(other tally) {
	t.passed += other.passed
	t.failed += other.failed
	t.skipped += other.skipped
}

func (t *tally) all() int { return t.passed + t.failed + t.skipped }

// report follows the tests of one package and prints each as it ends.
type report struct {
	expected []string
	verbose  bool
	tests    map[string]*test
	other    strings.Builder // output of no test: the package's
	subtests int
}

// test is what is known of a test that began.
type test struct {
	output  strings.Builder // its subtests' too
	elapsed float64         // its subtests' together, in seconds
	skipped []string        // subtests
	ended   string          // pass, fail or skip; empty while it runs
}

func newReport(expected []string, verbose bool) *report {
	return &report{expected: expected, verbose: verbose, tests: map[string]*test{}}
}

// take takes one event.
func (r *report) take(e event) {
	if r.verbose {
		fmt.Print(e.Output)
	}
	if e.Test == "" {
		r.other.WriteString(e.Output)
		return
	}
	name, below, subtest := strings.Cut(e.Test, "/")
	t := r.tests[name]
	if t == nil {
		t = new(test)
		r.tests[name] = t
	}
	t.output.WriteString(e.Output)
	switch e.Action {
	case "pass", "fail", "skip":
	default:
		return
	}
	if subtest {
		r.subtests++
		if !strings.Contains(below, "/") {
			t.elapsed += e.Elapsed
		}
		if e.Action == "skip" {
			t.skipped = append(t.skipped, e.Test)
		}
		return
	}
	t.ended = e.Action
	if t.ended == "pass" && len(t.skipped) > 0 {
		t.ended = "skip"
	}
	fmt.Printf("%-4s  %-45s %6.1fs\n", map[string]string{"pass": "ok", "fail": "FAIL", "skip": "SKIP"}[t.ended], name, max(e.Elapsed, t.elapsed))
	if t.ended != "pass" && !r.verbose {
		fmt.Print(indented(t.output.String()))
	}
}

// finish counts how the tests ended, and prints why those that did not end are missing, unless they were
// interrupted. A test that was expected and did not end has failed.
func (r *report) finish(interrupted bool) tally {
	var count tally
	quiet := interrupted || r.verbose
	for _, name := range r.expected {
		t := r.tests[name]
		switch {
		case t == nil:
			fmt.Printf("FAIL  %s did not run\n", name)
			count.failed++
		case t.ended == "pass":
			count.passed++
		case t.ended == "skip":
			count.skipped++
		case t.ended == "fail":
			count.failed++
		default:
			fmt.Printf("FAIL  %s did not end\n", name)
			if !quiet {
				fmt.Print(indented(t.output.String()))
			}
			count.failed++
		}
	}
	if count.all() != count.passed && !quiet {
		fmt.Print(indented(r.other.String()))
	}
	return count
}

func indented(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString("      " + line)
	}
	return b.String()
}
