package gateway

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"
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
// a change costs as much as the hosts of the owner that changes, which all see it at the same moment.
type table struct {
	hosts hosts

	mu     sync.Mutex // serialises changes
	owners map[string]*owner
}

// owner is who publishes hosts.
type owner struct {
	name    string
	entries []*entry // of its hosts
}

// entry is a published host. Its owner's changes are seen for all its hosts at the same moment: each gets its turn first,
// which does not count yet, then all turns count at once, and then they become the routes.
//
// What a lookup reads of it lies together: among many hosts each place that is read costs a miss of the processor's caches.
type entry struct {
	route atomic.Pointer[route]
	turn  atomic.Pointer[turn] // nil, or a change that is being made
	host  string               // in near, when it fits
	near  [64]byte
	owner *owner
}

func newEntry(host string, o *owner) *entry {
	e := &entry{host: host, owner: o}
	if n := copy(e.near[:], host); n == len(host) && n > 0 {
		e.host = unsafe.String(&e.near[0], n)
	}
	return e
}

// turn is a change of one host.
type turn struct {
	counts *atomic.Bool // shared by all turns of a change
	route  *route       // nil to remove the host
}

// current is the host's route, nil when it is not published yet, or no more.
func (e *entry) current() *route {
	if t := e.turn.Load(); t != nil && t.counts.Load() {
		return t.route
	}
	return e.route.Load()
}

// route is a Route that has been checked, with its weights summed. It never changes.
type route struct {
	only    *Activator // of the only split; nil when there are several, or none
	follow  string     // not empty: the host whose route this one is; there are no splits
	unready string     // not empty: why there are no splits
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
// it follows one step only, so that no circle can be made. It does not keep the host, and allocates nothing.
func (t *table) lookup(host string) *route {
	plain := trimHost(host)
	found := t.published(plain)
	if found == nil { // rarely: a host in upper case, or none of ours
		var buffer [maxHostLength]byte
		clean, ok := lowerHost(&buffer, host)
		if !ok || clean == plain {
			return nil
		}
		if found = t.published(clean); found == nil {
			return nil
		}
	}
	if found.follow == "" {
		return found
	}
	if found = t.published(found.follow); found == nil || found.follow != "" {
		return nil
	}
	return found
}

// published returns the route of a host in the form of normalizeHost, or nil.
func (t *table) published(host string) *route {
	if e := t.hosts.find(host); e != nil {
		return e.current()
	}
	return nil
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
		if e := t.hosts.find(host); e != nil && e.owner.name != name {
			return fmt.Errorf("publishing host %q of %s: %w: %s", host, name, ErrHostTaken, e.owner.name)
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
	t.change(o, next)
	if len(o.entries) == 0 {
		delete(t.owners, name)
	}
	return nil
}

// change gives an owner's hosts their next routes, and removes those that have none. It uses the map up.
func (t *table) change(o *owner, next map[string]*route) {
	counts := new(atomic.Bool)
	for _, e := range o.entries {
		e.turn.Store(&turn{counts, next[e.host]})
		delete(next, e.host)
	}
	for host, route := range next {
		e := newEntry(host, o)
		e.turn.Store(&turn{counts, route})
		o.entries = append(o.entries, e)
		t.hosts.add(e)
	}
	counts.Store(true) // from here on every host of the owner follows the new routes
	stay := o.entries[:0]
	for _, e := range o.entries {
		route := e.turn.Load().route
		e.route.Store(route)
		e.turn.Store(nil)
		if route == nil {
			t.hosts.remove(e)
		} else {
			stay = append(stay, e)
		}
	}
	clear(o.entries[len(stay):])
	o.entries = stay
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
	if len(made.splits) == 1 {
		made.only = made.splits[0].activator
	}
	return made, nil
}

// choose picks a split by weight, for each request anew (contract KA9).
func (r *route) choose() *Activator {
	if r.only != nil {
		return r.only
	}
	n := rand.Uint32N(r.total)
	for i := range r.splits {
		if n < r.splits[i].upTo {
			return r.splits[i].activator
		}
	}
	return r.splits[len(r.splits)-1].activator // not reached: n is below the last upTo
}

// maxHostLength is that of a host name (RFC 1035, 2.3.4) with a dot and a port, and more than that of an IP address.
const maxHostLength = 253 + len(".:65535")

// trimHost is a host without port and trailing dot: the form that the table uses, when it is that of a name in lower
// case.
func trimHost(host string) string {
	end := len(host)
	for end > 0 && '0' <= host[end-1] && host[end-1] <= '9' {
		end--
	}
	if end > 0 && host[end-1] == ':' {
		end--
	} else {
		end = len(host)
	}
	if end > 0 && host[end-1] == '.' && host[0] != '[' {
		end--
	}
	return host[:end]
}

// normalizeHost brings a Host header into the form the table uses: lower case, without port and trailing dot.
// It allocates nothing for a host that has no upper-case letter. It is false for a host whose port is not a number.
func normalizeHost(host string) (string, bool) {
	name, ok := cutHost(host)
	return strings.ToLower(name), ok
}

// lowerHost is normalizeHost that never allocates: what it returns may be in the buffer. It is false for a host that is
// longer than any published one.
func lowerHost(buffer *[maxHostLength]byte, host string) (string, bool) {
	name, ok := cutHost(host)
	if !ok || len(name) > len(buffer) {
		return "", false
	}
	for i := range len(name) {
		c := name[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		buffer[i] = c
	}
	return unsafe.String(&buffer[0], len(name)), true
}

// cutHost is a Host header without port and trailing dot.
func cutHost(host string) (string, bool) {
	if strings.HasPrefix(host, "[") { // an IPv6 address
		end := strings.IndexByte(host, ']')
		if end < 0 || !isPort(host[end+1:]) {
			return "", false
		}
		return host[:end+1], true
	}
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		if !isPort(host[i:]) {
			return "", false
		}
		host = host[:i]
	}
	return strings.TrimSuffix(host, "."), true
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
