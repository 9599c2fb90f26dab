package node

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/berth-run/berth/engine"
)

const (
	// lookoutPeriod is how often a starting instance's open ports are looked at, for which the kernel goes through all
	// sockets of the machine: some milliseconds.
	lookoutPeriod = time.Second
	// lookoutQuiet is how long a start may take before it is said what it waits for.
	lookoutQuiet = 2 * time.Second
	// loopbackPatience is how long the port may be open on the loopback interface only before the start is given
	// up: no request can arrive there. It leaves time to programs that first open it for themselves, to set up.
	loopbackPatience = 5 * time.Second
)

// lookOut watches where a starting instance listens, and says so in waiting. It returns true when the instance
// listens at port where no request can reach it, and false when ctx ends.
func (l *life) lookOut(ctx context.Context, port int) (hopeless bool) {
	i := l.container.instance
	defer i.setWaiting("")
	tick := time.NewTicker(lookoutPeriod)
	defer tick.Stop()
	begun := time.Now()
	var loopbackSince time.Time // zero while it is not so
	for {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
		addresses := listened(l.process.pid)
		now := time.Now()
		switch {
		case !(&engine.StartError{Port: port, Listened: addresses}).LoopbackOnly():
			loopbackSince = time.Time{}
		case loopbackSince.IsZero():
			loopbackSince = now
		case now.Sub(loopbackSince) >= loopbackPatience:
			return true
		}
		if now.Sub(begun) >= lookoutQuiet {
			i.setWaiting(waitingFor(addresses, port))
		}
	}
}

// waitingFor says what the start of an instance that listens on addresses waits for.
func waitingFor(addresses []string, port int) string {
	if port == 0 { // a command checks it
		return "the container's startup probe to pass"
	}
	for _, address := range addresses {
		if a, err := netip.ParseAddrPort(address); err == nil && int(a.Port()) == port && !a.Addr().Unmap().IsLoopback() {
			return fmt.Sprintf("the container's startup probe on port %d to pass", port)
		}
	}
	text := fmt.Sprintf("the container to listen on port %d", port)
	if len(addresses) > 0 {
		text += "; it listens on " + strings.Join(addresses, ", ")
	}
	return text
}

// Waiting says what a start that has been going on for a while waits for: "the container to listen on port 8080;
// it listens on [::]:3000". It is "" when there is nothing to say.
func (i *instance) Waiting() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.waiting
}

func (i *instance) setWaiting(text string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.waiting = text
}
