package cli

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/berth-run/berth/client"
	"github.com/berth-run/berth/serving"
)

func (p *program) applyCommand() *cobra.Command {
	var files []string
	var wait bool
	c := p.connected(&cobra.Command{
		Use:   "apply -f FILE",
		Short: "Create or replace the objects in a YAML or JSON file",
		Long: `Create the objects in a YAML or JSON file, or replace those of the same name. A file may hold several documents
and any kind that Berth knows: services, configurations, routes, domain mappings, secrets, config maps, namespaces. All documents are
read before anything is sent: a field that does not exist is an error that names it.`,
		Example: `  berth apply -f service.yaml
  berth services describe hello -o yaml | berth apply -f -`,
		Args: arguments(0, 0, ""),
	})
	c.Flags().StringArrayVarP(&files, "filename", "f", nil, "`FILE` to read; - is standard input")
	c.Flags().BoolVar(&wait, "wait", false, "wait until services are ready")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if len(files) == 0 {
			return usagef("apply needs a file: berth apply -f FILE, or -f - for standard input")
		}
		var documents []document
		for _, file := range files {
			read, err := p.readFile(file)
			if err != nil {
				return err
			}
			documents = append(documents, read...)
		}
		berth, namespace, err := p.connect(c)
		if err != nil {
			return err
		}
		return p.apply(c, berth, namespace, documents, wait)
	}
	return c
}

func (p *program) readFile(file string) ([]document, error) {
	if file == "-" {
		content, err := io.ReadAll(p.stdin)
		if err != nil {
			return nil, fmt.Errorf("reading standard input: %w", err)
		}
		return readDocuments("standard input", content)
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading objects: %w", err)
	}
	return readDocuments(file, content)
}

func (p *program) apply(c *cobra.Command, berth *client.Client, namespace string, documents []document, wait bool) error {
	var services []*serving.Service
	for _, d := range documents {
		if d.object.GetNamespace() == "" && d.kind.Namespaced {
			d.object.SetNamespace(namespace)
		}
		objects := berth.Objects(d.kind, d.object.GetNamespace())
		var result serving.Object
		var err error
		created := true
		if d.object.GetName() == "" {
			result, err = objects.Create(c.Context(), d.object)
		} else {
			result, created, err = objects.Apply(c.Context(), d.object)
		}
		if err != nil {
			return fmt.Errorf("%s: applying %s %q: %w", d.place, d.kind.Singular, d.object.GetName(), err)
		}
		done := "replaced"
		if created {
			done = "created"
		}
		fmt.Fprintf(p.stdout, "%s %s %s\n", d.kind.Singular, result.GetName(), done)
		if service, ok := result.(*serving.Service); ok {
			services = append(services, service)
		}
	}
	if !wait {
		return nil
	}
	shown := p.newProgress()
	defer shown.end()
	for _, service := range services {
		ready, err := p.awaitReady(c.Context(), berth, service, shown)
		shown.end()
		if err != nil {
			return err
		}
		p.printDeployed(ready)
	}
	return nil
}
