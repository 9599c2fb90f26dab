package api

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/moby/spdystream"

	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/serving"
)

// forwardProtocol is what streams of forwarded ports are called; through a WebSocket goes the same SPDY connection
// that older clients upgrade to.
const forwardProtocol = "portforward.k8s.io"

// portForward connects a client to ports of a pod, as kubectl port-forward asks for it: for each connection two streams
// of SPDY, one for the data and one for what went wrong.
func (a *api) portForward(w http.ResponseWriter, r *http.Request) (any, error) {
	pod, instance, err := a.instanceOfPod(r)
	if err != nil {
		return nil, err
	}
	u, err := upgradeOf(r, []string{spdyProtocol + "+" + forwardProtocol}, []string{forwardProtocol})
	if err != nil {
		return nil, err
	}
	release, err := a.stream()
	if err != nil {
		return nil, err
	}
	defer release()
	ctx, conn, err := u.accept(w, r)
	if err != nil {
		a.Logger.Debug("a client could not upgrade its connection", "path", r.URL.Path, "error", err)
		return nil, nil
	}
	defer conn.close()
	a.Logger.Info("forwarding ports to a client", "revision", pod.Labels[serving.LabelRevision], "instance", instance.ID())
	f := forwarding{conn: conn, pod: pod.Name, instance: instance, pending: map[string]*forwarded{}}
	if _, err := conn.streams(ctx, func(s *spdystream.Stream) { f.take(ctx, s) }); err != nil {
		return nil, nil
	}
	select {
	case <-ctx.Done():
	case <-instance.Exited(): // clients look for another pod then
	}
	conn.close()
	f.wait()
	return nil, nil
}

// forwarding is one client's port-forward.
type forwarding struct {
	conn     *upgraded
	pod      string
	instance engine.Instance

	connections sync.WaitGroup

	mu      sync.Mutex
	open    int                   // connections, with those that are pending; guarded by mu
	pending map[string]*forwarded // by the client's name for them, until both streams are there; guarded by mu
}

// forwarded is one connection.
type forwarded struct {
	name         string
	port         int
	data, errors *spdystream.Stream
	late         *time.Timer
}

// take sorts a stream that the client has opened to its connection, which begins with the second of the two.
func (f *forwarding) take(ctx context.Context, stream *spdystream.Stream) {
	c, complete := f.sort(ctx, stream)
	if c == nil {
		refuse(stream)
		return
	}
	if stream.SendReply(nil, false) != nil || !complete {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if ctx.Err() == nil { // wait has not begun
		f.connections.Go(func() {
			f.forward(ctx, c)
			f.end(c)
		})
	}
}

// wait returns when nothing is forwarded any more. The context of its connections has ended.
func (f *forwarding) wait() {
	f.mu.Lock()
	begun := &f.connections // from here on, none begins
	f.mu.Unlock()
	begun.Wait()
}

// sort finds or makes the connection of a stream, nil when there is none for it, and tells whether it was the second one.
func (f *forwarding) sort(ctx context.Context, stream *spdystream.Stream) (c *forwarded, complete bool) {
	h := stream.Headers()
	name, kind := h.Get("requestID"), h.Get("streamType")
	port, err := strconv.Atoi(h.Get("port"))
	if err != nil || port < 1 || port > 65535 || kind != "data" && kind != "error" {
		return nil, false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if ctx.Err() != nil {
		return nil, false
	}
	c = f.pending[name]
	if c == nil {
		if f.open == maxForwarded {
			return nil, false
		}
		made := &forwarded{name: name, port: port}
		made.late = time.AfterFunc(streamPatience, func() { f.giveUp(made) })
		f.pending[name], c = made, made
		f.open++
	}
	place := &c.errors
	if kind == "data" {
		place = &c.data
	}
	if *place != nil || c.port != port {
		return nil, false
	}
	*place = stream
	if complete = c.data != nil && c.errors != nil; complete {
		c.late.Stop()
		delete(f.pending, name)
	}
	return c, complete
}

// giveUp ends a connection whose second stream does not come.
func (f *forwarding) giveUp(c *forwarded) {
	f.mu.Lock()
	pending := f.pending[c.name] == c
	if pending {
		delete(f.pending, c.name)
	}
	f.mu.Unlock()
	if pending {
		f.end(c)
	}
}

// end forgets a connection.
func (f *forwarding) end(c *forwarded) {
	for _, s := range []*spdystream.Stream{c.data, c.errors} {
		if s != nil {
			_ = s.Reset()
		}
	}
	f.mu.Lock()
	f.open--
	f.mu.Unlock()
}

// forward passes data on in both directions until both have ended, the client gives up, or ctx ends.
func (f *forwarding) forward(ctx context.Context, c *forwarded) {
	conn, err := f.instance.DialPort(ctx, c.port)
	if err != nil {
		f.fail(c, err)
		return
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	var sending sync.WaitGroup
	sending.Go(func() {
		_, _ = io.Copy(touching{conn, f.conn}, c.data)
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
		if c.data.IsFinished() { // by the client: it takes nothing any more
			_ = conn.Close()
		}
	})
	_, err = io.Copy(writeFunc(func(p []byte) (int, error) {
		f.conn.touch()
		if c.data.IsFinished() { // by the client
			return 0, net.ErrClosed
		}
		return c.data.Write(p)
	}), receiver{conn})
	if err != nil && ctx.Err() == nil && !c.data.IsFinished() {
		f.fail(c, err)
	}
	_ = c.data.Close()
	sending.Wait()
	_ = c.errors.Close()
}

// receiver hides all of a connection but that it can be read, so that data is passed on in pieces of io.Copy's size.
type receiver struct{ net.Conn }

// fail tells the client why a connection cannot be had or was lost. It may close all of them then, as kubectl does.
func (f *forwarding) fail(c *forwarded, err error) {
	_, _ = fmt.Fprintf(c.errors, "forwarding port %d of pod %s: %v", c.port, f.pod, err)
	_ = c.errors.Close()
}
