package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/engine"
)

const (
	// openPauses are those after the kernel has told that a program begins to listen: a moment before it can be reached.
	openPause  = 50 * time.Microsecond
	openPauses = 5
	// execPause is that time for commands, which cost a process each.
	execPause = 500 * time.Millisecond
	// probeTimeout is how long one try of a probe takes at most, unless it says otherwise (contract 1.3).
	probeTimeout = time.Second
	// probeOutput is how much of what a probe's command writes is told when it fails, in bytes.
	probeOutput = 1 << 10
)

// pauses are the times between two tries of a probe that has no period of its own, before the container has started.
type pauses struct {
	first, longest time.Duration
	share          int // the pause is one part in so many of the time that the program has taken so far
}

// A try at a port on which nobody listens costs some 20 µs of CPU: in the end half a percent of a processor where the
// port is polled, and next to nothing where the kernel tells when it opens, and it is tried in case that was lost.
var (
	polledPauses = pauses{first: 500 * time.Microsecond, longest: 5 * time.Millisecond, share: 200}
	toldPauses   = pauses{first: 10 * time.Millisecond, longest: 100 * time.Millisecond, share: 10}
)

// after is the pause so long after the program was let run.
func (p pauses) after(elapsed time.Duration) time.Duration {
	return min(max(elapsed/time.Duration(p.share), p.first), p.longest)
}

// probed is a container as its probes reach it.
type probed struct {
	address netip.Addr
	// heard has a value when a program beside the probed one, or it, has begun to listen; nil where that is not known.
	heard <-chan struct{}
	// unheard says that all that has been heard since the program was let run is still in heard: to try before is in vain.
	unheard bool
	// run runs a command in the container, as engine.Instance.Exec does.
	run func(ctx context.Context, command engine.Command) (code int, err error)
}

// startChecks are the probes that pass, in this order, before a container has started: its startup probe, then its
// readiness probe, as Kubernetes does. Where neither asks whether the port is open that requests go to, that is asked
// too.
func startChecks(c *engine.Container, serves bool) []engine.Probe {
	var checks []engine.Probe
	asked := !serves
	if c.StartupProbe != nil {
		checks = append(checks, *c.StartupProbe)
		asked = asked || probedPort(*c.StartupProbe) == c.Port
	}
	readiness := c.ReadinessProbe
	if !asked && (readiness == nil || readiness.Exec != nil) {
		checks = append(checks, engine.Probe{TCP: &engine.TCPProbe{Port: c.Port}})
	}
	if readiness != nil {
		check := *readiness
		check.FailureThreshold = 0 // it does not limit the start: it is tried until the startup timeout
		checks = append(checks, check)
	}
	return checks
}

// awaitPassed tries a probe of a program that was let run at begun, until it passes. When it has failed too often or
// ctx ends, the error is that of the last try that was not cut short.
//
// A port that is not open yet is waited for within the period: the next try is made as soon as it opens.
func (p probed) awaitPassed(ctx context.Context, probe engine.Probe, begun time.Time) error {
	last := errors.New("it was not tried")
	if sleep(ctx, probe.InitialDelay-time.Since(begun)) != nil {
		return last
	}
	wait := &opening{begun: begun, heard: p.heard}
	if p.unheard && probe.Exec == nil && wait.pause(ctx) != nil {
		return last
	}
	for passed, failed := 0, 0; ; {
		tried := time.Now()
		err := p.try(ctx, probe)
		refused := errors.Is(err, syscall.ECONNREFUSED)
		if refused && probe.Period > 0 && p.opens(ctx, probedPort(probe), wait, probe.Period-time.Since(tried)) {
			continue
		}
		switch {
		case err == nil:
			failed = 0
			if passed++; passed >= max(probe.SuccessThreshold, 1) {
				return nil
			}
		case cutShort(ctx):
		default:
			passed, last = 0, err
			if failed++; probe.FailureThreshold > 0 && failed >= probe.FailureThreshold {
				return last
			}
		}
		switch {
		case probe.Period > 0:
			err = sleep(ctx, probe.Period-time.Since(tried))
		case probe.Exec != nil:
			err = sleep(ctx, execPause)
		case refused:
			err = wait.pause(ctx)
		default:
			err = sleep(ctx, polledPauses.after(time.Since(begun)))
		}
		if err != nil {
			return last
		}
	}
}

// cutShort tells whether what has just failed did so by the end of ctx, which connections notice before ctx says so.
func cutShort(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && !time.Now().Before(deadline)
}

// opens waits, no longer than patience, until a port takes connections.
func (p probed) opens(ctx context.Context, port int, wait *opening, patience time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for wait.pause(ctx) == nil {
		if conn, err := dial(ctx, p.address, port); err == nil {
			conn.Close()
			return true
		}
	}
	return false
}

// opening waits for the moments to try a port again that is not open yet.
type opening struct {
	begun time.Time       // when the program was let run
	heard <-chan struct{} // see probed
	soon  int             // how many tries more come soon
}

// pause returns when it is time for the next try.
func (o *opening) pause(ctx context.Context) error {
	if o.soon > 0 {
		o.soon--
		pause := unix.NsecToTimespec(int64(openPause))
		_ = unix.Nanosleep(&pause, nil) // not time.Sleep, which rounds up to a millisecond
		return ctx.Err()
	}
	pauses := polledPauses
	if o.heard != nil {
		pauses = toldPauses
	}
	timer := time.NewTimer(pauses.after(time.Since(o.begun)))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
	case <-o.heard:
		o.soon = openPauses
	}
	return nil
}

// try makes one try of a probe, within its timeout. It leaves nothing behind.
func (p probed) try(ctx context.Context, probe engine.Probe) error {
	timeout := probe.Timeout
	if timeout == 0 {
		timeout = probeTimeout
	}
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var err error
	switch {
	case probe.HTTP != nil:
		err = p.tryHTTP(limited, probe.HTTP)
	case probe.GRPC != nil:
		err = p.tryGRPC(limited, probe.GRPC)
	case probe.Exec != nil:
		err = p.tryExec(limited, probe.Exec)
	default:
		var conn net.Conn
		if conn, err = p.connect(limited, probe.TCP.Port); err == nil {
			conn.Close()
		}
	}
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf("%s did not answer within %s", asked(probe), timeout)
	}
	return err
}

func (p probed) tryExec(ctx context.Context, probe *engine.ExecProbe) error {
	var output head
	code, err := p.run(ctx, engine.Command{Args: probe.Command, Stdout: &output, Stderr: &output})
	switch {
	case err != nil:
		return fmt.Errorf("running the command %q: %w", probe.Command, err)
	case code == 0:
		return nil
	}
	if text := output.String(); text != "" {
		return fmt.Errorf("the command %q ended with exit code %d: %s", probe.Command, code, text)
	}
	return fmt.Errorf("the command %q ended with exit code %d", probe.Command, code)
}

// asked says what a probe asks, as the subject of a sentence.
func asked(probe engine.Probe) string {
	switch {
	case probe.HTTP != nil:
		return fmt.Sprintf("GET %s on port %d", cmp.Or(probe.HTTP.Path, "/"), probe.HTTP.Port)
	case probe.GRPC != nil:
		return fmt.Sprintf("the gRPC health service on port %d", probe.GRPC.Port)
	case probe.Exec != nil:
		return fmt.Sprintf("the command %q", probe.Exec.Command)
	}
	return fmt.Sprintf("port %d", probe.TCP.Port)
}

// probeKind is how a probe is called in the log lines that people know from Cloud Run (contract E16).
func probeKind(probe engine.Probe) string {
	switch {
	case probe.HTTP != nil:
		return "HTTP"
	case probe.GRPC != nil:
		return "GRPC"
	case probe.Exec != nil:
		return "EXEC"
	}
	return "TCP"
}

// probedPort is the port that a probe asks; 0 for a command.
func probedPort(probe engine.Probe) int {
	switch {
	case probe.HTTP != nil:
		return probe.HTTP.Port
	case probe.GRPC != nil:
		return probe.GRPC.Port
	case probe.TCP != nil:
		return probe.TCP.Port
	}
	return 0
}

// connect is dial with an error that is for the user to read.
func (p probed) connect(ctx context.Context, port int) (net.Conn, error) {
	conn, err := dial(ctx, p.address, port)
	if err == nil {
		return conn, nil
	}
	var call *os.SyscallError
	if errors.As(err, &call) {
		err = call.Err
	}
	return nil, fmt.Errorf("connecting to port %d: %w", port, err)
}

func dial(ctx context.Context, address netip.Addr, port int) (net.Conn, error) {
	var dialer net.Dialer
	return dialer.DialContext(ctx, "tcp", net.JoinHostPort(address.String(), strconv.Itoa(port)))
}

// head keeps the beginning of what is written to it. It may be written to from several goroutines.
type head struct {
	mu   sync.Mutex
	kept []byte
}

var _ io.Writer = (*head)(nil)

// Write implements io.Writer.
func (h *head) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.kept = append(h.kept, p[:min(len(p), probeOutput-len(h.kept))]...)
	return len(p), nil
}

// String is what was kept, as one line.
func (h *head) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return oneLine(h.kept)
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

func deadlineIn(d time.Duration) time.Time { return time.Now().Add(d) }
