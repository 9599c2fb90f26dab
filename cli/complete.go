package cli

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-run/berth/client"
	"github.com/berth-run/berth/serving"
)

// completionTimeout bounds how long a person waits after pressing Tab.
const completionTimeout = 2 * time.Second

// completeServices completes names of services that are not among the arguments yet.
func (p *program) completeServices(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return complete(p, c, args, (*client.Client).Services)
}

// completeRevisions completes names of revisions.
func (p *program) completeRevisions(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return complete(p, c, args, (*client.Client).Revisions)
}

// completeNamespaces completes names of namespaces.
func (p *program) completeNamespaces(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return complete(p, c, nil, func(berth *client.Client, _ string) client.Resource[*serving.Namespace] { return berth.Namespaces() })
}

// completeShares completes REVISION= in a list of shares, for those revisions that the list does not have. Which
// service's they are the argument says.
func (p *program) completeShares(c *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	names, directive := p.completeRevisions(c, nil, begun)
	if directive&cobra.ShellCompDirectiveError != 0 {
		return nil, directive
	}
	before := ""
	if comma := strings.LastIndex(begun, ","); comma >= 0 {
		before = begun[:comma+1]
	}
	var shares []string
	for _, name := range append(names, latest) {
		ofService := len(args) == 0 || name == latest || strings.HasPrefix(name, args[0]+"-")
		if ofService && !strings.Contains(","+before, ","+name+"=") {
			shares = append(shares, before+name+"=")
		}
	}
	return shares, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}

func complete[T serving.Object](p *program, c *cobra.Command, args []string, objects func(*client.Client, string) client.Resource[T]) ([]string, cobra.ShellCompDirective) {
	berth, namespace, err := p.connect(c)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	ctx := c.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completionTimeout)
	defer cancel()
	list, _, err := objects(berth, namespace).List(ctx, client.Selector{})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, object := range list {
		if !slices.Contains(args, object.GetName()) {
			names = append(names, object.GetName())
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
