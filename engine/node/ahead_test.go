package node

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/engine/enginetest"
)

// nice is a process's nice value.
func nice(t testing.TB, pid int) int {
	t.Helper()
	n, err := unix.Getpriority(unix.PRIO_PROCESS, pid) // the kernel tells 20 less it
	if err != nil {
		t.Fatalf("priority of process %d: %v", pid, err)
	}
	return 20 - n
}

func TestLower_LastsUntilSomebodyIsInAHurry(t *testing.T) {
	if os.Geteuid() != 0 || !mayRaise() {
		t.Skip("giving back a priority needs CAP_SYS_NICE")
	}
	cmd := exec.Command("sh", "-c", "read line; sleep 100 & echo $!; wait")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		_ = cmd.Wait()
	}()
	hurry := make(chan struct{})
	raise := lower(cmd.Process.Pid, hurry)
	if _, err := stdin.Write([]byte("go\n")); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(line[:len(line)-1])
	if err != nil {
		t.Fatal(err)
	}
	if a, b := nice(t, cmd.Process.Pid), nice(t, child); a != lowest || b != lowest {
		t.Errorf("at first the nice values are %d and, of what it has begun, %d, want %d", a, b, lowest)
	}
	close(hurry)
	for deadline := time.Now().Add(10 * time.Second); nice(t, child) != 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if a, b := nice(t, cmd.Process.Pid), nice(t, child); a != 0 || b != 0 {
		t.Errorf("in a hurry the nice values are %d and, of what it has begun, %d, want 0", a, b)
	}
	raise(0)
}

func TestPrepareAhead_ProgramsHaveTheNormalPriority(t *testing.T) {
	e := openEngine(t, t.TempDir())
	s := enginetest.New(t, e)
	hurried := make(chan struct{})
	close(hurried)
	for name, hurry := range map[string]chan struct{}{"nobody waits": make(chan struct{}), "somebody waits": hurried} {
		made, err := e.PrepareAhead(t.Context(), s.Spec(t, nil, "serve"), hurry)
		if err != nil {
			t.Fatal(err)
		}
		if n := nice(t, made.(*instance).containers[0].life.process.pid); n != 0 {
			t.Errorf("%s: the prepared container's nice value is %d", name, n)
		}
		if err := made.Start(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		made.Stop(0)
	}
}

// BenchmarkPrepare_Disturbs prepares instances all the time, on as many threads as there are CPUs, and measures by how
// much that delays others who work for half a millisecond every three, as requests do.
func BenchmarkPrepare_Disturbs(b *testing.B) {
	e := openEngine(b, b.TempDir())
	s := enginetest.New(b, e)
	spec := s.Spec(b, nil, "serve")
	for name, prepare := range map[string]func(context.Context) (engine.Instance, error){
		"normal": func(ctx context.Context) (engine.Instance, error) { return e.Prepare(ctx, spec) },
		"ahead": func(ctx context.Context) (engine.Instance, error) {
			return e.PrepareAhead(ctx, spec, make(chan struct{}))
		},
	} {
		b.Run(name, func(b *testing.B) {
			ctx, cancel := context.WithCancel(b.Context())
			var beside sync.WaitGroup
			made := make([]int, 2)
			for n := range made {
				beside.Go(func() {
					for ctx.Err() == nil {
						i, err := prepare(ctx)
						if err != nil {
							continue
						}
						i.Stop(0)
						made[n]++
					}
				})
			}
			// A process of its own: the scheduler of this one would delay it too.
			cmd := exec.Command("perl", "-MTime::HiRes=time,sleep", "-e", `$|=1; while(1){ sleep 0.003; $t=time; for($i=0;$i<9000;$i++){$x+=$i} printf "%d\n", 1e6*(time-$t); }`)
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				b.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				b.Skip(err)
			}
			lines := bufio.NewScanner(stdout)
			var took []int
			for b.Loop() {
				if !lines.Scan() {
					b.Fatal("it ended")
				}
				n, _ := strconv.Atoi(lines.Text())
				took = append(took, n)
			}
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			cancel()
			beside.Wait()
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2]), "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100]), "p99-µs")
			b.ReportMetric(float64(made[0]+made[1])/b.Elapsed().Seconds(), "prepared/s")
		})
	}
}

// BenchmarkPrepare_Beside prepares and starts an instance that is waited for while others are prepared one after the
// other. That these hold locks of the kernel's when they are made to wait must not make it wait for them.
func BenchmarkPrepare_Beside(b *testing.B) {
	e := openEngine(b, b.TempDir())
	s := enginetest.New(b, e)
	spec := s.Spec(b, nil, "serve")
	for _, c := range []struct {
		name    string
		prepare func(context.Context) (engine.Instance, error)
	}{
		{"nothing", nil},
		{"normal", func(ctx context.Context) (engine.Instance, error) { return e.Prepare(ctx, spec) }},
		{"ahead", func(ctx context.Context) (engine.Instance, error) {
			return e.PrepareAhead(ctx, spec, make(chan struct{}))
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			ctx, cancel := context.WithCancel(b.Context())
			var beside sync.WaitGroup
			beside.Go(func() {
				for c.prepare != nil && ctx.Err() == nil {
					if i, err := c.prepare(ctx); err == nil {
						i.Stop(0)
					}
				}
			})
			var took []time.Duration
			for b.Loop() {
				begun := time.Now()
				i, err := e.Prepare(b.Context(), spec)
				if err != nil {
					b.Fatal(err)
				}
				if err := i.Start(b.Context()); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(begun))
				i.Stop(0)
			}
			cancel()
			beside.Wait()
			slices.Sort(took)
			b.ReportMetric(took[len(took)/2].Seconds()*1000, "p50-ms")
			b.ReportMetric(took[len(took)*99/100].Seconds()*1000, "p99-ms")
		})
	}
}
