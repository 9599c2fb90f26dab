package node

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/engine/enginetest"
)

func TestStart_GivesUpOnAnInstanceThatListensOnLoopbackOnly(t *testing.T) {
	t.Parallel()
	s := enginetest.New(t, openEngine(t, t.TempDir()))
	i := s.Prepare(t, func(spec *engine.Spec) { spec.StartupTimeout = time.Hour }, "listen", "127.0.0.1:8080")
	err := i.Start(t.Context())
	var failure *engine.StartError
	if !errors.As(err, &failure) || failure.Reason != engine.ReasonNotListening || !failure.LoopbackOnly() {
		t.Errorf("got %v, want that it listens on 127.0.0.1 only", err)
	}
}

func TestStart_SaysWhatItWaitsFor(t *testing.T) {
	t.Parallel()
	s := enginetest.New(t, openEngine(t, t.TempDir()))
	i := s.Prepare(t, nil, "listen", ":3000")
	speaker := i.(interface{ Waiting() string })
	if got := speaker.Waiting(); got != "" {
		t.Errorf("before the start it waits for %q", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- i.Start(ctx) }()
	const want = "the container to listen on port 8080; it listens on [::]:3000"
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for got := ""; got != want; got = speaker.Waiting() {
		select {
		case err := <-ended:
			t.Fatalf("the start ended with %v while it waited for %q, want %q", err, got, want)
		case <-tick.C:
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the start ended with %v", err)
	}
	if got := speaker.Waiting(); got != "" {
		t.Errorf("after the start it waits for %q", got)
	}
}
