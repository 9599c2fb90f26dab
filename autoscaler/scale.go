package autoscaler

import (
	"time"

	"github.com/berth-run/berth/engine"
)

// Key names a revision.
type Key struct{ Namespace, Revision string }

// Settings are the platform's defaults for scaling. Annotations of a revision override most of them.
type Settings struct {
	StableWindow          time.Duration // default 60 s
	PanicWindowPercent    float64       // of the stable window; default 10
	PanicThresholdPercent float64       // default 200
	Tick                  time.Duration // default 2 s
	MaxScaleUpRate        float64       // default 1000
	MaxScaleDownRate      float64       // default 2
	Target                float64       // requests in flight per instance when containerConcurrency is 0; default 100
	TargetUtilization     float64       // default 0.7
	RPSTarget             float64       // default 200
	ScaleToZeroGrace      time.Duration // default 30 s
	ScaleToZeroRetention  time.Duration // default 0
	InitialScale          int           // default 1
	MinScale, MaxScale    int           // defaults 0 and 100 (contract 1.3)
	StopGrace             time.Duration // between SIGTERM and SIGKILL; default 10 s (contract C54)
	DrainTimeout          time.Duration // longest wait for requests in flight before SIGTERM; default 3600 s
	Prepared              int           // most prepared instances kept on the machine, most recently used revisions first; default 16
	StartsAtOnce          int           // most instances that start at the same moment; default 2 per CPU
}

// Scale is how one revision scales: Settings with the revision's annotations and containerConcurrency applied.
type Scale struct {
	Metric               string  // "concurrency" or "rps"
	Target               float64 // per instance, utilization already applied
	TotalTarget          float64 // per instance, before utilization
	StableWindow         time.Duration
	PanicWindow          time.Duration
	PanicThreshold       float64 // ratio of desired to ready instances that starts panic, e.g. 2.0
	MaxScaleUpRate       float64
	MaxScaleDownRate     float64
	Min, Max             int // Max 0 is unlimited
	Initial              int
	Activation           int // the least number when it is not zero
	ScaleDownDelay       time.Duration
	ScaleToZeroGrace     time.Duration
	ScaleToZeroRetention time.Duration
}

// Revision is what the autoscaler is told of one revision.
type Revision struct {
	Key   Key
	Spec  engine.Spec
	Scale Scale
	Pool  Pool
	// Prove starts Scale.Initial instances at once although there is no request, to prove that the revision
	// can start (Knative's deployment probe, contract KS13).
	Prove bool
	// Reachable is false when no route leads here: min scale is ignored then, and prepared instances are not kept.
	Reachable bool
}

// Status is what the autoscaler knows of a revision's instances now.
type Status struct {
	Desired                             int
	Prepared, Starting, Ready, Draining int
	// Proven is true once an instance has been ready since the revision was first applied.
	Proven bool
	// Failure is why the newest start failed, nil when the newest start succeeded or none has ended yet.
	Failure error
}

// InstanceStatus describes one instance, for lists.
type InstanceStatus struct {
	ID        string         `json:"id"`
	Namespace string         `json:"namespace"`
	Service   string         `json:"service"`
	Revision  string         `json:"revision"`
	State     engine.State   `json:"state"`
	Since     time.Time      `json:"since"` // when it entered State
	Created   time.Time      `json:"created"`
	StartTook time.Duration  `json:"startTook"` // from start to ready, 0 before
	Stages    []engine.Stage `json:"stages"`
}

