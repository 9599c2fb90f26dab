package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-run/berth/client"
	"github.com/berth-run/berth/serving"
)

// instancesPeriod is the time between two looks at the instances of what was deleted: nothing tells when they end.
const instancesPeriod = 100 * time.Millisecond

// deletion is a kind of object that can be deleted by hand.
type deletion[T serving.Object] struct {
	plural   string
	objects  func(*client.Client, string) client.Resource[T]
	complete cobra.CompletionFunc
	// check says why an object must stay; nil is that none must.
	check func(ctx context.Context, berth *client.Client, namespace, name string) error
	// owns tells whether an instance is of the object; nil is that no object of the kind has instances.
	owns func(instance client.Instance, name string) bool
}

func (p *program) servicesDeleteCommand() *cobra.Command {
	return deleteCommand(p, deletion[*serving.Service]{
		plural: "services", objects: (*client.Client).Services, complete: p.completeServices,
		owns: func(instance client.Instance, name string) bool { return instance.Service == name },
	})
}

func (p *program) revisionsDeleteCommand() *cobra.Command {
	return deleteCommand(p, deletion[*serving.Revision]{
		plural: "revisions", objects: (*client.Client).Revisions, complete: p.completeRevisions, check: p.checkUnused,
		owns: func(instance client.Instance, name string) bool { return instance.Revision == name },
	})
}

func deleteCommand[T serving.Object](p *program, d deletion[T]) *cobra.Command {
	var quiet, async bool
	singular := strings.TrimSuffix(d.plural, "s")
	gone, while := "they are gone", ""
	if d.owns != nil {
		gone, while = "they and their instances are gone", ": requests in flight finish first"
	}
	c := p.connected(&cobra.Command{
		Use: "delete NAME...", Aliases: []string{"rm"},
		Short: fmt.Sprintf("Delete %s and wait until %s", d.plural, gone),
		Long: fmt.Sprintf(`Delete %s, and wait until %s%s.
Without a terminal to ask on, --quiet must be given.`, d.plural, gone, while),
		Args: arguments(1, 1000, "the NAME of a "+singular), ValidArgsFunction: d.complete,
	})
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "do not ask")
	c.Flags().BoolVar(&async, "async", false, "do not wait until they are gone")
	c.RunE = func(c *cobra.Command, args []string) error {
		if !quiet && !terminal(p.stdin) {
			return usagef("there is no terminal to ask on: to delete without a question give --quiet")
		}
		berth, namespace, err := p.connect(c)
		if err != nil {
			return err
		}
		// One that cannot be deleted does not keep the others.
		var mistakes []error
		names := args
		if d.check != nil {
			names = slices.DeleteFunc(slices.Clone(args), func(name string) bool {
				err := d.check(c.Context(), berth, namespace, name)
				mistakes = append(mistakes, err)
				return err != nil
			})
		}
		if !quiet && len(names) > 0 {
			question := fmt.Sprintf("Delete %s %s in namespace %s?", singular, strings.Join(names, ", "), namespace)
			if yes, err := p.confirm(c.Context(), question); err != nil || !yes {
				return errors.Join(append(mistakes, err)...)
			}
		}
		var started []string
		for _, name := range names {
			if err := d.objects(berth, namespace).Delete(c.Context(), name, serving.DeleteOptions{}); err != nil {
				mistakes = append(mistakes, err)
				continue
			}
			started = append(started, name)
		}
		for _, name := range started {
			if async {
				fmt.Fprintf(p.stdout, "Deleting %s %s.\n", singular, name)
				continue
			}
			switch err := d.await(c.Context(), p, berth, namespace, name); {
			case c.Context().Err() != nil:
				return errors.New("interrupted; the deletion goes on")
			case err != nil:
				mistakes = append(mistakes, fmt.Errorf("waiting until %s %q is gone: %w", singular, name, err))
				continue
			}
			fmt.Fprintf(p.stdout, "Deleted %s %s.\n", singular, name)
		}
		return errors.Join(mistakes...)
	}
	return c
}

// await waits until a deleted object and its instances are gone.
func (d *deletion[T]) await(ctx context.Context, p *program, berth *client.Client, namespace, name string) error {
	if err := awaitGone(ctx, d.objects(berth, namespace), name); err != nil || d.owns == nil {
		return err
	}
	shown := p.newProgress()
	defer shown.end()
	tick := time.NewTicker(instancesPeriod)
	defer tick.Stop()
	var left []string // of what was deleted: one may be made again under the name, and have others
	for first := true; ; first = false {
		instances, err := berth.Instances(ctx, namespace)
		if err != nil {
			return err
		}
		var now []string
		for _, instance := range instances {
			if d.owns(instance, name) && (first || slices.Contains(left, instance.ID)) {
				now = append(now, instance.ID)
			}
		}
		if left = now; len(left) == 0 {
			return nil
		}
		shown.show("stopping "+name, fmt.Sprintf("%s: stopping instances: %s", name, strings.Join(left, ", ")))
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// checkUnused refuses to delete a revision that gets requests: its service would have nowhere to send them, and every
// deploy after that would fail. The newest one would not be gone for long.
func (p *program) checkUnused(ctx context.Context, berth *client.Client, namespace, name string) error {
	revision, err := berth.Revisions(namespace).Get(ctx, name)
	if err != nil {
		return err
	}
	service, err := berth.Services(namespace).Get(ctx, revision.Labels[serving.LabelService])
	switch {
	case client.IsNotFound(err):
		return nil
	case err != nil:
		return err
	case service.Status.LatestCreatedRevisionName == name:
		return fmt.Errorf("revision %q is the newest of service %q, which would make it again at once: deploy another one first, "+
			"or delete the service: %s", name, service.Name, p.command("services delete %s", service.Name))
	}
	percent, tags := use(service, name)
	if percent == 0 && len(tags) == 0 {
		return nil
	}
	var reasons, flags []string
	if percent > 0 {
		reasons = append(reasons, fmt.Sprintf("has %d percent of the traffic", percent))
		other, err := otherReady(ctx, berth, service, name)
		switch {
		case err != nil:
			return err
		case service.Status.LatestReadyRevisionName != name:
			flags = append(flags, "--to-latest")
		case other != "":
			flags = append(flags, "--to-revisions "+other+"=100")
		default:
			return fmt.Errorf("revision %q is the only one of service %q that can take requests; to delete both give: %s",
				name, service.Name, p.command("services delete %s", service.Name))
		}
	}
	if len(tags) > 0 {
		reasons = append(reasons, "has the tag "+strings.Join(tags, ", "))
		flags = append(flags, "--remove-tags "+strings.Join(tags, ","))
	}
	return fmt.Errorf("revision %q %s of service %q, which would fail without it; first give: %s",
		name, strings.Join(reasons, " and "), service.Name,
		p.command("services update-traffic %s %s", service.Name, strings.Join(flags, " ")))
}

// otherReady is the newest ready revision of a service besides one, "" when there is none.
func otherReady(ctx context.Context, berth *client.Client, service *serving.Service, name string) (string, error) {
	revisions, _, err := berth.Revisions(service.Namespace).List(ctx, client.Selector{Labels: map[string]string{serving.LabelService: service.Name}})
	if err != nil {
		return "", err
	}
	slices.SortFunc(revisions, newestFirst)
	for _, revision := range revisions {
		if revision.Name != name && revision.Status.GetCondition(serving.RevisionReady).IsTrue() {
			return revision.Name, nil
		}
	}
	return "", nil
}

// use is the traffic of a service that a revision has, and its tags: now, or as was asked for.
func use(service *serving.Service, revision string) (percent int64, tags []string) {
	for _, targets := range [][]serving.TrafficTarget{service.Status.Traffic, service.Spec.Traffic} {
		var sum int64
		for _, target := range targets {
			if target.RevisionName != revision {
				continue
			}
			if target.Percent != nil {
				sum += *target.Percent
			}
			if target.Tag != "" && !slices.Contains(tags, target.Tag) {
				tags = append(tags, target.Tag)
			}
		}
		percent = max(percent, sum)
	}
	return percent, tags
}

// confirm asks a question whose answer is no unless one types yes.
func (p *program) confirm(ctx context.Context, question string) (bool, error) {
	fmt.Fprintf(p.stderr, "%s [y/N] ", question)
	answers := make(chan string, 1)
	go func() { // ends with the process: reading a terminal cannot be given up
		line, _ := bufio.NewReader(p.stdin).ReadString('\n')
		answers <- line
	}()
	select {
	case <-ctx.Done():
		fmt.Fprintln(p.stderr)
		return false, context.Cause(ctx)
	case answer := <-answers:
		answer = strings.ToLower(strings.TrimSpace(answer))
		if answer == "y" || answer == "yes" {
			return true, nil
		}
		fmt.Fprintln(p.stderr, "Nothing was deleted.")
		return false, nil
	}
}
