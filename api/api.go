// Package api serves the objects over HTTP as Kubernetes does: REST, patches, watches, tables and discovery for
// every kind in serving.Kinds, and under /apis/berth.run what is Berth's own. It stores what users declare and
// acts on nothing; package reconcile does. Start reading at the table of routes in routes.go; every error becomes
// a Status in errors.go.
package api

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/berth-run/berth/autoscaler"
	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/identity"
	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

// Limits on one request. Each is answered with a Status that names it.
const (
	maxBody       = 3 << 20  // bytes of a request's body, as in Kubernetes
	maxDepth      = 64       // objects and lists within each other in a body
	maxHeader     = 64 << 10 // bytes of a request's header fields
	maxPatchSteps = 10_000   // operations of one JSON patch, as in Kubernetes
	maxMergedList = 1000     // elements of a list where a strategic patch is merged, whose work grows faster than the list

	bodyTimeout  = 30 * time.Second // to send a body
	writeTimeout = 30 * time.Second // for a reader of a stream to take one event

	maxMessage     = 1 << 20          // bytes of one message of a connection that was upgraded
	maxFrame       = 128 << 10        // bytes of one frame of SPDY, of which up to 250 wait to be read
	maxForwarded   = 256              // connections through one port-forward at once
	streamPatience = 30 * time.Second // for a client to open the streams that belong together
	idleTimeout    = 4 * time.Hour    // without a byte, after which a command or a port-forward is ended, as in Kubernetes
)

// Config is what the API is made of. Store, Engine, Instances, Instance, Admission,
// Token and Logger must be set.
type Config struct {
	Store     store.Store
	Engine    Engine
	Instances func() []autoscaler.InstanceStatus // those there are now, in any order
	Instance  func(id string) engine.Instance    // nil when there is none

	// Admission completes what users write and decides what is stored.
	Admission *serving.Admission
	// Token is the bearer token that every request but those to /healthz, /livez and /readyz must carry. While it is
	// empty every such request is refused.
	Token string
	// User is written to objects as who made them; "" is "admin".
	User string
	// Version is Berth's own version, for /version and /apis/berth.run/v1/info.
	Version string
	// Facts are told to people beside what Engine says of itself; nil is none.
	Facts func() map[string]string

	Identity *identity.Issuer // issues service accounts' tokens, or nil
	Registry http.Handler     // serves /v2/, or nil
	Metrics  http.Handler     // serves /metrics, or nil
	// Ready says why the platform does not take requests yet; nil means that it is always ready.
	Ready func() error

	// MaxWatches is the most watches, followed logs, commands and forwarded ports at once; 0 is 1000.
	MaxWatches int

	Logger *slog.Logger
}

// Engine is what the API asks of an engine.Engine.
type Engine interface {
	Logs(ctx context.Context, query engine.LogQuery, emit func(engine.LogLine) error) error
	Info() map[string]string
}

// New returns the API. Its handlers end with their request's context: cancel the server's base context to end
// watches and followed logs.
func New(config Config) http.Handler {
	if config.User == "" {
		config.User = "admin"
	}
	if config.MaxWatches == 0 {
		config.MaxWatches = 1000
	}
	a := &api{Config: config, streams: make(chan struct{}, config.MaxWatches)}
	return a.mux()
}

type api struct {
	Config
	streams    chan struct{} // holds one element for each open stream
	documents  documents
	converters converters
}

// stream reserves one of the streams that may be open at once. The caller calls release when it ends.
func (a *api) stream() (release func(), err error) {
	select {
	case a.streams <- struct{}{}:
		return func() { <-a.streams }, nil
	default:
		return nil, tooManyStreams(cap(a.streams))
	}
}
