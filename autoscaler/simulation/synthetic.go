package simulation

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// kinds are the sorts of functions of a synthetic trace, with how many of a hundred functions are of them. The shares
// follow what is published of the real one (Shahrad et al., USENIX ATC 2020): most functions are called rarely, many by
// timers, and a few make most of the calls.
var kinds = []struct {
	share   int
	trigger string
	calls   func(r random, minute int, own float64) int // in a minute; own is a number from 0 to 1 that is the function's
}{
	{35, "http", func(r random, _ int, own float64) int { return chance(r, 0.0007+0.004*own) }},
	{20, "timer", func(_ random, minute int, own float64) int { return whole(minute%(5+int(own*12)*5) == 0) }},
	{15, "timer", func(_ random, minute int, own float64) int { return whole(minute%60 == int(own*60)) }},
	{12, "queue", func(r random, minute int, own float64) int { // bursts
		if int(own*1000)%97 == minute%97 {
			return 5 + int(own*30)
		}
		return 0
	}},
	{10, "http", func(r random, minute int, own float64) int { // by day
		day := (1 - math.Cos(2*math.Pi*float64(minute)/minutesOfDay)) / 2
		return poissonCount(r, 0.1+6*own*day)
	}},
	{5, "event", func(r random, _ int, own float64) int { return poissonCount(r, 2+10*own) }},
	{3, "storage", func(r random, minute int, own float64) int { // busy, and busier for a while
		return poissonCount(r, 20+60*own*float64(1+2*whole(minute/60%8 == int(own*8))))
	}},
}

func whole(b bool) int {
	if b {
		return 1
	}
	return 0
}

func chance(r random, p float64) int { return whole(r.Float64() < p) }

// poissonCount draws from a Poisson distribution.
func poissonCount(r random, mean float64) int {
	n := 0
	for sum := r.ExpFloat64(); sum < mean; sum += r.ExpFloat64() {
		n++
	}
	return n
}

// WriteSynthetic writes a day of a made-up trace in the Azure Functions 2019 format into a folder. The same seed writes
// the same files.
func WriteSynthetic(folder string, functions int, seed uint64) error {
	r := newRandom(seed)
	var calls, durations, memory strings.Builder
	head := func(b *strings.Builder, columns []string) { b.WriteString(strings.Join(columns, ",") + "\n") }
	head(&calls, invocationColumns())
	head(&durations, durationColumns())
	head(&memory, memoryColumns())
	for n := range functions {
		owner, app, function := hashed("owner", n/6), hashed("app", n/3), hashed("function", n)
		kind, own := kinds[kindOf(n*100/functions)], r.Float64()
		fmt.Fprintf(&calls, "%s,%s,%s,%s", owner, app, function, kind.trigger)
		total := 0
		for minute := range minutesOfDay {
			c := kind.calls(r, minute, own)
			total += c
			calls.WriteString("," + strconv.Itoa(c))
		}
		calls.WriteString("\n")
		median := 30 * math.Exp(1.6*r.NormFloat64()) // ms
		var ranks []string
		for _, z := range []float64{-2.6, -2.3, -0.67, 0, 0.67, 2.3, 3.1} {
			ranks = append(ranks, fmt.Sprintf("%.0f", max(1, median*math.Exp(0.5*z))))
		}
		fmt.Fprintf(&durations, "%s,%s,%s,%.0f,%d,%s,%s,%s\n", owner, app, function, max(1, median*1.13), total, ranks[0], ranks[len(ranks)-1], strings.Join(ranks, ","))
		if n%3 == 0 {
			mib := 60 + 200*r.Float64()
			fmt.Fprintf(&memory, "%s,%s,%d,%.0f", owner, app, 100+total, mib)
			for _, part := range []float64{0.8, 0.85, 0.95, 1, 1.05, 1.1, 1.15, 1.2} {
				fmt.Fprintf(&memory, ",%.0f", part*mib)
			}
			memory.WriteString("\n")
		}
	}
	return errors.Join(
		write(filepath.Join(folder, fmt.Sprintf(invocationsFile, 1)), calls.String()),
		write(filepath.Join(folder, fmt.Sprintf(durationsFile, 1)), durations.String()),
		write(filepath.Join(folder, fmt.Sprintf(memoryFile, 1)), memory.String()),
	)
}

func write(path, content string) error {
	if err := os.WriteFile(path, []byte(content), 0o666); err != nil {
		return fmt.Errorf("writing a synthetic trace: %w", err)
	}
	return nil
}

// kindOf is the sort of the function that a hundredth of all functions belongs to.
func kindOf(hundredth int) int {
	for k, kind := range kinds {
		if hundredth < kind.share {
			return k
		}
		hundredth -= kind.share
	}
	return len(kinds) - 1
}

// hashed is a name as the real trace has them.
func hashed(what string, n int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", what, n))
	return hex.EncodeToString(sum[:8])
}
