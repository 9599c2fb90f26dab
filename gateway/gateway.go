// Package gateway is where requests to services arrive: it finds the revision, holds the request until an
// instance has a free slot, and proxies it there, over HTTP/1.1 or HTTP/2 without TLS, streaming both ways.
//
// It does not decide how many instances there are (package autoscaler) nor which hosts exist (package reconcile,
// through [Gateway.SetHosts]). [Gateway.ServeHTTP] is the path of a request from top to bottom; start reading
// there. The hosts are in table.go, holding and claiming in activator.go, the choice of an instance in
// balancer.go; these know nothing of HTTP. proxy.go and transport.go carry a request to an instance.
package gateway

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/berth-run/berth/gateway/http1"
)

// Config is how a gateway is set up. The zero value works; New fills in the defaults named here.
type Config struct {
	Logger     *slog.Logger          // default: discards
	Registerer prometheus.Registerer // where metrics are registered; nil for none
	AccessLog  io.Writer             // where a JSON line for each request goes; nil for none

	// TrustForwarded are the networks of proxies in front of the gateway: their X-Forwarded-For, X-Forwarded-Proto
	// and Forwarded are kept, and appended to. Everyone else's are overwritten (contract C31).
	TrustForwarded []netip.Prefix
	// PrivateCookies adds "Cache-Control: private" to responses that set a cookie (contract C17).
	PrivateCookies bool
	// ServerTiming adds a Server-Timing field to the responses of requests that waited for an instance, which tells how
	// long each stage of its start took.
	ServerTiming bool

	// Challenge, when not nil, is asked what a certificate authority is to find at a host below
	// /.well-known/acme-challenge/ (RFC 8555, 8.3). False leaves the request to the host's service.
	Challenge func(host, token string) (answer string, ok bool)

	MaxHeaderBytes    int           // of a request's line and header; default 64 KiB
	MaxHeaderFields   int           // of a request; one more is answered with 431; default 100, as Apache's and Envoy's
	MaxTargetBytes    int           // of a request's path and query; more is answered with 414; default 16 KiB
	MaxBodyBytes      int64         // of a request; more is answered with 413; default: no limit
	ReadHeaderTimeout time.Duration // from a request's first byte to the end of its header; default 10 s
	IdleTimeout       time.Duration // how long a connection without requests is kept; default 120 s
	WriteTimeout      time.Duration // how long a client may take no byte of what there is for it; default 60 s
	MaxStreams        int           // requests at the same time on one HTTP/2 connection; default 100
	// MaxResets is how many requests of one HTTP/2 connection the client may take back within ten seconds, before their
	// responses begin. One more closes the connection. It does not hold for TrustForwarded. Default 1000.
	MaxResets int
	// MaxConnections is how many connections of clients there may be. One more is answered with 503 and closed.
	// Default: no limit.
	MaxConnections int
	// MaxConnectionsPerClient is how many connections one address may have, or one /64 network where it is IPv6. One
	// more is answered with 429 and closed. It does not hold for the machine itself and TrustForwarded, where many
	// clients come from. Default: no limit.
	MaxConnectionsPerClient int
	ShutdownTimeout         time.Duration // how long requests in flight may take when Serve ends; default 10 s
}

// Gateway proxies requests to the instances of revisions.
type Gateway struct {
	config   Config
	table    table
	clients  admission
	metrics  *metrics     // nil when there is no registerer
	log      *accessLog   // nil when there is none
	buffers  sync.Pool    // *[]byte of copyBufferSize
	limits   http1.Limits // of requests
	requests atomic.Uint64
	upgrades upgrades
	ending   atomic.Int32 // servers that say farewell
	// redirects is set as soon as a host has been published whose requests without TLS are redirected.
	redirects atomic.Bool
}

// New returns a gateway without hosts.
func New(config Config) *Gateway {
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	setDefault(&config.MaxHeaderBytes, 64<<10)
	setDefault(&config.MaxHeaderFields, 100)
	setDefault(&config.MaxTargetBytes, 16<<10)
	setDefault(&config.ReadHeaderTimeout, 10*time.Second)
	setDefault(&config.IdleTimeout, 120*time.Second)
	setDefault(&config.WriteTimeout, 60*time.Second)
	setDefault(&config.MaxStreams, 100)
	setDefault(&config.MaxResets, 1000)
	setDefault(&config.ShutdownTimeout, 10*time.Second)
	g := &Gateway{config: config}
	g.limits = http1.Limits{Head: config.MaxHeaderBytes, Target: config.MaxTargetBytes, Fields: config.MaxHeaderFields}
	g.clients = admission{most: config.MaxConnections, mostPerClient: config.MaxConnectionsPerClient, trusted: config.TrustForwarded}
	g.buffers.New = func() any { b := make([]byte, copyBufferSize); return &b }
	if config.AccessLog != nil {
		g.log = newAccessLog(config.AccessLog)
	}
	if config.Registerer != nil {
		g.metrics = newMetrics(config.Registerer, g.log, &g.clients)
	}
	return g
}

func setDefault[T comparable](field *T, value T) {
	if zero := *new(T); *field == zero {
		*field = value
	}
}

// SetHosts replaces what an owner, such as "default/hello", publishes: the routes of its hosts. Requests see the
// change of all its hosts at once. A nil or empty map removes the owner.
//
// A host is a name without port; case and a trailing dot do not matter. When one belongs to another owner
// (ErrHostTaken), or a route is not usable, the error says which, and nothing changes.
func (g *Gateway) SetHosts(owner string, hosts map[string]*Route) error {
	if g.metrics != nil {
		for _, route := range hosts {
			if route == nil {
				continue
			}
			for _, split := range route.Splits {
				if split.Activator != nil {
					g.metrics.attach(split.Activator)
				}
			}
		}
	}
	for _, route := range hosts {
		if route != nil && route.Redirect != 0 {
			g.redirects.Store(true)
		}
	}
	return g.table.set(owner, hosts)
}

// Forget ends the metrics of a revision that is gone. An activator that requests still arrive at must not be
// forgotten: what they count would be lost.
func (g *Gateway) Forget(activator *Activator) {
	if g.metrics != nil {
		g.metrics.detach(activator)
	}
}

// Requests is how many requests have arrived so far.
func (g *Gateway) Requests() uint64 { return g.requests.Load() }

// ServeHTTP is the path of a request: find the route of its host, choose a revision by weight, claim a slot on
// an instance, forward, release.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.requests.Add(1)
	x := &exchange{gateway: g, writer: w, request: r, arrived: time.Now()}
	defer x.endBody()
	refused := refuse(r)
	if refused == nil {
		refused = g.overLimit(r)
	}
	if refused != nil {
		x.reply(refused)
		return
	}
	if g.intercepts() && !g.secure(r) {
		if answer, location := g.intercept(r.Host, r.RequestURI); answer != nil {
			x.redirect(answer, location)
			return
		}
	}
	route := g.table.lookup(r.Host)
	if route == nil {
		x.reply(unknownHost(r.Host))
		return
	}
	if route.unready != "" {
		x.reply(&refusal{status: http.StatusServiceUnavailable, text: route.unready})
		return
	}
	x.activator = route.choose()
	x.origin = g.origin(r)
	if r.ProtoMajor == 2 {
		x.guard = &streamGuard{writer: w, timeout: g.config.WriteTimeout}
	}

	var member *member
	if route.affine {
		member = x.stick(route)
	}
	var err error
	if member == nil {
		member, err = x.hold()
	}
	var unreached time.Time // when an instance first took no connection; zero while none has
	for err == nil {
		x.claimed = time.Now()
		x.member, x.instance = member, member.id
		err = x.forward(member)
		unreachable := errors.Is(err, errUnreachable)
		if unreachable && unreached.IsZero() {
			unreached = time.Now()
		}
		if !unreachable || isHopeless(member, time.Since(unreached)) {
			x.activator.release(member, time.Now())
			break
		}
		// No byte has been sent: another instance, or this one a little later.
		if member, err = x.activator.claimAgain(r.Context(), member, x.arrived); err == nil {
			x.timing = x.timing.given(member, x.arrived)
		}
	}
	if err != nil {
		x.fail(err, member)
	}
	x.record(route.tag)
	if x.status == statusClientGone {
		x.countReset()
	}
	if x.cut {
		panic(http.ErrAbortHandler) // the response has begun and cannot be finished: let the client see that
	}
}

// serveStandard is Serve with the standard library's server.
func (g *Gateway) serveStandard(ctx context.Context, listener net.Listener) error {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := g.server(protocols)
	return g.serve(ctx, server, nil, func() error {
		return server.Serve(strictListener{clientListener{Listener: listener, gateway: g}, g.newJudge()})
	})
}

// server is a server of these protocols with the gateway's limits.
func (g *Gateway) server(protocols http.Protocols) *http.Server {
	server := &http.Server{
		Handler:                      g,
		Protocols:                    &protocols,
		HTTP2:                        &http.HTTP2Config{MaxConcurrentStreams: g.config.MaxStreams},
		MaxHeaderBytes:               g.config.MaxHeaderBytes,
		ReadHeaderTimeout:            g.config.ReadHeaderTimeout,
		IdleTimeout:                  g.config.IdleTimeout,
		ConnContext:                  withResets,
		DisableGeneralOptionsHandler: true, // "OPTIONS *" is the instance's to answer
		ErrorLog:                     slog.NewLogLogger(g.config.Logger.Handler(), slog.LevelDebug),
	}
	if protocols.UnencryptedHTTP2() {
		server.Handler = newUpgrader(g, server)
	}
	return server
}

// serve lets a server take requests until ctx ends, and those in flight end then. settle, which may be nil, lets no more
// connections come.
func (g *Gateway) serve(ctx context.Context, server *http.Server, settle func(), take func() error) error {
	if g.log != nil {
		stop := g.log.start()
		defer stop()
	}

	last := &farewell{gateway: g}
	server.ConnState = last.watch
	served := make(chan error, 1)
	go func() { served <- take() }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), g.config.ShutdownTimeout)
	defer cancel()
	if settle != nil {
		settle()
	}
	last.say(limit)
	err := server.Shutdown(limit)
	g.upgrades.shutdown(limit)
	if err != nil {
		g.config.Logger.Warn("requests were cut at shutdown", "after", g.config.ShutdownTimeout)
		server.Close()
	}
	<-served
	return nil
}
