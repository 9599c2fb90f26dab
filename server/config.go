// Package server wires Berth's parts into one running platform. [Run] is the place to start reading: it can be
// called several times in one process, on different state directories. [Config] holds every setting.
package server

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/berth-run/berth/autoscaler"
	"github.com/berth-run/berth/certificate"
	"github.com/berth-run/berth/engine/node"
)

// Config is every setting of a server. The command line's flags and environment variables fill it; the tags
// give a field's flag ("api-address", environment BERTH_API_ADDRESS) and its help.
type Config struct {
	StateDir string `flag:"state-dir" help:"directory that holds everything Berth keeps; stop the server, then remove it and nothing is left"`

	APIAddress     string `flag:"api-address" help:"address the API listens on (port 0 takes a free one)"`
	GatewayAddress string `flag:"gateway-address" help:"address that requests to services arrive at (port 0 takes a free one)"`
	Domain         string `flag:"domain" help:"domain of service URLs: http://NAME.NAMESPACE.DOMAIN, or https where there is a certificate"`

	Issuer string `flag:"issuer" help:"URL that service accounts' tokens name as their issuer; whoever checks them finds the keys below it (default: the API's own)"`

	InstanceNetwork    netip.Prefix  `flag:"instance-network" help:"IPv4 network to give instances their addresses from; a part of it that no interface uses is taken"`
	DNS                []string      `flag:"dns" help:"DNS servers that instances' questions are forwarded to, as ADDRESS or ADDRESS:PORT (default: those of /etc/resolv.conf)"`
	Runtime            string        `flag:"runtime" help:"OCI runtime: crun, runc, or a path (default: crun where it is installed, else runc)"`
	UserNamespaces     string        `flag:"user-namespaces" help:"give every instance users of its own, its root too, that are nobody on the machine: on, off, or auto (on where the machine can; what is missing is logged)"`
	InsecureRegistries []string      `flag:"insecure-registry" help:"registries that are asked over plain HTTP, as HOST or HOST:PORT"`
	DockerConfig       string        `flag:"docker-config" help:"Docker's config.json with registry credentials (default: $DOCKER_CONFIG/config.json or ~/.docker/config.json)"`
	LogKeep            ByteSize      `flag:"log-keep" help:"bytes of log kept for each revision, at least 512Ki"`
	PullTimeout        time.Duration `flag:"pull-timeout" help:"longest time to pull one image"`
	ImageKeep          time.Duration `flag:"image-keep" help:"how long an image that no revision uses is kept"`

	RevisionTimeout    time.Duration `flag:"revision-timeout" help:"request timeout of services that set none"`
	MaxRevisionTimeout time.Duration `flag:"max-revision-timeout" help:"longest request timeout that a service may set"`
	Concurrency        int           `flag:"container-concurrency" help:"containerConcurrency of services that set none; 0 is unlimited"`
	CPU                string        `flag:"cpu" help:"CPU limit of services that set none; empty is no limit"`
	Memory             string        `flag:"memory" help:"memory limit of services that set none; empty is no limit"`
	Throttling         bool          `flag:"cpu-throttling" help:"withhold the CPU from instances of services that do not say (--no-cpu-throttling) while they have no requests: they are frozen, and go on with the next request"`
	IdleDelay          time.Duration `flag:"idle-delay" help:"how long an instance keeps the CPU after its last request, where it is withheld between requests"`
	Boost              bool          `flag:"startup-cpu-boost" help:"give instances of services that do not say (--no-cpu-boost) more CPU than their limit until 10s after they have started"`
	StartupTimeout     time.Duration `flag:"startup-timeout" help:"longest time from an instance's start to its first request"`
	MaxQueue           int           `flag:"max-queue" help:"most requests of one revision that wait for an instance at the same time"`
	QueueWait          QueueWait     `flag:"queue-wait" help:"longest time that a request waits for an instance, then 429 where there are as many as there may be and 500 where they start too slowly; 0 is as long as its timeout, auto is as Cloud Run: 3.5 times the average start, at least 10s"`
	ShutdownTimeout    time.Duration `flag:"shutdown-timeout" help:"longest time that requests in flight get to finish when the server stops"`
	PrivateCookies     bool          `flag:"private-cookies" help:"add \"Cache-Control: private\" to responses that set a cookie, as Cloud Run does"`
	ServerTiming       bool          `flag:"server-timing" help:"add a Server-Timing header to responses of requests that waited for an instance: how long each step of its start took, which anyone can then see"`
	TrustForwarded     []string      `flag:"trust-forwarded" help:"networks of proxies in front of the gateway, as ADDRESS/BITS: their X-Forwarded-For, X-Forwarded-Proto and Forwarded headers are believed and added to"`
	AccessLog          bool          `flag:"access-log" help:"write one line for each request to standard output"`

	TLS     TLS
	Limits  Limits
	Scaling autoscaler.Settings

	Logger *slog.Logger
	// Ready, when set, is called once with the addresses listened on, as soon as the server takes requests.
	Ready func(Addresses)
}

// Addresses are what a server listens on, where it wrote what clients need, and what it runs instances with.
type Addresses struct {
	API, Gateway string // host:port
	GatewayTLS   string // host:port; empty when TLS is off
	Token        string // path of the file that holds the API token
	Kubeconfig   string // path of the kubeconfig
	Runtime      string // the OCI runtime and its version
}

// DefaultConfig returns the settings of a server that was given none.
func DefaultConfig() Config {
	return Config{
		StateDir:           "/var/lib/berth",
		APIAddress:         "127.0.0.1:8081",
		GatewayAddress:     "127.0.0.1:8080",
		Domain:             "localhost",
		InstanceNetwork:    netip.MustParsePrefix("10.213.0.0/16"),
		UserNamespaces:     node.UserNamespacesOn,
		LogKeep:            16 << 20,
		PullTimeout:        10 * time.Minute,
		ImageKeep:          time.Hour,
		RevisionTimeout:    300 * time.Second,
		MaxRevisionTimeout: 3600 * time.Second,
		CPU:                "1",
		Memory:             "512Mi",
		IdleDelay:          100 * time.Millisecond,
		StartupTimeout:     240 * time.Second,
		MaxQueue:           10000,
		ShutdownTimeout:    30 * time.Second,
		AccessLog:          true,
		TLS:                TLS{ACMEDirectory: certificate.LetsEncrypt},
		Limits:             defaultLimits(),
		Scaling:            autoscaler.DefaultSettings(),
		Logger:             slog.Default(),
	}
}

// check says which settings cannot be worked with, each by its flag.
func (c Config) check() error {
	var errs []error
	wrong := func(flag string, value any, want string) {
		errs = append(errs, fmt.Errorf("--%s %v: %s", flag, value, want))
	}
	if problems := validation.IsDNS1123Subdomain(c.Domain); len(problems) > 0 {
		wrong("domain", strconv.Quote(c.Domain), "it must be a DNS name without scheme and port, such as example.com")
	}
	if u, err := url.Parse(c.Issuer); c.Issuer != "" && (err != nil || u.Scheme != "https" || u.Host == "" || u.RawQuery+u.Fragment != "" || strings.HasSuffix(u.Path, "/")) {
		wrong("issuer", strconv.Quote(c.Issuer), "it must be a URL such as https://berth.example.com, without a slash at its end")
	}
	if c.StateDir == "" {
		wrong("state-dir", `""`, "name a directory")
	}
	for flag, d := range map[string]time.Duration{
		"pull-timeout": c.PullTimeout, "startup-timeout": c.StartupTimeout, "shutdown-timeout": c.ShutdownTimeout,
		"revision-timeout": c.RevisionTimeout, "max-revision-timeout": c.MaxRevisionTimeout, "image-keep": c.ImageKeep,
	} {
		if d <= 0 {
			wrong(flag, d, "it must be longer than 0")
		}
	}
	if c.IdleDelay < 0 {
		wrong("idle-delay", c.IdleDelay, "it must be 0 or longer")
	}
	if c.RevisionTimeout > c.MaxRevisionTimeout {
		wrong("revision-timeout", c.RevisionTimeout, fmt.Sprintf("it must not be longer than --max-revision-timeout, %v", c.MaxRevisionTimeout))
	}
	c.Limits.check(wrong)
	c.TLS.check(wrong)
	if c.QueueWait < 0 && c.QueueWait != QueueWaitAuto {
		wrong("queue-wait", c.QueueWait, "it must be 0, which is as long as the request's timeout, or more, or auto")
	}
	if c.MaxQueue < 1 {
		wrong("max-queue", c.MaxQueue, "at least one request must be able to wait, or no service wakes from zero")
	}
	for flag, quantity := range map[string]string{"cpu": c.CPU, "memory": c.Memory} {
		if quantity == "" {
			continue // no limit
		}
		if q, err := resource.ParseQuantity(quantity); err != nil || q.Sign() <= 0 {
			wrong(flag, strconv.Quote(quantity), `it must be a quantity above 0, such as "500m" for a CPU or "512Mi" for memory`)
		}
	}
	for _, registry := range c.InsecureRegistries {
		if strings.Contains(registry, "/") {
			wrong("insecure-registry", strconv.Quote(registry), "name it as HOST or HOST:PORT, without scheme and path")
		}
	}
	if c.DockerConfig != "" {
		if _, err := os.Stat(c.DockerConfig); err != nil {
			wrong("docker-config", strconv.Quote(c.DockerConfig), err.Error())
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}

// prefixes reads networks; a bare address is a network of one.
func prefixes(flag string, texts []string) ([]netip.Prefix, error) {
	var all []netip.Prefix
	for _, text := range texts {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			address, bare := netip.ParseAddr(text)
			if bare != nil {
				return nil, fmt.Errorf("--%s %q: it must be an address or a network such as 10.0.0.0/8", flag, text)
			}
			prefix = netip.PrefixFrom(address, address.BitLen())
		}
		all = append(all, prefix)
	}
	return all, nil
}

// ByteSize is a number of bytes that reads and prints with a unit: "16Mi".
type ByteSize int64

// String prints the size in the largest unit that leaves it whole.
func (b ByteSize) String() string {
	units := []string{"", "Ki", "Mi", "Gi", "Ti"}
	n, i := int64(b), 0
	for n != 0 && n%1024 == 0 && i < len(units)-1 {
		n, i = n/1024, i+1
	}
	return fmt.Sprintf("%d%s", n, units[i])
}
