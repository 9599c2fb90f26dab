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
			fmt.Fprintln(p.stdout, version())
			return nil
		},
	}
}

// version is what berth version and berth --version print.
func version() string {
	return fmt.Sprintf("berth %s %s/%s %s", server.Version(), runtime.GOOS, runtime.GOARCH, runtime.Version())
}
