package server

import "runtime/debug"

// Version is what the Go toolchain recorded: the module's version and, built from a checkout, its commit.
func Version() string {
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
