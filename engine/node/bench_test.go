package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/engine/enginetest"
)

// BenchmarkInstance is the life of one instance of a small Go program, from nothing to gone, after the machine
// has rested.
func BenchmarkInstance(b *testing.B) {
	e := openEngine(b, b.TempDir())
	s := enginetest.New(b, e)
	spec := s.Spec(b, nil, "serve")
	stages := map[string]float64{}
	var stop float64
	for b.Loop() {
		b.StopTimer()
		time.Sleep(200 * time.Millisecond)
		b.StartTimer()
		i, err := e.Prepare(b.Context(), spec)
		if err != nil {
			b.Fatal(err)
		}
		if err := i.Start(b.Context()); err != nil {
			b.Fatal(err)
		}
		for _, stage := range i.Stages() {
			stages[stage.Name] += stage.Took.Seconds() * 1000
		}
		begun := time.Now()
		i.Stop(0)
		stop += time.Since(begun).Seconds() * 1000
	}
	for name, took := range stages {
		b.ReportMetric(took/float64(b.N), name+"-ms/op")
	}
	b.ReportMetric(stop/float64(b.N), "stop-ms/op")
}

// BenchmarkStart is the time from a prepared instance to the first answer of its program; BenchmarkPlain is the
// same program without a container.
func BenchmarkStart(b *testing.B) {
	e := openEngine(b, b.TempDir())
	s := enginetest.New(b, e)
	spec := s.Spec(b, nil, "serve")
	for b.Loop() {
		b.StopTimer()
		i, err := e.Prepare(b.Context(), spec)
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := i.Start(b.Context()); err != nil {
			b.Fatal(err)
		}
		enginetest.Get(b, i, "/")
		b.StopTimer()
		i.Stop(0)
		b.StartTimer()
	}
}

func BenchmarkPlain(b *testing.B) {
	path := filepath.Join(b.TempDir(), "program")
	if err := os.WriteFile(path, []byte(enginetest.Program(b)), 0o755); err != nil {
		b.Fatal(err)
	}
	free, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	port := free.Addr().(*net.TCPAddr).Port
	free.Close()
	for b.Loop() {
		cmd := exec.Command(path, "serve")
		cmd.Env = []string{fmt.Sprintf("PORT=%d", port)}
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		for {
			conn, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
			if err == nil {
				conn.Close()
				break
			}
			time.Sleep(polledPauses.first)
		}
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		response, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
		if err != nil {
			b.Fatal(err)
		}
		response.Body.Close()
		b.StopTimer()
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed: an error is right
		b.StartTimer()
	}
}

// BenchmarkBurst is sixteen instances that are prepared and started at the same time.
func BenchmarkBurst(b *testing.B) {
	e := openEngine(b, b.TempDir())
	s := enginetest.New(b, e)
	spec := s.Spec(b, nil, "serve")
	for b.Loop() {
		instances := make([]engine.Instance, 16)
		var group sync.WaitGroup
		for n := range instances {
			group.Go(func() {
				i, err := e.Prepare(context.Background(), spec)
				if err == nil {
					instances[n] = i
					err = i.Start(context.Background())
				}
				if err != nil {
					b.Error(err)
				}
			})
		}
		group.Wait()
		b.StopTimer()
		for _, i := range instances {
			if i != nil {
				group.Go(func() { i.Stop(0) })
			}
		}
		group.Wait()
		b.StartTimer()
	}
}

// BenchmarkLives is lives of instances, from nothing to gone, eight at a time: what is left between them is CPU. It is
// told apart: the server's own, and that of its children, which are the OCI runtime and the programs.
func BenchmarkLives(b *testing.B) {
	e := openEngine(b, b.TempDir())
	s := enginetest.New(b, e)
	spec := s.Spec(b, nil, "serve")
	var own, children [2]unix.Rusage
	usage := func(n int) {
		if err := errors.Join(unix.Getrusage(unix.RUSAGE_SELF, &own[n]), unix.Getrusage(unix.RUSAGE_CHILDREN, &children[n])); err != nil {
			b.Fatal(err)
		}
	}
	b.SetParallelism(max(1, 8/runtime.GOMAXPROCS(0)))
	usage(0)
	b.ResetTimer()
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			i, err := e.Prepare(b.Context(), spec)
			if err == nil {
				err = i.Start(b.Context())
			}
			if err != nil {
				b.Error(err)
				return
			}
			i.Stop(0)
		}
	})
	b.StopTimer()
	usage(1)
	for _, u := range []struct {
		name string
		took int64
	}{
		{"own-user-ms/op", own[1].Utime.Nano() - own[0].Utime.Nano()},
		{"own-sys-ms/op", own[1].Stime.Nano() - own[0].Stime.Nano()},
		{"children-user-ms/op", children[1].Utime.Nano() - children[0].Utime.Nano()},
		{"children-sys-ms/op", children[1].Stime.Nano() - children[0].Stime.Nano()},
	} {
		b.ReportMetric(float64(u.took)/1e6/float64(b.N), u.name)
	}
}
