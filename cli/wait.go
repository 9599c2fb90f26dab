package cli

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"sync"

	"knative.dev/pkg/apis"

	"github.com/berth-run/berth/client"
	"github.com/berth-run/berth/serving"
)

// awaitReady shows how a service becomes ready and returns it when it is. When it will not be, the error is what its
// conditions say. Interrupting it leaves the deploy going.
func (p *program) awaitReady(ctx context.Context, berth *client.Client, service *serving.Service, shown *progress) (*serving.Service, error) {
	return p.awaitCondition(ctx, berth, service, serving.ServiceReady, shown)
}

// awaitRouted is awaitReady for a change of the traffic alone: that the newest revision has failed is no news then,
// and no reason against sending requests elsewhere.
func (p *program) awaitRouted(ctx context.Context, berth *client.Client, service *serving.Service, shown *progress) (*serving.Service, error) {
	return p.awaitCondition(ctx, berth, service, serving.ServiceRoutesReady, shown)
}

func (p *program) awaitCondition(ctx context.Context, berth *client.Client, service *serving.Service, awaited apis.ConditionType, shown *progress) (*serving.Service, error) {
	watching, stop := context.WithCancel(ctx)
	changes := make(chan func() error)
	var watches sync.WaitGroup
	defer watches.Wait()
	defer stop()

	state := deployment{
		awaited: awaited, service: service, revisions: map[string]*serving.Revision{},
		generation: service.Generation, before: service.Status.LatestCreatedRevisionName,
	}
	follow(watching, &watches, changes, berth.Services(service.Namespace).Watch(watching, client.Selector{Name: service.Name}),
		func(event client.Event[*serving.Service]) error {
			if event.Type == client.Deleted {
				return fmt.Errorf("service %q was deleted while it was being deployed", service.Name)
			}
			state.service = event.Object
			return nil
		})
	ofService := client.Selector{Labels: map[string]string{serving.LabelService: service.Name}}
	follow(watching, &watches, changes, berth.Revisions(service.Namespace).Watch(watching, ofService),
		func(event client.Event[*serving.Revision]) error {
			if event.Type == client.Deleted {
				delete(state.revisions, event.Object.Name)
			} else {
				state.revisions[event.Object.Name] = event.Object
			}
			return nil
		})

	for {
		stage := state.judge()
		switch {
		case stage.failure != "":
			doing := "deploying service"
			if awaited == serving.ServiceRoutesReady {
				doing = "moving the traffic of service"
			}
			return state.service, fmt.Errorf("%s %q: %s%s", doing, service.Name, stage.failure, p.mend(state.service))
		case stage.ready:
			return state.service, nil
		}
		shown.show(stage.step, stage.text)
		select {
		case <-ctx.Done():
			shown.end()
			return state.service, fmt.Errorf("interrupted; the deploy goes on: see how far it is with: %s", p.command("services describe %s", service.Name))
		case change := <-changes:
			if err := change(); err != nil {
				return state.service, err
			}
		}
	}
}

// follow sends the events of a watch to the loop that owns the state, as calls of apply.
func follow[T serving.Object](ctx context.Context, watches *sync.WaitGroup, changes chan<- func() error, events iter.Seq2[client.Event[T], error], apply func(client.Event[T]) error) {
	watches.Go(func() {
		for event, err := range events {
			if event.Type == client.Listed {
				continue
			}
			change := func() error {
				if err != nil {
					return err
				}
				return apply(event)
			}
			select {
			case <-ctx.Done():
				return
			case changes <- change:
			}
		}
	})
}

// deployment is what is known of a deploy that goes on.
type deployment struct {
	awaited    apis.ConditionType // what ends it, when it is true or false
	service    *serving.Service
	revisions  map[string]*serving.Revision
	generation int64  // of the service that was written
	before     string // the revision that was the latest then
}

// stage is where a deploy is.
type stage struct {
	step    string // changes when something new has begun
	text    string // for people
	ready   bool
	failure string // why it will not be ready
}

// judge says where a deploy is. Conditions count once they are about what was written.
func (d *deployment) judge() stage {
	name := d.service.Name
	if d.service.Status.ObservedGeneration < d.generation {
		return stage{step: "accepted", text: fmt.Sprintf("Service %s: accepted", name)}
	}
	creating := stage{step: "creating", text: fmt.Sprintf("Service %s: creating a revision", name)}
	revision := d.revisions[d.service.Status.LatestCreatedRevisionName]
	ready := d.service.Status.GetCondition(d.awaited)
	switch {
	case ready.IsTrue():
		return stage{ready: true}
	case ready.IsFalse():
		return stage{failure: d.failure(ready, revision)}
	case d.awaited == serving.ServiceRoutesReady:
		return d.routing(name)
	case revision == nil:
		return creating
	case d.service.Status.GetCondition(serving.ServiceConfigurationsReady).IsTrue():
		return d.routing(name)
	case revision.Name == d.before: // what it says is about the last deploy
		return creating
	case revision.Status.GetCondition(serving.RevisionReady).IsTrue():
		return stage{step: revision.Name + " ready", text: fmt.Sprintf("Revision %s: ready", revision.Name)}
	case revision.Status.GetCondition(serving.RevisionReady).IsFalse(): // the service will say so in a moment, and why
		return stage{step: revision.Name + " failed", text: fmt.Sprintf("Revision %s: failed", revision.Name)}
	}
	for _, kind := range []apis.ConditionType{serving.RevisionResourcesAvailable, serving.RevisionContainerHealthy} {
		condition := revision.Status.GetCondition(kind)
		if condition == nil || condition.IsTrue() {
			continue
		}
		text := firstLine(condition.Message)
		if text == "" {
			text = condition.Reason
		}
		if text == "" { // it was made this moment
			return creating
		}
		step := revision.Name + " " + string(kind) + " " + condition.Reason
		if kind == serving.RevisionContainerHealthy {
			step += " " + text // what the container does changes rarely, and each time it tells something
		}
		return stage{step: step, text: fmt.Sprintf("Revision %s: %s", revision.Name, lowerFirst(text))}
	}
	if len(revision.Status.Conditions) == 0 {
		return creating
	}
	return stage{step: revision.Name, text: fmt.Sprintf("Revision %s: starting", revision.Name)}
}

// routing says nothing of the route's condition: on the way it says in many words that it is on the way.
func (d *deployment) routing(name string) stage {
	return stage{step: "routing", text: fmt.Sprintf("Service %s: routing traffic", name)}
}

// mend says what to do about traffic to a revision that is gone, which keeps every deploy of the service from
// becoming ready. It is "" for other failures.
func (p *program) mend(service *serving.Service) string {
	routes := service.Status.GetCondition(serving.ServiceRoutesReady)
	if !routes.IsFalse() {
		return ""
	}
	toLatest := ""
	var tags []string
	for _, target := range service.Spec.Traffic {
		if !strings.Contains(routes.Message, fmt.Sprintf("Revision %q referenced in traffic not found", target.RevisionName)) {
			continue
		}
		if target.Tag != "" {
			tags = append(tags, target.Tag)
		}
		if target.Percent != nil && *target.Percent > 0 {
			toLatest = " --to-latest"
		}
	}
	removeTags := ""
	if len(tags) > 0 {
		removeTags = " --remove-tags " + strings.Join(tags, ",")
	}
	if toLatest+removeTags == "" {
		return ""
	}
	return "\nTo mend it give: " + p.command("services update-traffic %s%s%s", service.Name, toLatest, removeTags)
}

// failure is the whole story: the service's message, and the revision's where that says more.
func (d *deployment) failure(ready *apis.Condition, revision *serving.Revision) string {
	message := ready.Message
	if message == "" {
		message = ready.Reason
	}
	if revision == nil || d.awaited == serving.ServiceRoutesReady {
		return message
	}
	cause := revision.Status.GetCondition(serving.RevisionReady)
	if cause.IsFalse() && cause.Message != "" && !strings.Contains(message, cause.Message) {
		message = fmt.Sprintf("%s\nRevision %s: %s", message, revision.Name, cause.Message)
	}
	return message
}

func lowerFirst(text string) string {
	if len(text) > 1 && strings.ToLower(text[1:2]) != text[1:2] {
		return text // an acronym
	}
	return strings.ToLower(text[:1]) + text[1:]
}

// awaitGone waits until an object is deleted.
func awaitGone[T serving.Object](ctx context.Context, objects client.Resource[T], name string) error {
	watching, stop := context.WithCancel(ctx)
	defer stop()
	seen := false
	for event, err := range objects.Watch(watching, client.Selector{Name: name}) {
		switch {
		case err != nil:
			return err
		case event.Type == client.Deleted:
			return nil
		case event.Type == client.Listed:
			if !seen {
				return nil
			}
		default:
			seen = true
		}
	}
	return errors.New("the watch ended") // cannot be: it ends with an error
}
