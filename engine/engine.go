// Package engine defines what runs instances: [Engine] and [Instance]. It holds no implementation;
// engine/node runs OCI containers on this machine, and engine/enginetest is the suite that every engine passes.
// Start reading at [Engine].
package engine

import (
	"context"
	"io"
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
	// ends, or until what was written before query.Done was closed has been emitted. Lines of instances that are gone are included for as long as the engine keeps them.
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

	// DialPort opens a connection to any port that a program of the instance listens on, on loopback only too.
	DialPort(ctx context.Context, port int) (net.Conn, error)

	// Stop sends SIGTERM, waits for at most grace, sends SIGKILL, and gives back what the instance held.
	// It returns when nothing of the instance is left. Calling it again waits for the first call.
	// An instance that was never started is removed without a signal to user code.
	Stop(grace time.Duration)

	// Exited is closed when user code has ended, whoever ended it. A container that the engine starts again in place
	// does not end its instance.
	Exited() <-chan struct{}

	// Exit tells how user code ended. It is meaningful once Exited is closed.
	Exit() Exit

	// Readiness tells when an instance that has become ready can take no requests for a while (false), because a
	// readiness probe fails or a container is started again, and when it can again (true). It tells the same once more
	// when a container's state has changed and the readiness has not. It is never closed. Only the newest is kept for a
	// reader that is slow.
	Readiness() <-chan bool

	// Exec runs a command in one of the instance's containers and returns when it has ended, with its exit code
	// (128 + n when signal n ended it). An error means that it did not run, or not to its end.
	Exec(ctx context.Context, command Command) (code int, err error)

	// Containers tell how the instance's containers are, in the order of Spec: Container, then Sidecars.
	Containers() []ContainerStatus

	// Freeze withholds the CPU from everything in a ready instance until Thaw, as between requests (contract C66, KY16).
	// Its memory and its connections stay; it is not probed meanwhile. Freezing one that is frozen, or that is not ready,
	// does nothing. What the engine does in it needs the CPU and has it: Exec and connections of DialPort until they end,
	// and containers being started again; Freeze then takes effect afterwards. Time goes on meanwhile: after Thaw a program
	// may find at once that connections on which nothing came were kept for long enough, and close them.
	Freeze() error

	// Thaw gives the CPU back, and returns when the kernel has been told: what was sent to the instance before is
	// answered as soon as it is scheduled. Thawing one that is not frozen costs nothing. Of calls of Freeze and Thaw at
	// the same time, the last wins.
	Thaw() error

	// Frozen tells whether the CPU is withheld, or will be once what needs it has ended: who needs the instance running
	// calls Thaw if it is true. An instance that ends is not frozen. It costs nothing.
	Frozen() bool

	// Reclaim has the kernel move as much as it can of a frozen instance's memory to swap or disk, and returns how much
	// that was, in bytes. It may take long, and may be called beside all others; Thaw ends it early. Of an instance that
	// is not frozen it takes nothing.
	Reclaim() (freed int64, err error)

	// Usage is what the instance has used so far, and holds now. It is an error once the instance is stopped.
	Usage() (Usage, error)

	// Stages are the steps of this instance's start so far and how long each took, in order.
	Stages() []Stage
}

// BoostAfter is for how long the startup CPU boost goes on after the start (contract C46).
const BoostAfter = 10 * time.Second

// Spec is all an engine needs to know to run instances of one revision, with every reference resolved.
// It is read-only once given to an engine.
type Spec struct {
	Namespace     string
	Service       string // K_SERVICE; empty for a configuration without a service
	Configuration string // K_CONFIGURATION
	Revision      string // K_REVISION

	Container Container   // the one that requests go to (contract C8)
	Sidecars  []Container // the others; all share one network
	Volumes   []Volume    // what the containers' mounts name

	// Boost lets the containers use more CPU than their limits until BoostAfter after they have started, as Cloud Run's
	// startup CPU boost does (contract C46).
	Boost bool

	// StartupTimeout bounds the time from Start to ready (contract C45: 240 s).
	StartupTimeout time.Duration
}

// Container is one of the user's containers.
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
	Group      *int64   // runAsGroup; nil for the user's own
	NonRoot    bool     // runAsNonRoot: refuse to run as user 0
	ReadOnly   bool     // readOnlyRootFilesystem: only mounts can be written to
	Drop, Add  []string // capabilities, as "NET_BIND_SERVICE" or "ALL": what is dropped of the engine's set, then added
	Mounts     []Mount
	Port       int  // PORT: where it must listen
	HTTP2      bool // it speaks h2c on Port (port name "h2c", contract C13)

	CPU        int64 // limit in thousandths of a CPU; 0 is unlimited
	CPURequest int64 // its share in thousandths of a CPU while all want more than there is; 0 is as its limit
	Memory     int64 // limit in bytes; 0 is unlimited

	// StartupProbe passes before the instance takes its first request, and before the other probes begin. Where neither
	// it nor ReadinessProbe asks on Port, that must take connections too (contract 1.3); of a sidecar, which has no
	// Port, nothing more is asked.
	StartupProbe *Probe
	// ReadinessProbe passes before the first request too, and from then on, while it fails, keeps new requests from the
	// instance; nil is none.
	ReadinessProbe *Probe
	// LivenessProbe starts the container again when it fails after the start; nil is none.
	LivenessProbe *Probe
	// TerminationGrace is what the container is given between SIGTERM and SIGKILL when it is started again after its
	// liveness probe failed; 0 is the engine's default.
	TerminationGrace time.Duration
}

// Volume is a directory that containers mount. Everything in it goes with the instance.
type Volume struct {
	Name string
	// Files makes what reads the files of an instance's volume; nil for a volume that is empty and may be written to.
	// What it returns is called when the instance is prepared, and again about every minute while it lives: files that
	// have changed are replaced all at once, as Kubernetes does, so that a reader never sees half of a change. It is
	// not called by two goroutines at a time.
	Files func(instance string) func(ctx context.Context) ([]File, error)
	// SizeLimit bounds what can be written to an empty volume, in bytes; 0 is the container's memory.
	SizeLimit int64
}

// File is one file of a volume that the platform fills.
type File struct {
	Path string // relative, clean, without ".."; directories are made
	Mode uint32 // permission bits
	Data []byte
}

// Mount is where a container sees a volume, or a part of it.
type Mount struct {
	Volume   string // its name in Spec.Volumes
	Path     string // absolute, in the container
	SubPath  string // a file or directory in the volume; "" is all of it
	ReadOnly bool
}

// Command is what Exec runs.
type Command struct {
	Container string // its name; "" is the one that requests go to
	Args      []string
	// Stdin, Stdout and Stderr are connected to the command; nil is nothing. With Terminal, Stderr is not used.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Terminal, when not nil, gives the command a terminal, and its size as it changes.
	Terminal <-chan TerminalSize
}

// TerminalSize is the size of a terminal in characters.
type TerminalSize struct{ Width, Height uint16 }

// ContainerState is what a container does.
type ContainerState string

// The states of a container.
const (
	ContainerWaiting    ContainerState = "waiting"    // made and not begun, or to be started again after a pause
	ContainerRunning    ContainerState = "running"    // its program runs
	ContainerTerminated ContainerState = "terminated" // its program has ended and is not started again
)

// ContainerStatus is how a container is.
type ContainerStatus struct {
	Name     string         `json:"name"`
	Image    string         `json:"image"` // by digest
	State    ContainerState `json:"state"`
	Since    time.Time      `json:"since"` // when it entered State
	Started  bool           `json:"started"`
	Ready    bool           `json:"ready"`
	Restarts int            `json:"restarts"`
	Exit     *Exit          `json:"exit,omitempty"`     // how it ended, when it is terminated
	LastExit *Exit          `json:"lastExit,omitempty"` // how it ended before it was started again
	Reason   string         `json:"reason,omitempty"`   // why it waits or ended: "CrashLoopBackOff", "LivenessProbe"
}

// Env is one environment variable.
type Env struct{ Name, Value string }

// Credentials authenticate to an image registry. The zero value is anonymous.
type Credentials struct {
	Username, Password string
	Token              string // bearer token, instead of a user name and password
	Insecure           bool   // allow plain HTTP
}

// Probe is a check of a container. Exactly one of TCP, HTTP, GRPC and Exec is set.
type Probe struct {
	TCP  *TCPProbe
	HTTP *HTTPProbe
	GRPC *GRPCProbe
	Exec *ExecProbe

	InitialDelay     time.Duration // since the program began
	Period           time.Duration // 0: before the start as often as it is cheap, below a second; after it 10 s
	Timeout          time.Duration // of one try; 0 is 1 s
	FailureThreshold int           // in a row; 0: until the startup timeout, and after the start 3
	SuccessThreshold int           // in a row; 0 is 1
}

// TCPProbe passes when the port accepts a connection.
type TCPProbe struct{ Port int }

// HTTPProbe passes when GET answers 2xx or 3xx.
type HTTPProbe struct {
	Port   int
	Path   string
	Host   string
	Header [][2]string
	TLS    bool // over TLS, whose certificate is not checked
}

// GRPCProbe passes when the standard health service (grpc.health.v1.Health/Check) answers SERVING.
type GRPCProbe struct {
	Port    int
	Service string
}

// ExecProbe passes when a command in the container ends with exit code 0.
type ExecProbe struct{ Command []string }

// Progress is how far a pull is.
type Progress struct {
	Complete, Total int64 // bytes; Total is 0 while unknown
}

// Usage is what an instance uses of the machine, all its containers together.
type Usage struct {
	CPU    time.Duration // processor time since its start
	Memory int64         // bytes that it holds and that cannot be dropped: without files that are merely cached
}

// Stage is one timed step of an instance's start.
type Stage struct {
	Name  string        `json:"name"`           // a token: "network", "volumes", "rootfs", "create" while preparing; "release", "listen" while starting
	Begun time.Time     `json:"begun,omitzero"` // when it began; of a step that each container takes, when the first one did
	Took  time.Duration `json:"took"`           // in JSON, nanoseconds
}

// LogQuery selects log lines. Zero fields select everything.
type LogQuery struct {
	Namespace, Service, Revision, Instance string
	Container                              string    // by name
	Streams                                []string  // only lines of these
	Tail                                   int       // only the last n lines; 0 is all
	Since                                  time.Time // only lines written since
	Follow                                 bool
	Done                                   <-chan struct{} // ends following when it is closed; nil is never
}

// LogLine is one line that user code wrote, without its newline. Lines are cut at a limit the engine documents.
type LogLine struct {
	Time     time.Time `json:"time"`
	Revision string    `json:"revision"`
	Instance string    `json:"instance"`
	// Container is the name of the container that wrote it; "" for what the platform says of the whole instance.
	Container string `json:"container,omitempty"`
	Stream    string `json:"stream"` // "stdout", "stderr", or "system" for what the platform says
	Text      string `json:"text"`
}
