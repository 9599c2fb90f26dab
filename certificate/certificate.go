// Package certificate holds the certificates that the gateway shows to clients: those of files, which it reads again
// when they change, and those that a certificate authority gives for hosts that services have (ACME, RFC 8555).
//
// [Store] is the place to start reading. A client's handshake chooses among what is in memory ([Store.TLSConfig]) and
// never causes an order: the hosts to have a certificate are named by whoever owns them, with [Store.Want].
package certificate

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Config is how a store is set up.
type Config struct {
	Files  []File // may be none
	ACME   *ACME  // nil: no authority is asked
	Logger *slog.Logger
	// Changed is called when the status of a host of an owner has changed; it must not call the store. nil for nobody.
	Changed func(owner string)
}

// Store holds certificates.
type Store struct {
	config   Config
	files    atomic.Pointer[table]
	pairs    []pair     // as last read; used by Open and Run alone
	problems string     // of the last reading of files, so that each is logged once
	ordered  *authority // nil when there is none

	changing sync.Mutex // one change of what is wanted at a time
	mu       sync.Mutex
	owners   map[string]map[string]Status // the hosts that each owner wants a certificate for, and what it knows of them. Guarded by mu.
}

// State is how it stands with a host's certificate.
type State int

// The states of a host's certificate.
const (
	Missing State = iota // no file has the host, and no authority is asked for it
	Given                // a file has the host
	Ordered              // an authority has been asked
	Failed               // an authority has been asked in vain, and will be asked again
	Issued               // an authority's certificate is there
)

// Status is a state, and why it is Failed.
type Status struct {
	State State
	Err   error
}

// Serves tells whether clients reach the host with https.
func (s Status) Serves() bool { return s.State == Given || s.State == Issued }

func (s Status) same(as Status) bool {
	return s.State == as.State && (s.Err == nil) == (as.Err == nil) && (s.Err == nil || s.Err.Error() == as.Err.Error())
}

// Open reads the files. Nothing is ordered before the first host is wanted, and no file is read again before Run.
func Open(config Config) (*Store, error) {
	if len(config.Files) == 0 && config.ACME == nil {
		return nil, errors.New("opening the certificates: there are neither files nor an authority")
	}
	s := &Store{config: config, owners: map[string]map[string]Status{}}
	pairs, errs := readFiles(config.Files, nil)
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	s.pairs = pairs
	s.files.Store(newTable(pairs))
	if config.ACME != nil {
		var err error
		if s.ordered, err = openAuthority(*config.ACME, config.Logger, s.authorityChanged); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Close ends what Open and Want have begun. It is called after Run has ended.
func (s *Store) Close() {
	if s.ordered != nil {
		s.ordered.close()
	}
}

// TLSConfig is how a server shows the certificates.
func (s *Store) TLSConfig() *tls.Config {
	config := &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: s.choose,
		NextProtos:     []string{"h2", "http/1.1"},
	}
	if s.ordered != nil {
		config.NextProtos = append(config.NextProtos, protocolChallenge)
	}
	return config
}

// choose returns the certificate for a handshake: of a file that has the host, of the authority, or, when neither has
// the host, the first of the files. Without one the handshake ends with the alert "unrecognized name".
func (s *Store) choose(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	host := normalize(hello.ServerName)
	if s.ordered != nil && slices.Equal(hello.SupportedProtos, []string{protocolChallenge}) {
		if !s.ordered.wants(host) {
			return nil, nil
		}
		return s.ordered.choose(hello)
	}
	files := s.files.Load()
	if found := files.find(host, hello); found != nil {
		return found, nil
	}
	if s.ordered != nil && s.ordered.wants(host) {
		if found, err := s.ordered.choose(hello); err == nil {
			return found, nil
		}
	}
	return files.first, nil
}

// Challenge is what an authority is to find at a host under a token, while one is asked for it (RFC 8555, 8.3).
func (s *Store) Challenge(host, token string) (answer string, ok bool) {
	if s.ordered == nil || !s.ordered.wants(host) {
		return "", false
	}
	return challenge(host, token)
}

// Want has certificates be there for the hosts of an owner, instead of for those that it named before. When it returns,
// certificates that were there before the process started can be chosen.
func (s *Store) Want(owner string, hosts []string) {
	s.changing.Lock()
	defer s.changing.Unlock()

	s.mu.Lock()
	before := s.owners[owner]
	wanted := make(map[string]Status, len(hosts))
	for _, host := range hosts {
		host = normalize(host)
		wanted[host] = before[host]
	}
	if len(wanted) > 0 {
		s.owners[owner] = wanted
	} else {
		delete(s.owners, owner)
	}
	s.mu.Unlock()

	if s.ordered != nil {
		var order, drop []string
		for host := range wanted {
			if _, had := before[host]; !had && s.orders(host) {
				order = append(order, host)
			}
		}
		for host := range before {
			if !s.wanted(host) { // it may be another owner's by now
				drop = append(drop, host)
			}
		}
		s.ordered.drop(drop)
		s.ordered.order(order)
	}
	s.refresh(owner, nil) // the owner looks by itself
}

// wanted tells whether any owner wants a certificate for a host.
func (s *Store) wanted(host string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, hosts := range s.owners {
		if _, has := hosts[host]; has {
			return true
		}
	}
	return false
}

// orders tells whether an authority is to be asked for a host.
func (s *Store) orders(host string) bool {
	return s.ordered != nil && !s.files.Load().has(host) && s.ordered.qualifies(host)
}

// Status is how it stands with a host's certificate.
func (s *Store) Status(host string) Status {
	host = normalize(host)
	switch {
	case s.files.Load().has(host):
		return Status{State: Given}
	case s.ordered != nil && s.ordered.wants(host):
		return s.ordered.status(host)
	}
	return Status{}
}

// refresh compares the status of an owner's hosts with what was last told of them, and tells tell, when it is not nil,
// that there is a change.
func (s *Store) refresh(owner string, tell func(owner string)) {
	changed := false
	s.mu.Lock()
	for host, last := range s.owners[owner] {
		if now := s.Status(host); !now.same(last) {
			s.owners[owner][host] = now
			changed = true
		}
	}
	s.mu.Unlock()
	if changed && tell != nil {
		tell(owner)
	}
}

// authorityChanged follows what the authority did for a host.
func (s *Store) authorityChanged(host string) {
	s.mu.Lock()
	var owners []string
	for owner, hosts := range s.owners {
		if _, wants := hosts[host]; wants {
			owners = append(owners, owner)
		}
	}
	s.mu.Unlock()
	for _, owner := range owners {
		s.refresh(owner, s.config.Changed)
	}
}

// Run reads files again when they change, until ctx ends, and then returns nil.
func (s *Store) Run(ctx context.Context) error {
	day := time.NewTicker(24 * time.Hour)
	defer day.Stop()
	changes := make(chan struct{})
	var watching sync.WaitGroup
	defer watching.Wait()
	if len(s.config.Files) > 0 {
		s.warn()
		watching.Go(func() { s.watch(ctx, changes) })
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changes:
			s.reload()
		case <-day.C:
			s.warn()
			if s.ordered != nil {
				s.ordered.clean(ctx)
			}
		}
	}
}

// reload reads the files again. One that cannot be used leaves what was read before.
func (s *Store) reload() {
	s.changing.Lock()
	defer s.changing.Unlock()
	pairs, errs := readFiles(s.config.Files, s.pairs)
	problems := ""
	if err := errors.Join(errs...); err != nil {
		problems = err.Error()
	}
	if problems != "" && problems != s.problems {
		s.config.Logger.Error("a changed certificate cannot be used; the one before it stays", "error", problems)
	}
	s.problems = problems
	if slices.EqualFunc(pairs, s.pairs, pair.same) {
		return
	}
	s.pairs = pairs
	before := s.files.Swap(newTable(pairs))
	s.config.Logger.Info("certificates read again", "hosts", strings.Join(slices.Sorted(maps.Keys(s.files.Load().byName)), " "))
	s.warn()

	s.mu.Lock()
	owners := make(map[string][]string, len(s.owners))
	for owner, hosts := range s.owners {
		owners[owner] = slices.Collect(maps.Keys(hosts))
	}
	s.mu.Unlock()
	for owner, hosts := range owners {
		for _, host := range hosts {
			switch had, has := before.has(host), s.files.Load().has(host); {
			case s.ordered == nil || had == has:
			case has:
				s.ordered.drop([]string{host})
			case s.orders(host):
				s.ordered.order([]string{host})
			}
		}
		s.refresh(owner, s.config.Changed)
	}
}

// normalize brings a host name into the form of the tables.
func normalize(host string) string { return strings.ToLower(strings.TrimSuffix(host, ".")) }
