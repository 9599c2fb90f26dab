package engine

import (
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Exit tells how user code ended.
type Exit struct {
	Code      int            // exit code, when Signal is 0
	Signal    syscall.Signal // what killed it, or 0
	OOM       bool           // it used more memory than its limit
	LastLines []string       // the last lines it wrote, oldest first
	Cause     string         // why the platform ended it; "" when it ended by itself
}

// String is the exit as a person says it: "exited with code 3", "was killed by SIGSEGV".
func (e Exit) String() string {
	switch {
	case e.OOM:
		return "used more memory than its limit and was killed"
	case e.Signal != 0:
		return fmt.Sprintf("was killed by signal %d (%s)", int(e.Signal), e.Signal)
	default:
		return fmt.Sprintf("exited with code %d", e.Code)
	}
}

// Reasons of a [StartError].
const (
	ReasonExited         = "Exited"         // user code ended before it was ready
	ReasonNotListening   = "NotListening"   // the startup probe did not pass in time
	ReasonWrongPlatform  = "WrongPlatform"  // the program is not for this CPU ("exec format error")
	ReasonNotExecutable  = "NotExecutable"  // the program is missing, or may not be run
	ReasonInvalidUser    = "InvalidUser"    // the user it should run as is not valid
	ReasonVolume         = "Volume"         // a volume cannot be filled or mounted: what it is made of is missing
	ReasonEngine         = "Engine"         // the machine's fault, not the user's; trying again may help
	ReasonImageNotPulled = "ImageNotPulled" // the image is not, or no longer, on this machine
)

// StartError says why an instance did not become ready. It survives the instance.
type StartError struct {
	Reason string
	// Container is the name of the container that it is about, where there are several.
	Container string
	Exit      *Exit         // set for ReasonExited
	Port      int           // where it should have listened
	Listened  []string      // addresses it listened on instead: "127.0.0.1:8080", "[::]:3000"
	Waited    time.Duration // how long it was given, for ReasonNotListening
	// LastLines are the last lines it wrote, oldest first.
	LastLines []string
	Err       error // the cause below, or nil
}

// Error says what was seen and what to do, in one paragraph, with the container's last lines after it.
func (e *StartError) Error() string {
	var b strings.Builder
	who := "the container"
	if e.Container != "" {
		who = fmt.Sprintf("the container %q", e.Container)
	}
	switch e.Reason {
	case ReasonExited:
		if e.Port == 0 {
			fmt.Fprintf(&b, "%s %s before the instance was ready", who, e.Exit)
		} else {
			fmt.Fprintf(&b, "%s %s before it listened on port %d", who, e.Exit, e.Port)
		}
		if e.Exit.OOM {
			b.WriteString("; raise the memory limit")
		}
	case ReasonNotListening:
		if e.LoopbackOnly() {
			fmt.Fprintf(&b, "%s listens on port %d of 127.0.0.1 only, where no request can reach it: listen on 0.0.0.0 instead", who, e.Port)
			break
		}
		if e.Err != nil {
			fmt.Fprintf(&b, "%s's startup probe", who)
			if e.Port != 0 { // else a command was run
				fmt.Fprintf(&b, " on port %d", e.Port)
			}
			fmt.Fprintf(&b, " did not pass within %s: %v", round(e.Waited), e.Err)
			break
		}
		fmt.Fprintf(&b, "%s did not listen on port %d within %s", who, e.Port, round(e.Waited))
		if len(e.Listened) > 0 {
			fmt.Fprintf(&b, "; it listens on %s instead: listen on the port given in the PORT environment variable, or set the service's port",
				strings.Join(e.Listened, ", "))
		}
	case ReasonWrongPlatform:
		e.nameContainer(&b)
		if e.Err != nil {
			b.WriteString(e.Err.Error())
		} else {
			b.WriteString("the container's program is not for this machine: exec format error")
		}
		b.WriteString("; build the image for linux/" + runtime.GOARCH)
	default:
		e.nameContainer(&b)
		if e.Err != nil {
			b.WriteString(e.Err.Error())
		} else {
			b.WriteString(e.Reason)
		}
	}
	if len(e.LastLines) > 0 {
		b.WriteString("; last lines of its log:\n")
		b.WriteString(strings.Join(e.LastLines, "\n"))
	}
	return b.String()
}

// nameContainer begins a sentence of another's that says no more than "the container".
func (e *StartError) nameContainer(b *strings.Builder) {
	if e.Container != "" {
		fmt.Fprintf(b, "container %q: ", e.Container)
	}
}

// round leaves what a person wants to read of a duration.
func round(d time.Duration) time.Duration {
	if d < 10*time.Second {
		return d.Round(10 * time.Millisecond)
	}
	return d.Round(time.Second)
}

// Unwrap returns the cause below.
func (e *StartError) Unwrap() error { return e.Err }

// LoopbackOnly tells whether the container listens on the right port, but only for itself.
func (e *StartError) LoopbackOnly() bool {
	only := false
	for _, address := range e.Listened {
		a, err := netip.ParseAddrPort(address)
		if err != nil || int(a.Port()) != e.Port {
			continue
		}
		if !a.Addr().Unmap().IsLoopback() {
			return false
		}
		only = true
	}
	return only
}
