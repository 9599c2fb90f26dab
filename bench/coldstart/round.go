package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/berth-run/berth/bench"
	"github.com/berth-run/berth/engine"
)

// program is what a service runs, as it is run directly.
type program struct {
	path string
	args []string
}

type figures struct {
	prepared int // instances while the service is at zero

	wait, floor            []time.Duration
	ahead, path, floorPath stages
}

// round runs the program directly, and then a service of it that is at zero.
func (f *figures) round(ctx context.Context, s *bench.Server, url string, p program) error {
	if err := f.awaitRest(ctx, s); err != nil {
		return err
	}
	if err := f.addFloor(ctx, p); err != nil {
		return err
	}
	return f.addStart(ctx, url)
}

// secondRound is round with a service whose one instance is busy, and can take one request only.
func (f *figures) secondRound(ctx context.Context, s *bench.Server, url string, p program) error {
	if err := f.awaitRest(ctx, s); err != nil {
		return err
	}
	if err := f.addFloor(ctx, p); err != nil {
		return err
	}
	const busy = 500 * time.Millisecond
	first := make(chan error, 1)
	go func() {
		_, status, err := bench.Get(ctx, url+"/sleep?ms="+strconv.FormatInt(busy.Milliseconds(), 10))
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("status %d", status)
		}
		first <- err
	}()
	err := bench.Await(ctx, "the first instance", func() (bool, error) {
		states, err := s.States(ctx)
		return states[string(engine.Ready)] == 1, err
	})
	if err == nil {
		err = f.addStart(ctx, url)
	}
	return errors.Join(err, <-first)
}

// awaitRest waits until nothing is under way: there is no instance, but prepared ones where the server makes any.
func (f *figures) awaitRest(ctx context.Context, s *bench.Server) error {
	return bench.Await(ctx, "the service to be at zero", func() (bool, error) {
		instances, err := s.Client.Instances(ctx, "")
		if err != nil {
			return false, err
		}
		for _, i := range instances {
			if i.State != engine.Prepared {
				return false, nil
			}
		}
		if len(instances) != f.prepared {
			return false, nil
		}
		for _, i := range instances {
			for _, stage := range i.Stages {
				f.ahead.add(stage.Name, stage.Took)
			}
		}
		return true, nil
	})
}

// addStart asks the service, and divides the time by what the gateway says of it: where it went until the response began.
func (f *figures) addStart(ctx context.Context, url string) error {
	took, response, err := bench.Ask(ctx, url)
	if err != nil {
		return fmt.Errorf("cold request: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("cold request: status %d", response.StatusCode)
	}
	told, err := parseServerTiming(response.Header.Get("Server-Timing"))
	if err != nil {
		return fmt.Errorf("cold request: %w", err)
	}
	f.wait = append(f.wait, took)
	rest := took
	for _, stage := range told {
		f.path.add(stage.Name, stage.Took)
		rest -= stage.Took
	}
	f.path.add("client", rest) // dialing the gateway, and the way there and back
	return nil
}

// parseServerTiming reads "wake;dur=0.41, listen;dur=3.2".
func parseServerTiming(value string) ([]engine.Stage, error) {
	var told []engine.Stage
	for metric := range strings.SplitSeq(value, ", ") {
		name, text, found := strings.Cut(metric, ";dur=")
		ms, err := strconv.ParseFloat(text, 64)
		if !found || err != nil {
			return nil, fmt.Errorf("its Server-Timing is %q: it did not wait for an instance", value)
		}
		told = append(told, engine.Stage{Name: name, Took: time.Duration(ms * float64(time.Millisecond))})
	}
	return told, nil
}

func (f *figures) addFloor(ctx context.Context, p program) error {
	listen, answer, err := bench.Floor(ctx, p.path, p.args...)
	if err != nil {
		return err
	}
	f.floor = append(f.floor, answer)
	f.floorPath.add("listen", listen)
	f.floorPath.add("answer", answer-listen)
	return nil
}
