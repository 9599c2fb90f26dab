package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/berth-run/berth/client"
	"github.com/berth-run/berth/server"
	"github.com/berth-run/berth/serving"
)

// connection is what the connection flags say.
type connection struct {
	kubeconfig, stateDir, server, tokenFile, namespace string
	// used is the kubeconfig that was read, for messages.
	used string
	// given is those of the flags that are on the command line, as they would be given again.
	given string
}

// connected gives a command the connection flags. Each has an environment variable, which the flag wins over.
func (p *program) connected(c *cobra.Command) *cobra.Command {
	flags := c.Flags()
	flags.StringVarP(&p.connection.namespace, "namespace", "n", "", "namespace (default: that of the kubeconfig, else \"default\")")
	flags.StringVar(&p.connection.kubeconfig, "kubeconfig", "", "kubeconfig that names the server and its token (default: STATE-DIR/kubeconfig)")
	flags.StringVar(&p.connection.stateDir, "state-dir", server.DefaultConfig().StateDir, "state directory of a server on this machine")
	flags.StringVar(&p.connection.server, "server", "", "URL of the server's API, instead of the kubeconfig's")
	flags.StringVar(&p.connection.tokenFile, "token-file", "", "file that holds the token, instead of the kubeconfig's")
	// The only error is a flag that does not exist.
	_ = c.RegisterFlagCompletionFunc("namespace", p.completeNamespaces)
	_ = c.MarkFlagDirname("state-dir")
	under(connectionHeading, flags,
		"namespace", "kubeconfig", "state-dir", "server", "token-file")
	return c
}

// environment fills the flags that were not given from BERTH_<NAME>.
func environment(c *cobra.Command, names ...string) error {
	for _, name := range names {
		flag := c.Flags().Lookup(name)
		variable := "BERTH_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
		value, ok := os.LookupEnv(variable)
		if flag == nil || flag.Changed || !ok || value == "" {
			continue
		}
		if err := flag.Value.Set(value); err != nil {
			return usagef("environment variable %s: invalid value %q: %v", variable, value, err)
		}
	}
	return nil
}

// clientSettings are the flags about the connection, which the environment can hold too.
func clientSettings() []string {
	return []string{"namespace", "kubeconfig", "state-dir", "server", "token-file"}
}

// connect makes the client that the connection flags describe, and says which namespace is meant.
func (p *program) connect(c *cobra.Command) (*client.Client, string, error) {
	if err := environment(c, clientSettings()...); err != nil {
		return nil, "", err
	}
	p.connection.given = ""
	for _, name := range clientSettings() {
		if flag := c.Flags().Lookup(name); flag != nil && flag.Changed {
			p.connection.given += " --" + name + " " + shellWord(flag.Value.String())
		}
	}
	config, err := p.connection.resolve()
	if err != nil {
		return nil, "", err
	}
	config.Warn = p.newWarn()
	berth, err := client.New(config)
	if err != nil {
		return nil, "", err
	}
	return berth, config.Namespace, nil
}

// newWarn prints the server's warnings on stderr, each once: a write that is tried again is warned of again.
func (p *program) newWarn() func(string) {
	var mu sync.Mutex
	known := map[string]bool{}
	return func(warning string) {
		mu.Lock()
		defer mu.Unlock()
		if !known[warning] {
			known[warning] = true
			p.newProgress().line("warning: " + warning)
		}
	}
}

// command is a command for the user to give next, to the same server and namespace: "services describe web".
func (p *program) command(format string, args ...any) string {
	return "berth " + fmt.Sprintf(format, args...) + p.connection.given
}

// resolve puts flags and kubeconfig together. A token from a kubeconfig that nobody named is sent only to that
// kubeconfig's own server.
func (n *connection) resolve() (client.Config, error) {
	path, named := n.kubeconfig, true
	if path == "" {
		path, named = filepath.Join(n.stateDir, "kubeconfig"), false
	}
	config, err := client.Load(path)
	switch {
	case err == nil:
		n.used = path
		if n.server != "" && !named && strings.TrimSuffix(n.server, "/") != strings.TrimSuffix(config.Server, "/") {
			config = client.Config{}
		}
	case n.server != "" && !named:
		// Everything that is needed may have been given by flags.
	case errors.Is(err, fs.ErrNotExist) && !named:
		return config, fmt.Errorf("no server has run here yet: there is no %s; start one with: berth server "+
			"(or name another with --kubeconfig or --server)", path)
	case errors.Is(err, fs.ErrPermission):
		return config, fmt.Errorf("%w; run as the user who runs the server, or give --kubeconfig a copy", err)
	default:
		return config, err
	}
	if n.server != "" {
		config.Server = n.server
	}
	if n.tokenFile != "" {
		token, err := os.ReadFile(n.tokenFile)
		if err != nil {
			return config, fmt.Errorf("reading the token: %w", err)
		}
		config.Token = strings.TrimSpace(string(token))
	}
	if n.namespace != "" {
		config.Namespace = n.namespace
	}
	if config.Namespace == "" {
		config.Namespace = "default"
	}
	return config, nil
}

// explain adds to an error what the person at the command line can do about it.
func (p *program) explain(ctx context.Context, err error) error {
	if unreachable, ok := errors.AsType[*client.UnreachableError](err); ok {
		if errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("no server answers at %s (connection refused); start one with: berth server", unreachable.Server)
		}
		return fmt.Errorf("%w; is it running? start one with: berth server", err)
	}
	status, refused := errors.AsType[*client.StatusError](err)
	if refused && client.IsNotFound(err) && status.Details != nil && status.Details.Kind == serving.KindNamespace.Plural {
		return fmt.Errorf("%w; make it first: give berth apply an object with apiVersion: v1, kind: Namespace and metadata: {name: %s}",
			err, status.Details.Name)
	}
	if refused && status.Code == http.StatusUnauthorized {
		source := "--token-file"
		if p.connection.tokenFile == "" {
			source = p.connection.used
		}
		if source == "" {
			return fmt.Errorf("%w; give the server's token with --token-file, or its kubeconfig with --kubeconfig", err)
		}
		return fmt.Errorf("%w; the token in %s is not this server's", err, source)
	}
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return errors.New("interrupted")
	}
	return err
}
