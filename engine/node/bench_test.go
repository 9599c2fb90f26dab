package node

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

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
			time.Sleep(firstPause)
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
