// Package reconcile makes true what users declared: Service → Configuration and Route → Revision → instances →
// traffic. Every reconciler is level-triggered and idempotent: it reads the object and what it depends on, acts,
// and writes the status. Start reading at deploy.go, which follows one deploy from top to bottom; loop.go decides
// when which object is looked at. What it keeps in memory is rebuilt from the store on start.
package reconcile

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-run/berth/autoscaler"
	"github.com/berth-run/berth/certificate"
	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/gateway"
	"github.com/berth-run/berth/identity"
	"github.com/berth-run/berth/image"
	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

// Config is what a reconciler needs. Every field without a comment is required.
type Config struct {
	// Store gets what reconcilers write. It may take its time to bring that to disk: they would write it again.
	Store      store.Store
	Images     Resolver
	Engine     engine.Engine
	Autoscaler *autoscaler.Autoscaler
	Gateway    *gateway.Gateway
	Identity   *identity.Issuer // of service accounts' tokens
	Scaling    autoscaler.Settings
	Logger     *slog.Logger

	// Durable is the same store for what must be on disk before anybody sees it; nil is Store.
	Durable store.Store

	// URL returns the public URL of a host name, with the gateway's scheme and port.
	URL func(host string) string
	// Domain is the domain of service host names.
	Domain string
	// Certificates are those that clients are shown; nil when the gateway does not speak TLS. The store's Changed must
	// be the reconciler's CertificateChanged.
	Certificates *certificate.Store
	TLSPort      uint16 // that the gateway speaks TLS at
	Redirect     bool   // requests without TLS are redirected, unless an annotation says otherwise

	PullTimeout    time.Duration
	ResolveTimeout time.Duration // default 10 s, as Knative's
	StartupTimeout time.Duration // contract C45
	// Throttling and Boost are for revisions whose annotations do not say: whether instances have no CPU between requests
	// (contract C66), and more than their limit while they start (C46).
	Throttling, Boost bool
	// IdleDelay is how long an instance without requests keeps the CPU where it is throttled.
	IdleDelay time.Duration

	MaxQueue int // most waiting requests of one revision
	// QueueWait tells how long requests of a revision wait for an instance at most, by the average time that its
	// instances took to start, 0 before the first. Nil is as long as the revision's timeout.
	QueueWait func(averageStart time.Duration) time.Duration

	// GatewayAddress is the HOST:PORT at which clients reach the gateway; "" tells them nothing.
	GatewayAddress string
	// Node names the machine in pods.
	Node string

	// RevisionGone, when set, is called after a deleted revision's last instance has ended.
	RevisionGone func(namespace, service, revision string)
}

// Resolver names an image by its digest; *image.Store is one.
type Resolver interface {
	Resolve(ctx context.Context, ref string, credentials image.Credentials) (string, error)
}

// Reconciler runs the reconcilers. The autoscaler's OnChange must be its Changed method, OnInstances its
// InstancesChanged, and OnEvent its Happened.
type Reconciler struct {
	Config
	queue *queue

	mu sync.Mutex
	// deployments holds what is known in memory of each revision. Guarded by mu.
	deployments map[autoscaler.Key]*deployment
	// revisions lists the names of each configuration's revisions. Guarded by mu.
	revisions map[key]map[string]struct{}
	// domains lists the namespaces of each host's domain mappings. Guarded by mu.
	domains map[string]map[string]struct{}
	// readers lists the routes that read a configuration or revision, to look at again when it changes. Guarded by mu.
	readers map[key]map[key]struct{}
	// reads is the reverse of readers. Guarded by mu.
	reads map[key][]key
	// routed counts the routes that send requests to a revision. Guarded by mu.
	routed map[autoscaler.Key]int
	// sends is what each route sends requests to, as counted in routed. Guarded by mu.
	sends map[key][]autoscaler.Key

	// pods names the pods of each revision's instances. Guarded by mu.
	pods map[autoscaler.Key]map[string]struct{}

	events  *recorder
	fetches sync.WaitGroup // image pulls under way
}

// New returns a reconciler; nothing happens before Run.
func New(config Config) *Reconciler {
	if config.ResolveTimeout == 0 {
		config.ResolveTimeout = 10 * time.Second
	}
	if config.Durable == nil {
		config.Durable = config.Store
	}
	return &Reconciler{
		Config:      config,
		queue:       newQueue(),
		deployments: map[autoscaler.Key]*deployment{},
		revisions:   map[key]map[string]struct{}{},
		domains:     map[string]map[string]struct{}{},
		readers:     map[key]map[key]struct{}{},
		reads:       map[key][]key{},
		routed:      map[autoscaler.Key]int{},
		sends:       map[key][]autoscaler.Key{},
		pods:        map[autoscaler.Key]map[string]struct{}{},
		events:      newRecorder(config.Store, config.Logger),
	}
}

// Changed tells that the instances of a revision changed; the autoscaler calls it.
func (r *Reconciler) Changed(revision autoscaler.Key) {
	// A revision that is being deployed is looked at now. The status of one that serves may lag: a cold start
	// must not wait for, nor compete with, a durable write.
	delay := time.Second
	r.mu.Lock()
	if d := r.deployments[revision]; d != nil && !d.ready {
		delay = 0
	}
	r.mu.Unlock()
	r.queue.addAfter(key{serving.KindRevision.String(), revision.Namespace, revision.Revision}, delay)
}

// reconcile looks at one object again.
func (r *Reconciler) reconcile(ctx context.Context, k key) error {
	switch k.kind {
	case serving.KindService.String():
		return r.reconcileService(ctx, k)
	case serving.KindConfiguration.String():
		return r.reconcileConfiguration(ctx, k)
	case serving.KindRevision.String():
		return r.reconcileRevision(ctx, k)
	case serving.KindRoute.String():
		return r.reconcileRoute(ctx, k)
	case serving.KindDomainMapping.String():
		return r.reconcileDomain(ctx, k)
	case serving.KindCoreService.String():
		return r.reconcileCoreService(ctx, k)
	case serving.KindServiceAccount.String():
		return r.reconcileAccount(ctx, k.namespace)
	case serving.KindPod.String():
		return r.reconcilePods(ctx, autoscaler.Key{Namespace: k.namespace, Revision: k.name})
	}
	return nil
}

// get reads one object as its type; nil when it is not there.
func get[T any](ctx context.Context, r *Reconciler, kind serving.Kind, namespace, name string) (*T, error) {
	o, err := r.Store.Get(ctx, kind, namespace, name)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return any(o).(*T), nil
}

// writeStatus stores an object's status, if it changed.
func (r *Reconciler) writeStatus(ctx context.Context, o serving.Object) error {
	if stored, err := r.Store.Get(ctx, serving.KindOf(o), o.GetNamespace(), o.GetName()); err == nil &&
		stored.GetResourceVersion() == o.GetResourceVersion() && serving.SameStatus(stored, o) {
		return nil // as most often; the store would find that out, too, but one after the other
	}
	to := r.Store
	if isPromise(o) {
		to = r.Durable
	}
	_, err := to.Update(ctx, o, store.Status)
	if errors.Is(err, store.ErrNotFound) {
		return nil // deleted meanwhile: nothing to tell
	}
	return err
}

// isPromise tells whether an object's status says to a user that what he declared is Ready: after a crash it must be so
// still. What all that a service owns says is on its way to that.
func isPromise(o serving.Object) bool {
	of, ok := o.(interface{ IsReady() bool })
	return ok && of.IsReady() && v1.GetControllerOf(o) == nil
}
