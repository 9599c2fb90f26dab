package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// groupAnnotation is the key under which a flag carries the heading it is listed under.
const groupAnnotation = "berth_group"

// connectionHeading is that of the flags that every command has which asks a server.
const connectionHeading = "Connection (environment BERTH_NAMESPACE, BERTH_KUBECONFIG and so on)"

// helpWidth is the column that help is wrapped at.
const helpWidth = 110

// under puts flags under a heading of the help.
func under(heading string, flags *pflag.FlagSet, names ...string) {
	for _, name := range names {
		// The only error is a name that is no flag, which a test of the help would show.
		_ = flags.SetAnnotation(name, groupAnnotation, []string{heading})
	}
}

// helpCommand is `berth help COMMAND`, which is COMMAND --help.
func (p *program) helpCommand() *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND]", Short: "Help about a command",
		RunE: func(c *cobra.Command, words []string) error {
			asked, rest, err := c.Root().Find(words)
			if err != nil {
				return usagef("%v", err)
			}
			if len(rest) > 0 {
				if asked.HasSubCommands() {
					return asked.ValidateArgs(rest)
				}
				return usagef("%s has no command %q", asked.CommandPath(), rest[0])
			}
			asked.InitDefaultHelpFlag()
			return asked.Help()
		},
		ValidArgsFunction: func(c *cobra.Command, words []string, begun string) ([]string, cobra.ShellCompDirective) {
			asked, rest, err := c.Root().Find(words)
			if err != nil || len(rest) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			var names []string
			for _, command := range asked.Commands() {
				if command.IsAvailableCommand() && strings.HasPrefix(command.Name(), begun) {
					names = append(names, command.Name())
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
	}
}

// help prints what a command does, its commands or its flags under their headings.
func help(c *cobra.Command, _ []string) {
	out := c.OutOrStdout()
	text := c.Long
	if text == "" {
		text = c.Short + "."
	}
	usage := c.UseLine()
	if c.HasAvailableSubCommands() {
		usage = c.CommandPath() + " COMMAND"
	}
	fmt.Fprintf(out, "%s\n\nUsage:\n  %s\n", strings.TrimSpace(text), usage)
	if len(c.Aliases) > 0 {
		fmt.Fprintf(out, "\nAliases:\n  %s\n", strings.Join(c.Aliases, ", "))
	}
	if c.Example != "" {
		fmt.Fprintf(out, "\nExamples:\n%s\n", c.Example)
	}
	helpCommands(out, c)
	helpFlags(out, c)
	if c.HasAvailableSubCommands() {
		fmt.Fprintf(out, "\nMore about a command: %s COMMAND --help\n", c.CommandPath())
	}
}

func helpCommands(out io.Writer, c *cobra.Command) {
	width := 0
	for _, sub := range c.Commands() {
		width = max(width, len(sub.Name()))
	}
	list := func(title, id string) {
		printed := false
		for _, sub := range c.Commands() {
			if sub.Hidden || sub.GroupID != id {
				continue
			}
			if !printed {
				fmt.Fprintf(out, "\n%s:\n", title)
				printed = true
			}
			fmt.Fprintf(out, "  %-*s  %s\n", width, sub.Name(), sub.Short)
		}
	}
	for _, g := range c.Groups() {
		list(g.Title, g.ID)
	}
	list("Commands", "")
}

// helpFlags prints the flags in the order of their headings' first flag.
func helpFlags(out io.Writer, c *cobra.Command) {
	var headings []string
	sets := map[string]*pflag.FlagSet{}
	c.LocalFlags().SortFlags = false
	c.Flags().SortFlags = false
	c.Flags().VisitAll(func(flag *pflag.Flag) {
		if flag.Hidden {
			return
		}
		heading := "Flags"
		if names := flag.Annotations[groupAnnotation]; len(names) > 0 {
			heading = names[0]
		}
		if flag.Name == "help" {
			return // it is how one got here
		}
		set, ok := sets[heading]
		if !ok {
			set = pflag.NewFlagSet("", pflag.ContinueOnError)
			set.SortFlags = false
			sets[heading] = set
			headings = append(headings, heading)
		}
		set.AddFlag(flag)
	})
	if i := slices.Index(headings, connectionHeading); i >= 0 { // what every command has is read last
		headings = append(slices.Delete(headings, i, i+1), connectionHeading)
	}
	for _, heading := range headings {
		fmt.Fprintf(out, "\n%s:\n%s", heading, sets[heading].FlagUsagesWrapped(helpWidth))
	}
}
