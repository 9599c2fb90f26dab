package gateway

import (
	"context"
	"errors"
	"net"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Serve takes requests from a listener until ctx ends: HTTP/1.1, and HTTP/2 without TLS with prior knowledge or by
// Upgrade. Then it takes no new ones, gives those in flight Config.ShutdownTimeout to end, and returns nil. It closes
// the listener.
//
// Loops serve HTTP/1.1. They hand a connection over to the standard library's server when its client speaks anything
// else, or when its request is for a revision that speaks HTTP/2. A listener that is not TCP is all the standard library's.
func (g *Gateway) Serve(ctx context.Context, listener net.Listener) error {
	tcp, ok := listener.(*net.TCPListener)
	if !ok {
		return g.serveStandard(ctx, listener)
	}
	handed := newHandedListener(tcp.Addr())
	socket, err := listenerSocket(tcp)
	if err != nil {
		return err
	}

	var loops []*loop
	for range loopCount() {
		l, err := newLoop(g, socket, handed.give)
		if err != nil {
			for _, l := range loops {
				l.end()
			}
			unix.Close(socket)
			return err
		}
		loops = append(loops, l)
	}

	if g.log != nil {
		stop := g.log.start()
		defer stop()
	}
	running, cancel := context.WithCancel(ctx) // one that breaks ends the others
	defer cancel()
	standard, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	ended := make(chan error, len(loops)+1)
	go func() {
		defer cancel()
		ended <- g.serveStandard(standard, handed)
	}()
	var looping sync.WaitGroup
	for _, l := range loops {
		looping.Go(func() {
			defer cancel()
			ended <- l.serve(running)
		})
	}
	<-running.Done()
	var draining sync.WaitGroup
	draining.Add(len(loops))
	for _, l := range loops {
		if !l.post(func() { l.drain(); draining.Done() }) {
			draining.Done()
		}
	}
	timer := time.AfterFunc(g.config.ShutdownTimeout, func() {
		for _, l := range loops {
			l.post(l.cut)
		}
	})
	defer timer.Stop()
	draining.Wait()
	unix.Close(socket)
	// What clients send within their grace may be the standard library's to serve.
	graced, done := context.WithTimeout(context.WithoutCancel(ctx), 2*drainGrace)
	go func() { looping.Wait(); done() }()
	<-graced.Done()
	handed.settle()
	stop()
	var errs []error
	for range cap(ended) {
		errs = append(errs, <-ended)
	}
	return errors.Join(errs...)
}

// loopCount is how many loops serve a listener. One does the work of a whole processor; what instances do with the
// requests takes more than that.
func loopCount() int { return max(1, runtime.GOMAXPROCS(0)/2) }

// drain takes no more connections than have come, and lets those that there are end with their requests.
func (l *loop) drain() {
	l.draining = true
	l.accept(acceptLast)
	l.stopListening()
	for c := range l.clients {
		c.shutdown()
	}
}

// cut ends what has not ended in time.
func (l *loop) cut() {
	if n := len(l.clients); n > 0 {
		l.logger.Warn("requests were cut at shutdown", "after", l.gateway.config.ShutdownTimeout, "connections", n)
	}
	for c := range l.clients {
		c.cutOff()
	}
}
