package cli

import (
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-run/berth/client"
)

func (p *program) instancesCommand() *cobra.Command {
	c := group(&cobra.Command{Use: "instances", Aliases: []string{"instance"}, Short: "List running instances"})
	c.AddCommand(p.instancesListCommand())
	return c
}

func (p *program) instancesListCommand() *cobra.Command {
	var format, service, revision string
	var all bool
	c := p.connected(&cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List running instances",
		Long: `List the instances there are now: prepared (made, but no user code has run), starting, ready, draining (no new
requests, those in flight finish) and stopping. START is the time from start to ready.`,
		Args: arguments(0, 0, ""),
	})
	c.Flags().StringVar(&service, "service", "", "only those of this service")
	c.Flags().StringVar(&revision, "revision", "", "only those of this revision")
	// The only errors are flags that do not exist.
	_ = c.RegisterFlagCompletionFunc("service", p.completeServices)
	_ = c.RegisterFlagCompletionFunc("revision", p.completeRevisions)
	allNamespacesFlag(c, &all)
	outputFlag(c, &format, "json", "yaml", "name")
	c.RunE = func(c *cobra.Command, _ []string) error {
		berth, namespace, err := p.connect(c)
		if err != nil {
			return err
		}
		instances, err := berth.Instances(c.Context(), scope(namespace, all))
		if err != nil {
			return err
		}
		instances = slices.DeleteFunc(instances, func(i client.Instance) bool {
			return (service != "" && i.Service != service) || (revision != "" && i.Revision != revision)
		})
		if len(instances) == 0 {
			if err := p.checkEmpty(c.Context(), berth, namespace, all, service, revision); err != nil {
				return err
			}
		}
		switch {
		case format == "name":
			for _, i := range instances {
				fmt.Fprintln(p.stdout, i.ID)
			}
			return nil
		case format != "":
			return printValue(p.stdout, format, map[string]any{"items": append([]client.Instance{}, instances...)})
		case len(instances) == 0:
			fmt.Fprintf(p.stderr, "No instances in %s: they start when requests come.\n", where(namespace, all))
			return nil
		}
		t := newTable(p.stdout, namespaced(all, "NAMESPACE", "NAME", "SERVICE", "STATE", "SINCE", "START", "AGE")...)
		for _, i := range instances {
			started := "-"
			if i.StartTook > 0 {
				started = i.StartTook.Round(100 * time.Microsecond).String()
			}
			t.row(namespaced(all, i.Namespace, i.ID, dash(i.Service), string(i.State), age(i.Since), started, age(i.Created))...)
		}
		return t.end()
	}
	return c
}
