package gateway

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/berth-run/berth/engine"
)

func TestGateway_Answers504WhenNoResponseBeginsInTime(t *testing.T) {
	for name, set := range map[string]func(*Revision){
		"timeout over HTTP/1.1":        func(r *Revision) { r.Timeout = 50 * time.Millisecond },
		"timeout over HTTP/2":          func(r *Revision) { r.Timeout, r.HTTP2 = 50*time.Millisecond, true },
		"silence over HTTP/1.1":        func(r *Revision) { r.Idle = 50 * time.Millisecond },
		"silence over HTTP/2":          func(r *Revision) { r.Idle, r.HTTP2 = 50*time.Millisecond, true },
		"response start over HTTP/2":   func(r *Revision) { r.ResponseStart, r.HTTP2 = 50*time.Millisecond, true },
		"response start over HTTP/1.1": func(r *Revision) { r.ResponseStart = 50 * time.Millisecond },
	} {
		t.Run(name, func(t *testing.T) {
			revision := testRevision()
			set(&revision)
			ended := make(chan struct{})
			a, address := through(t, revision, func(w http.ResponseWriter, r *http.Request) {
				<-r.Context().Done() // the instance's request ends with it
				close(ended)
			})
			response, body := fetch(t, newRequest(t, "GET", address, "/", ""))
			if response.StatusCode != http.StatusGatewayTimeout || body != textTimeout+"\n" {
				t.Errorf("got %d %q", response.StatusCode, body)
			}
			<-ended
			waitForLoad(t, a, 0, 0)
		})
	}
}

func TestGateway_CountsTheWaitForAnInstanceIntoTheTimeout(t *testing.T) {
	revision := testRevision()
	revision.Timeout = 50 * time.Millisecond
	a := NewActivator(revision)
	_, address := startGateway(t, Config{}, a)
	if response, body := fetch(t, newRequest(t, "GET", address, "/", "")); response.StatusCode != 504 || body != textTimeout+"\n" {
		t.Errorf("got %d %q", response.StatusCode, body)
	}
}

// lateInstance refuses so many connections before it takes one.
type lateInstance struct {
	*fakeInstance
	refusals atomic.Int64
}

func (i *lateInstance) Dial(ctx context.Context) (net.Conn, error) {
	if i.refusals.Add(-1) >= 0 {
		return nil, syscall.ECONNREFUSED
	}
	return i.fakeInstance.Dial(ctx)
}

func TestGateway_ResponseStartCountsFromTheInstanceThatTakesTheRequest(t *testing.T) {
	const refused = 8 * dialPause
	for _, test := range []struct {
		start, timeout time.Duration
		status         int
	}{
		{start: refused, timeout: 10 * time.Second, status: 200},
		{start: refused / 8, timeout: 10 * time.Second, status: 504},
		{start: 10 * time.Second, timeout: refused + refused/8, status: 504}, // all tries are within the timeout
	} {
		for name, client := range map[string]*http.Client{"HTTP/1.1": http.DefaultClient, "HTTP/2": http2Client(t)} {
			t.Run(fmt.Sprintf("%s within %s and %s", name, test.start, test.timeout), func(t *testing.T) {
				revision := testRevision()
				revision.ResponseStart, revision.Timeout = test.start, test.timeout
				a := NewActivator(revision)
				late := &lateInstance{fakeInstance: serveInstance(t, "late", func(w http.ResponseWriter, r *http.Request) {
					select {
					case <-time.After(refused / 2): // with the pauses before it, longer than start
					case <-r.Context().Done():
					}
				})}
				late.refusals.Store(8)
				a.Add(late)
				_, address := startGateway(t, Config{}, a)
				response, err := client.Do(newRequest(t, "GET", address, "/", ""))
				if err != nil {
					t.Fatal(err)
				}
				response.Body.Close()
				if response.StatusCode != test.status {
					t.Errorf("got %d, want %d", response.StatusCode, test.status)
				}
			})
		}
	}
}

func TestGateway_Answers429WhenTheQueueIsFull(t *testing.T) {
	revision := testRevision()
	revision.MaxQueue = 1
	a := NewActivator(revision)
	_, address := startGateway(t, Config{}, a)
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan struct{})
	go func() {
		defer close(left)
		if _, err := a.claim(ctx, time.Now()); !errors.Is(err, context.Canceled) {
			t.Errorf("the request that waits got %v", err)
		}
	}()
	waitForLoad(t, a, 0, 1)
	if response, body := fetch(t, newRequest(t, "GET", address, "/", "")); response.StatusCode != 429 || body != textNoInstance+"\n" {
		t.Errorf("got %d %q", response.StatusCode, body)
	}
	leave()
	<-left
}

func TestGateway_NeverCutsAResponseThatHasBegun(t *testing.T) {
	for name, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			revision := testRevision()
			revision.Timeout, revision.HTTP2 = 100*time.Millisecond, http2
			revision.ResponseStart = revision.Timeout
			_, address := through(t, revision, func(w http.ResponseWriter, r *http.Request) {
				for range 3 {
					io.WriteString(w, "part")
					http.NewResponseController(w).Flush()
					time.Sleep(revision.Timeout)
				}
			})
			response, err := http.DefaultClient.Do(newRequest(t, "GET", address, "/", ""))
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			if body, err := io.ReadAll(response.Body); err != nil || string(body) != "partpartpart" {
				t.Errorf("got %q, %v", body, err)
			}
		})
	}
}

func TestGateway_CutsAResponseThatIsSilentForLongerThanIdle(t *testing.T) {
	for name, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			revision := testRevision()
			revision.Idle, revision.HTTP2 = 50*time.Millisecond, http2
			a, address := through(t, revision, func(w http.ResponseWriter, r *http.Request) {
				io.WriteString(w, "part")
				http.NewResponseController(w).Flush()
				<-r.Context().Done()
			})
			response, err := http.DefaultClient.Do(newRequest(t, "GET", address, "/", ""))
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			if body, err := io.ReadAll(response.Body); err == nil || string(body) != "part" {
				t.Errorf("got %q, %v; want part and an error", body, err)
			}
			waitForLoad(t, a, 0, 0)
		})
	}
}

func TestGateway_RefusesWhatCouldBeReadInTwoWays(t *testing.T) {
	_, a, address := throughRaw(t, testRevision(), rawResponse("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"))
	for name, text := range map[string]string{
		"length and chunks":       "POST / HTTP/1.1\r\nHost: hello.test\r\nContent-Length: 4\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
		"two lengths":             "POST / HTTP/1.1\r\nHost: hello.test\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
		"signed length":           "POST / HTTP/1.1\r\nHost: hello.test\r\nContent-Length: +4\r\n\r\nabcd",
		"list of lengths":         "POST / HTTP/1.1\r\nHost: hello.test\r\nContent-Length: 4, 5\r\n\r\nabcde",
		"chunked twice":           "POST / HTTP/1.1\r\nHost: hello.test\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"chunked but not quite":   "POST / HTTP/1.1\r\nHost: hello.test\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
		"space before colon":      "POST / HTTP/1.1\r\nHost: hello.test\r\nContent-Length : 4\r\n\r\nabcd",
		"two hosts":               "GET / HTTP/1.1\r\nHost: hello.test\r\nHost: other.test\r\n\r\n",
		"no host":                 "GET / HTTP/1.1\r\n\r\n",
		"null in a value":         "GET / HTTP/1.1\r\nHost: hello.test\r\nA: b\x00c\r\n\r\n",
		"bad chunk size":          "POST / HTTP/1.1\r\nHost: hello.test\r\nTransfer-Encoding: chunked\r\n\r\n0x4\r\nabcd\r\n0\r\n\r\n",
		"TRACE":                   "TRACE / HTTP/1.1\r\nHost: hello.test\r\n\r\n",
		"CONNECT":                 "CONNECT hello.test:80 HTTP/1.1\r\nHost: hello.test\r\n\r\n",
		"space in the path":       "GET /a b HTTP/1.1\r\nHost: hello.test\r\n\r\n",
		"host with a space in it": "GET / HTTP/1.1\r\nHost: hello.test x\r\n\r\n",
	} {
		// A second request hides behind each: it must not be answered either.
		got := exchangeRaw(t, address, text+"GET /hidden HTTP/1.1\r\nHost: hello.test\r\nConnection: close\r\n\r\n")
		status := strings.SplitN(got+"   ", " ", 3)[1]
		if status != "400" && status != "405" && status != "501" && status != "404" {
			t.Errorf("%s: got %.200q", name, got)
		}
		if strings.Contains(name, "length") && strings.Count(got, "HTTP/1.1 ") != 1 {
			t.Errorf("%s: the hidden request was answered: %q", name, got)
		}
	}
	waitForLoad(t, a, 0, 0)
}

func TestGateway_TakesChunksRatherThanALengthAndSendsTheInstanceOnlyOne(t *testing.T) {
	got := make(chan *http.Request, 1)
	_, address := through(t, testRevision(), func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		got <- r
	})
	answer := exchangeRaw(t, address, "POST / HTTP/1.1\r\nHost: hello.test\r\nConnection: close\r\nContent-Length: 40\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n")
	if strings.HasPrefix(answer, "HTTP/1.1 400") {
		return // refusing it is as good
	}
	if r := <-got; r.ContentLength != -1 || r.Header.Get("Content-Length") != "" {
		t.Errorf("the instance got length %d, header %v", r.ContentLength, r.Header)
	}
}

func TestGateway_RefusesAnHTTP2PathThatWouldSplitARequestLine(t *testing.T) {
	for _, path := range []string{"/ HTTP/1.1", "/a b", "/a#b", "/a%zz", "*", "", "/a\tb"} {
		if got := refuse(&http.Request{Method: "GET", RequestURI: path}); got == nil || got.status != 400 {
			t.Errorf("%q: got %+v", path, got)
		}
	}
	if got := refuse(&http.Request{Method: "GET / HTTP/1.1\r\nX:", RequestURI: "/"}); got == nil || got.status != 400 {
		t.Errorf("method: got %+v", got)
	}
	if got := refuse(&http.Request{Method: "GET", RequestURI: "/", Header: http.Header{"X_forwarded_for": {"a"}}}); got == nil || got.status != 400 {
		t.Errorf("a name with underscores: got %+v", got)
	}
	if got := refuse(&http.Request{Method: "OPTIONS", RequestURI: "*", Header: http.Header{"X_a": {"a"}}}); got != nil {
		t.Errorf("OPTIONS: got %+v", got)
	}
}

func TestServe_LetsRequestsInFlightEnd(t *testing.T) {
	a := NewActivator(testRevision())
	started, finish := make(chan struct{}), make(chan struct{})
	a.Add(serveInstance(t, "a", func(w http.ResponseWriter, r *http.Request) {
		close(started)
		<-finish
		io.WriteString(w, "done")
	}))
	g := New(Config{})
	if err := g.SetHosts("default/hello", map[string]*Route{"hello.test": toActivator(a)}); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- g.Serve(ctx, listener) }()
	go func() {
		<-started
		cancel()
		for { // once it takes no more connections, let the request end
			c, err := net.Dial("tcp", listener.Addr().String())
			if err != nil {
				break
			}
			c.Close()
		}
		close(finish)
	}()
	if _, body := fetch(t, newRequest(t, "GET", listener.Addr().String(), "/", "")); body != "done" {
		t.Errorf("got %q", body)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestServe_CutsWhatDoesNotEndInTime(t *testing.T) {
	_, a, _ := throughRaw(t, testRevision(), func(c net.Conn) {
		reader := bufio.NewReader(c)
		r, err := http.ReadRequest(reader)
		if err != nil {
			return
		}
		if r.URL.Path == "/tunnel" {
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
		}
		io.Copy(io.Discard, reader)
	})
	g := New(Config{ShutdownTimeout: 20 * time.Millisecond})
	if err := g.SetHosts("default/hello", map[string]*Route{"hello.test": toActivator(a)}); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- g.Serve(ctx, listener) }()
	var answers sync.WaitGroup
	for _, text := range []string{
		"GET / HTTP/1.1\r\nHost: hello.test\r\n\r\n",
		"GET /tunnel HTTP/1.1\r\nHost: hello.test\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
	} {
		answers.Go(func() { exchangeRaw(t, listener.Addr().String(), text) })
	}
	waitForLoad(t, a, 2, 0)
	cancel()
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	answers.Wait()
	waitForLoad(t, a, 0, 0)
}

func TestGateway_CountsRequests(t *testing.T) {
	registry := prometheus.NewRegistry()
	a := NewActivator(testRevision())
	a.Add(serveInstance(t, "a", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/missing" {
			w.WriteHeader(404)
		}
	}))
	g, address := startGateway(t, Config{Registerer: registry}, a)
	for _, path := range []string{"/", "/", "/missing"} {
		fetch(t, newRequest(t, "GET", address, path, ""))
	}
	waitForLoad(t, a, 0, 0)
	want := map[string]float64{
		"berth_requests_total default hello-00001 hello 200":       2,
		"berth_requests_total default hello-00001 hello 404":       1,
		"berth_requests_in_flight default hello-00001 hello":       0,
		"berth_requests_waiting default hello-00001 hello":         0,
		"berth_request_duration_seconds default hello-00001 hello": 3,
	}
	// The last request is counted after its response: wait for it.
	var diff string
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if diff = cmp.Diff(want, gather(t, registry)); diff == "" {
			break
		}
	}
	if diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
	g.Forget(a)
	if left := gather(t, registry); len(left) != 0 {
		t.Errorf("left are %v", left)
	}
}

func TestGateway_CountsARevisionThatWasMadeAgainUnderItsNameWithTheOldOne(t *testing.T) {
	registry := prometheus.NewRegistry()
	old, again := NewActivator(testRevision()), NewActivator(testRevision())
	old.Add(idleInstance("old"))
	mustClaim(t, old) // it drains
	g, address := startGateway(t, Config{Registerer: registry}, old)
	old.Close(errors.New("the revision was deleted"))
	fetch(t, newRequest(t, "GET", address, "/", ""))
	if err := g.SetHosts("default/hello", map[string]*Route{"hello.test": toActivator(again)}); err != nil {
		t.Fatal(err)
	}
	again.Add(idleInstance("again"))
	mustClaim(t, again)
	values := gather(t, registry)
	if n := values["berth_requests_in_flight default hello-00001 hello"]; n != 2 {
		t.Errorf("%v requests in flight, want one of the old and one of the new: %v", n, values)
	}
	for range 2 {
		g.Forget(old)
		values = gather(t, registry)
		if values["berth_requests_in_flight default hello-00001 hello"] != 1 || values["berth_requests_total default hello-00001 hello 404"] != 1 {
			t.Errorf("after the old one was forgotten: %v", values)
		}
	}
	g.Forget(again)
	if left := gather(t, registry); len(left) != 0 {
		t.Errorf("left are %v", left)
	}
}

func TestGateway_CountsNoRequestThatEndsAfterItsRevisionWasForgotten(t *testing.T) {
	registry := prometheus.NewRegistry()
	a := NewActivator(testRevision())
	g, _ := startGateway(t, Config{Registerer: registry}, a)
	counts := a.metrics.Load()
	if values := gather(t, registry); values["berth_requests_in_flight default hello-00001 hello"] != 0 || len(values) != 2 {
		t.Errorf("before the first request there are %v", values)
	}
	counts.observe(http.StatusOK, time.Second)
	g.Forget(a)
	counts.observe(http.StatusOK, time.Second)
	counts.observe(http.StatusNotFound, time.Second)
	if left := gather(t, registry); len(left) != 0 {
		t.Errorf("left are %v", left)
	}
}

// gather reads every counter, gauge, and count of a histogram, by name and the values of its labels.
func gather(t *testing.T, registry *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := make(map[string]float64)
	for _, family := range families {
		if strings.HasPrefix(family.GetName(), "berth_client_") {
			continue // of the gateway as a whole
		}
		for _, metric := range family.GetMetric() {
			key := family.GetName()
			code := ""
			for _, label := range metric.GetLabel() {
				if label.GetName() == "code" {
					code = " " + label.GetValue()
					continue
				}
				key += " " + label.GetValue()
			}
			values[key+code] = metric.GetCounter().GetValue() + metric.GetGauge().GetValue() +
				float64(metric.GetHistogram().GetSampleCount())
		}
	}
	return values
}

// lockedBuffer is a writer that a test reads while others write.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestAccessLog_HasALineOfJSONForEachRequestWithoutTheQuery(t *testing.T) {
	var out lockedBuffer
	a := NewActivator(testRevision())
	a.Add(serveInstance(t, "hello-00001-a", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") }))
	t.Run("serve", func(t *testing.T) { // its end is the end of Serve, which writes the last line
		_, address := startGateway(t, Config{AccessLog: &out}, a)
		r := newRequest(t, "GET", address, "/a%22%0a\u00e9?key=secret", "")
		r.Header.Set("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
		fetch(t, r)
	})
	var line struct {
		Time                                          time.Time
		Method, Host, Path                            string
		Status, Bytes                                 int
		Duration                                      float64 `json:"duration_ms"`
		Wait                                          float64 `json:"wait_ms"`
		Namespace, Service, Revision, Instance, Trace string
	}
	if err := json.Unmarshal(out.b.Bytes(), &line); err != nil {
		t.Fatalf("%q: %v", out.b.String(), err)
	}
	if line.Method != "GET" || line.Host != "hello.test" || line.Path != "/a\"\n\u00e9" || line.Status != 200 || line.Bytes != 5 ||
		line.Revision != "hello-00001" || line.Instance != "hello-00001-a" || line.Trace != "0af7651916cd43dd8448eb211c80319c" ||
		line.Time.IsZero() || line.Duration <= 0 || line.Wait > line.Duration || strings.Contains(out.b.String(), "secret") {
		t.Errorf("got %s", out.b.String())
	}
}

func TestAccessLog_DropsLinesRatherThanHoldRequestsUp(t *testing.T) {
	l := newAccessLog(io.Discard) // nobody writes out
	revision := testRevision()
	line := &logLine{method: "GET", host: "h", path: "/", revision: &revision, trace: &traceContext{}}
	for range accessLogBuffer / 200 {
		l.write(line)
	}
	if l.dropped.Load() == 0 || len(l.pending) > accessLogBuffer {
		t.Errorf("%d lines dropped, %d bytes waiting", l.dropped.Load(), len(l.pending))
	}
}

func TestActivator_RetriesTheOnlyInstanceAfterAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := NewActivator(testRevision())
		a.Add(idleInstance("only"))
		m := mustClaim(t, a)
		began := time.Now()
		again, err := a.claimAgain(t.Context(), m, began)
		if err != nil || again != m || time.Since(began) != dialPause {
			t.Errorf("got %v, %v after %s; want the same instance after %s", again, err, time.Since(began), dialPause)
		}
		if load := a.Load(); load.InFlight != 1 || load.Requests != 1 {
			t.Errorf("load is %+v", load)
		}
	})
}

func TestGateway_GivesUpOnInstancesThatRefuseForever(t *testing.T) {
	a := NewActivator(testRevision())
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	a.Add(newFakeInstance("refusing", listener.Addr().String()))
	_, address := startGateway(t, Config{}, a)
	if response, body := fetch(t, newRequest(t, "GET", address, "/", "")); response.StatusCode != 503 || body != textBroken+"\n" {
		t.Errorf("got %d %q", response.StatusCode, body)
	}
	waitForLoad(t, a, 0, 0)
}

func TestGateway_WaitsUntilTheEndOfAnInstanceIsKnown(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	for name, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			revision := testRevision()
			revision.HTTP2 = http2
			a := NewActivator(revision)
			dying := newFakeInstance("dying", listener.Addr().String())
			a.Add(dying)
			_, address := startGateway(t, Config{}, a)
			done := make(chan struct{})
			go func() {
				defer close(done)
				if response, body := fetch(t, newRequest(t, "GET", address, "/", "")); response.StatusCode != 200 {
					t.Errorf("got %d %q", response.StatusCode, body)
				}
			}()
			const many = 15 // what a busy machine may take to see an instance's end, in pauses between dials
			for dying.dials.Load() < many {
				select {
				case <-done:
					t.Fatalf("it was answered after %d dials", dying.dials.Load())
				case <-time.After(time.Millisecond):
				}
			}
			dying.kill(engine.Exit{Signal: 9})
			a.Add(serveInstance(t, "next", func(http.ResponseWriter, *http.Request) {}))
			<-done
		})
	}
}

// TestGateway_UnderStress sends requests from many clients while instances come, drain and are killed.
func TestGateway_UnderStress(t *testing.T) {
	const clients, rounds, concurrency = 64, 60, 4
	revision := testRevision()
	revision.Concurrency, revision.Timeout = concurrency, time.Minute
	a := NewActivator(revision)
	_, address := startGateway(t, Config{Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(), AccessLog: io.Discard}, a)

	var killed sync.Map // instance ID → true
	start := func(n int) *fakeInstance {
		id := fmt.Sprint("i", n)
		var now atomic.Int64
		return serveInstance(t, id, func(w http.ResponseWriter, r *http.Request) {
			if now.Add(1) > concurrency {
				// A client that hung up frees its slot before the instance knows: only healthy requests count.
				if r.Context().Err() == nil && r.Header.Get("X-Patient") != "" {
					t.Errorf("more than %d requests on %s", concurrency, id)
				}
			}
			defer now.Add(-1)
			w.Header().Set("X-Instance", id)
			body, _ := io.ReadAll(r.Body)
			w.Write(body)
		})
	}

	transport := &http.Transport{MaxIdleConnsPerHost: clients}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	var failed, broken atomic.Int64
	var group sync.WaitGroup
	for c := range clients {
		group.Go(func() {
			for i := range rounds {
				body := strings.Repeat("x", rand.IntN(3)*c*100)
				r, err := http.NewRequest("POST", "http://"+address+"/", strings.NewReader(body))
				if err != nil {
					t.Error(err)
					return
				}
				r.Host = "hello.test"
				r.Header.Set("X-Patient", "1")
				response, err := client.Do(r)
				if err != nil {
					broken.Add(1) // cut within the response
					continue
				}
				got, err := io.ReadAll(response.Body)
				response.Body.Close()
				switch {
				case err != nil:
					broken.Add(1)
				case response.StatusCode == 503:
					failed.Add(1)
				case response.StatusCode != 200 || string(got) != body:
					t.Errorf("client %d, request %d: got %d, %d bytes, want %d bytes", c, i, response.StatusCode, len(got), len(body))
				}
			}
		})
	}
	stop := make(chan struct{})
	var churn sync.WaitGroup
	kills := 0
	churn.Go(func() {
		var ready []*fakeInstance
		for n := 0; ; n++ {
			one := start(n)
			a.Add(one)
			ready = append(ready, one)
			if len(ready) > 4 {
				i := rand.IntN(len(ready))
				gone := ready[i]
				ready = append(ready[:i], ready[i+1:]...)
				if n%5 == 0 {
					killed.Store(gone.id, true)
					gone.kill(engine.Exit{Signal: 9})
					kills++
				}
				<-a.Remove(gone)
			}
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	})
	group.Wait()
	close(stop)
	churn.Wait()
	waitForLoad(t, a, 0, 0)
	// A request that a client sent on a connection just being cut does not arrive; its client was told.
	if arrived := a.Load().Requests; arrived > clients*rounds || arrived+uint64(broken.Load()) < clients*rounds {
		t.Errorf("%d requests arrived and %d were cut, want %d", arrived, broken.Load(), clients*rounds)
	}
	if lost := failed.Load() + broken.Load(); lost > int64(kills*concurrency) {
		t.Errorf("%d requests failed; %d kills explain at most %d", lost, kills, kills*concurrency)
	}
	t.Logf("%d kills, %d answered 503, %d cut", kills, failed.Load(), broken.Load())
}

func TestGateway_InterimResponsesAfterTheTimeoutAreDropped(t *testing.T) {
	revision := testRevision()
	revision.Timeout, revision.HTTP2 = 20*time.Millisecond, true
	_, address := through(t, revision, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</style.css>; rel=preload") // once: of a stream that was reset net/http may still be reading it
		for r.Context().Err() == nil {
			w.WriteHeader(http.StatusEarlyHints)
		}
	})
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for range 5 {
				answer := exchangeRaw(t, address, "GET / HTTP/1.1\r\nHost: hello.test\r\nConnection: close\r\n\r\n")
				if _, last, _ := strings.Cut(answer, "HTTP/1.1 504"); !strings.HasSuffix(last, textTimeout+"\n") || strings.Contains(last, "Link") {
					t.Errorf("the final response is %.500q", last)
				}
			}
		})
	}
	clients.Wait()
}

func TestGateway_AClientThatDoesNotReadInterimResponsesHoldsNoOtherUp(t *testing.T) {
	revision := testRevision()
	revision.Timeout, revision.HTTP2 = time.Minute, true
	filler := strings.Repeat("x", 8<<10)
	flooding := make(chan struct{})
	a, address := through(t, revision, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/flood" {
			return
		}
		w.Header().Set("X-Filler", filler)
		for i := 0; r.Context().Err() == nil; i++ {
			if i == 1500 { // more than the buffers between here and the client hold
				close(flooding)
			}
			w.WriteHeader(http.StatusEarlyHints)
		}
	})
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "GET /flood HTTP/1.1\r\nHost: hello.test\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	select {
	case <-flooding:
	case <-time.After(20 * time.Second):
		t.Fatal("the connection to the instance stands still")
	}
	if response, _ := fetch(t, newRequest(t, "GET", address, "/", "")); response.StatusCode != http.StatusOK {
		t.Errorf("got %d", response.StatusCode)
	}
	c.Close()
	waitForLoad(t, a, 0, 0)
}
