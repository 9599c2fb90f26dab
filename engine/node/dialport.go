package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"

	"golang.org/x/sys/unix"
)

// DialPort implements engine.Instance. It dials on loopback in the instance's network namespace, as its containers do:
// programs that listen there only are reached too. The
// instance is not frozen before the connection is closed.
func (i *instance) DialPort(ctx context.Context, port int) (net.Conn, error) {
	release, err := i.hold()
	if err != nil {
		return nil, fmt.Errorf("dialing port %d of instance %q: %w", port, i.id, err)
	}
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	onOwnThread(func() {
		var r result
		if r.err = unix.Setns(int(i.link.namespace.Fd()), unix.CLONE_NEWNET); r.err == nil {
			// A socket stays in the network namespace in which it was made. One for an address that needs no lookup is
			// made by the goroutine that dials.
			var dialer net.Dialer
			r.conn, r.err = dialer.DialContext(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		}
		done <- r
	})
	r := <-done
	// Once it is stopping, its network may be another instance's.
	i.mu.Lock()
	stopping := i.stopping
	i.mu.Unlock()
	if stopping && r.err == nil {
		r.conn.Close()
		r.err = errors.New("the instance is stopping")
	}
	if r.err != nil {
		release()
		return nil, fmt.Errorf("dialing port %d of instance %q: %w", port, i.id, r.err)
	}
	return &heldConn{r.conn.(*net.TCPConn), release}, nil
}
