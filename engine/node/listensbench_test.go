package node

import (
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/engine/enginetest"
)

// BenchmarkListens is the start of a prepared instance as far as its port is seen to be open, and the CPU that this
// process uses meanwhile: where the kernel tells of it, and where it is polled, in turn. The one program listens at once,
// the other one after two seconds.
func BenchmarkListens(b *testing.B) {
	e := openEngine(b, b.TempDir())
	if e.listens == nil {
		b.Skip("the kernel does not tell")
	}
	s := enginetest.New(b, e)
	for _, args := range [][]string{{"serve"}, {"late", "2s"}} {
		b.Run(strings.Join(args, "-"), func(b *testing.B) {
			spec := s.Spec(b, nil, args...)
			told, took, used := e.listens, map[string][]float64{}, map[string]float64{}
			defer func() { e.listens = told }()
			for n := 0; b.Loop(); n++ {
				way := "told"
				if e.listens = told; n%2 == 1 {
					way, e.listens = "polled", nil
				}
				i, err := e.Prepare(b.Context(), spec)
				if err != nil {
					b.Fatal(err)
				}
				before := processorTime(b)
				if err := i.Start(b.Context()); err != nil {
					b.Fatal(err)
				}
				used[way] += float64(processorTime(b)-before) / 1e6
				stages := i.Stages()
				took[way] = append(took[way], stages[len(stages)-1].Took.Seconds()*1000)
				i.Stop(0)
			}
			for way, all := range took {
				slices.Sort(all)
				b.ReportMetric(all[len(all)/2], way+"-p50-ms")
				b.ReportMetric(all[len(all)*9/10], way+"-p90-ms")
				b.ReportMetric(used[way]/float64(len(all)), way+"-cpu-ms")
			}
		})
	}
}

// processorTime is what this process has used.
func processorTime(b *testing.B) time.Duration {
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
