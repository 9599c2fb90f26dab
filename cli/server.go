package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/berth-run/berth/server"
)

// otherHeading is for flags that nobody gave a heading.
const otherHeading = "Other"

// heading is a heading of the help and the flags under it.
type heading struct {
	title string
	flags []string
}

// serverHeadings are the headings of `berth server --help`. A flag that is in none of them is listed under [otherHeading].
func serverHeadings() []heading {
	return []heading{
		{"Where it is", []string{"state-dir", "api-address", "gateway-address", "domain", "issuer"}},
		{"Running instances", []string{"runtime", "instance-network", "dns", "user-namespaces", "starts-at-once", "idle-delay", "idle-keep", "instance-memory", "prepared-memory", "memory-reserve", "stop-grace", "drain-timeout", "startup-timeout", "log-keep"}},
		{"Images", []string{"insecure-registry", "docker-config", "pull-timeout", "image-keep"}},
		{"Defaults of services", []string{"defaults", "cpu", "memory", "container-concurrency", "revision-timeout", "max-revision-timeout", "cpu-throttling", "startup-cpu-boost", "min-instances", "max-instances", "initial-scale"}},
		{"Scaling", []string{"target", "target-utilization", "patience", "cpu-target", "rps-target", "stable-window", "panic-window-percent", "panic-threshold-percent", "tick", "max-scale-up-rate", "max-scale-down-rate", "scale-to-zero-grace", "scale-to-zero-retention"}},
		{"Requests", []string{"max-queue", "queue-wait", "trust-forwarded", "private-cookies", "server-timing", "access-log", "shutdown-timeout"}},
		{"HTTPS", []string{"gateway-tls-address", "tls-cert", "tls-key", "https-redirect", "acme", "acme-email", "acme-directory", "acme-ca"}},
		{"Limits of clients", []string{"max-header-bytes", "max-header-fields", "max-url-length", "max-request-body", "read-header-timeout", "keep-alive-timeout", "write-timeout", "max-streams", "max-resets", "max-connections", "max-connections-per-client"}},
	}
}

func (p *program) serverCommand() *cobra.Command {
	config, defaults := server.DefaultConfig(), server.DefaultsKnative
	c := &cobra.Command{
		Use:   "server",
		Short: "Start the platform on this machine",
		Long: `Start the platform on this machine: API, gateway, autoscaler and what runs instances, in one process.
It needs root. Everything it keeps is in the state directory; what was deployed there is served again.

The server runs in the foreground until it gets SIGINT or SIGTERM: it then lets requests in flight finish and
stops every instance. A second signal ends it at once.

Every flag can be given as an environment variable too: --api-address is BERTH_API_ADDRESS. The flag wins.`,
		Example: `  berth server
  berth server --state-dir /srv/berth --gateway-address 0.0.0.0:80 --domain run.example.com
  berth server --gateway-address 0.0.0.0:80 --gateway-tls-address 0.0.0.0:443 --acme --https-redirect`,
		Args: arguments(0, 0, ""),
	}
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	bindStruct(flags, reflect.ValueOf(&config).Elem())
	flags.StringVar(&defaults, "defaults", defaults, "whose `rules` hold where no flag says otherwise: "+server.DefaultsKnative+", or "+
		server.DefaultsCloudRun+", which is"+differences(flags, server.DefaultsCloudRun))
	flags.Var(goneFlag("--prepared-memory, the memory that prepared instances may hold together, such as 64Mi, or 0 for none"), "prepared", "")
	orderServerFlags(flags, c.Flags())
	_ = c.Flags().MarkHidden("prepared")
	// The only errors are flags that do not exist.
	_ = c.RegisterFlagCompletionFunc("runtime", cobra.FixedCompletions([]string{"crun", "runc"}, cobra.ShellCompDirectiveDefault))
	_ = c.RegisterFlagCompletionFunc("user-namespaces", cobra.FixedCompletions([]string{"on", "off", "auto"}, cobra.ShellCompDirectiveNoFileComp))
	_ = c.RegisterFlagCompletionFunc("defaults", cobra.FixedCompletions([]string{server.DefaultsKnative, server.DefaultsCloudRun}, cobra.ShellCompDirectiveNoFileComp))
	_ = c.MarkFlagDirname("state-dir")
	c.RunE = func(c *cobra.Command, _ []string) error {
		var names []string
		c.Flags().VisitAll(func(flag *pflag.Flag) { names = append(names, flag.Name) })
		// What is given in the environment comes after the defaults, and before it their name.
		if err := environment(c, "defaults"); err != nil {
			return err
		}
		if err := takeDefaults(c.Flags(), defaults); err != nil {
			return err
		}
		if err := environment(c, names...); err != nil {
			return err
		}
		logger := p.newLogger()
		warnOfVariables(c.Flags(), logger)
		config.Logger = logger
		return p.serve(c.Context(), config)
	}
	return c
}

// orderServerFlags adds flags in the order of their headings, which is that of the help; those in no heading come last.
func orderServerFlags(flags, ordered *pflag.FlagSet) {
	for _, h := range serverHeadings() {
		for _, name := range h.flags {
			if flag := flags.Lookup(name); flag != nil {
				ordered.AddFlag(flag)
				under(h.title, ordered, name)
			}
		}
	}
	flags.VisitAll(func(flag *pflag.Flag) {
		if ordered.Lookup(flag.Name) == nil {
			ordered.AddFlag(flag)
			under(otherHeading, ordered, flag.Name)
		}
	})
}

// warnOfVariables tells of environment variables that look like settings and are none, the client's aside.
func warnOfVariables(flags *pflag.FlagSet, logger *slog.Logger) {
	for _, entry := range os.Environ() {
		variable, _, _ := strings.Cut(entry, "=")
		name, ours := strings.CutPrefix(variable, "BERTH_")
		flag := strings.ToLower(strings.ReplaceAll(name, "_", "-"))
		if ours && flags.Lookup(flag) == nil && !slices.Contains(clientSettings(), flag) {
			logger.Warn("an environment variable has no effect: the server has no such setting; see berth server --help", "variable", variable)
		}
	}
}

// takeDefaults gives the flags that nobody gave the values of named defaults.
func takeDefaults(flags *pflag.FlagSet, name string) error {
	config, err := server.NamedConfig(name)
	if err != nil {
		return usagef("--defaults (or BERTH_DEFAULTS): %v", err)
	}
	eachDifference(flags, config, func(flag *pflag.Flag, value string) {
		if !flag.Changed {
			err = errors.Join(err, flag.Value.Set(value))
		}
	})
	return err
}

// differences says which flags named defaults change, and to what.
func differences(flags *pflag.FlagSet, name string) string {
	config, err := server.NamedConfig(name)
	if err != nil {
		return ""
	}
	var b strings.Builder
	eachDifference(flags, config, func(flag *pflag.Flag, value string) {
		fmt.Fprintf(&b, " --%s", flag.Name)
		if value != flag.NoOptDefVal {
			b.WriteString(" " + value)
		}
	})
	return b.String()
}

// eachDifference visits the flags, in alphabetical order, that have another default in config.
func eachDifference(flags *pflag.FlagSet, config server.Config, visit func(flag *pflag.Flag, value string)) {
	others := pflag.NewFlagSet("", pflag.ContinueOnError)
	bindStruct(others, reflect.ValueOf(&config).Elem())
	others.VisitAll(func(other *pflag.Flag) {
		if flag := flags.Lookup(other.Name); flag.DefValue != other.DefValue {
			visit(flag, other.DefValue)
		}
	})
}

// newLogger makes the server's log: a person at a terminal gets text, everything else JSON lines on stderr.
func (p *program) newLogger() *slog.Logger {
	if terminal(p.stdout) {
		return slog.New(slog.NewTextHandler(p.stderr, nil))
	}
	return slog.New(slog.NewJSONHandler(p.stderr, nil))
}

// serve runs a server until ctx ends.
func (p *program) serve(ctx context.Context, config server.Config) error {
	config.Ready = func(addresses server.Addresses) {
		gateway := "http://" + addresses.Gateway
		if addresses.GatewayTLS != "" {
			gateway += " https://" + addresses.GatewayTLS
		}
		if !terminal(p.stdout) {
			config.Logger.Info("clients may connect",
				"gateway", gateway, "api", "https://"+addresses.API, "domain", config.Domain,
				"kubeconfig", addresses.Kubeconfig, "token", addresses.Token,
				"version", server.Version(), "runtime", addresses.Runtime)
			return
		}
		fmt.Fprintf(p.stdout, "Berth is running.\n")
		fmt.Fprintf(p.stdout, "  API         https://%s\n", addresses.API)
		fmt.Fprintf(p.stdout, "  Gateway     %s\n", gateway)
		fmt.Fprintf(p.stdout, "  Kubeconfig  %s\n", addresses.Kubeconfig)
		fmt.Fprintf(p.stdout, "\nNow, in another terminal:\n  %s\n\n", nextCommand(config.StateDir))
	}
	return server.Run(ctx, config)
}

// nextCommand is what to type after the server has started.
func nextCommand(stateDir string) string {
	command := "berth deploy hello --image REFERENCE"
	if stateDir != server.DefaultConfig().StateDir {
		command += " --state-dir " + stateDir
	}
	return command
}
