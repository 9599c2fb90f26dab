package certificate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
)

// LetsEncrypt is the directory of the authority that is asked unless another is named.
const LetsEncrypt = certmagic.LetsEncryptProductionCA

// ACME is a certificate authority, and how it finds the gateway.
type ACME struct {
	Directory string         // URL; "" is LetsEncrypt
	Email     string         // where the authority writes to about certificates; may be empty
	Roots     *x509.CertPool // of the authority's own certificate; nil for the system's
	Dir       string         // where the account, certificates and keys are kept

	// HTTPAddress and TLSAddress are what the gateway listens on. The authority must reach the first one at port 80 of
	// a host, or the second one at port 443.
	HTTPAddress, TLSAddress string
	// RenewCheck is how often it is looked which certificates are to be renewed, which is in the last third of their
	// life, or when the authority says so. Default 10 min.
	RenewCheck time.Duration
}

// protocolChallenge is what an authority offers in a handshake by which it checks a host (TLS-ALPN-01, RFC 8737).
const protocolChallenge = "acme-tls/1"

// enterWait is how long an order waits to hear whether there is a certificate of the host already.
const enterWait = 2 * time.Second

// authority orders certificates, keeps and renews them. CertMagic does the work, and takes its time between tries: from
// a minute to six hours.
type authority struct {
	logger   *slog.Logger
	magic    *certmagic.Config
	cache    *certmagic.Cache
	storage  *storage
	public   bool              // the authority is one that gives certificates for public names only
	changed  func(host string) // called without mu
	maintain context.Context   // ends with close
	stop     context.CancelFunc

	mu     sync.Mutex
	orders map[string]*order
}

// order is a host that is to have a certificate.
type order struct {
	cancel  context.CancelFunc
	entered chan struct{} // closed when it is known whether there is a certificate already
	status  Status
}

func openAuthority(config ACME, logger *slog.Logger, changed func(host string)) (*authority, error) {
	if err := os.MkdirAll(config.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the directory of certificates: %w", err)
	}
	if config.Directory == "" {
		config.Directory = LetsEncrypt
	}
	a := &authority{
		logger: logger, changed: changed, orders: map[string]*order{},
		public: config.Roots == nil, storage: &storage{FileStorage: &certmagic.FileStorage{Path: config.Dir}},
	}
	a.maintain, a.stop = context.WithCancel(context.Background())
	quiet := zap.New(&logCore{logger: logger.With("authority", config.Directory)})
	var magic atomic.Pointer[certmagic.Config] // the cache's goroutine runs before there is one
	a.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert:   func(certmagic.Certificate) (*certmagic.Config, error) { return magic.Load(), nil },
		RenewCheckInterval: config.RenewCheck,
		Logger:             quiet,
	})
	a.magic = certmagic.New(a.cache, certmagic.Config{
		Storage: a.storage,
		// Browsers do not ask for OCSP, and the larger authorities have ended it.
		OCSP:    certmagic.OCSPConfig{DisableStapling: true},
		OnEvent: a.happened,
		Logger:  quiet,
	})
	issuer := certmagic.ACMEIssuer{
		CA: config.Directory, Email: config.Email, Agreed: true, TrustedRoots: config.Roots, Logger: quiet,
		DisableDistributedSolvers: true, // one process: what is asked for is in memory
	}
	// CertMagic would listen itself where nobody does; these are the gateway's.
	var tlsHost string
	var err error
	if issuer.ListenHost, issuer.AltHTTPPort, err = splitAddress(config.HTTPAddress); err != nil {
		a.close()
		return nil, err
	}
	if tlsHost, issuer.AltTLSALPNPort, err = splitAddress(config.TLSAddress); err != nil {
		a.close()
		return nil, err
	}
	issuer.DisableTLSALPNChallenge = tlsHost != issuer.ListenHost
	a.magic.Issuers = []certmagic.Issuer{certmagic.NewACMEIssuer(a.magic, issuer)}
	magic.Store(a.magic)
	return a, nil
}

func splitAddress(address string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(address)
	if err == nil {
		port, err = strconv.Atoi(text)
	}
	if err != nil {
		return "", 0, fmt.Errorf("reading the gateway's address %q: %w", address, err)
	}
	return host, port, nil
}

// close ends orders and renewals.
func (a *authority) close() {
	a.stop()
	a.cache.Stop()
	if !a.storage.close() {
		a.logger.Warn("orders of certificates have not ended", "after", closeWait)
	}
}

// qualifies tells whether the authority may be asked for a host: not for names that are no domain, nor, where it is a
// public one, for those that mean something else on every network.
func (a *authority) qualifies(host string) bool {
	if net.ParseIP(host) != nil || !strings.Contains(host, ".") || strings.HasSuffix(host, ".localhost") || !certmagic.SubjectQualifiesForCert(host) {
		return false
	}
	return !a.public || certmagic.SubjectQualifiesForPublicCert(host)
}

// order has certificates be there for hosts, and kept valid until they are dropped. It returns when those that there
// are already can be chosen.
func (a *authority) order(hosts []string) {
	var made []*order
	for _, host := range hosts {
		a.mu.Lock()
		if a.orders[host] == nil {
			ctx, cancel := context.WithCancel(a.maintain)
			o := &order{cancel: cancel, entered: make(chan struct{}), status: Status{State: Ordered}}
			a.orders[host] = o
			made = append(made, o)
			a.mu.Unlock()
			a.magic.ManageAsync(ctx, []string{host}) // what goes wrong is told as an event, or logged
			continue
		}
		a.mu.Unlock()
	}
	timer := time.NewTimer(enterWait)
	defer timer.Stop()
	for _, o := range made {
		select {
		case <-o.entered:
		case <-timer.C:
			return
		}
	}
}

// drop ends what order began. Certificates stay in storage, for when the host comes back.
func (a *authority) drop(hosts []string) {
	for _, host := range hosts {
		a.mu.Lock()
		o := a.orders[host]
		delete(a.orders, host)
		a.mu.Unlock()
		if o != nil {
			o.cancel()
			a.cache.RemoveManaged([]certmagic.SubjectIssuer{{Subject: host}})
		}
	}
}

func (a *authority) wants(host string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.orders[host] != nil
}

func (a *authority) status(host string) Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	if o := a.orders[host]; o != nil {
		return o.status
	}
	return Status{}
}

// choose returns the certificate of a host that is wanted, or the one that answers an authority's challenge.
func (a *authority) choose(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	return a.magic.GetCertificate(hello)
}

// happened follows CertMagic's work. It never stops it.
func (a *authority) happened(_ context.Context, event string, data map[string]any) error {
	switch event {
	case "cached_managed_cert":
		sans, _ := data["sans"].([]string)
		for _, host := range sans {
			a.set(host, Status{State: Issued})
		}
	case "cert_obtaining":
		host, _ := data["identifier"].(string)
		a.set(host, Status{State: Ordered})
	case "cert_obtained":
		a.logger.Info("certificate obtained", "host", data["identifier"], "renewal", data["renewal"])
	case "cert_failed":
		host, _ := data["identifier"].(string)
		err, _ := data["error"].(error)
		if err == nil {
			err = errors.New("the authority did not say why")
		}
		a.set(host, Status{Failed, err})
	}
	return nil
}

// set notes the status of an order. A certificate that is there stays, whatever becomes of its renewal; and while an
// order is tried again, the status says why it failed before.
func (a *authority) set(host string, status Status) {
	a.mu.Lock()
	o := a.orders[host]
	if o == nil {
		a.mu.Unlock()
		return
	}
	select {
	case <-o.entered:
	default:
		close(o.entered)
	}
	changed := !status.same(o.status)
	if o.status.State == Issued || o.status.State == Failed && status.State == Ordered {
		changed = false
	}
	if changed {
		o.status = status
	}
	a.mu.Unlock()
	if changed {
		a.changed(host)
	}
}

// challenge is what an authority that was asked for a host is to find there under a token.
func challenge(host, token string) (answer string, ok bool) {
	active, ok := certmagic.GetACMEChallenge(host)
	if !ok || active.Type != "http-01" || active.Token != token {
		return "", false
	}
	return active.KeyAuthorization, true
}

// clean removes certificates from storage that expired long ago: those of hosts that did not come back.
func (a *authority) clean(ctx context.Context) {
	err := certmagic.CleanStorage(ctx, a.magic.Storage, certmagic.CleanStorageOptions{
		ExpiredCerts: true, ExpiredCertGracePeriod: 30 * 24 * time.Hour, Logger: zap.New(&logCore{logger: a.logger}),
	})
	if err != nil && ctx.Err() == nil {
		a.logger.Warn("removing expired certificates", "error", err)
	}
}
