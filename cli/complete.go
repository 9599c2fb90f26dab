package cli

import (
	"context"
	"slices"
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
