package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/websocket"

	"github.com/berth-run/berth/serving"
)

// user is one person who asks a service again and again.
type user struct {
	name      string
	transport *http.Transport
	body      string // sent with POST; "" is GET
}

// users are people with every kind of connection.
func users() []user {
	var all []user
	for n := range 20 {
		u := user{name: fmt.Sprintf("keep-alive %d", n), transport: &http.Transport{}}
		switch n % 5 {
		case 1:
			u.name, u.body = fmt.Sprintf("post %d", n), strings.Repeat("body ", 20_000) // more than a socket's buffer takes at once
		case 2:
			u.name, u.transport = fmt.Sprintf("new connections %d", n), &http.Transport{DisableKeepAlives: true}
		case 3:
			u.name, u.transport = fmt.Sprintf("h2c %d", n), &http.Transport{Protocols: new(http.Protocols)}
			u.transport.Protocols.SetUnencryptedHTTP2(true)
			if n > 10 {
				u.body = fmt.Sprint("small body ", n)
			}
		}
		all = append(all, u)
	}
	return all
}

// echoed is what the test program echo answers.
type echoed struct{ Method, Body, Revision, Protocol string }

// ask sends one request and returns who answered.
func (u user) ask(ctx context.Context, p *platform, rawURL string) (string, error) {
	method, body := http.MethodGet, io.Reader(nil)
	if u.body != "" {
		method, body = http.MethodPost, strings.NewReader(u.body)
	}
	request, err := p.request(ctx, method, rawURL, body)
	if err != nil {
		return "", err
	}
	reply, err := u.transport.RoundTrip(request)
	if err != nil {
		return "", err
	}
	defer reply.Body.Close()
	text, err := io.ReadAll(reply.Body)
	if err != nil {
		return "", fmt.Errorf("reading the answer: %w", err)
	}
	var e echoed
	if err := json.Unmarshal(text, &e); reply.StatusCode != 200 || err != nil || e.Body != u.body || e.Method != method {
		return "", fmt.Errorf("answer %d %.300q", reply.StatusCode, text)
	}
	return e.Revision, nil
}

// load is users who keep asking until stop is called.
type load struct {
	stop func()

	mu     sync.Mutex
	served map[string]int // requests by revision
	took   []time.Duration
	errs   []error
}

// pause is between a user's requests: the test is about correctness, and leaves the machine's CPUs to instances.
const pause = 15 * time.Millisecond

// startLoad has users ask a service.
func (p *platform) startLoad(rawURL string) *load {
	l := &load{served: map[string]int{}}
	ctx, cancel := context.WithCancel(p.t.Context())
	var group sync.WaitGroup
	for _, u := range users() {
		group.Go(func() {
			defer u.transport.CloseIdleConnections()
			tick := time.NewTicker(pause)
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				began := time.Now()
				revision, err := u.ask(p.t.Context(), p, rawURL)
				l.mu.Lock()
				l.served[revision]++
				l.took = append(l.took, time.Since(began))
				if err != nil {
					l.errs = append(l.errs, fmt.Errorf("%s: %w", u.name, err))
				}
				l.mu.Unlock()
			}
		})
	}
	l.stop = sync.OnceFunc(func() { cancel(); group.Wait() })
	p.t.Cleanup(l.stop)
	return l
}

// slowest forgets how long requests have taken, and returns what 99 in 100 of them have not exceeded.
func (l *load) slowest() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	took := l.took
	l.took = nil
	slices.Sort(took)
	if len(took) == 0 {
		return 0
	}
	return took[len(took)*99/100]
}

// by tells how many requests a revision has answered.
func (l *load) by(revision string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.served[revision]
}

// awaitServed waits until a revision has answered that many more requests.
func (p *platform) awaitServed(l *load, revision string, more int) {
	p.t.Helper()
	before := l.by(revision)
	p.await("requests to arrive at "+revision, func() error {
		n := l.by(revision) - before
		return errorUnless(n >= more, "%d requests", n)
	})
}

// unharmed stops the load and sees to it that no request failed.
func (p *platform) unharmed(l *load) {
	p.t.Helper()
	l.stop()
	total := 0
	for _, n := range l.served {
		total += n
	}
	for n, err := range l.errs {
		if n == 5 {
			p.t.Errorf("… %d more", len(l.errs)-n)
			break
		}
		p.t.Error(err)
	}
	p.t.Logf("%d requests, %d failed: %v", total, len(l.errs), l.served)
	if total == 0 {
		p.t.Error("no request was sent")
	}
}

func TestRollout_UnderLoadFailsNoRequest(t *testing.T) {
	t.Parallel()
	rolloutUnderLoad(t, "http1", "HTTP/1.1")
}

func TestRollout_UnderLoadFailsNoRequestOverHTTP2(t *testing.T) {
	t.Parallel()
	rolloutUnderLoad(t, "h2c", "HTTP/2.0")
}

// rolloutUnderLoad rolls revisions out and traffic back and forth, while users ask. Instances are spoken to in the
// protocol of the port's name.
func rolloutUnderLoad(t *testing.T, port, protocol string) {
	p := start(t, nil)
	image := program(t, "echo")
	version := 0
	declare := func(env ...string) *serving.Service {
		version++
		s := service("echo", image, append(env, fmt.Sprint("VERSION=", version))...)
		ten := int64(10)
		s.Spec.Template.Spec.ContainerConcurrency = &ten
		s.Spec.Template.Spec.Containers[0].Ports = []serving.ContainerPort{{Name: port, ContainerPort: 8080}}
		return s
	}
	s := p.deploy(declare())
	first, url := s.Status.LatestReadyRevisionName, s.Status.URL.String()
	if a := p.get(url); !strings.Contains(a.body, protocol) {
		t.Fatalf("the instance got %q, want %s", a.body, protocol)
	}
	l := p.startLoad(url)
	p.awaitServed(l, first, 50)
	last := first
	for range 4 {
		before := last
		last = p.deploy(declare()).Status.LatestReadyRevisionName
		if last == before {
			t.Fatalf("version %d made no revision", version)
		}
		p.awaitServed(l, last, 50)
	}
	// A revision that cannot start gets no traffic.
	broken := declare()
	broken.Spec.Template.Spec.Containers[0].Command = []string{"/no-such-program"}
	if why := p.failed(p.apply(broken)); !strings.Contains(why, "/no-such-program") {
		t.Errorf("the broken revision failed with %q", why)
	}
	p.awaitServed(l, last, 50)
	// Split between the first, long at zero, and the last; then move everything to the first, and back.
	p.mustBerth("services", "update-traffic", "echo", "--to-revisions", first+"=50,"+last+"=50")
	p.awaitServed(l, first, 100)
	p.awaitServed(l, last, 100)
	p.mustBerth("services", "update-traffic", "echo", "--to-revisions", first+"=100")
	p.awaitStopped(last)
	p.mustBerth("services", "update-traffic", "echo", "--to-revisions", last+"=100")
	p.awaitServed(l, last, 100)
	p.unharmed(l)
}

// awaitStopped waits until no instance of a revision runs.
func (p *platform) awaitStopped(revision string) {
	p.t.Helper()
	p.await("the instances of "+revision+" to stop", func() error {
		instances, err := p.Instances(p.t.Context(), "")
		if err != nil {
			return err
		}
		for _, i := range instances {
			if i.Revision == revision && i.State != "prepared" {
				return fmt.Errorf("%s is %s", i.ID, i.State)
			}
		}
		return nil
	})
}

func TestService_MadeAgainWhileItsFormerInstanceWorks(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	image := program(t, "echo")
	url := p.deploy(service("echo", image, "LIFE=1")).Status.URL.String()
	for life := range 3 {
		long := p.begin(url + "/slow?ms=4000")
		if first := long.line(); first != "first" {
			t.Fatalf("the long request began with %q", first)
		}
		before := p.get(url)
		p.mustBerth("services", "delete", "echo", "--quiet")
		// Its first revision has the name that the former one's had.
		p.deploy(service("echo", image, fmt.Sprint("LIFE=", life+2)))
		if a := p.get(url); a.status != 200 || instanceOf(t, a) == instanceOf(t, before) {
			t.Errorf("made again, it answers %d %q, before %q", a.status, a.body, before.body)
		}
		if rest := long.rest(); rest != "second\n" {
			t.Errorf("the request in flight ended with %q", rest)
		}
	}
}

// instanceOf reads which instance answered from an answer of echo.
func instanceOf(t *testing.T, a answer) string {
	t.Helper()
	var e struct{ Instance string }
	if err := json.Unmarshal([]byte(a.body), &e); err != nil || e.Instance == "" {
		t.Errorf("answer %q: %v", a.body, err)
	}
	return e.Instance
}

func TestScaleIn_WaitsForRequestsInFlight(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	image := program(t, "echo")
	version := 0
	next := func() *serving.Service {
		version++
		s := service("echo", image, fmt.Sprint("VERSION=", version))
		one := int64(1)
		s.Spec.Template.Spec.ContainerConcurrency = &one
		return p.deploy(s)
	}
	s := next()
	url := s.Status.URL.String()

	// Ten seconds are much longer than the stable window, the grace to zero and the grace after SIGTERM together;
	// the program ends at once on SIGTERM.
	long := p.begin(url + "/slow?ms=10000")
	if first := long.line(); first != "first" {
		t.Fatalf("the long request began with %q", first)
	}
	// Others make the revision scale out, and its end makes it scale in around the long one.
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			if a, err := p.tryGet(url + "/slow?ms=500"); err != nil || a.body != "first\nsecond\n" {
				t.Errorf("answer %v, %v", a, err)
			}
		})
	}
	group.Wait()
	p.await("the service to scale in", func() error {
		n := p.running("echo")
		return errorUnless(n <= 2, "%d instances run", n)
	})
	// The revision is replaced meanwhile, and loses all traffic.
	next()
	if a := p.get(url); a.status != 200 {
		t.Errorf("the next revision answers %d %q", a.status, a.body)
	}
	if rest := long.rest(); rest != "second\n" {
		t.Errorf("the request in flight ended with %q", rest)
	}

	// The same when the service is deleted while it works.
	long = p.begin(url + "/slow?ms=5000")
	if first := long.line(); first != "first" {
		t.Fatalf("the second long request began with %q", first)
	}
	if err := p.Services("default").Delete(t.Context(), "echo", serving.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	p.await("the deleted service to be unknown", func() error {
		a := p.get(url)
		return errorUnless(a.status == 404, "answer %d %q", a.status, a.body)
	})
	if rest := long.rest(); rest != "second\n" {
		t.Errorf("the request in flight of the deleted service ended with %q", rest)
	}
	p.awaitZero("echo")
}

// reading is an answer that is still coming.
type reading struct {
	p      *platform
	reader *bufio.Reader
}

// begin sends a request and returns when its answer has begun.
func (p *platform) begin(rawURL string) *reading {
	p.t.Helper()
	request, err := p.request(p.t.Context(), http.MethodGet, rawURL, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	reply, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(request)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { reply.Body.Close() })
	if reply.StatusCode != 200 {
		p.t.Fatalf("GET %s: %d", rawURL, reply.StatusCode)
	}
	return &reading{p, bufio.NewReader(reply.Body)}
}

// line reads the next line, without its end.
func (r *reading) line() string {
	r.p.t.Helper()
	line, err := r.reader.ReadString('\n')
	if err != nil {
		r.p.t.Errorf("reading a line of the answer: %v", err)
	}
	return strings.TrimSuffix(line, "\n")
}

// rest reads the answer to its end.
func (r *reading) rest() string {
	r.p.t.Helper()
	text, err := io.ReadAll(r.reader)
	if err != nil {
		r.p.t.Errorf("reading the answer: %v", err)
	}
	return string(text)
}

func TestRollout_CutsNoWebSocketAndNoStream(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	image := program(t, "echo")
	s := p.deploy(service("echo", image, "VERSION=1"))
	first := s.Status.LatestReadyRevisionName
	socket := p.dialWebSocket(s.Status.URL.URL())
	say := func(text string) {
		t.Helper()
		var heard string
		if err := websocket.Message.Send(socket, text); err != nil {
			t.Fatalf("sending %q: %v", text, err)
		}
		if err := websocket.Message.Receive(socket, &heard); err != nil || heard != text {
			t.Fatalf("sent %q, heard %q: %v", text, heard, err)
		}
	}
	say("before the rollout")
	const events = 80
	stream := p.begin(s.Status.URL.String() + fmt.Sprintf("/sse?n=%d&every=100ms", events))
	if got := stream.line(); got != "data: 0" {
		t.Fatalf("the stream began with %q", got)
	}

	second := p.deploy(service("echo", image, "VERSION=2")).Status.LatestReadyRevisionName
	if second == first {
		t.Fatal("there is no second revision")
	}
	for n := 1; n < events; n++ {
		if blank, got := stream.line(), stream.line(); blank != "" || got != fmt.Sprint("data: ", n) {
			t.Fatalf("event %d is %q %q", n, blank, got)
		}
		say(fmt.Sprint("message ", n))
	}
	if rest := stream.rest(); rest != "\n" {
		t.Errorf("the stream ended with %q", rest)
	}
	say("after the stream")
	if err := socket.Close(); err != nil {
		t.Error(err)
	}
	p.awaitStopped(first) // nobody is connected to it any more
}

// dialWebSocket opens a WebSocket to /websocket of a service. The end of the test closes it.
func (p *platform) dialWebSocket(service *url.URL) *websocket.Conn {
	p.t.Helper()
	config, err := websocket.NewConfig("ws://"+service.Host+"/websocket", service.String())
	if err != nil {
		p.t.Fatal(err)
	}
	conn, err := net.Dial("tcp", p.addresses.Gateway)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { conn.Close() })
	socket, err := websocket.NewClient(config, conn)
	if err != nil {
		p.t.Fatal(err)
	}
	return socket
}
