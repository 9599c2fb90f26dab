package gateway

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
)

// Route is where the requests of one host go.
type Route struct {
	// Tag is the traffic tag that the host was made for, or empty. It is written to the access log.
	Tag string
	// Splits share the requests. One split alone takes them all; several take them by weight.
	Splits []Split
	// Follow, when not empty, is a host of another owner: requests go where that one's do, at every moment. There are
	// no Splits then.
	Follow string
	// Redirect, when not 0, is the port of https that requests without TLS are redirected to (contract C25).
	Redirect uint16
	// Unready, when not empty, says why no revision takes requests yet: they are answered 503 with it. There are no
	// Splits then.
	Unready string
}

// Split is one revision's share of a route's requests.
type Split struct {
	Percent   int // weight; 0 takes nothing unless the split is alone
	Activator *Activator
}

// ErrHostTaken is returned, wrapped, when a host belongs to another owner.
var ErrHostTaken = errors.New("the host belongs to another service")

// table finds the route of a host. Readers take no lock and their cost does not grow with the number of hosts;
// a change costs as much as the hosts of the owner that changes.
//
// A host leads to its owner, and the owner to all its routes behind one pointer: an owner's change is seen for
// all its hosts at the same moment.
type table struct {
	hosts sync.Map // host (string) → *owner

	mu     sync.Mutex // serialises changes
	owners map[string]*owner
}

type owner struct {
	name   string
	routes atomic.Pointer[map[string]*route]
}

// route is a Route that has been checked, with its weights summed. It never changes.
type route struct {
	follow  string // not empty: the host whose route this one is; there are no splits
	unready string // not empty: why there are no splits
	tag     string
	affine  bool // a split's revision wants session affinity: cookies are looked at
	total   uint32
	splits  []split

	redirect uint16 // as in Route; that of the route it follows does not count
}

type split struct {
	upTo      uint32 // this split's weight and those of the splits before it
	activator *Activator
}

// lookup returns the route of a host as a client wrote it, or nil. A route that follows another host is that one's;
// it follows one step only, so that no circle can be made.
func (t *table) lookup(host string) *route {
	host, ok := normalizeHost(host)
	if !ok {
		return nil
	}
	found := t.published(host)
	if found == nil || found.follow == "" {
		return found
	}
	if found = t.published(found.follow); found == nil || found.follow != "" {
		return nil
	}
	return found
}

func (t *table) published(host string) *route {
	found, ok := t.hosts.Load(host)
	if !ok {
		return nil
	}
	return (*found.(*owner).routes.Load())[host]
}

// set replaces the hosts of an owner. When it returns an error nothing has changed.
func (t *table) set(name string, hosts map[string]*Route) error {
	next := make(map[string]*route, len(hosts))
	for host, given := range hosts {
		clean, ok := normalizeHost(host)
		if !ok || clean == "" {
			return fmt.Errorf("publishing host %q of %s: it is not a host name", host, name)
		}
		made, err := newRoute(given)
		if err != nil {
			return fmt.Errorf("publishing host %q of %s: %w", host, name, err)
		}
		next[clean] = made
	}

	t.mu.Lock()
	defer t.mu.Unlock()
	for host := range next {
		if found, ok := t.hosts.Load(host); ok && found.(*owner).name != name {
			return fmt.Errorf("publishing host %q of %s: %w: %s", host, name, ErrHostTaken, found.(*owner).name)
		}
	}

	o := t.owners[name]
	if o == nil {
		if len(next) == 0 {
			return nil
		}
		o = &owner{name: name}
		if t.owners == nil {
			t.owners = make(map[string]*owner)
		}
		t.owners[name] = o
	}
	var before map[string]*route
	if p := o.routes.Load(); p != nil {
		before = *p
	}
	o.routes.Store(&next) // from here on every host of the owner follows the new routes
	for host := range next {
		if _, had := before[host]; !had {
			t.hosts.Store(host, o)
		}
	}
	for host := range before {
		if _, has := next[host]; !has {
			t.hosts.Delete(host)
		}
	}
	if len(next) == 0 {
		delete(t.owners, name)
	}
	return nil
}

func newRoute(given *Route) (*route, error) {
	if given == nil {
		return nil, errors.New("it has no route")
	}
	made := &route{tag: given.Tag, unready: given.Unready, redirect: given.Redirect}
	if given.Follow != "" {
		host, ok := normalizeHost(given.Follow)
		if !ok || len(given.Splits) > 0 || given.Unready != "" {
			return nil, fmt.Errorf("it follows %q, which must be a host name and all that it says", given.Follow)
		}
		made.follow = host
		return made, nil
	}
	if given.Unready != "" {
		if len(given.Splits) > 0 {
			return nil, errors.New("it has splits and says that it is not ready")
		}
		return made, nil
	}
	for _, s := range given.Splits {
		percent := s.Percent
		if len(given.Splits) == 1 {
			percent = 100
		}
		switch {
		case s.Activator == nil:
			return nil, errors.New("a split has no activator")
		case percent < 0 || percent > 100:
			return nil, fmt.Errorf("a split's percent is %d; it must be between 0 and 100", percent)
		case percent == 0:
			continue
		}
		made.affine = made.affine || s.Activator.mark != 0
		made.total += uint32(percent)
		made.splits = append(made.splits, split{upTo: made.total, activator: s.Activator})
	}
	if made.total == 0 {
		return nil, errors.New("no split takes any requests; give one a percent above 0")
	}
	return made, nil
}

// choose picks a split by weight, for each request anew (contract KA9).
func (r *route) choose() *Activator {
	if len(r.splits) == 1 {
		return r.splits[0].activator
	}
	n := rand.Uint32N(r.total)
	for i := range r.splits {
		if n < r.splits[i].upTo {
			return r.splits[i].activator
		}
	}
	return r.splits[len(r.splits)-1].activator // not reached: n is below the last upTo
}

// normalizeHost brings a Host header into the form the table uses: lower case, without port and trailing dot.
// It allocates nothing for a host that has no upper-case letter. It is false for a host whose port is not a number.
func normalizeHost(host string) (string, bool) {
	if strings.HasPrefix(host, "[") { // an IPv6 address
		end := strings.IndexByte(host, ']')
		if end < 0 || !isPort(host[end+1:]) {
			return "", false
		}
		return strings.ToLower(host[:end+1]), true
	}
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		if !isPort(host[i:]) {
			return "", false
		}
		host = host[:i]
	}
	return strings.ToLower(strings.TrimSuffix(host, ".")), true
}

// isPort tells whether s is empty or a colon and digits.
func isPort(s string) bool {
	if s == "" {
		return true
	}
	if s[0] != ':' {
		return false
	}
	for _, c := range []byte(s[1:]) {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}
