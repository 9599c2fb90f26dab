package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

func (p *program) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Show the version of this binary", Args: arguments(0, 0, ""),
		RunE: func(*cobra.Command, []string) error {
			fmt.Fprintf(p.stdout, "berth %s %s/%s %s\n", version(), runtime.GOOS, runtime.GOARCH, runtime.Version())
			return nil
		},
	}
}

// version is what the Go toolchain recorded: the module's version and, built from a checkout, its commit.
func version() string {
	build, ok := debug.ReadBuildInfo()
	if !ok {
		return "(unknown)"
	}
	version := build.Main.Version
	if version == "" {
		version = "(devel)"
	}
	for _, setting := range build.Settings {
		if setting.Key == "vcs.revision" && version == "(devel)" && len(setting.Value) >= 12 {
			version = "(devel) " + setting.Value[:12]
		}
	}
	return version
}
