// Package autoscaler decides how many instances each revision has, and makes it so: it starts instances when
// requests wait, keeps prepared ones at hand, drains and stops what load no longer needs.
//
// Start reading at [Decide], which holds the rules and does no I/O; [Autoscaler] carries them out.
package autoscaler

import (
	"context"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/berth-run/berth/engine"
)

// Autoscaler keeps the instances of every revision. It is made by [New] and works while Run runs.
type Autoscaler struct {
	// OnChange, when set, is called after the Status of a revision changed. Set it before Run.
	OnChange func(Key)
}

// New returns an autoscaler that runs instances with engine.
func New(engine engine.Engine, settings Settings, logger *slog.Logger, registerer prometheus.Registerer) *Autoscaler {
	return &Autoscaler{}
}

// Apply declares a revision, or changes what is declared of it.
func (a *Autoscaler) Apply(revision Revision) {}

// Remove forgets a revision, and drains and stops its instances.
func (a *Autoscaler) Remove(ctx context.Context, key Key) error { return nil }

// Wake says that a request waits for an instance of a revision.
func (a *Autoscaler) Wake(key Key) {}

// Status tells what is known of a revision; false when it is not declared.
func (a *Autoscaler) Status(key Key) (Status, bool) { return Status{}, false }

// Instances lists every instance there is.
func (a *Autoscaler) Instances() []InstanceStatus { return nil }

// Run works until ctx ends.
func (a *Autoscaler) Run(ctx context.Context) error { return nil }

// Close drains and stops every instance.
func (a *Autoscaler) Close(ctx context.Context) error { return nil }
