package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/berth-run/berth/client"
	"github.com/berth-run/berth/serving"
)

func (p *program) logsCommand() *cobra.Command {
	var options client.LogOptions
	var since, format string
	c := p.connected(&cobra.Command{
		Use:   "logs NAME",
		Short: "Show what a service's instances wrote",
		Long: `Show what a service's instances wrote, oldest first: the time, the instance, the line. Lines of instances that are
gone are shown as long as they are kept.`,
		Example: `  berth logs hello --follow
  berth logs hello --since 5m --revision hello-00002
  berth logs hello --tail 20 -o json`,
		Args: arguments(1, 1, "the NAME of one service"), ValidArgsFunction: p.completeServices,
	})
	flags := c.Flags()
	flags.BoolVarP(&options.Follow, "follow", "f", false, "go on with lines as they are written")
	flags.IntVar(&options.Tail, "tail", 0, "only the last `N` lines; with --follow, 0 is only those from now on (default: all)")
	flags.StringVar(&since, "since", "", "only lines not older than this: 5m")
	flags.StringVar(&options.Revision, "revision", "", "only lines of this revision")
	flags.StringVar(&options.Instance, "instance", "", "only lines of this instance")
	// The only error is a flag that does not exist.
	_ = c.RegisterFlagCompletionFunc("revision", p.completeRevisions)
	outputFlag(c, &format, "json")
	c.RunE = func(c *cobra.Command, args []string) error {
		switch {
		case options.Tail < 0:
			return usagef("--tail %d is not a number of lines", options.Tail)
		case options.Tail == 0 && c.Flags().Changed("tail"):
			options.Tail = -1 // what the client takes for none
		}
		if since != "" {
			d, err := parseDuration(since)
			if err != nil || d <= 0 {
				return usagef("--since %q is not a time such as 300, 300s or 5m", since)
			}
			options.Since = d
		}
		berth, namespace, err := p.connect(c)
		if err != nil {
			return err
		}
		if err := p.checkLogOf(c.Context(), berth, namespace, args[0], options); err != nil {
			return err
		}
		for line, err := range berth.Log(c.Context(), namespace, args[0], options) {
			if err != nil {
				if options.Follow && errors.Is(err, c.Context().Err()) {
					return nil // interrupted, which is how following ends
				}
				return err
			}
			if format == "json" {
				err = json.NewEncoder(p.stdout).Encode(line)
			} else {
				instance := line.Instance
				if instance == "" {
					instance = line.Revision
				}
				_, err = fmt.Fprintf(p.stdout, "%s %s %s\n", line.Time.Local().Format("2006-01-02T15:04:05.000Z07:00"), instance, line.Text)
			}
			if err != nil {
				return fmt.Errorf("writing the log: %w", err)
			}
		}
		return nil
	}
	return c
}

// checkLogOf refuses a revision or an instance that the service neither has nor has kept a line of: else a word that is
// mistyped looks like a program that writes nothing.
func (p *program) checkLogOf(ctx context.Context, berth *client.Client, namespace, service string, options client.LogOptions) error {
	if options.Revision == "" && options.Instance == "" {
		return nil
	}
	if options.Revision != "" {
		revision, err := berth.Revisions(namespace).Get(ctx, options.Revision)
		if err != nil && !client.IsNotFound(err) {
			return err
		}
		known := err == nil && revision.Labels[serving.LabelService] == service
		if !known {
			if known, err = hasLine(ctx, berth, namespace, service, client.LogOptions{Revision: options.Revision}); err != nil {
				return err
			}
		}
		if !known {
			return fmt.Errorf("service %q has no revision %q, and no log of one; see: %s",
				service, options.Revision, p.command("revisions list --service %s", service))
		}
	}
	if options.Instance == "" {
		return nil
	}
	known, err := hasLine(ctx, berth, namespace, service, client.LogOptions{Revision: options.Revision, Instance: options.Instance})
	if err != nil || known {
		return err
	}
	instances, err := berth.Instances(ctx, namespace)
	if err != nil {
		return err
	}
	for _, instance := range instances {
		if instance.ID == options.Instance && instance.Service == service && (options.Revision == "" || instance.Revision == options.Revision) {
			return nil // it has not written anything yet
		}
	}
	of := fmt.Sprintf("service %q", service)
	if options.Revision != "" {
		of = fmt.Sprintf("revision %q", options.Revision)
	}
	return fmt.Errorf("%s has no instance %q, and no log of one; see: %s",
		of, options.Instance, p.command("instances list --service %s", service))
}

// hasLine tells whether a service's log has a line of these options.
func hasLine(ctx context.Context, berth *client.Client, namespace, service string, options client.LogOptions) (bool, error) {
	options.Tail = 1
	for _, err := range berth.Log(ctx, namespace, service, options) {
		return err == nil, err
	}
	return false, nil
}
