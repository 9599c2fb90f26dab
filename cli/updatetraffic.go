package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/berth-run/berth/client"
	"github.com/berth-run/berth/serving"
)

func (p *program) updateTrafficCommand() *cobra.Command {
	var toLatest, clearTags, async bool
	var toRevisions, toTags, setTags, updateTags, removeTags []string
	c := p.connected(&cobra.Command{
		Use:   "update-traffic NAME",
		Short: "Divide a service's traffic between its revisions, and name revisions by tags",
		Long: `Divide a service's traffic between its revisions, and name revisions by tags.

Percentages are whole numbers. What is left of 100 stays with the other revisions that have traffic, in proportion.
A tag gives a revision a URL of its own; LATEST is the newest ready revision, whichever that is.`,
		Example: `  berth services update-traffic hello --to-latest
  berth services update-traffic hello --to-revisions hello-00002=10
  berth services update-traffic hello --to-revisions hello-00001=50,LATEST=50
  berth services update-traffic hello --update-tags next=hello-00002
  berth services update-traffic hello --to-tags next=100`,
		Args: arguments(1, 1, "the NAME of one service"), ValidArgsFunction: p.completeServices,
	})
	flags := c.Flags()
	flags.BoolVar(&toLatest, "to-latest", false, "send all traffic to the newest ready revision, whichever that is")
	flags.StringArrayVar(&toRevisions, "to-revisions", nil, "give revisions these `SHARES` in percent: hello-00001=90,LATEST=10")
	flags.StringArrayVar(&toTags, "to-tags", nil, "give the revisions that have tags these `SHARES` in percent: next=10")
	flags.StringArrayVar(&setTags, "set-tags", nil, "give revisions these `TAGS`, instead of those there are: next=hello-00002")
	flags.StringArrayVar(&updateTags, "update-tags", nil, "give revisions these `TAGS`, beside those there are: next=hello-00002")
	flags.StringArrayVar(&removeTags, "remove-tags", nil, "remove these `TAGS`: next,old")
	flags.BoolVar(&clearTags, "clear-tags", false, "remove all tags")
	flags.BoolVar(&async, "async", false, "do not wait until traffic is divided so")
	// The only error is a flag that does not exist.
	_ = c.RegisterFlagCompletionFunc("to-revisions", p.completeShares)
	under("Traffic", flags, "to-latest", "to-revisions", "to-tags", "set-tags", "update-tags", "remove-tags", "clear-tags", "async")
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := exclusive(c, "to-latest", "to-revisions", "to-tags"); err != nil {
			return err
		}
		for _, alone := range []string{"set-tags", "clear-tags"} {
			for _, other := range []string{"update-tags", "remove-tags"} {
				if err := exclusive(c, alone, other); err != nil {
					return err
				}
			}
		}
		if err := exclusive(c, "set-tags", "clear-tags"); err != nil {
			return err
		}
		change := trafficChange{toLatest: toLatest, clearTags: clearTags || setTags != nil}
		var err error
		if change.toRevisions, err = splitPairs("to-revisions", "revision", toRevisions); err != nil {
			return err
		}
		if change.toTags, err = splitPairs("to-tags", "tag", toTags); err != nil {
			return err
		}
		if change.updateTags, err = splitPairs("update-tags", "tag", updateTags); err != nil {
			return err
		}
		if setTags != nil {
			if change.updateTags, err = splitPairs("set-tags", "tag", setTags); err != nil {
				return err
			}
		}
		for _, p := range change.updateTags {
			flag := "update-tags"
			if setTags != nil {
				flag = "set-tags"
			}
			if err := checkTag(flag, p.key, args[0]); err != nil {
				return err
			}
		}
		if change.removeTags, err = splitNames("remove-tags", removeTags); err != nil {
			return err
		}
		if !toLatest && !change.clearTags && change.toRevisions == nil && change.toTags == nil &&
			change.updateTags == nil && change.removeTags == nil {
			return usagef("update-traffic needs a flag that says what to change: --to-latest, --to-revisions, --to-tags, " +
				"--set-tags, --update-tags, --remove-tags or --clear-tags")
		}
		berth, namespace, err := p.connect(c)
		if err != nil {
			return err
		}
		return p.updateTraffic(c.Context(), berth, namespace, args[0], &change, async)
	}
	return c
}

// exclusive refuses more than one of some flags.
func exclusive(c *cobra.Command, names ...string) error {
	var given []string
	for _, name := range names {
		if c.Flags().Changed(name) {
			given = append(given, "--"+name)
		}
	}
	if len(given) > 1 {
		return usagef("%s exclude each other: give one", strings.Join(given, " and "))
	}
	return nil
}

func (p *program) updateTraffic(ctx context.Context, berth *client.Client, namespace, name string, change *trafficChange, async bool) error {
	if err := checkRevisions(ctx, berth, namespace, name, change.revisions()); err != nil {
		return err
	}
	service, err := berth.Services(namespace).Modify(ctx, name, func(service *serving.Service) error {
		current := readTraffic(service.Spec.Traffic)
		if err := change.apply(current); err != nil {
			return err
		}
		service.Spec.Traffic = current.targets()
		return nil
	})
	if err != nil {
		return err
	}
	if async {
		fmt.Fprintf(p.stdout, "Traffic of service %s is being changed.\n", name)
		return nil
	}
	shown := p.newProgress()
	service, err = p.awaitRouted(ctx, berth, service, shown)
	shown.end()
	if err != nil {
		return err
	}
	fmt.Fprintf(p.stdout, "Traffic of service %s:\n", name)
	return describeTraffic(p.stdout, service)
}

// checkRevisions refuses revisions that are not the service's before anything is changed.
func checkRevisions(ctx context.Context, berth *client.Client, namespace, service string, names []string) error {
	if len(names) == 0 {
		return nil
	}
	revisions, _, err := berth.Revisions(namespace).List(ctx, client.Selector{Labels: map[string]string{serving.LabelService: service}})
	if err != nil {
		return err
	}
	var known []string
	for _, revision := range revisions {
		known = append(known, revision.Name)
	}
	for _, name := range names {
		if slices.Contains(known, name) {
			continue
		}
		if len(known) == 0 {
			if _, err := berth.Services(namespace).Get(ctx, service); err != nil {
				return err
			}
			return fmt.Errorf("service %q has no revision %q; it has none yet", service, name)
		}
		return fmt.Errorf("service %q has no revision %q; it has: %s", service, name, strings.Join(known, ", "))
	}
	return nil
}
