package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-run/berth/engine"
)

// local is a container whose program is the test.
var local = probed{address: netip.MustParseAddr("127.0.0.1")}

func portOf(t testing.TB, l net.Listener) int {
	t.Helper()
	return l.Addr().(*net.TCPAddr).Port
}

func listenLocally(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// closedPort is a port on which nobody listens.
func closedPort(t testing.TB) int {
	t.Helper()
	l := listenLocally(t)
	defer l.Close()
	return portOf(t, l)
}

// rawServer answers each connection, after it has sent something, with the same bytes, and leaves it open.
func rawServer(t testing.TB, answer string) int {
	t.Helper()
	l := listenLocally(t)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.Close() })
			go func() {
				_, _ = conn.Read(make([]byte, 4096))
				_, _ = io.WriteString(conn, answer)
			}()
		}
	}()
	return portOf(t, l)
}

func wantProbe(t *testing.T, err error, parts ...string) {
	t.Helper()
	if len(parts) == 0 {
		if err != nil {
			t.Errorf("got %v, want the probe to pass", err)
		}
		return
	}
	if err == nil {
		t.Errorf("the probe passed, want an error with %q", parts)
		return
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not say %q", err, part)
		}
	}
}

func TestProbe_TCPPassesWhereSomebodyListens(t *testing.T) {
	l := listenLocally(t)
	wantProbe(t, local.try(t.Context(), engine.Probe{TCP: &engine.TCPProbe{Port: portOf(t, l)}}))
	port := closedPort(t)
	wantProbe(t, local.try(t.Context(), engine.Probe{TCP: &engine.TCPProbe{Port: port}}), fmt.Sprintf("connecting to port %d: connection refused", port))
}

func TestProbe_HTTPAsksAsKubernetesDoes(t *testing.T) {
	var got *http.Request
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r
		if r.URL.Path == "/moved" {
			http.Redirect(w, r, "http://192.0.2.1/never", http.StatusFound)
			return
		}
		if r.URL.Path != "/up" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	port := portOf(t, server.Listener)
	ask := func(probe engine.HTTPProbe) error {
		probe.Port = port
		return local.try(t.Context(), engine.Probe{HTTP: &probe})
	}
	wantProbe(t, ask(engine.HTTPProbe{Path: "/up?deep=1", Host: "hello.test", Header: [][2]string{{"X-One", "1"}, {"x-one", "2"}}}))
	want := http.Header{"User-Agent": {"kube-probe/berth"}, "Accept": {"*/*"}, "Connection": {"close"}, "X-One": {"1", "2"}}
	if diff := cmp.Diff(want, got.Header); diff != "" || got.Host != "hello.test" || got.RequestURI != "/up?deep=1" {
		t.Errorf("host %q, path %q, header (-want +got):\n%s", got.Host, got.RequestURI, diff)
	}
	wantProbe(t, ask(engine.HTTPProbe{Path: "up", Header: [][2]string{{"host", "other.test"}, {"user-agent", "mine"}}}))
	if got.Host != "other.test" || got.UserAgent() != "mine" {
		t.Errorf("host %q, user agent %q; want those of the probe", got.Host, got.UserAgent())
	}
	wantProbe(t, ask(engine.HTTPProbe{Path: "/moved"}))
	wantProbe(t, ask(engine.HTTPProbe{Path: "/down"}), fmt.Sprintf("GET /down on port %d answered 503", port))
	wantProbe(t, ask(engine.HTTPProbe{Path: "http://192.0.2.1/up"})) // asks the container, whatever the path says
	wantProbe(t, ask(engine.HTTPProbe{Path: "/up", Header: [][2]string{{"X-Two", "a\r\nX-Three: b"}}}))
	if got.Header["X-Three"] != nil {
		t.Errorf("a header's value became another header: %v", got.Header)
	}
}

func TestProbe_HTTPSDoesNotCheckTheCertificate(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 1 {
			w.WriteHeader(http.StatusHTTPVersionNotSupported)
		}
	}))
	defer server.Close()
	port := portOf(t, server.Listener)
	wantProbe(t, local.try(t.Context(), engine.Probe{HTTP: &engine.HTTPProbe{Port: port, TLS: true}}))
	wantProbe(t, local.try(t.Context(), engine.Probe{HTTP: &engine.HTTPProbe{Port: port}}), "answered 400")
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	wantProbe(t, local.try(t.Context(), engine.Probe{HTTP: &engine.HTTPProbe{Port: portOf(t, plain.Listener), TLS: true}}), "first record does not look like a TLS handshake")
}

func TestProbe_HTTPReadsNoMoreThanItNeeds(t *testing.T) {
	for answer, want := range map[string][]string{
		"HTTP/1.1 200 OK\r\n\r\n":       nil,
		"HTTP/1.0 399 Strange\r\n\r\n":  nil,
		"HTTP/1.1 400 Bad\r\n\r\n":      {"answered 400"},
		"HTTP/1.1 500 \x1b[31m\r\n\r\n": {"answered 500 [31m"},
		"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\n\r\n": nil,
		"220 mail.test ESMTP\r\n\r\n":                                           {"reading the answer", "malformed HTTP"},
		"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20):                   {"reading the answer"},
		strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 10000):                  {"GET / on port", "reading the answer"},
	} {
		port := rawServer(t, answer)
		wantProbe(t, local.try(t.Context(), engine.Probe{HTTP: &engine.HTTPProbe{Port: port}, Timeout: 10 * time.Second}), want...)
	}
}

func TestProbe_GivesUpAfterItsTimeout(t *testing.T) {
	port := rawServer(t, "")
	ended := false
	hanging := probed{address: local.address, run: func(ctx context.Context, _ engine.Command) (int, error) {
		<-ctx.Done()
		ended = true
		return 0, ctx.Err()
	}}
	for _, probe := range []engine.Probe{
		{HTTP: &engine.HTTPProbe{Port: port, Path: "/up"}},
		{HTTP: &engine.HTTPProbe{Port: port, Path: "/up", TLS: true}},
		{GRPC: &engine.GRPCProbe{Port: port}},
		{Exec: &engine.ExecProbe{Command: []string{"sleep"}}},
	} {
		probe.Timeout = 20 * time.Millisecond
		wantProbe(t, hanging.try(t.Context(), probe), asked(probe)+" did not answer within 20ms")
	}
	if !ended {
		t.Error("the command was not ended")
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if err := hanging.try(ctx, engine.Probe{Exec: &engine.ExecProbe{Command: []string{"sleep"}}, Timeout: time.Hour}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the end of the context", err)
	}
}

func TestProbe_ExecTellsTheExitCodeAndWhatWasWritten(t *testing.T) {
	code, out := 0, "fine"
	var ran []string
	var failed error
	c := probed{run: func(_ context.Context, command engine.Command) (int, error) {
		ran = command.Args
		_, _ = io.WriteString(command.Stdout, out)
		_, _ = io.WriteString(command.Stderr, "\tthen this\n")
		return code, failed
	}}
	probe := engine.Probe{Exec: &engine.ExecProbe{Command: []string{"check", "--all"}}}
	wantProbe(t, c.try(t.Context(), probe))
	if diff := cmp.Diff([]string{"check", "--all"}, ran); diff != "" {
		t.Errorf("ran (-want +got):\n%s", diff)
	}
	code = 3
	wantProbe(t, c.try(t.Context(), probe), `the command ["check" "--all"] ended with exit code 3: fine then this`)
	out = "é\x1b]0;title\x07" + strings.Repeat("x", 1<<20)
	err := c.try(t.Context(), probe)
	wantProbe(t, err, "exit code 3: é]0;titlexxx")
	if err != nil && len(err.Error()) > probeOutput+200 {
		t.Errorf("the error has %d bytes", len(err.Error()))
	}
	failed = errors.New("there is no program \"check\"")
	wantProbe(t, c.try(t.Context(), probe), `running the command ["check" "--all"]: there is no program`)
}

// grpcServer answers gRPC calls by hand, so that the probe is not tested against its own code.
func grpcServer(t *testing.T, handler http.HandlerFunc) int {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	t.Cleanup(server.Close) // waits for connections that were left behind
	return portOf(t, server.Listener)
}

func grpcMessage(message string) string {
	return "\x00" + string(binary.BigEndian.AppendUint32(nil, uint32(len(message)))) + message
}

func TestProbe_GRPCAsksTheHealthService(t *testing.T) {
	port := grpcServer(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.Method != "POST" || r.URL.Path != "/grpc.health.v1.Health/Check" || r.ProtoMajor != 2 ||
			r.Header.Get("Content-Type") != "application/grpc" || r.Header.Get("Te") != "trailers" {
			t.Errorf("got %s %s %s %v, %v", r.Proto, r.Method, r.URL.Path, r.Header, err)
		}
		h := w.Header()
		h.Set("Content-Type", "application/grpc")
		end := func(status, message, answer string) {
			_, _ = io.WriteString(w, answer)
			h.Set(http.TrailerPrefix+"Grpc-Status", status)
			h.Set(http.TrailerPrefix+"Grpc-Message", message)
		}
		switch string(body) {
		case grpcMessage(""), grpcMessage("\x0a\x00"):
			end("0", "", grpcMessage("\x08\x01"))
		case grpcMessage("\x0a\x04down"):
			end("0", "", grpcMessage("\x08\x02"))
		case grpcMessage("\x0a\x03new"): // with a field that is not known here, before the one that is
			end("0", "", grpcMessage("\x12\x02hi\x08\x01"))
		case grpcMessage("\x0a\x05empty"):
			end("0", "", grpcMessage(""))
		case grpcMessage("\x0a\x07missing"):
			h.Set("Grpc-Status", "5")
		case grpcMessage("\x0a\x05fails"):
			end("13", "it%20broke%0a", "")
		case grpcMessage("\x0a\x03two"):
			end("0", "", grpcMessage("\x08\x01")+grpcMessage("\x08\x01"))
		case grpcMessage("\x0a\x03bad"):
			end("0", "", grpcMessage("\x08"))
		case grpcMessage("\x0a\x04much"):
			end("0", "", strings.Repeat("x", 1<<20))
		case grpcMessage("\x0a\x03odd"):
			end("0", "", grpcMessage("\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"))
		default:
			t.Errorf("got message %q", body)
		}
	})
	for service, want := range map[string][]string{
		"":        nil,
		"new":     nil,
		"down":    {fmt.Sprintf("the gRPC health service on port %d answered NOT_SERVING", port)},
		"empty":   {"answered UNKNOWN"},
		"missing": {"does not know the service"},
		"fails":   {"gRPC status 13: it broke"},
		"two":     {"not one uncompressed gRPC message"},
		"bad":     {"decoding the answer"},
		"much":    {"without a gRPC status"},
		"odd":     {"which it does not define"},
	} {
		wantProbe(t, local.try(t.Context(), engine.Probe{GRPC: &engine.GRPCProbe{Port: port, Service: service}}), want...)
	}
}

func TestProbe_GRPCSaysWhatElseItMet(t *testing.T) {
	unknown := grpcServer(t, func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Grpc-Status", "12") })
	wantProbe(t, local.try(t.Context(), engine.Probe{GRPC: &engine.GRPCProbe{Port: unknown}}), "does not implement it (grpc.health.v1.Health)")
	web := grpcServer(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "hello") })
	wantProbe(t, local.try(t.Context(), engine.Probe{GRPC: &engine.GRPCProbe{Port: web}}), "without a gRPC status")
	missing := grpcServer(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNotFound) })
	wantProbe(t, local.try(t.Context(), engine.Probe{GRPC: &engine.GRPCProbe{Port: missing}}), "HTTP status 404")
	old := httptest.NewServer(http.NotFoundHandler())
	defer old.Close()
	wantProbe(t, local.try(t.Context(), engine.Probe{GRPC: &engine.GRPCProbe{Port: portOf(t, old.Listener)}}), "the gRPC health service on port")
	closed := closedPort(t)
	wantProbe(t, local.try(t.Context(), engine.Probe{GRPC: &engine.GRPCProbe{Port: closed}}), fmt.Sprintf("connecting to port %d: connection refused", closed))
}

func TestProbe_PortThatOpensIsAskedAtOnce(t *testing.T) {
	l := listenLocally(t)
	port := portOf(t, l)
	l.Close()
	var asked atomic.Int64
	server := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) })}
	defer server.Close()
	served := make(chan error, 1)
	time.AfterFunc(20*time.Millisecond, func() {
		again, err := net.Listen("tcp", l.Addr().String())
		if err != nil {
			served <- err
			return
		}
		served <- nil
		_ = server.Serve(again)
	})
	// With a period of an hour, this ends only because the port is watched. The refusal counts for nothing: one failure
	// is all that is allowed.
	probe := engine.Probe{HTTP: &engine.HTTPProbe{Port: port}, Period: time.Hour, FailureThreshold: 1, Timeout: 10 * time.Second}
	wantProbe(t, local.awaitPassed(t.Context(), probe, time.Now()))
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("asked %d times, want once", n)
	}
}

func TestProbe_FailsAfterAsManyTriesAsItMay(t *testing.T) {
	tries := 0
	c := probed{run: func(context.Context, engine.Command) (int, error) {
		tries++
		if tries == 2 {
			return 0, nil
		}
		return 1, nil
	}}
	probe := engine.Probe{Exec: &engine.ExecProbe{Command: []string{"x"}}, Period: time.Millisecond, FailureThreshold: 3, SuccessThreshold: 2}
	wantProbe(t, c.awaitPassed(t.Context(), probe, time.Now()), "exit code 1")
	if tries != 5 { // a failure, a success that is not enough, then three failures in a row
		t.Errorf("%d tries, want 5", tries)
	}
	refused := engine.Probe{TCP: &engine.TCPProbe{Port: closedPort(t)}, Period: time.Millisecond, FailureThreshold: 3}
	wantProbe(t, local.awaitPassed(t.Context(), refused, time.Now()), "connection refused")
}

func TestStartChecks(t *testing.T) {
	tcp := func(port int) *engine.Probe { return &engine.Probe{TCP: &engine.TCPProbe{Port: port}} }
	exec := &engine.Probe{Exec: &engine.ExecProbe{Command: []string{"x"}}}
	for _, test := range []struct {
		name      string
		container engine.Container
		sidecar   bool
		want      []string
	}{
		{"the port by default", engine.Container{}, false, []string{"port 8080"}},
		{"nothing of a sidecar", engine.Container{}, true, nil},
		{"startup", engine.Container{StartupProbe: tcp(8080)}, false, []string{"port 8080"}},
		{"startup on another port, then the one of requests", engine.Container{StartupProbe: tcp(9090)}, false, []string{"port 9090", "port 8080"}},
		{"startup by command, then the port", engine.Container{StartupProbe: exec}, false, []string{`the command ["x"]`, "port 8080"}},
		{"readiness", engine.Container{ReadinessProbe: tcp(9090)}, false, []string{"port 9090"}},
		{"readiness by command, after the port", engine.Container{ReadinessProbe: exec}, false, []string{"port 8080", `the command ["x"]`}},
		{"startup, then readiness", engine.Container{StartupProbe: tcp(8080), ReadinessProbe: exec}, false, []string{"port 8080", `the command ["x"]`}},
		{"a sidecar's own", engine.Container{StartupProbe: tcp(9090), ReadinessProbe: exec}, true, []string{"port 9090", `the command ["x"]`}},
	} {
		test.container.Port = 8080
		var got []string
		for _, check := range startChecks(&test.container, !test.sidecar) {
			got = append(got, asked(check))
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
	readiness := engine.Container{ReadinessProbe: &engine.Probe{TCP: &engine.TCPProbe{Port: 1}, FailureThreshold: 3}}
	if got := startChecks(&readiness, true); got[0].FailureThreshold != 0 || readiness.ReadinessProbe.FailureThreshold != 3 {
		t.Error("a readiness probe limits the start, or was changed")
	}
}
