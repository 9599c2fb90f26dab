package cli

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-run/berth/client"
)

func (p *program) instancesCommand() *cobra.Command {
	c := group(&cobra.Command{Use: "instances", Aliases: []string{"instance"}, Short: "List instances"})
	c.AddCommand(p.instancesListCommand())
	return c
}

func (p *program) instancesListCommand() *cobra.Command {
	var format, service, revision string
	var all bool
	c := p.connected(&cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the instances there are now, and their state",
		Long: `List the instances there are now: prepared (made, but no user code has run), starting, ready, idle (its CPU is
withheld until the next request: --cpu-throttling), draining (no new requests, those in flight finish) and stopping.
SINCE is how long it has been in that state, START the time from start to ready, RESTARTS how often its containers were
started again in place. With -o wide, STEPS is what each step of making and starting it took; JSON and YAML have that in
nanoseconds.`,
		Args: arguments(0, 0, ""),
	})
	c.Flags().StringVar(&service, "service", "", "only those of this service")
	c.Flags().StringVar(&revision, "revision", "", "only those of this revision")
	// The only errors are flags that do not exist.
	_ = c.RegisterFlagCompletionFunc("service", p.completeServices)
	_ = c.RegisterFlagCompletionFunc("revision", p.completeRevisions)
	allNamespacesFlag(c, &all)
	outputFlag(c, &format, "json", "yaml", "name", "wide")
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
		case format != "" && format != "wide":
			return printValue(p.stdout, format, map[string]any{"items": append([]client.Instance{}, instances...)})
		case len(instances) == 0:
			of := where(namespace, all)
			if service != "" || revision != "" {
				of += " are of " + cmp.Or(revision, service)
			}
			fmt.Fprintf(p.stderr, "No instances in %s: they start when requests come.\n", of)
			return nil
		}
		return printInstances(p.stdout, instances, all, format == "wide")
	}
	return c
}

func printInstances(out io.Writer, instances []client.Instance, all, wide bool) error {
	columns := []string{"NAMESPACE", "NAME", "SERVICE", "STATE", "SINCE", "START", "RESTARTS", "AGE"}
	if wide {
		columns = append(columns, "STEPS")
	}
	t := newTable(out, namespaced(all, columns...)...)
	for _, i := range instances {
		cells := []string{i.Namespace, i.ID, dash(i.Service), string(i.State), age(i.Since), took(i.StartTook), restarts(i), age(i.Created)}
		if wide {
			var steps []string
			for _, stage := range i.Stages {
				steps = append(steps, stage.Name+" "+took(stage.Took))
			}
			cells = append(cells, dash(strings.Join(steps, ", ")))
		}
		t.row(namespaced(all, cells...)...)
	}
	return t.end()
}

// restarts adds up how often an instance's containers were started again.
func restarts(i client.Instance) string {
	count := 0
	for _, c := range i.Containers {
		count += c.Restarts
	}
	return strconv.Itoa(count)
}

// took prints how long something took, to the tenth of a millisecond; "-" when it has not ended.
func took(d time.Duration) string {
	if d <= 0 {
		return "-"
	}
	return max(d.Round(100*time.Microsecond), 100*time.Microsecond).String()
}
