package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/berth-run/berth/client"
	"github.com/berth-run/berth/serving"
)

func (p *program) servicesCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use: "services", Aliases: []string{"service", "svc"},
		Short: "List, describe and delete services, and divide their traffic",
	})
	c.AddCommand(p.servicesListCommand(), p.servicesDescribeCommand(), p.servicesDeleteCommand(), p.updateTrafficCommand())
	return c
}

// allNamespacesFlag adds -A to a list.
func allNamespacesFlag(c *cobra.Command, all *bool) {
	c.Flags().BoolVarP(all, "all-namespaces", "A", false, "list those of every namespace")
}

func (p *program) servicesListCommand() *cobra.Command {
	var format string
	var all bool
	c := p.connected(&cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List services", Args: arguments(0, 0, "")})
	allNamespacesFlag(c, &all)
	outputFlag(c, &format, "json", "yaml", "name")
	c.RunE = func(c *cobra.Command, _ []string) error {
		berth, namespace, err := p.connect(c)
		if err != nil {
			return err
		}
		services, _, err := berth.Services(scope(namespace, all)).List(c.Context(), client.Selector{})
		if err != nil {
			return err
		}
		if len(services) == 0 {
			if err := p.checkEmpty(c.Context(), berth, namespace, all, "", ""); err != nil {
				return err
			}
		}
		if format != "" {
			return printObjects(p.stdout, format, services)
		}
		if len(services) == 0 {
			fmt.Fprintf(p.stderr, "No services in %s. Deploy one with: %s\n", where(namespace, all), p.command("deploy NAME --image REFERENCE"))
			return nil
		}
		t := newTable(p.stdout, namespaced(all, "NAMESPACE", "NAME", "URL", "LATEST", "READY", "AGE", "REASON")...)
		for _, service := range services {
			url := "-"
			if service.Status.URL != nil {
				url = service.Status.URL.String()
			}
			ready, reason := readiness(service.Status.GetCondition(serving.ServiceReady))
			if loop := service.Status.GetCondition(serving.ConditionInstancesHealthy); reason == "" && loop.IsFalse() {
				reason = loop.Reason
			}
			t.row(namespaced(all, service.Namespace, service.Name, url, dash(service.Status.LatestCreatedRevisionName),
				ready, age(service.CreationTimestamp.Time), reason)...)
		}
		return t.end()
	}
	return c
}

func (p *program) servicesDescribeCommand() *cobra.Command {
	var format string
	c := p.connected(&cobra.Command{
		Use: "describe NAME", Short: "Show one service: where it is, what runs, how traffic is divided, what is wrong",
		Args: arguments(1, 1, "the NAME of one service"), ValidArgsFunction: p.completeServices,
	})
	outputFlag(c, &format, "json", "yaml", "name")
	c.RunE = func(c *cobra.Command, args []string) error {
		berth, namespace, err := p.connect(c)
		if err != nil {
			return err
		}
		service, err := berth.Services(namespace).Get(c.Context(), args[0])
		if err != nil {
			return err
		}
		if format != "" {
			return printObject(p.stdout, format, service)
		}
		revisions, _, err := berth.Revisions(namespace).List(c.Context(), client.Selector{Labels: map[string]string{serving.LabelService: service.Name}})
		if err != nil {
			return err
		}
		return describeService(p.stdout, service, revisions)
	}
	return c
}

// scope is the namespace of a list: "" is all.
func scope(namespace string, all bool) string {
	if all {
		return ""
	}
	return namespace
}

// checkEmpty tells why a list is empty when what it was asked for does not exist: the namespace, the service or the
// revision, which are "" where the list was not asked for one.
func (p *program) checkEmpty(ctx context.Context, berth *client.Client, namespace string, all bool, service, revision string) error {
	if !all {
		if _, err := berth.Namespaces().Get(ctx, namespace); err != nil {
			return err
		}
	}
	if service != "" {
		found, _, err := berth.Services(scope(namespace, all)).List(ctx, client.Selector{Name: service})
		switch {
		case err != nil:
			return err
		case len(found) == 0:
			return fmt.Errorf("there is no service %q in %s", service, where(namespace, all))
		}
	}
	if revision != "" {
		found, _, err := berth.Revisions(scope(namespace, all)).List(ctx, client.Selector{Name: revision})
		switch {
		case err != nil:
			return err
		case len(found) == 0:
			return fmt.Errorf("there is no revision %q in %s", revision, where(namespace, all))
		case service != "" && found[0].Labels[serving.LabelService] != service:
			return fmt.Errorf("revision %q is not one of service %q", revision, service)
		}
	}
	return nil
}

// where names the scope of a list for people.
func where(namespace string, all bool) string {
	if all {
		return "any namespace"
	}
	return "namespace " + namespace
}

// namespaced leaves the first cell, which holds the namespace, out of a list of one namespace.
func namespaced(all bool, cells ...string) []string {
	if all {
		return cells
	}
	return cells[1:]
}

func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
