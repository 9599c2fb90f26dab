package main

import (
	"io"
	"strings"
	"testing"
)

func TestReport_CountsWhatEndedAndWhatDidNot(t *testing.T) {
	for name, test := range map[string]struct {
		events string
		want   tally
	}{
		"a test that passes": {`
			{"Action":"run","Test":"TestA"}
			{"Action":"output","Test":"TestA","Output":"--- PASS: TestA\\n"}
			{"Action":"pass","Test":"TestA"}
			{"Action":"pass"}`, tally{passed: 1}},
		"a test that fails in a subtest": {`
			{"Action":"run","Test":"TestA"}
			{"Action":"run","Test":"TestA/one"}
			{"Action":"fail","Test":"TestA/one"}
			{"Action":"fail","Test":"TestA"}
			{"Action":"fail"}`, tally{failed: 1}},
		"a test that is skipped": {`
			{"Action":"run","Test":"TestA"}
			{"Action":"skip","Test":"TestA"}
			{"Action":"pass"}`, tally{skipped: 1}},
		"a test with a subtest that is skipped": {`
			{"Action":"run","Test":"TestA"}
			{"Action":"skip","Test":"TestA/one"}
			{"Action":"pass","Test":"TestA/two"}
			{"Action":"pass","Test":"TestA"}
			{"Action":"pass"}`, tally{skipped: 1}},
		"a test that did not end": {`
			{"Action":"run","Test":"TestA"}
			{"Action":"output","Test":"TestA","Output":"panic: test timed out\\n"}`, tally{failed: 1}},
		"a test that did not run": {`
			{"Action":"pass"}`, tally{failed: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newReport([]string{"TestA"}, false)
			lines := strings.ReplaceAll(strings.TrimSpace(test.events), "\t", "")
			if err := read(strings.NewReader(lines), io.Discard, r); err != nil {
				t.Fatal(err)
			}
			if got := r.finish(false); got != test.want {
				t.Errorf("counted %+v, want %+v", got, test.want)
			}
		})
	}
}

func TestReport_CountsSubtests(t *testing.T) {
	r := newReport([]string{"TestA"}, false)
	for _, e := range []event{
		{Action: "run", Test: "TestA"}, {Action: "run", Test: "TestA/one"}, {Action: "pass", Test: "TestA/one"},
		{Action: "pass", Test: "TestA/two/deep"}, {Action: "pass", Test: "TestA/two"}, {Action: "pass", Test: "TestA"},
	} {
		r.take(e)
	}
	if r.subtests != 3 {
		t.Errorf("counted %d subtests, want 3", r.subtests)
	}
}

func TestResidue_ThatGrowsIsAnError(t *testing.T) {
	first := &residue{links: 10, files: 50, mounts: 22}
	for name, test := range map[string]struct {
		now  residue
		warm bool
		want string // in the error; empty for none
	}{
		"nothing":                  {residue{links: 10, files: 50, mounts: 22}, true, ""},
		"what the first run keeps": {residue{links: 40, files: 150, mounts: 23}, false, ""},
		"an object":                {residue{objects: []string{"pods x/y"}}, false, "pods x/y"},
		"an instance":              {residue{instances: 1}, false, "1 instances"},
		"a cgroup":                 {residue{cgroups: 1}, false, "1 cgroups"},
		"links":                    {residue{links: 40}, true, "10 links"},
		"files":                    {residue{files: 150}, true, "50 open files"},
		"a mount":                  {residue{mounts: 23}, true, "22 mounts"},
	} {
		err := test.now.check(first, test.warm)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, test.want)
		}
	}
}
