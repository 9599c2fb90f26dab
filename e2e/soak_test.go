package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// soakTime is the variable that makes the soak last another time than the short one: "30m".
const soakTime = "BERTH_SOAK"

// The services of a soak, and what happens to each.
const (
	rolling = "rolling" // new revisions, splits, tags, mapped hosts; every protocol, HTTP/1.1 to its instances
	calls   = "calls"   // the same with HTTP/2 to its instances
	waves   = "waves"   // 1 → 8 → 1 → 0 → 4 instances
	moody   = "moody"   // its instances become unready
)

// rhythm is how fast things happen in a soak.
type rhythm struct {
	lasts   time.Duration
	rolls   time.Duration // between two new revisions of a service
	kills   time.Duration
	flips   time.Duration
	hosts   int           // mapped in all
	longest int           // tenths of a second that streams and WebSockets last
	pause   time.Duration // before each request of a client
	waves   bool          // 1 → 8 → 1 → 0 → 4 instances, once at least
}

// soak is a platform under load to which everything happens.
type soak struct {
	*process
	ledger  *ledger
	image   string
	trusted *x509.CertPool    // by which clients know the gateway
	hosts   map[string]*hosts // by service
	version atomic.Int64

	rollouts, kills, flips, wavesDone, mapped atomic.Int64
}

// TestSoak_DropsNoRequest: the only requests that fail are those in flight on an instance that is killed, whatever else
// happens, and nothing is left of it all.
func TestSoak_DropsNoRequest(t *testing.T) {
	t.Parallel()
	long := rhythm{rolls: 5 * time.Second, kills: 2 * time.Second, flips: 5 * time.Second, hosts: 1000, longest: 100, pause: 20 * time.Millisecond, waves: true}
	short := rhythm{lasts: 6 * time.Second, rolls: 2 * time.Second, kills: time.Second, flips: 3 * time.Second, hosts: 60, longest: 20, pause: 50 * time.Millisecond, waves: true}
	now := short
	text := os.Getenv(soakTime)
	measured := text != "" // the short one may be under the race detector, whose memory tells nothing
	if measured {
		var err error
		if long.lasts, err = time.ParseDuration(text); err != nil {
			t.Fatalf("%s: %v", soakTime, err)
		}
		now = long
	}
	dir := stateDir(t)
	image := program(t, "witness")
	certificate, key := certify(t, t.TempDir(), "services", "*.default.localhost")
	s := &soak{ledger: newLedger(), image: image, trusted: x509.NewCertPool()}
	authority, err := os.ReadFile(certificate)
	if err != nil || !s.trusted.AppendCertsFromPEM(authority) {
		t.Fatalf("reading the certificate just made: %v", err)
	}
	s.process = spawn(t, dir, serverLogs+"=yes", serverTLS+"="+certificate+":"+key)
	go s.ledger.read(s.output)

	// What a server keeps for the next use is made the first time.
	warm := short
	warm.lasts, warm.waves = min(warm.lasts, now.lasts/3), measured
	s.round(warm)
	before := s.settle(nil, measured)
	s.round(now)
	after := s.settle(before, measured)
	s.ledger.judge(t)
	t.Logf("%v of load:\n%s%d revisions, %d waves 1 → 8 → 1 → 0 → 4, %d kills, %d times unready, %d hosts mapped\nbefore: %v\nafter:  %v",
		warm.lasts+now.lasts, s.ledger, s.rollouts.Load(), s.wavesDone.Load(), s.kills.Load(), s.flips.Load(), s.mapped.Load(), before, after)
	for what, n := range map[string]int64{"rollouts": s.rollouts.Load(), "kills": s.kills.Load(), "flips": s.flips.Load()} {
		if n == 0 && measured {
			t.Errorf("there were no %s", what)
		}
	}
	if err := after.check(before, measured); err != nil {
		t.Error(err)
	}
	s.stopped()
}

// round deploys the services, has everything happen under load, and deletes them.
func (s *soak) round(r rhythm) {
	s.t.Helper()
	s.hosts = map[string]*hosts{}
	for _, name := range []string{rolling, calls, waves, moody} {
		url := s.deploy(s.next(name)).Status.URL.Host
		s.hosts[name] = &hosts{own: []string{url}}
	}
	for _, name := range []string{rolling, calls} {
		s.hosts[name].own = append(s.hosts[name].own, "stable-"+s.hosts[name].own[0])
		if err := s.roll(s.t.Context(), name); err != nil { // the first with tags
			s.t.Fatal(err)
		}
	}

	asking, enough := context.WithCancel(s.t.Context())
	var askers sync.WaitGroup
	for _, a := range s.askers(r) {
		askers.Go(func() { a.run(asking) })
	}
	lasting, over := context.WithTimeout(s.t.Context(), r.lasts)
	defer over()
	group, ctx := errgroup.WithContext(lasting)
	group.Go(func() error {
		return s.every(ctx, r.rolls, func(ctx context.Context) error { return s.roll(ctx, rolling) })
	})
	group.Go(func() error {
		return s.every(ctx, r.rolls, func(ctx context.Context) error { return s.roll(ctx, calls) })
	})
	group.Go(func() error { return s.every(ctx, r.kills, s.killOne) })
	group.Go(func() error { return s.every(ctx, r.flips, s.flip) })
	if r.waves {
		group.Go(func() error { return s.wave(ctx) })
	}
	group.Go(func() error { return s.mapHosts(r) })
	err := group.Wait()
	enough()
	askers.Wait()
	if err != nil {
		s.ledger.judge(s.t)
		s.t.Fatalf("%v, after these requests:\n%v", err, s.ledger)
	}
	for _, name := range []string{rolling, calls, waves} {
		s.awaitZero(name)
	}
	s.t.Logf("%d requests so far; deleting the services", s.ledger.requests())
	s.deleteAll()
}

// askers are the clients of a round.
func (s *soak) askers(r rhythm) []*asker {
	var all []*asker
	add := func(n int, kind, service string, pause time.Duration, a asker) {
		for range n {
			one := a
			one.kind, one.hosts, one.pause, one.gateway, one.ledger = kind, s.hosts[service], pause, s.addresses.Gateway, s.ledger
			if one.secure {
				one.gateway, one.hosts = s.addresses.GatewayTLS, &hosts{own: one.hosts.own[:1]} // the certificate's
			}
			if one.transport == nil {
				one.transport = keepsAlive()
			}
			all = append(all, &one)
		}
	}
	pause := r.pause
	add(4, "HTTP/1.1 GET", rolling, pause, asker{ask: get})
	add(2, "HTTP/1.1 POST", rolling, pause, asker{ask: post})
	add(2, "HTTP/1.1 POST, chunked", rolling, pause, asker{ask: postChunked})
	add(2, "HTTP/1.1 GET, new connections", rolling, pause, asker{ask: get, transport: newEachTime()})
	add(4, "HTTP/1.1 work", rolling, pause, asker{ask: work(50, 500)})
	add(4, "server-sent events", rolling, pause, asker{ask: follow(r.longest)})
	add(4, "WebSocket", rolling, pause, asker{ask: talk(r.longest)})
	add(3, "HTTP/2 GET", rolling, pause, asker{ask: get, transport: speaksHTTP2()})
	add(2, "HTTP/2 POST", rolling, pause, asker{ask: post, transport: speaksHTTP2()})
	add(3, "gRPC", calls, pause, asker{ask: callGRPC, transport: speaksHTTP2()})
	add(2, "HTTP/2 to HTTP/2 work", calls, pause, asker{ask: work(50, 500), transport: speaksHTTP2()})
	add(2, "HTTP/1.1 to HTTP/2 GET", calls, pause, asker{ask: get})
	add(2, "server-sent events, HTTP/2 to HTTP/2", calls, pause, asker{ask: follow(r.longest), transport: speaksHTTP2()})
	add(1, "HTTP/1.1 to HTTP/2 POST, chunked", calls, pause, asker{ask: postChunked})
	add(3, "GET beside unready instances", moody, pause, asker{ask: get})
	for _, transport := range []*http.Transport{keepsAlive(), newEachTime(), {ForceAttemptHTTP2: true}} {
		kind := map[bool]string{true: "HTTPS, HTTP/2 GET", false: "HTTPS GET"}[transport.ForceAttemptHTTP2]
		if transport.DisableKeepAlives {
			kind += ", new connections"
		}
		host, _, _ := strings.Cut(s.hosts[rolling].own[0], ":")
		transport.TLSClientConfig = &tls.Config{RootCAs: s.trusted, ServerName: host}
		add(2, kind, rolling, pause, asker{ask: get, transport: transport, secure: true})
	}
	return all
}

// every does something again and again until ctx ends. What has begun then is still done.
func (s *soak) every(ctx context.Context, pause time.Duration, do func(context.Context) error) error {
	for {
		pace(ctx, pause)
		if ctx.Err() != nil {
			return nil
		}
		if err := do(s.t.Context()); err != nil {
			return err
		}
	}
}

// until waits until check returns nil.
func (s *soak) until(ctx context.Context, what string, check func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := check()
		if err == nil {

			return nil
		}
		pace(ctx, 20*time.Millisecond)
		if ctx.Err() != nil {
			return fmt.Errorf("waited too long for %s: %w", what, err)
		}
	}
}
