// Package cli is Berth's command line: `berth server` starts the platform, every other command asks a running
// server through package client. Start reading at [Main]; each command is one file, named after it. What commands
// decide (what a flag changes in a service, how traffic is split) is in pure functions beside them.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Exit codes.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

// program is one run of the command line.
type program struct {
	stdin  io.Reader
	stdout io.Writer // what was asked for
	stderr io.Writer // progress and errors
	// connection is where the connection flags of the command that runs are parsed into.
	connection connection
	// helpless is that help was asked for a command that there is not. Asking for help is no error to cobra.
	helpless error
}

// Main runs one command and returns the exit code: 0, 1 for failure, 2 for wrong usage. An interrupt or SIGTERM
// ends the command gracefully, a second one at once.
func Main(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // the second signal finds the default action

	p := &program{stdin: stdin, stdout: stdout, stderr: stderr}
	root := p.root()
	root.SetArgs(append([]string{}, args...)) // nil would mean os.Args
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	command, err := root.ExecuteContextC(ctx)
	if err == nil {
		err = p.helpless
	}
	if err == nil {
		return exitOK
	}
	err = p.explain(ctx, err)
	fmt.Fprintf(stderr, "berth: %v\n", err)
	if usage, ok := errors.AsType[*usageError](err); ok {
		if !usage.complete {
			if command.Name() == "help" {
				command = root
			}
			fmt.Fprintf(stderr, "See: %s --help\n", command.CommandPath())
		}
		return exitUsage
	}
	return exitFailure
}

// usageError is a mistake on the command line, as opposed to something that went wrong.
type usageError struct {
	message  string
	complete bool // the message needs no pointer to the help
}

func (e *usageError) Error() string { return e.message }

func usagef(format string, args ...any) error {
	return &usageError{message: fmt.Sprintf(format, args...)}
}

// flagProblem says what is wrong with a flag, in our words where those of the parser name a function of Go's.
func flagProblem(err error) string {
	var invalid *pflag.InvalidValueError
	if !errors.As(err, &invalid) {
		return err.Error()
	}
	wants, known := map[string]string{"bool": "true or false", "int": "a whole number"}[invalid.GetFlag().Value.Type()]
	if !known {
		return err.Error()
	}
	return fmt.Sprintf("invalid argument %q for \"--%s\" flag: not %s", invalid.GetValue(), invalid.GetFlag().Name, wants)
}

func (p *program) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "berth",
		Short: "Run containers as services that start on requests, scale with load and go to zero",
		Long: `Berth runs containers the way Cloud Run does, on a machine of yours: hand it an image, get a URL.
Instances start when requests come, multiply with load, and go away when idle.`,
		Example: `  berth server                                     start the platform on this machine
  berth deploy hello --source ./examples/hello     build and deploy a Go program
  berth deploy web --image registry.example.com/web:1
  berth services list`,
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetVersionTemplate("{{.Version}}\n")
	root.SetHelpCommand(p.helpCommand())
	root.SetHelpFunc(func(c *cobra.Command, _ []string) {
		// A group of commands is asked with the name of one that it has not, or this would be that one's help.
		if words := c.Flags().Args(); len(words) > 0 && c.HasSubCommands() && c.Name() != "help" {
			p.helpless = c.ValidateArgs(words)
			return
		}
		help(c, nil)
	})
	root.SetUsageFunc(func(c *cobra.Command) error { help(c, nil); return nil })
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usagef("%s", flagProblem(err)) })
	root.AddGroup(
		&cobra.Group{ID: "platform", Title: "The platform"},
		&cobra.Group{ID: "deploy", Title: "Deploying"},
		&cobra.Group{ID: "look", Title: "Looking"},
		&cobra.Group{ID: "more", Title: "More"},
	)
	root.SetCompletionCommandGroupID("more")
	root.SetHelpCommandGroupID("more")
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("platform", p.serverCommand(), p.infoCommand())
	add("deploy", p.deployCommand(), p.servicesCommand(), p.revisionsCommand(), p.domainsCommand(), p.applyCommand())
	add("look", p.logsCommand(), p.instancesCommand())
	add("more", p.versionCommand())
	group(root)
	return root
}

// group makes a command that only holds others: alone it prints its help, with an unknown word it suggests.
func group(c *cobra.Command) *cobra.Command {
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		message := fmt.Sprintf("unknown command %q for %q", args[0], c.CommandPath())
		c.SuggestionsMinimumDistance = 2
		if near := c.SuggestionsFor(args[0]); len(near) > 0 {
			message += fmt.Sprintf("; did you mean %s?", strings.Join(near, " or "))
		}
		return &usageError{message: message}
	}
	c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
	return c
}

// arguments checks the number of arguments, which names says for the error: "NAME".
func arguments(least, most int, names string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return usagef("%s needs %s", c.CommandPath(), names)
		case len(args) > most && most == 0:
			return usagef("%s takes no arguments, and was given %q", c.CommandPath(), args[0])
		case len(args) > most:
			return usagef("%s takes %s, and was also given %q", c.CommandPath(), names, args[most])
		}
		return nil
	}
}
