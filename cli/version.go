package cli

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/berth-run/berth/server"
)

func (p *program) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Show the version of this binary", Args: arguments(0, 0, ""),
		RunE: func(*cobra.Command, []string) error {
			fmt.Fprintf(p.stdout, "berth %s %s/%s %s\n", server.Version(), runtime.GOOS, runtime.GOARCH, runtime.Version())
			return nil
		},
	}
}
