package cli

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/berth-run/berth/client"
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
	flags.IntVar(&options.Tail, "tail", 0, "only the last `N` lines (default: all)")
	flags.StringVar(&since, "since", "", "only lines not older than this: 5m")
	flags.StringVar(&options.Revision, "revision", "", "only lines of this revision")
	flags.StringVar(&options.Instance, "instance", "", "only lines of this instance")
	// The only error is a flag that does not exist.
	_ = c.RegisterFlagCompletionFunc("revision", p.completeRevisions)
	outputFlag(c, &format, "json")
	c.RunE = func(c *cobra.Command, args []string) error {
		if options.Tail < 0 {
			return usagef("--tail %d is not a number of lines", options.Tail)
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
