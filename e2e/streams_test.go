package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/serving"
)

// openStream is an answer, or a WebSocket, of the program witness that stays open.
type openStream struct {
	kind     string
	instance string       // that it is on
	heard    atomic.Int64 // messages so far
	run      func() error // hears on until the stream ends; nil when it ended as it should
	ended    chan struct{}
	err      error // how it ended; read it after ended is closed
}

// between is the time between two messages of a stream.
const between = 500 * time.Millisecond

// TestSoak_RolloutsCutNoneOfManyStreams: streams stay on the revision that they began on, while others take its place, for
// as long as they last.
func TestSoak_RolloutsCutNoneOfManyStreams(t *testing.T) {
	t.Parallel()
	each := 70
	if os.Getenv(soakTime) != "" {
		each = 667 // 2,000 in all
	}
	p := spawn(t, stateDir(t))
	image := program(t, "witness")
	version := 0
	next := func() *serving.Service {
		version++
		s := service("streams", image, fmt.Sprint("VERSION=", version), traced(p.dir))
		s.Spec.Template.Annotations = map[string]string{
			"autoscaling.knative.dev/min-scale": "3", "autoscaling.knative.dev/max-scale": "3",
		}
		return p.deploy(s)
	}
	s := next()
	host, first := s.Status.URL.Host, s.Status.LatestReadyRevisionName
	done := make(chan struct{}) // closed when those may end that the client ends
	streams := p.openStreams(host, each, done)
	t.Logf("%d streams are open", len(streams))
	on := map[string]int{}
	for _, stream := range streams {
		on[stream.instance]++
	}
	allHear := func(more int64) {
		t.Helper()
		before := make([]int64, len(streams))
		for i, stream := range streams {
			before[i] = stream.heard.Load()
		}
		p.await("every stream to hear more", func() error {
			for i, stream := range streams {
				select {
				case <-stream.ended:
					t.Fatalf("stream %d, %s on instance %s, ended after %d messages: %v", i, stream.kind, stream.instance, stream.heard.Load(), stream.err)
				default:
				}
				if n := stream.heard.Load() - before[i]; n < more {
					return fmt.Errorf("stream %d, %s, has heard %d", i, stream.kind, n)
				}
			}
			return nil
		})
	}
	allHear(1)
	for range 2 {
		s := next()
		if s.Status.LatestReadyRevisionName == first {
			t.Fatal("there is no other revision")
		}
		allHear(3)
	}

	// Nothing but the program and the clients ends them.
	for instance := range on {
		if err := p.sendSignal(instance, syscall.SIGUSR1); err != nil {
			t.Errorf("telling instance %s to end its streams: %v", instance, err)
		}
	}
	close(done)
	for i, stream := range streams {
		<-stream.ended
		if stream.err != nil {
			t.Errorf("stream %d, %s on instance %s, after %d messages: %v", i, stream.kind, stream.instance, stream.heard.Load(), stream.err)
		}
	}
	t.Logf("%d streams on the instances %v outlived two rollouts", len(streams), on)
	p.awaitStopped(first)
	p.stopped()
}

// openStreams opens so many streams of each kind, and returns when all have begun.
func (p *process) openStreams(host string, each int, done <-chan struct{}) []*openStream {
	p.t.Helper()
	var all []*openStream
	kinds := []struct {
		name string
		open func(ctx context.Context, transport *http.Transport, host string, done <-chan struct{}, s *openStream) error
		with *http.Transport
	}{
		{"server-sent events over HTTP/1.1", p.openEvents, keepsAlive()},
		{"server-sent events over HTTP/2", p.openEvents, speaksHTTP2()},
		{"a WebSocket", p.openWebSocket, keepsAlive()},
	}
	var opening errgroup.Group
	opening.SetLimit(50)
	for _, kind := range kinds {
		p.t.Cleanup(kind.with.CloseIdleConnections)
		for range each {
			s := &openStream{kind: kind.name, ended: make(chan struct{})}
			all = append(all, s)
			opening.Go(func() error { return kind.open(p.t.Context(), kind.with, host, done, s) })
		}
	}
	if err := opening.Wait(); err != nil {
		p.t.Fatal(err)
	}
	var running sync.WaitGroup
	for _, s := range all {
		running.Go(func() {
			s.err = s.run()
			close(s.ended)
		})
	}
	p.t.Cleanup(running.Wait)
	return all
}

// openEvents opens a stream of events that the program ends.
func (p *process) openEvents(ctx context.Context, transport *http.Transport, host string, _ <-chan struct{}, s *openStream) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s/events?n=1000000&every=%v", p.addresses.Gateway, between), nil)
	if err != nil {
		return err
	}
	request.Host = host
	reply, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	if reply.StatusCode != http.StatusOK {
		text, err := io.ReadAll(reply.Body)
		reply.Body.Close()
		return errors.Join(&refusedError{reply.StatusCode, string(text)}, err)
	}
	s.instance = reply.Header.Get("X-Instance")
	events := bufio.NewReaderSize(reply.Body, 64)
	s.run = func() error {
		defer reply.Body.Close()
		for i := 0; ; i++ {
			line, err := events.ReadString('\n')
			if err != nil {
				return &cutError{err}
			}
			if line == "data: end\n" {
				break
			}
			blank, err := events.ReadString('\n')
			if err != nil {
				return &cutError{err}
			}
			if want := fmt.Sprintf("data: %d\n", i); line != want || blank != "\n" {
				return fmt.Errorf("%q came, %q was expected", line+blank, want+"\n")
			}
			s.heard.Add(1)
		}
		rest, err := io.ReadAll(events)
		return errors.Join(err, errorUnless(string(rest) == "\n", "after the last event came %q", rest))
	}
	return nil
}

// openWebSocket opens a WebSocket that the client closes when done is closed.
func (p *process) openWebSocket(ctx context.Context, transport *http.Transport, host string, done <-chan struct{}, s *openStream) error {
	socket, _, err := websocket.Dial(ctx, "ws://"+p.addresses.Gateway+"/websocket", &websocket.DialOptions{
		HTTPClient: &http.Client{Transport: transport}, Host: host,
	})
	if err != nil {
		return err
	}
	_, name, err := socket.Read(ctx)
	if err != nil {
		return err
	}
	s.instance = string(name)
	s.run = func() error {
		defer socket.CloseNow()
		tick := time.NewTicker(between)
		defer tick.Stop()
		for i := 0; ; i++ {
			said := fmt.Sprint("message ", i)
			if err := socket.Write(ctx, websocket.MessageText, []byte(said)); err != nil {
				return &cutError{err}
			}
			_, heard, err := socket.Read(ctx)
			if err != nil {
				return &cutError{err}
			}
			if string(heard) != said {
				return fmt.Errorf("said %q, heard %q", said, heard)
			}
			s.heard.Add(1)
			select {
			case <-tick.C:
			case <-done:
				return socket.Close(websocket.StatusNormalClosure, "")
			}
		}
	}
	return nil
}

// sendSignal sends a signal to the one process of an instance.
func (p *platform) sendSignal(instance string, signal syscall.Signal) error {
	process, err := p.openProcess(instance)
	if err != nil {
		return err
	}
	defer unix.Close(process)
	return unix.PidfdSendSignal(process, signal, nil, 0)
}
