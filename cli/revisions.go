package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/berth-run/berth/client"
	"github.com/berth-run/berth/serving"
)

func (p *program) revisionsCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use: "revisions", Aliases: []string{"revision", "rev"},
		Short: "List, describe and delete revisions of services",
	})
	c.AddCommand(p.revisionsListCommand(), p.revisionsDescribeCommand(), p.revisionsDeleteCommand())
	return c
}

func (p *program) revisionsListCommand() *cobra.Command {
	var format, service string
	var all bool
	c := p.connected(&cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List revisions, newest first", Args: arguments(0, 0, "")})
	c.Flags().StringVar(&service, "service", "", "only those of this service")
	// The only error is a flag that does not exist.
	_ = c.RegisterFlagCompletionFunc("service", p.completeServices)
	allNamespacesFlag(c, &all)
	outputFlag(c, &format, "json", "yaml", "name")
	c.RunE = func(c *cobra.Command, _ []string) error {
		berth, namespace, err := p.connect(c)
		if err != nil {
			return err
		}
		selector := client.Selector{}
		if service != "" {
			selector.Labels = map[string]string{serving.LabelService: service}
		}
		revisions, _, err := berth.Revisions(scope(namespace, all)).List(c.Context(), selector)
		if err != nil {
			return err
		}
		if len(revisions) == 0 {
			if err := p.checkEmpty(c.Context(), berth, namespace, all, service, ""); err != nil {
				return err
			}
		}
		slices.SortFunc(revisions, newestFirst)
		if format != "" {
			return printObjects(p.stdout, format, revisions)
		}
		if len(revisions) == 0 {
			fmt.Fprintf(p.stderr, "No revisions in %s.\n", where(namespace, all))
			return nil
		}
		services, _, err := berth.Services(scope(namespace, all)).List(c.Context(), client.Selector{})
		if err != nil {
			return err
		}
		t := newTable(p.stdout, namespaced(all, "NAMESPACE", "NAME", "SERVICE", "TRAFFIC", "TAGS", "READY", "AGE", "REASON")...)
		for _, revision := range revisions {
			ready, reason := readiness(revision.Status.GetCondition(serving.RevisionReady))
			if stuck := stuck(revision); stuck != nil {
				reason = stuck.Reason
			}
			percent, tags := currentShare(services, revision)
			t.row(namespaced(all, revision.Namespace, revision.Name, dash(revision.Labels[serving.LabelService]),
				dash(percent), dash(tags), ready, age(revision.CreationTimestamp.Time), reason)...)
		}
		return t.end()
	}
	return c
}

// newestFirst orders revisions. Times of creation are in whole seconds: within one, generations tell.
func newestFirst(a, b *serving.Revision) int {
	generation := func(revision *serving.Revision) int64 {
		n, _ := strconv.ParseInt(revision.Labels[serving.LabelConfigurationGeneration], 10, 64) // 0 for one that has none
		return n
	}
	return cmp.Or(
		b.CreationTimestamp.Compare(a.CreationTimestamp.Time),
		cmp.Compare(generation(b), generation(a)),
		cmp.Compare(a.Namespace, b.Namespace),
		cmp.Compare(b.Name, a.Name),
	)
}

// currentShare is the traffic that a revision has now, "" for none, and its tags.
func currentShare(services []*serving.Service, revision *serving.Revision) (percent, tags string) {
	var sum int64
	for _, service := range services {
		if service.Namespace != revision.Namespace || service.Name != revision.Labels[serving.LabelService] {
			continue
		}
		for _, target := range service.Status.Traffic {
			if target.RevisionName != revision.Name {
				continue
			}
			if target.Percent != nil {
				sum += *target.Percent
			}
			if target.Tag != "" {
				if tags != "" {
					tags += ","
				}
				tags += target.Tag
			}
		}
	}
	if sum > 0 {
		percent = strconv.FormatInt(sum, 10) + "%"
	}
	return percent, tags
}

func (p *program) revisionsDescribeCommand() *cobra.Command {
	var format string
	c := p.connected(&cobra.Command{
		Use: "describe NAME", Short: "Show one revision: what it runs, and what is wrong",
		Args: arguments(1, 1, "the NAME of one revision"), ValidArgsFunction: p.completeRevisions,
	})
	outputFlag(c, &format, "json", "yaml", "name")
	c.RunE = func(c *cobra.Command, args []string) error {
		berth, namespace, err := p.connect(c)
		if err != nil {
			return err
		}
		revision, err := berth.Revisions(namespace).Get(c.Context(), args[0])
		if err != nil {
			return err
		}
		if format != "" {
			return printObject(p.stdout, format, revision)
		}
		return describeRevision(p.stdout, revision)
	}
	return c
}
