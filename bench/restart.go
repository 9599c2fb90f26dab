package bench

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"syscall"
	"time"

	"github.com/berth-run/berth/client"
)

// Restart ends the server, with SIGKILL if hard is set and else as Ctrl-C does, starts it again at the same addresses
// and returns how long it took from the begin of its process until a request to the service with a URL was answered.
// Nothing is asked before but the gateway, every few milliseconds.
func (s *Server) Restart(ctx context.Context, service string, hard bool) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := s.stay(service); err != nil {
		return 0, err
	}
	signal := syscall.SIGTERM
	if hard {
		signal = syscall.SIGKILL
	}
	if err := s.process.Signal(signal); err != nil {
		return 0, err
	}
	<-s.ended
	if s.err != nil && !hard {
		return 0, fmt.Errorf("ending berth server: %w; it wrote:\n%s", s.err, s.log())
	}
	begun := time.Now()
	if err := s.launch(); err != nil {
		return 0, err
	}
	for {
		_, status, err := Get(ctx, service)
		switch {
		case err == nil && status == http.StatusOK:
			return time.Since(begun), s.awaitReady(ctx)
		case err == nil:
			return 0, fmt.Errorf("a request after the restart: status %d", status)
		case !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.ECONNRESET):
			return 0, fmt.Errorf("a request after the restart: %w; the server wrote:\n%s", err, s.log())
		}
		select {
		case <-s.ended:
			return 0, fmt.Errorf("starting berth server again: it ended; it wrote:\n%s", s.log())
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// stay has the next start use the same addresses, which the URL of a service tells.
func (s *Server) stay(service string) error {
	config, err := client.Load(s.kubeconfig())
	if err != nil {
		return err
	}
	api, err := url.Parse(config.Server)
	if err != nil {
		return err
	}
	gateway, err := url.Parse(service)
	if err != nil {
		return err
	}
	s.addresses = []string{"--api-address", api.Host, "--gateway-address", "127.0.0.1:" + gateway.Port()}
	return nil
}

// Relaunch ends the server as Ctrl-C does and starts it again with other flags, on the same state and at the same
// addresses, which the URL of a service tells.
func (s *Server) Relaunch(ctx context.Context, service string, flags ...string) error {
	if err := s.stay(service); err != nil {
		return err
	}
	if err := s.process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	<-s.ended
	if s.err != nil {
		return fmt.Errorf("ending berth server: %w; it wrote:\n%s", s.err, s.log())
	}
	s.flags = flags
	if err := s.launch(); err != nil {
		return err
	}
	return s.awaitReady(ctx)
}
