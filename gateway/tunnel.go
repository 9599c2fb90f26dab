package gateway

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// halfCloseWait is how long one side of a tunnel may still speak to the other that has ended its half.
const halfCloseWait = 10 * time.Second

// tunnel gives the client the 101 whose head has been read, then carries bytes both ways until one side ends.
// It holds the request's slot for as long (contract C24).
func (x *exchange) tunnel(c *conn, head responseHead) error {
	defer c.abort()
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	client, buffered, err := http.NewResponseController(x.writer).Hijack()
	if err != nil {
		return fmt.Errorf("taking over the client's connection: %w", err)
	}
	defer client.Close()
	release(client)
	client.SetDeadline(time.Time{}) // what net/http set for requests; fails only on a closed connection

	x.began, x.status = true, http.StatusSwitchingProtocols
	b := append(c.head[:0], "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"...)
	b = appendLine(b, "Upgrade", head.upgrade)
	x.setAffinity(x.writer.Header())
	x.setTiming(x.writer.Header())
	for key, values := range x.writer.Header() {
		for _, value := range values {
			b = appendLine(b, key, value)
		}
	}
	if _, err := client.Write(append(b, "\r\n"...)); err != nil {
		return nil // the client is gone, and nobody else is to be told
	}

	leave := x.gateway.upgrades.enter(client)
	defer leave()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, err := io.Copy(c.Conn, buffered.Reader)
		half, ok := c.Conn.(interface{ CloseWrite() error })
		if err != nil || !ok || half.CloseWrite() != nil {
			c.abort()
			return
		}
		c.SetReadDeadline(time.Now().Add(halfCloseWait))
	}()
	x.sent, err = io.Copy(client, c.reader)
	if half, ok := client.(interface{ CloseWrite() error }); err == nil && ok && half.CloseWrite() == nil {
		client.SetReadDeadline(time.Now().Add(halfCloseWait)) // the instance may still listen
		<-sent
	}
	client.Close()
	c.abort()
	<-sent
	return nil
}

// upgrades are the client connections that have become tunnels: net/http knows nothing of them any more.
type upgrades struct {
	mu    sync.Mutex
	open  map[net.Conn]struct{}
	empty chan struct{} // closed when the last one leaves, while shutdown waits
}

func (u *upgrades) enter(c net.Conn) (leave func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.open == nil {
		u.open = make(map[net.Conn]struct{})
	}
	u.open[c] = struct{}{}
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		delete(u.open, c)
		if len(u.open) == 0 && u.empty != nil {
			close(u.empty)
			u.empty = nil
		}
	}
}

// shutdown waits until no tunnel is left, and closes those that are left when ctx ends.
func (u *upgrades) shutdown(ctx context.Context) {
	u.mu.Lock()
	if len(u.open) == 0 {
		u.mu.Unlock()
		return
	}
	if u.empty == nil {
		u.empty = make(chan struct{})
	}
	empty := u.empty
	u.mu.Unlock()
	select {
	case <-empty:
		return
	case <-ctx.Done():
	}
	u.mu.Lock()
	for c := range u.open {
		c.Close()
	}
	u.mu.Unlock()
	<-empty
}
