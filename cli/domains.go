package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/berth-run/berth/client"
	"github.com/berth-run/berth/serving"
)

func (p *program) domainsCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use: "domains", Aliases: []string{"domain", "dm"},
		Short: "Map hosts of your own to services, list and delete such mappings",
	})
	c.AddCommand(p.domainsListCommand(), p.domainsMapCommand(), p.domainsDeleteCommand())
	return c
}

func (p *program) domainsListCommand() *cobra.Command {
	var format string
	var all bool
	c := p.connected(&cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List the hosts that are mapped to services", Args: arguments(0, 0, "")})
	allNamespacesFlag(c, &all)
	outputFlag(c, &format, "json", "yaml", "name")
	c.RunE = func(c *cobra.Command, _ []string) error {
		berth, namespace, err := p.connect(c)
		if err != nil {
			return err
		}
		mappings, _, err := berth.DomainMappings(scope(namespace, all)).List(c.Context(), client.Selector{})
		if err != nil {
			return err
		}
		if len(mappings) == 0 {
			if err := p.checkEmpty(c.Context(), berth, namespace, all, "", ""); err != nil {
				return err
			}
		}
		if format != "" {
			return printObjects(p.stdout, format, mappings)
		}
		if len(mappings) == 0 {
			fmt.Fprintf(p.stderr, "No hosts are mapped in %s. Map one with: %s\n", where(namespace, all), p.command("domains map HOST SERVICE"))
			return nil
		}
		t := newTable(p.stdout, namespaced(all, "NAMESPACE", "HOST", "SERVICE", "URL", "READY", "AGE", "REASON")...)
		for _, m := range mappings {
			url := "-"
			if m.Status.URL != nil {
				url = m.Status.URL.String()
			}
			ready, reason := readiness(m.Status.GetCondition(serving.DomainMappingReady))
			t.row(namespaced(all, m.Namespace, m.Name, m.Spec.Ref.Name, url, ready, age(m.CreationTimestamp.Time), reason)...)
		}
		return t.end()
	}
	return c
}

func (p *program) domainsMapCommand() *cobra.Command {
	var async bool
	c := p.connected(&cobra.Command{
		Use: "map HOST SERVICE", Short: "Send the requests of a host to a service",
		Long: `Send the requests of a host to a service, divided as the service's own are, and wait until they get there. A host
that is mapped already is mapped to this service instead. That the host's name leads to this machine is yours to
arrange, in its DNS.`,
		Example: `  berth domains map shop.example.com shop`,
		Args:    arguments(2, 2, "the HOST and the SERVICE"),
		ValidArgsFunction: func(c *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return p.completeServices(c, nil, begun)
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
	})
	c.Flags().BoolVar(&async, "async", false, "do not wait until the service gets requests of the host")
	c.RunE = func(c *cobra.Command, args []string) error {
		host, service := args[0], args[1]
		berth, namespace, err := p.connect(c)
		if err != nil {
			return err
		}
		if _, err := berth.Services(namespace).Get(c.Context(), service); err != nil {
			return err
		}
		mapping, err := writeMapping(c.Context(), berth, namespace, host, service)
		if err != nil {
			return err
		}
		if async {
			fmt.Fprintf(p.stdout, "Mapping %s to service %s.\n", host, service)
			return nil
		}
		if mapping, err = p.awaitMapped(c.Context(), berth, mapping); err != nil {
			return err
		}
		fmt.Fprintf(p.stdout, "Host %s is mapped to service %s: %s\n", host, service, mapping.Status.URL)
		return nil
	}
	return c
}

// writeMapping makes the mapping of a host, or changes what it refers to.
func writeMapping(ctx context.Context, berth *client.Client, namespace, host, service string) (*serving.DomainMapping, error) {
	mappings := berth.DomainMappings(namespace)
	refer := func(m *serving.DomainMapping) error {
		m.Spec.Ref.APIVersion, m.Spec.Ref.Kind, m.Spec.Ref.Name = serving.KindService.APIVersion(), serving.KindService.Name, service
		return nil
	}
	m, err := mappings.Modify(ctx, host, refer)
	if !client.IsNotFound(err) {
		return m, err
	}
	m = &serving.DomainMapping{ObjectMeta: serving.ObjectMeta{Namespace: namespace, Name: host}}
	if err := refer(m); err != nil {
		return nil, err
	}
	return mappings.Create(ctx, m)
}

// awaitMapped waits until the service gets the requests of a host. When something is in the way the error is what
// the mapping's conditions say; the mapping stays.
func (p *program) awaitMapped(ctx context.Context, berth *client.Client, mapping *serving.DomainMapping) (*serving.DomainMapping, error) {
	watching, stop := context.WithCancel(ctx)
	defer stop()
	host := mapping.Name
	for event, err := range berth.DomainMappings(mapping.Namespace).Watch(watching, client.Selector{Name: host}) {
		m := event.Object
		switch {
		case ctx.Err() != nil:
			return nil, fmt.Errorf("interrupted; the mapping goes on: see how far it is with: %s", p.command("domains list"))
		case err != nil:
			return nil, err
		case event.Type == client.Deleted:
			return nil, fmt.Errorf("the mapping of host %q was deleted while it was being made", host)
		case event.Type == client.Listed, m.Status.ObservedGeneration < mapping.Generation:
			continue
		}
		switch ready := m.Status.GetCondition(serving.DomainMappingReady); {
		case ready.IsTrue():
			return m, nil
		case ready.IsFalse():
			message := cmp.Or(ready.Message, ready.Reason)
			if claimed := m.Status.GetCondition(serving.DomainMappingClaimed); claimed.IsFalse() {
				message = cmp.Or(claimed.Message, claimed.Reason) + p.claimant(ctx, berth, m)
			}
			return nil, fmt.Errorf("mapping host %q: %s\nThe mapping stays; to remove it give: %s", host, message, p.command("domains delete %s", host))
		}
	}
	return nil, errors.New("the watch ended") // cannot be: it ends with an error
}

// claimant says which other namespace has a mapping's host, where the server tells.
func (p *program) claimant(ctx context.Context, berth *client.Client, mapping *serving.DomainMapping) string {
	claim, err := berth.ClusterDomainClaims().Get(ctx, mapping.Name)
	if err != nil || claim.Spec.Namespace == mapping.Namespace {
		return ""
	}
	return fmt.Sprintf(" in namespace %s; it is this one's as soon as that one is deleted", claim.Spec.Namespace)
}

func (p *program) domainsDeleteCommand() *cobra.Command {
	return deleteCommand(p, deletion[*serving.DomainMapping]{
		plural: "domain mappings", objects: (*client.Client).DomainMappings, complete: p.completeDomains,
	})
}

// completeDomains completes hosts that are mapped.
func (p *program) completeDomains(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return complete(p, c, args, (*client.Client).DomainMappings)
}
