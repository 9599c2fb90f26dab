// Package engine defines what runs instances: [Engine] and [Instance]. It holds no implementation;
// engine/node runs OCI containers on this machine, and engine/enginetest is the suite that every engine passes.
// Start reading at [Engine].
package engine

import (
	"context"
	"net"
	"time"
)

// Engine runs instances of revisions.
type Engine interface {
	// Pull makes the image of spec present. It calls report, from one goroutine at a time, as bytes arrive.
	// Pulling an image that is present returns at once.
	Pull(ctx context.Context, spec Spec, report func(Progress)) error

	// Prepare makes an instance up to the point where only user code is missing: rootfs, network, limits.
	// Its image must have been pulled. A prepared instance holds memory but no CPU.
	// The caller ends every instance it was given with Instance.Stop.
	Prepare(ctx context.Context, spec Spec) (Instance, error)

	// Logs calls emit for each line that query selects, oldest first, and with query.Follow goes on until ctx
	// ends. Lines of instances that are gone are included for as long as the engine keeps them.
	// An error from emit ends it and is returned.
	Logs(ctx context.Context, query LogQuery, emit func(LogLine) error) error

	// Info describes the engine for people: "runtime" → "crun 1.8.1", "cgroups" → "v1 hybrid" and so on.
	Info() map[string]string

	// Close stops every instance at once and returns what the engine holds on the machine.
	Close() error
}

// Instance is one running copy of a revision. It goes through the states of [State] in order and never back,
// except between Ready and Idle.
type Instance interface {
	// ID is unique on the platform: the revision's name and a random suffix, "hello-00001-x7k2p".
	ID() string

	// Start lets user code run and returns when the startup probe has passed: the instance takes requests.
	// When it cannot be, the error is a *StartError (or ctx's error) and the caller still calls Stop.
	Start(ctx context.Context) error

	// Dial opens a connection to the port that requests go to.
	Dial(ctx context.Context) (net.Conn, error)

	// Stop sends SIGTERM, waits for at most grace, sends SIGKILL, and gives back what the instance held.
	// It returns when nothing of the instance is left. Calling it again waits for the first call.
	// An instance that was never started is removed without a signal to user code.
	Stop(grace time.Duration)

	// Exited is closed when user code has ended, whoever ended it.
	Exited() <-chan struct{}

	// Exit tells how user code ended. It is meaningful once Exited is closed.
	Exit() Exit

	// Stages are the steps of this instance's start so far and how long each took, in order.
	Stages() []Stage
}

// Spec is all an engine needs to know to run instances of one revision, with every reference resolved.
// It is read-only once given to an engine.
type Spec struct {
	Namespace     string
	Service       string // K_SERVICE; empty for a configuration without a service
	Configuration string // K_CONFIGURATION
	Revision      string // K_REVISION

	Container Container

	// StartupTimeout bounds the time from Start to ready (contract C45: 240 s).
	StartupTimeout time.Duration
}

// Container is the user's container.
type Container struct {
	Name  string // container name; "user-container" when the user gave none
	Image string // reference by digest: "registry/repo@sha256:…"
	// Credentials are used to pull Image. The zero value is anonymous.
	Credentials Credentials

	Command    []string // replaces the image's entrypoint when not nil
	Args       []string // replaces the image's cmd when not nil (or when Command is set)
	Env        []Env    // the user's, resolved; the engine adds PORT, K_* and the image's own
	WorkingDir string   // "" for the image's
	User       *int64   // runAsUser; nil for the image's USER
	Port       int      // PORT: where it must listen
	HTTP2      bool     // it speaks h2c on Port (port name "h2c", contract C13)

	CPU    int64 // limit in thousandths of a CPU; 0 is unlimited
	Memory int64 // limit in bytes; 0 is unlimited

	StartupProbe *Probe // nil: TCP on Port within StartupTimeout (contract 1.3)
}

// Env is one environment variable.
type Env struct{ Name, Value string }

// Credentials authenticate to an image registry. The zero value is anonymous.
type Credentials struct {
	Username, Password string
	Token              string // bearer token, instead of a user name and password
	Insecure           bool   // allow plain HTTP
}

// Probe is a check that an instance takes requests. Exactly one of TCP and HTTP is set.
type Probe struct {
	TCP  *TCPProbe
	HTTP *HTTPProbe

	InitialDelay     time.Duration
	Period           time.Duration // 0: as often as it is cheap, below a second
	Timeout          time.Duration // of one try
	FailureThreshold int           // 0: until the startup timeout
	SuccessThreshold int           // 0 is 1
}

// TCPProbe passes when the port accepts a connection.
type TCPProbe struct{ Port int }

// HTTPProbe passes when GET answers 2xx or 3xx.
type HTTPProbe struct {
	Port   int
	Path   string
	Host   string
	Header [][2]string
}

// Progress is how far a pull is.
type Progress struct {
	Complete, Total int64 // bytes; Total is 0 while unknown
}

// Stage is one timed step of an instance's start.
type Stage struct {
	Name string        `json:"name"` // "rootfs", "network", "create" while preparing; "release", "listen" while starting
	Took time.Duration `json:"took"` // in JSON, nanoseconds
}

// LogQuery selects log lines. Zero fields select everything.
type LogQuery struct {
	Namespace, Service, Revision, Instance string
	Tail                                   int       // only the last n lines; 0 is all
	Since                                  time.Time // only lines written since
	Follow                                 bool
}

// LogLine is one line that user code wrote, without its newline. Lines are cut at a limit the engine documents.
type LogLine struct {
	Time     time.Time `json:"time"`
	Revision string    `json:"revision"`
	Instance string    `json:"instance"`
	Stream   string    `json:"stream"` // "stdout", "stderr", or "system" for what the platform says
	Text     string    `json:"text"`
}
