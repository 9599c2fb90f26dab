package client

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

// kubeconfig is the part of Kubernetes' file format that Berth uses.
type kubeconfig struct {
	CurrentContext string `json:"current-context"`
	Clusters       []struct {
		Name    string `json:"name"`
		Cluster struct {
			Server   string `json:"server"`
			CAFile   string `json:"certificate-authority"`
			CAData   string `json:"certificate-authority-data"`
			Insecure bool   `json:"insecure-skip-tls-verify"`
		} `json:"cluster"`
	} `json:"clusters"`
	Contexts []struct {
		Name    string `json:"name"`
		Context struct {
			Cluster   string `json:"cluster"`
			User      string `json:"user"`
			Namespace string `json:"namespace"`
		} `json:"context"`
	} `json:"contexts"`
	Users []struct {
		Name string `json:"name"`
		User struct {
			Token     string `json:"token"`
			TokenFile string `json:"tokenFile"`
		} `json:"user"`
	} `json:"users"`
}

// Load reads a kubeconfig file and returns what its current context says: server, token, certificates, namespace.
// Ways to authenticate other than a token are not read. A file that is not there is an fs.ErrNotExist.
func Load(path string) (Config, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("reading kubeconfig: %w", err)
	}
	var file kubeconfig
	if err := yaml.Unmarshal(content, &file); err != nil {
		return Config{}, fmt.Errorf("parsing kubeconfig %q: %w", path, err)
	}
	config, err := file.resolve(filepath.Dir(path))
	if err != nil {
		return Config{}, fmt.Errorf("reading kubeconfig %q: %w", path, err)
	}
	return config, nil
}

// resolve follows current-context. Relative paths in a kubeconfig are relative to its folder.
func (k *kubeconfig) resolve(folder string) (Config, error) {
	var config Config
	if k.CurrentContext == "" {
		return config, fmt.Errorf("it has no current-context; choose one with: kubectl config use-context NAME")
	}
	var cluster, user string
	found := false
	for _, c := range k.Contexts {
		if c.Name == k.CurrentContext {
			cluster, user, config.Namespace, found = c.Context.Cluster, c.Context.User, c.Context.Namespace, true
		}
	}
	if !found {
		return config, fmt.Errorf("its current-context %q is not among its contexts", k.CurrentContext)
	}

	found = false
	for _, c := range k.Clusters {
		if c.Name != cluster {
			continue
		}
		found = true
		config.Server, config.Insecure = c.Cluster.Server, c.Cluster.Insecure
		switch {
		case c.Cluster.CAData != "":
			ca, err := base64.StdEncoding.DecodeString(c.Cluster.CAData)
			if err != nil {
				return config, fmt.Errorf("decoding certificate-authority-data of cluster %q: %w", cluster, err)
			}
			config.CA = ca
		case c.Cluster.CAFile != "":
			ca, err := os.ReadFile(within(folder, c.Cluster.CAFile))
			if err != nil {
				return config, fmt.Errorf("reading certificate-authority of cluster %q: %w", cluster, err)
			}
			config.CA = ca
		}
	}
	if !found {
		return config, fmt.Errorf("the cluster %q of context %q is not among its clusters", cluster, k.CurrentContext)
	}

	for _, u := range k.Users {
		if u.Name != user {
			continue
		}
		config.Token = u.User.Token
		if config.Token == "" && u.User.TokenFile != "" {
			token, err := os.ReadFile(within(folder, u.User.TokenFile))
			if err != nil {
				return config, fmt.Errorf("reading tokenFile of user %q: %w", user, err)
			}
			config.Token = strings.TrimSpace(string(token))
		}
	}
	return config, nil
}

func within(folder, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(folder, path)
}
