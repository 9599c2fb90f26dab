// Command autoscaler judges the autoscaler's decisions in virtual time: every scenario, and the trace files in
// autoscaler/simulation/testdata or in the folder that -trace names, under Berth's rules, Knative's, Cloud Run's and
// those of an oracle that knows the future. It fails when a scenario is lost that autoscaler/DESIGN.md does not name as an
// exception.
package main

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/berth-run/berth/autoscaler"
	"github.com/berth-run/berth/autoscaler/simulation"
	"github.com/berth-run/berth/bench"
)

// synthetic is the folder of the made-up trace.
const synthetic = "autoscaler/simulation/testdata"

// syntheticFunctions is how many functions it has.
const syntheticFunctions = 200

// document names the scenarios that may be lost, in the line that begins with "Exceptions:".
const document = "autoscaler/DESIGN.md"

func main() {
	trace := flag.String("trace", "", "a folder with files of the Azure Functions 2019 trace; without it the synthetic ones are replayed")
	day := flag.Int("day", 1, "the day of the trace, 1 to 14")
	most := flag.Int("functions", 0, "the most functions of the trace that are replayed, spread over all; 0 is all")
	only := flag.String("only", "", "a regular expression: the scenarios that are played")
	synthesize := flag.Bool("synthesize", false, "write the synthetic trace again, and play nothing")
	flag.Parse()
	if *synthesize {
		if err := simulation.WriteSynthetic(synthetic, syntheticFunctions, 1); err != nil {
			fmt.Fprintln(os.Stderr, "bench-autoscaler:", err)
			os.Exit(1)
		}
		return
	}
	if err := run(*trace, *day, *most, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench-autoscaler:", err)
		os.Exit(1)
	}
}

func run(trace string, day, most int, only string) error {
	pattern, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	exceptions, err := exceptions()
	if err != nil {
		return err
	}
	var scenarios []simulation.Scenario
	for _, s := range simulation.Scenarios() {
		if trace == "" && pattern.MatchString(s.Name) {
			scenarios = append(scenarios, s)
		}
	}
	began := time.Now()
	comparisons, err := compareAll(scenarios)
	if err != nil {
		return err
	}
	lost := table(comparisons, exceptions)
	if only == "" {
		if err := replay(trace, day, most); err != nil {
			return err
		}
	}
	fmt.Printf("took %s\n", time.Since(began).Round(time.Second))
	if len(lost) > 0 {
		return fmt.Errorf("Knative waits less than Berth with the same instance-seconds in %s: improve the decision, or say why in the line \"Exceptions:\" of %s", strings.Join(lost, ", "), document)
	}
	return nil
}

// exceptions are the scenarios that the document says are lost.
func exceptions() (map[string]bool, error) {
	text, err := os.ReadFile(document)
	if err != nil {
		return nil, err
	}
	named := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "Exceptions:"); ok {
			for _, name := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(rest, -1) {
				named[name[1]] = true
			}
		}
	}
	return named, nil
}

// compareAll plays scenarios, two at a time, and returns them in order.
func compareAll(scenarios []simulation.Scenario) ([]simulation.Comparison, error) {
	comparisons, errs := make([]simulation.Comparison, len(scenarios)), make([]error, len(scenarios))
	var group sync.WaitGroup
	slots := make(chan struct{}, 2)
	for i, s := range scenarios {
		group.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			comparisons[i], errs[i] = simulation.Compare(s)
		})
	}
	group.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return comparisons, nil
}

// table prints what scenarios came to, and returns those that are lost and no exceptions.
func table(comparisons []simulation.Comparison, exceptions map[string]bool) (lost []string) {
	if len(comparisons) == 0 {
		return nil
	}
	fmt.Printf("%-26s %-8s %10s %10s %10s %12s %8s %6s %8s\n", "scenario", "rule", "p50", "p99", "mean", "instance-s", "starts", "turns", "refused")
	verdicts := map[simulation.Verdict]int{}
	for _, c := range comparisons {
		name := c.Scenario.Name
		for _, row := range []struct {
			rule  string
			score simulation.Score
		}{{"berth", c.Berth}, {"knative", c.Knative}, {"cloudrun", c.CloudRun}, {"oracle", c.Oracle}} {
			s := row.score
			fmt.Printf("%-26s %-8s %10s %10s %10s %12.0f %8d %6d %8d\n", name, row.rule, short(s.P50), short(s.P99), short(s.Mean), s.Cost.Seconds(), s.Starts, s.Reversals, s.Refused)
			name = ""
		}
		verdicts[c.Verdict]++
		why := ""
		if c.Verdict == simulation.Lost {
			if exceptions[c.Scenario.Name] {
				why = ", a named exception"
			} else {
				lost = append(lost, c.Scenario.Name)
			}
		}
		fmt.Printf("%-26s %-8s %10s %10s %10s %12.0f  with %s: %s%s\n", "", "equal", short(c.Equal.P50), short(c.Equal.P99), short(c.Equal.Mean), c.Equal.Cost.Seconds(), c.Level, c.Verdict, why)
	}
	fmt.Println()
	for _, c := range comparisons {
		figure := func(what string, value float64, unit string) {
			bench.Print("autoscaler_"+strings.ReplaceAll(c.Scenario.Name, "-", "_")+"_"+what, value, unit)
		}
		figure("p99_ms", ms(c.Berth.P99), "ms")
		figure("equal_p99_ms", ms(c.Equal.P99), "ms")
		figure("knative_p99_ms", ms(c.Knative.P99), "ms")
		figure("cost_over_knative", ratio(c.Berth.Cost, c.Knative.Cost), "ratio")
		figure("cost_over_oracle", ratio(c.Berth.Cost, c.Oracle.Cost), "ratio")
	}
	bench.Print("autoscaler_scenarios", float64(len(comparisons)), "scenarios")
	bench.Print("autoscaler_scenarios_won", float64(verdicts[simulation.Won]), "scenarios")
	bench.Print("autoscaler_scenarios_even", float64(verdicts[simulation.Even]), "scenarios")
	bench.Print("autoscaler_scenarios_lost", float64(verdicts[simulation.Lost]), "scenarios")
	return lost
}

func short(d time.Duration) string { return d.Round(10 * time.Microsecond).String() }

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func ratio(a, b time.Duration) float64 {
	if b == 0 {
		return 0
	}
	return float64(a) / float64(b)
}

// replay plays a trace under every rule.
func replay(folder string, day, most int) error {
	if folder == "" {
		folder = synthetic
	}
	trace, err := simulation.LoadTrace(folder, day)
	if err != nil {
		return err
	}
	trace = trace.Spread(most)
	revision := simulation.ReplayRevision(simulation.ReplayStart)
	fmt.Printf("\nday %d of %s: %d functions, and %d without durations; instances start in %s\n", day, folder, len(trace.Functions), trace.Unknown, revision.Start)
	fmt.Printf("%-10s %10s %10s %10s %10s %10s %12s %8s %8s\n", "rule", "slowdown", "p50", "p99", "of p99s", "wait p99", "instance-s", "starts", "refused")
	rules := []struct {
		name     string
		rules    simulation.Rules
		settings autoscaler.Settings
	}{
		{"berth", simulation.BerthRules, autoscaler.DefaultSettings()},
		{"knative", simulation.KnativeRules, autoscaler.DefaultSettings()},
		{"cloudrun", simulation.CloudRunRules, simulation.CloudRun()},
		{"oracle", nil, autoscaler.Settings{}},
	}
	var played []simulation.Slowdowns
	for _, rule := range rules {
		s, err := simulation.Replay(trace, revision, rule.rules, rule.settings)
		if err != nil {
			return err
		}
		fmt.Printf("%-10s %10.3f %10.3f %10.2f %10.3f %10s %12.0f %8d %8d\n", rule.name, s.Mean, s.P50, s.P99, s.Tail, short(s.WaitP99), s.Cost.Seconds(), s.Starts, s.Refused)
		played = append(played, s)
	}
	fmt.Println()
	for i, s := range played {
		bench.Print("autoscaler_trace_"+rules[i].name+"_slowdown_geomean", s.Mean, "ratio")
		bench.Print("autoscaler_trace_"+rules[i].name+"_slowdown_p99", s.P99, "ratio")
		bench.Print("autoscaler_trace_"+rules[i].name+"_instance_hours", s.Cost.Hours(), "h")
	}
	return nil
}
