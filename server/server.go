package server

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/berth-run/berth/api"
	"github.com/berth-run/berth/autoscaler"
	"github.com/berth-run/berth/certificate"
	"github.com/berth-run/berth/engine/node"
	"github.com/berth-run/berth/gateway"
	"github.com/berth-run/berth/identity"
	"github.com/berth-run/berth/image"
	"github.com/berth-run/berth/reconcile"
	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
	"github.com/berth-run/berth/store/bolt"
)

// Run starts the platform and serves until ctx ends, then finishes requests in flight, stops every instance and
// returns nil. It may be called again, and at the same time with another state directory.
func Run(ctx context.Context, config Config) error {
	s, err := open(config)
	if err != nil {
		return err
	}
	return errors.Join(s.run(ctx), s.close())
}

// server is a running platform: its parts, in the order in which they are opened.
type server struct {
	config    Config
	logger    *slog.Logger
	addresses Addresses
	ready     atomic.Bool

	lock            *os.File
	apiListener     net.Listener
	gatewayListener net.Listener
	tlsListener     net.Listener       // nil when TLS is off
	certificates    *certificate.Store // nil when TLS is off
	store           *bolt.Store
	images          *image.Store
	engine          *node.Engine
	gateway         *gateway.Gateway
	autoscaler      *autoscaler.Autoscaler
	reconciler      *reconcile.Reconciler
	api             *http.Server
}

// open makes the parts and connects them. Addresses are taken first: what is most likely to be wrong is found
// before anything else is touched.
func open(config Config) (_ *server, err error) {
	s := &server{config: config, logger: config.Logger}
	if s.logger == nil {
		s.logger = slog.Default()
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	admission, err := serving.NewAdmission(s.settings())
	trusted, trustErr := prefixes("trust-forwarded", config.TrustForwarded)
	if err := errors.Join(err, config.check(), config.Scaling.Validate(), trustErr); err != nil {
		return nil, fmt.Errorf("checking the settings: %w", err)
	}
	if s.config.StateDir, err = filepath.Abs(config.StateDir); err != nil {
		return nil, fmt.Errorf("finding state directory %q: %w", config.StateDir, err)
	}
	if s.lock, err = lockDir(s.config.StateDir); err != nil {
		return nil, err
	}
	if s.apiListener, err = listen("API", "--api-address", config.APIAddress); err != nil {
		return nil, err
	}
	if s.gatewayListener, err = listen("gateway", "--gateway-address", config.GatewayAddress); err != nil {
		return nil, err
	}
	s.addresses = Addresses{
		API: s.apiListener.Addr().String(), Gateway: s.gatewayListener.Addr().String(),
		Token: s.path("token"), Kubeconfig: s.path("kubeconfig"),
	}
	if err := s.openTLS(); err != nil {
		return nil, err
	}
	token, err := ensureToken(s.addresses.Token)
	if err != nil {
		return nil, err
	}

	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	if s.store, err = bolt.Open(s.path("objects.db"), bolt.Options{Logger: s.logger}); err != nil {
		return nil, err
	}
	if s.images, err = image.Open(s.path("images"), image.Options{
		InsecureRegistries: config.InsecureRegistries, DockerConfig: config.DockerConfig, Logger: s.logger,
	}); err != nil {
		return nil, err
	}
	if s.engine, err = node.Open(node.Config{
		Dir: s.path("node"), Images: s.images, Runtime: config.Runtime, Network: config.InstanceNetwork, UserNamespaces: config.UserNamespaces,
		DNS: config.DNS, LogKeep: int64(config.LogKeep), Logger: s.logger,
	}); err != nil {
		return nil, err
	}
	s.addresses.Runtime = s.engine.Info()["runtime"]
	address := "https://" + reachable(s.addresses.API)
	issuer, err := identity.Open(s.path("identity.pem"), cmp.Or(config.Issuer, address))
	if err != nil {
		return nil, err
	}
	requests := gateway.Config{
		AccessLog: accessLog(config), Logger: s.logger, Registerer: metrics, ShutdownTimeout: config.ShutdownTimeout,
		TrustForwarded: trusted, PrivateCookies: config.PrivateCookies, ServerTiming: config.ServerTiming, Challenge: s.challenge(),
	}
	if err := config.Limits.boundConnections(s.logger); err != nil {
		return nil, err
	}
	config.Limits.fill(&requests)
	s.gateway = gateway.New(requests)
	if config.Scaling.MachineMemory == 0 {
		if config.Scaling.MachineMemory, err = machineMemory(); err != nil {
			return nil, err
		}
	}
	if err := checkMemory(config, s.logger); err != nil {
		return nil, err
	}
	if config.Scaling.MemoryAvailable == nil {
		config.Scaling.MemoryAvailable = availableMemory
	}
	s.autoscaler = autoscaler.New(s.engine, config.Scaling, s.logger, metrics)
	s.reconciler = reconcile.New(reconcile.Config{
		// A deploy does not wait for the disk at each of its steps, but at its end.
		Store: s.store.Deferred(), Durable: s.store, Images: s.images, Engine: s.engine, Autoscaler: s.autoscaler, Gateway: s.gateway, Identity: issuer,
		Scaling: config.Scaling, Logger: s.logger,
		URL: s.url, Domain: config.Domain, Certificates: s.certificates, TLSPort: s.tlsPort(), Redirect: config.TLS.Redirect,
		Throttling: config.Throttling, Boost: config.Boost, IdleDelay: config.IdleDelay,
		PullTimeout: config.PullTimeout, StartupTimeout: config.StartupTimeout, MaxQueue: config.MaxQueue, QueueWait: config.QueueWait.limit(),
		GatewayAddress: reachable(s.addresses.Gateway), Node: s.node(), RevisionGone: s.revisionGone,
	})
	s.autoscaler.OnChange, s.autoscaler.OnInstances = s.reconciler.Changed, s.reconciler.InstancesChanged
	s.autoscaler.OnEvent = s.reconciler.Happened
	handler := api.New(api.Config{
		Store: s.store, Admission: admission, Token: token, Engine: s.engine, Identity: issuer,
		Instances: s.autoscaler.Instances, Instance: s.autoscaler.Instance,
		Registry: s.images.Registry(), Metrics: promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}),
		Ready: s.readiness, Version: Version(), Logger: s.logger,
		Facts: func() map[string]string { return map[string]string{"instance memory": s.autoscaler.Memory().String()} },
	})
	certificate, authority, err := ensureCertificate(s.path("certificate.pem"), s.addresses.API)
	if err != nil {
		return nil, err
	}
	s.api = &http.Server{
		// The API's own limit on headers is lower, and answers as Kubernetes does.
		Handler: handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 1 << 20,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12},
		ErrorLog:  slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug),
	}
	for _, name := range []string{"default", serving.SystemNamespace} {
		if err := s.ensureNamespace(name); err != nil {
			return nil, err
		}
	}
	if err := writeKubeconfig(s.addresses.Kubeconfig, address, authority, token); err != nil {
		return nil, err
	}
	return s, nil
}

// run serves until ctx ends or a part fails, then drains from the outside in: requests, instances, control plane.
func (s *server) run(ctx context.Context) error {
	serving, stopServing := context.WithCancelCause(ctx)
	defer stopServing(nil)
	control, stopControl := context.WithCancel(context.WithoutCancel(ctx))
	defer stopControl()

	defer context.AfterFunc(serving, func() { s.ready.Store(false) })() // while requests in flight finish, too
	synced := make(chan struct{})
	var parts errgroup.Group
	part := func(name string, run func() error) {
		parts.Go(func() error {
			err := run()
			if err != nil {
				err = fmt.Errorf("%s: %w", name, err)
				stopServing(err)
			}
			return err
		})
	}
	part("reconciling", func() error { return s.reconciler.Run(control, func() { close(synced) }) })
	part("scaling", func() error { return s.autoscaler.Run(control) })
	if s.certificates != nil {
		part("tending the certificates", func() error { return s.certificates.Run(control) })
	}
	part("collecting images", func() error { return s.collectImages(control) })
	part("tending the memory", func() error { return s.tendMemory(control) })
	part("serving the API", func() error {
		s.api.BaseContext = func(net.Listener) context.Context { return control } // ends watches and log streams
		if err := s.api.ServeTLS(s.apiListener, "", ""); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})

	err := s.serveRequests(serving, synced)
	drain, cancel := context.WithTimeout(context.Background(), s.config.ShutdownTimeout)
	defer cancel()
	err = errors.Join(err, s.autoscaler.Close(drain))
	stopControl()
	if closing := s.api.Shutdown(drain); closing != nil {
		s.api.Close() // watches and log streams that did not end
	}
	return errors.Join(err, parts.Wait())
}

// serveRequests runs the gateway, as soon as its table is complete, until ctx ends and the requests in flight
// have finished.
func (s *server) serveRequests(ctx context.Context, synced <-chan struct{}) error {
	select {
	case <-synced:
	case <-ctx.Done():
		return nil
	}
	s.ready.Store(true)
	if s.config.Ready != nil {
		s.config.Ready(s.addresses)
	}
	listeners, ctx := errgroup.WithContext(ctx)
	listeners.Go(func() error { return s.gateway.Serve(ctx, s.gatewayListener) })
	if s.tlsListener != nil {
		listeners.Go(func() error { return s.gateway.ServeTLS(ctx, s.tlsListener, s.certificates.TLSConfig()) })
	}
	if err := listeners.Wait(); err != nil {
		return fmt.Errorf("serving requests: %w", err)
	}
	return nil
}

// collectImages deletes, every few minutes, images that no revision uses and no instance runs: that of a deleted
// service still runs while its requests finish.
func (s *server) collectImages(ctx context.Context) error {
	tick := time.NewTicker(min(10*time.Minute, max(time.Second, s.config.ImageKeep)))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		revisions, _, err := s.store.List(ctx, serving.KindRevision, "")
		if err != nil {
			s.logger.Warn("listing revisions to collect images", "error", err)
			continue
		}
		used := s.engine.Images()
		for _, o := range revisions {
			for _, status := range o.(*serving.Revision).Status.ContainerStatuses {
				used = append(used, status.ImageDigest)
			}
		}
		freed, err := s.images.Collect(ctx, used, s.config.ImageKeep)
		if err != nil && ctx.Err() == nil {
			s.logger.Warn("collecting images", "error", err)
		} else if freed > 0 {
			s.logger.Info("collected images", "freed", ByteSize(freed).String())
		}
	}
}

// close gives back what open took, in reverse.
func (s *server) close() error {
	var errs []error
	if s.engine != nil {
		errs = append(errs, s.engine.Close())
	}
	if s.images != nil {
		errs = append(errs, s.images.Close())
	}
	if s.store != nil {
		errs = append(errs, s.store.Close())
	}
	if s.certificates != nil {
		s.certificates.Close()
	}
	for _, l := range []net.Listener{s.gatewayListener, s.tlsListener, s.apiListener} {
		if l != nil {
			l.Close() // closed already when the server that owned it stopped
		}
	}
	if s.lock != nil {
		errs = append(errs, unlock(s.lock))
	}
	return errors.Join(errs...)
}

func accessLog(config Config) io.Writer {
	if !config.AccessLog {
		return nil
	}
	return os.Stdout
}

// node is the machine's name.
func (s *server) node() string {
	name, err := os.Hostname()
	if err != nil {
		s.logger.Warn("reading the machine's name", "error", err)
	}
	return name
}

func (s *server) path(name string) string { return filepath.Join(s.config.StateDir, name) }

// revisionGone removes the log of a deleted revision, once none of its instances writes any more, and with a service's
// last revision all logs of the service. One that was made again meanwhile keeps them.
func (s *server) revisionGone(namespace, service, revision string) {
	missing := func(kind serving.Kind, name string) bool {
		_, err := s.store.Get(context.Background(), kind, namespace, name)
		return errors.Is(err, store.ErrNotFound)
	}
	gone := revision
	switch {
	case service != "" && missing(serving.KindService, service):
		gone = "" // all of them
	case !missing(serving.KindRevision, revision):
		return
	}
	if err := s.engine.RemoveLogs(namespace, service, gone); err != nil {
		s.logger.Warn("removing logs", "service", service, "revision", revision, "error", err)
	}
}

// settings are what the API fills in for users and holds them to.
func (s *server) settings() serving.Settings {
	return serving.Settings{
		Scaling: func(annotations map[string]string, containerConcurrency int64) error {
			_, err := s.config.Scaling.Scale(annotations, containerConcurrency)
			return err
		},
		RevisionTimeout: s.config.RevisionTimeout, MaxRevisionTimeout: s.config.MaxRevisionTimeout,
		ContainerConcurrency: int64(s.config.Concurrency), CPU: s.config.CPU, Memory: s.config.Memory,
	}
}

func (s *server) readiness() error {
	if !s.ready.Load() {
		return errors.New("still reading the declared services, or stopping")
	}
	return nil
}

// ensureNamespace makes a namespace that must always be there.
func (s *server) ensureNamespace(name string) error {
	ctx := context.Background()
	namespace := &serving.Namespace{ObjectMeta: serving.ObjectMeta{Name: name}}
	namespace.Status.Phase = serving.NamespaceActive
	if _, err := s.store.Create(ctx, namespace); err != nil && !errors.Is(err, store.ErrAlreadyExists) {
		return fmt.Errorf("making namespace %q: %w", name, err)
	}
	return nil
}
