package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/berth-run/berth/engine"
)

const (
	// firstPause and longestPause bound the time between two tries of a probe that has no period of its own.
	// A try at a port on which nobody listens is answered at once, so it costs little.
	firstPause   = 500 * time.Microsecond
	longestPause = 20 * time.Millisecond
	// probeTimeout is how long one try of a probe takes at most, unless it says otherwise (contract 1.3).
	probeTimeout = time.Second
)

// awaitReady tries a probe against an instance's address until it passes. When it has failed too often or
// ctx ends, the error is that of the last try that was not cut short.
func awaitReady(ctx context.Context, address netip.Addr, probe engine.Probe) error {
	last := errors.New("it was not tried")
	if sleep(ctx, probe.InitialDelay) != nil {
		return last
	}
	timeout := probe.Timeout
	if timeout == 0 {
		timeout = probeTimeout
	}
	pause := firstPause
	for passed, failed := 0, 0; ; {
		begun := time.Now()
		err := tryProbe(ctx, address, probe, timeout)
		switch {
		case err == nil:
			failed = 0
			if passed++; passed >= max(probe.SuccessThreshold, 1) {
				return nil
			}
		case ctx.Err() != nil:
		default:
			passed, last = 0, err
			if failed++; probe.FailureThreshold > 0 && failed >= probe.FailureThreshold {
				return last
			}
		}
		wait := probe.Period - time.Since(begun)
		if probe.Period == 0 {
			wait, pause = pause, min(pause+pause/4, longestPause)
		}
		if sleep(ctx, wait) != nil {
			return last
		}
	}
}

// probedPort is the port that a probe asks.
func probedPort(probe engine.Probe) int {
	if probe.HTTP != nil {
		return probe.HTTP.Port
	}
	return probe.TCP.Port
}

func tryProbe(ctx context.Context, address netip.Addr, probe engine.Probe, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if probe.HTTP != nil {
		return tryHTTP(ctx, address, probe.HTTP)
	}
	conn, err := dial(ctx, address, probe.TCP.Port)
	if err != nil {
		return err
	}
	return conn.Close()
}

func tryHTTP(ctx context.Context, address netip.Addr, probe *engine.HTTPProbe) error {
	url := "http://" + net.JoinHostPort(address.String(), strconv.Itoa(probe.Port)) + "/"
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("making the probe's request: %w", err)
	}
	if request.URL, err = request.URL.Parse(probe.Path); err != nil {
		return fmt.Errorf("parsing the probe's path %q: %w", probe.Path, err)
	}
	request.Header.Set("User-Agent", "kube-probe/berth") // what programs look for to leave probes out of their logs
	request.Host = probe.Host
	for _, header := range probe.Header {
		if http.CanonicalHeaderKey(header[0]) == "Host" {
			request.Host = header[1]
			continue
		}
		request.Header.Add(header[0], header[1])
	}
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dial(ctx, address, probe.Port)
		},
	}
	response, err := transport.RoundTrip(request) // not a client: a redirect is an answer
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, _ = io.CopyN(io.Discard, response.Body, 4<<10) // so that a small answer is not cut off
	if response.StatusCode < 200 || response.StatusCode > 399 {
		return fmt.Errorf("GET %s on port %d answered %s", request.URL.RequestURI(), probe.Port, response.Status)
	}
	return nil
}

func dial(ctx context.Context, address netip.Addr, port int) (net.Conn, error) {
	var dialer net.Dialer
	return dialer.DialContext(ctx, "tcp", net.JoinHostPort(address.String(), strconv.Itoa(port)))
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
