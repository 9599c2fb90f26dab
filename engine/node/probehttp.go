package node

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"strings"
	"time"

	"github.com/berth-run/berth/engine"
)

const (
	// probeUserAgent begins with what programs look for to leave probes out of their logs.
	probeUserAgent = "kube-probe/berth"
	// probeAnswer is how much of the answer to a probe is read, in bytes.
	probeAnswer = 64 << 10
	// probeRest is how long the rest of an answer that has passed is read for: it may never end.
	probeRest = 100 * time.Millisecond
)

// tryHTTP asks over a connection of its own, without a client's goroutines. A redirect is an answer, as any status
// below 400 (Kubernetes' rule).
func (p probed) tryHTTP(ctx context.Context, probe *engine.HTTPProbe) error {
	request, err := probeRequest(probe)
	if err != nil {
		return err
	}
	plain, err := p.connect(ctx, probe.Port)
	if err != nil {
		return err
	}
	defer plain.Close()
	defer context.AfterFunc(ctx, func() { _ = plain.SetDeadline(time.Unix(1, 0)) })()
	conn := plain
	if probe.TLS {
		conn = tls.Client(plain, &tls.Config{
			ServerName:         hostOnly(request.Host),
			InsecureSkipVerify: true, // an instance has no certificate that anybody could check: Kubernetes' rule
			NextProtos:         []string{"http/1.1"},
		})
	}
	if err := request.Write(conn); err != nil {
		return fmt.Errorf("%s: sending the request: %w", asked(engine.Probe{HTTP: probe}), err)
	}
	response, err := readProbeResponse(conn, request)
	if err != nil {
		return fmt.Errorf("%s: reading the answer: %w", asked(engine.Probe{HTTP: probe}), err)
	}
	defer response.Body.Close()
	if response.StatusCode < 200 || response.StatusCode > 399 {
		return fmt.Errorf("GET %s on port %d answered %s", request.URL.RequestURI(), probe.Port, oneLine([]byte(response.Status)))
	}
	_ = plain.SetReadDeadline(time.Now().Add(probeRest))
	_, _ = io.CopyN(io.Discard, response.Body, 4<<10) // so that a small answer is not cut off
	return nil
}

// readProbeResponse reads the head of the final response.
func readProbeResponse(conn net.Conn, request *http.Request) (*http.Response, error) {
	reader := bufio.NewReader(io.LimitReader(conn, probeAnswer))
	for {
		response, err := http.ReadResponse(reader, request)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, errors.New("it ended before an HTTP response was complete")
		}
		if err != nil || response.StatusCode < 100 || response.StatusCode > 199 || response.StatusCode == http.StatusSwitchingProtocols {
			return response, err
		}
	}
}

func probeRequest(probe *engine.HTTPProbe) (*http.Request, error) {
	request, err := http.NewRequest(http.MethodGet, "http://localhost/", nil)
	if err != nil {
		return nil, fmt.Errorf("making the probe's request: %w", err)
	}
	if request.URL, err = request.URL.Parse(probe.Path); err != nil {
		return nil, fmt.Errorf("parsing the probe's path %q: %w", probe.Path, err)
	}
	request.Close = true
	request.Host = fmt.Sprintf("localhost:%d", probe.Port)
	if probe.Host != "" {
		request.Host = probe.Host
	}
	request.Header.Set("User-Agent", probeUserAgent)
	request.Header.Set("Accept", "*/*")
	for _, header := range probe.Header {
		switch key := textproto.CanonicalMIMEHeaderKey(header[0]); key {
		case "Host":
			request.Host = header[1]
		case "User-Agent", "Accept":
			request.Header.Set(key, header[1])
		default:
			request.Header.Add(header[0], header[1])
		}
	}
	return request, nil
}

// hostOnly is a host without its port, for TLS; "localhost" when it is empty or an address, which TLS has no names for.
func hostOnly(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if host == "" || net.ParseIP(strings.Trim(host, "[]")) != nil {
		return "localhost"
	}
	return host
}

// oneLine is text of a stranger as it may stand in a message: one line, without what terminals act on.
func oneLine(text []byte) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		switch {
		case r == '\n', r == '\t', r == '\r':
			return ' '
		case r < ' ', r == 0x7f, r >= 0x80 && r < 0xa0:
			return -1
		}
		return r
	}, strings.ToValidUTF8(string(text), "\uFFFD")))
}
