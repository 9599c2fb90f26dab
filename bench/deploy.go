package bench

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1"
	"knative.dev/serving/pkg/apis/autoscaling"

	"github.com/berth-run/berth/client"
	"github.com/berth-run/berth/serving"
)

// Deploy declares a service, new or with a changed template, and returns the time from the begin of the write to the
// watch event that says that what was written is Ready. The watch is there before the write, as with any client that
// waits. A service that fails ends it.
func (s *Server) Deploy(ctx context.Context, service *serving.Service) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	var begun time.Time
	wrote := make(chan error, 1)
	var generation int64 // of the write; read it after wrote
	for event, err := range s.Client.Services(service.Namespace).Watch(ctx, client.Selector{Name: service.Name}) {
		if err != nil {
			return 0, fmt.Errorf("watching service %q: %w", service.Name, err)
		}
		if event.Type == client.Listed {
			begun = time.Now()
			go func() {
				stored, _, err := s.Client.Services(service.Namespace).Apply(ctx, service)
				if err == nil {
					generation = stored.Generation
				}
				wrote <- err
			}()
			continue
		}
		if begun.IsZero() || event.Type == client.Deleted || event.Object.Status.ObservedGeneration != event.Object.Generation {
			continue
		}
		at := event.Object
		ready := at.Status.GetCondition(serving.ServiceReady)
		if ready.IsUnknown() {
			continue
		}
		took := time.Since(begun)
		select {
		case err := <-wrote:
			if err != nil {
				return 0, fmt.Errorf("writing service %q: %w", service.Name, err)
			}
			wrote <- nil
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		if at.Generation < generation {
			continue // how it was before the write
		}
		if !ready.IsTrue() {
			return 0, fmt.Errorf("service %q is not ready: %s: %s", service.Name, ready.GetReason(), ready.GetMessage())
		}
		return took, nil
	}
	return 0, errors.New("the watch ended")
}

// Proven is a service of one container that is ready only after an instance of it was, whatever the server's settings.
func Proven(name, image string) *serving.Service {
	service := Service(name, image)
	service.Spec.Template.Annotations = map[string]string{autoscaling.InitialScaleAnnotationKey: "1"}
	return service
}

// DeployTimes deploys a service again and again, either as a new one each time, which is deleted afterwards, or with a
// changed template. Both are with the same image, that the server has.
func (s *Server) DeployTimes(ctx context.Context, name, image string, fresh bool, rounds int) ([]time.Duration, error) {
	var times []time.Duration
	if !fresh {
		if _, err := s.Deploy(ctx, Proven(name, image)); err != nil {
			return nil, err
		}
	}
	for i := range rounds {
		service := Proven(name, image)
		if fresh {
			service.Name += strconv.Itoa(i)
		}
		service.Spec.Template.Spec.Containers[0].Env = []serving.EnvVar{{Name: "ROUND", Value: strconv.Itoa(i + 1)}}
		took, err := s.Deploy(ctx, service)
		if err != nil {
			return nil, err
		}
		times = append(times, took)
		if fresh {
			if err := s.Remove(ctx, service.Namespace, service.Name); err != nil {
				return nil, err
			}
		}
		if err := s.awaitQuiet(ctx); err != nil {
			return nil, err
		}
	}
	if !fresh {
		return times, s.Remove(ctx, "default", name)
	}
	return times, nil
}

// Remove deletes a service with all that it owns.
func (s *Server) Remove(ctx context.Context, namespace, name string) error {
	policy := v1.DeletePropagationForeground
	return s.Client.Services(namespace).Delete(ctx, name, serving.DeleteOptions{PropagationPolicy: &policy})
}

// awaitQuiet waits until no instance is on its way: those of one deploy are not to slow the next. It asks seldom, as
// the server's processor time is measured meanwhile.
func (s *Server) awaitQuiet(ctx context.Context) error {
	return await(ctx, "instances to settle", 250*time.Millisecond, func() (bool, error) {
		states, err := s.States(ctx)
		return states["ready"]+states["starting"]+states["draining"]+states["stopping"] == 0, err
	})
}
