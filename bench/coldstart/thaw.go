package main

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"knative.dev/serving/pkg/apis/autoscaling"

	"github.com/berth-run/berth/bench"
	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/serving"
)

// measureThaw asks two services with one instance each: of the one the instance is frozen before each request, of the
// other one never.
func measureThaw(ctx context.Context, s *bench.Server, image string) error {
	throttling := map[string]string{"frozen": "true", "running": "false"}
	urls := map[string]string{}
	for name, value := range throttling {
		service := bench.Service(name, image)
		service.Spec.Template.Annotations = map[string]string{
			autoscaling.MinScaleAnnotationKey: "1", serving.AnnotationThrottling: value,
		}
		if _, err := s.Deploy(ctx, service); err != nil {
			return err
		}
		deployed, err := s.Client.Services("default").Get(ctx, name)
		if err != nil {
			return err
		}
		urls[name] = deployed.Status.URL.String()
	}
	took := map[string][]time.Duration{}
	var path stages
	for n := range thawRounds {
		err := bench.Await(ctx, "the instance to be frozen", func() (bool, error) {
			states, err := s.States(ctx)
			return states[string(engine.Idle)] == 1 && states[string(engine.Ready)] == 1, err
		})
		if err != nil {
			return err
		}
		order := []string{"frozen", "running"}
		if n%2 == 1 {
			order = []string{"running", "frozen"}
		}
		for _, name := range order {
			wait, response, err := bench.Ask(ctx, urls[name])
			if err != nil {
				return fmt.Errorf("asking service %q: %w", name, err)
			}
			if response.StatusCode != http.StatusOK {
				return fmt.Errorf("asking service %q: status %d", name, response.StatusCode)
			}
			told := response.Header.Get("Server-Timing")
			if thawed := strings.Contains(told, "thaw;"); thawed != (name == "frozen") {
				return fmt.Errorf("asking service %q: its Server-Timing is %q", name, told)
			}
			took[name] = append(took[name], wait)
			if name == "frozen" {
				steps, err := parseServerTiming(told)
				if err != nil {
					return err
				}
				for _, step := range steps {
					path.add(step.Name, step.Took)
				}
			}
		}
	}
	frozen, running := bench.Quantile(took["frozen"], 0.5), bench.Quantile(took["running"], 0.5)
	fmt.Printf("a request to a frozen instance: %.2f ms at p50, of which %s; to one that runs: %.2f ms\n", frozen, path, running)
	bench.Print("thaw_added_ms", frozen-running, "ms")
	for name := range throttling {
		if err := s.Remove(ctx, "default", name); err != nil {
			return err
		}
	}
	return bench.Await(ctx, "the services to be gone", func() (bool, error) {
		states, err := s.States(ctx)
		return len(states) == 0, err
	})
}
