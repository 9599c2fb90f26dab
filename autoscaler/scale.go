package autoscaler

import (
	"time"

	"github.com/berth-run/berth/engine"
)

// Key names a revision.
type Key struct{ Namespace, Revision string }

// Settings are the platform's defaults for scaling. Annotations of a revision override most of them.
type Settings struct {
	StableWindow          time.Duration `flag:"stable-window" help:"time over which load is averaged to decide the number of instances"`                                // default 60 s
	PanicWindowPercent    float64       `flag:"panic-window-percent" help:"the window that sudden load is seen in, as a percentage of the stable window"`               // default 10
	PanicThresholdPercent float64       `flag:"panic-threshold-percent" help:"load that starts panic, in percent of what the ready instances are for"`                  // default 200
	Tick                  time.Duration `flag:"tick" help:"time between two decisions (a request that waits is seen at once, without a tick)"`                          // default 2 s
	MaxScaleUpRate        float64       `flag:"max-scale-up-rate" help:"most that the number of instances grows by in one decision, as a factor"`                       // default 1000
	MaxScaleDownRate      float64       `flag:"max-scale-down-rate" help:"most that the number of instances shrinks by in one decision, as a factor"`                   // default 2
	Target                float64       `flag:"target" help:"requests in flight that one instance is meant for, where containerConcurrency is 0"`                       // default 100
	TargetUtilization     float64       `flag:"target-utilization" help:"part of the target that is used before instances are added, 0 to 1"`                           // default 0.7
	CPUTarget             float64       `flag:"cpu-target" help:"part of its CPU that an instance is to use before others are added; 0 does not scale by CPU"`          // default 0
	Patience              time.Duration `flag:"patience" help:"requests that get a place from running instances within about this time start no instance"`              // default 10 ms
	RPSTarget             float64       `flag:"rps-target" help:"requests a second that one instance is meant for, where a service scales by rps"`                      // default 200
	ScaleToZeroGrace      time.Duration `flag:"scale-to-zero-grace" help:"time that the last instance is kept after the decision to go to zero; 0 does not keep it"`    // default 30 s
	ScaleToZeroRetention  time.Duration `flag:"scale-to-zero-retention" help:"least time that the last instance is kept after the decision to go to zero; 0 sets none"` // default 0
	InitialScale          int           `flag:"initial-scale" help:"instances that a new revision starts to prove that it can; 0 starts none and takes it for ready"`   // default 1
	MinScale              int           `flag:"min-instances" help:"least instances of a revision that sets none; 0 lets it go to zero"`                                // default 0 (contract 1.3)
	MaxScale              int           `flag:"max-instances" help:"most instances of a revision that sets none; 0 is no limit"`                                        // default 100 (contract 1.3)
	StopGrace             time.Duration `flag:"stop-grace" help:"time between SIGTERM and SIGKILL; 0 kills at once"`                                                    // default 10 s (contract C54)
	DrainTimeout          time.Duration `flag:"drain-timeout" help:"longest wait for requests in flight before an instance is stopped; 0 does not wait"`                // default 3600 s
	StartsAtOnce          int           `flag:"starts-at-once" help:"most instances that start at the same moment"`                                                     // default 2 per CPU

	// Memory of the machine. MachineMemory is what it has, in bytes, which percentages are of.
	MachineMemory  int64
	InstanceMemory Amount `flag:"instance-memory" help:"memory that the limits of all instances that run add up to at most, in bytes or percent of the machine's; those for which there is none wait, and idle ones make room; containers without a limit count 512Mi; 0 is no bound. More than 100% is right where programs use less than their limits, as most do"` // default 400 %
	PreparedMemory Amount `flag:"prepared-memory" help:"memory that prepared instances hold together, in bytes or percent of the machine's: one for each of the revisions used last; 0 keeps none"`                                                                                                                                                                   // default 64Mi

	// IdleKeep, and what is done for MemoryReserve, are about instances whose CPU is withheld between requests.
	IdleKeep      time.Duration `flag:"idle-keep" help:"longest time that an instance without requests is kept beyond those that load needs, where its CPU is withheld; 0 keeps none"`                                                                                           // default 15 min (contract C51)
	MemoryReserve Amount        `flag:"memory-reserve" help:"memory that is left free, in bytes or percent of the machine's: when less is, that of instances whose CPU is withheld is moved to swap or disk, and then they are stopped, those idle longest first; 0 never does"` // default 5 %
	// MemoryAvailable tells how much memory the machine could give to programs now, in bytes. Nothing is done without it.
	MemoryAvailable func() (int64, error)
}

// Scale is how one revision scales: Settings with the revision's annotations and containerConcurrency applied.
type Scale struct {
	Metric               string        // "concurrency", "rps", "cpu" or "memory"
	Target               float64       // per instance, utilization already applied
	TotalTarget          float64       // per instance, before utilization
	CPUTarget            float64       // part of its CPU that an instance is to use; 0 does not scale by CPU
	CPUOfRequest         bool          // that is a part of the CPU that it requests, not of its limit
	MemoryTarget         float64       // MiB that an instance is to use, where Metric is "memory"
	Concurrency          int           // most requests at once on one instance; 0 is any number
	Patience             time.Duration // requests that get a place within this time start no instance
	StableWindow         time.Duration
	PanicWindow          time.Duration
	Decaying             bool    // the averages weigh what is newer more
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

// byRequests tells whether the averages of requests count.
func (s Scale) byRequests() bool { return s.Metric != metricCPU && s.Metric != metricMemory }

// ByConcurrency tells whether Target is a number of requests at the same time.
func (s Scale) ByConcurrency() bool { return s.Metric == metricConcurrency }

// byUse tells whether what instances use of CPU or memory counts.
func (s Scale) byUse() bool { return s.CPUTarget > 0 || s.MemoryTarget > 0 }

// Revision is what the autoscaler is told of one revision.
type Revision struct {
	Key   Key
	Spec  engine.Spec
	Scale Scale
	Pool  Pool
	// Prove starts Scale.Initial instances at once although there is no request, to prove that the revision
	// can start (Knative's deployment probe, contract KS13).
	Prove bool
	// Throttled says that the pool withholds the CPU from instances between requests: those that load no longer needs are
	// kept for Settings.IdleKeep.
	Throttled bool
	// Reachable is false when no route leads here: min scale is ignored then, and prepared instances are not kept.
	Reachable bool
}

// Status is what the autoscaler knows of a revision's instances now.
type Status struct {
	Desired                             int
	Prepared, Starting, Ready, Draining int
	// Unready is how many of Ready have taken no requests for ten seconds.
	Unready int
	// Proven is true once an instance has been ready since the revision was first applied.
	Proven bool
	// Failure is why the newest start failed, nil when the newest start succeeded or none has ended yet.
	Failure error
	// Failures is how many starts in a row have come to nothing: they failed, or their instances ended by themselves
	// within ten seconds of being ready. It is 0 again when one has been ready for so long since.
	Failures int
	// Next is before when no start is tried after them; it may be past.
	Next time.Time
	// LastFailure is why the newest of Failures came to nothing, also while another one runs; nil when there are none.
	LastFailure error
	// Waiting is what a start that takes long waits for, "" when none does.
	Waiting string
	// Short is what there is too little of for an instance to start, and how little; "" when no start waits for that.
	Short string
}

// Outlook is what those who wait for an instance of a revision can expect.
type Outlook struct {
	AverageStart time.Duration // of recent instances, from the decision to ready; 0 when none has started yet
	Full         bool          // there are as many instances as there may be, for the revision or on the machine
	Short        bool          // it is the machine that has no memory for another
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
	// Unready says that it is in state ready and takes no requests for a while (engine.Instance.Readiness).
	Unready    bool                     `json:"unready,omitempty"`
	Containers []engine.ContainerStatus `json:"containers"`
	Address    string                   `json:"address,omitempty"` // its IP address, where the engine gives it one
}
