package cli

import (
	"maps"
	"slices"

	"github.com/spf13/cobra"
)

func (p *program) infoCommand() *cobra.Command {
	var format string
	c := p.connected(&cobra.Command{
		Use: "info", Short: "Show what the server runs on", Args: arguments(0, 0, ""),
	})
	outputFlag(c, &format, "json", "yaml")
	c.RunE = func(c *cobra.Command, _ []string) error {
		berth, namespace, err := p.connect(c)
		if err != nil {
			return err
		}
		info, err := berth.Info(c.Context())
		if err != nil {
			return err
		}
		if format != "" {
			return printValue(p.stdout, format, map[string]any{"server": berth.Server(), "info": info})
		}
		t := newTable(p.stdout, "server:", berth.Server())
		t.row("namespace:", namespace)
		for _, key := range slices.Sorted(maps.Keys(info)) {
			t.row(key+":", info[key])
		}
		return t.end()
	}
	return c
}
