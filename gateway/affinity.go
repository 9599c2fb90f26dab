package gateway

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"net/http"
	"strings"
	"time"
)

// Session affinity (contract 1.3) is a cookie that brings a client's requests back to the instance that served it: best
// effort, and above the traffic split. The cookie names the revision and the instance by marks that say nothing to
// others. Nothing is trusted to it: it chooses among what the route would give the client anyway, and one that is made
// up or names what is gone is as good as none. Instances see it, as they do Cloud Run's.

const (
	affinityCookie = "BERTH-AFFINITY"
	affinityAge    = 30 * 24 * time.Hour
)

// affinity is where a client's requests go when they can. The zero value is nowhere.
type affinity struct{ revision, instance mark }

// mark stands for the name of a revision or an instance. 0 is none.
type mark uint64

// markOf is the same for a name in every process: a client comes back to its revision after a restart too.
func markOf(parts ...string) mark {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return mark(binary.BigEndian.Uint64(sum[:]) | 1)
}

const affinityLength = 22 // of a cookie's value: 16 bytes in base64

// value is the cookie's value.
func (a affinity) value() string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], uint64(a.revision))
	binary.BigEndian.PutUint64(b[8:], uint64(a.instance))
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// affinityIn finds the affinity in the value of a Cookie field, or none.
func affinityIn(cookies string) affinity {
	for cookies != "" {
		var pair string
		pair, cookies, _ = strings.Cut(cookies, ";")
		name, value, _ := strings.Cut(strings.TrimLeft(pair, " \t"), "=")
		if name != affinityCookie {
			continue
		}
		var b [18]byte // of which decoding writes 16
		if value = strings.TrimRight(value, " \t"); len(value) != affinityLength {
			return affinity{}
		}
		if _, err := base64.RawURLEncoding.Decode(b[:], []byte(value)); err != nil {
			return affinity{}
		}
		return affinity{mark(binary.BigEndian.Uint64(b[:8])), mark(binary.BigEndian.Uint64(b[8:16]))}
	}
	return affinity{}
}

// affinityOf finds the affinity in a request's header, or none.
func affinityOf(header http.Header) affinity {
	for _, cookies := range header["Cookie"] {
		if found := affinityIn(cookies); found != (affinity{}) {
			return found
		}
	}
	return affinity{}
}

// setCookie is the value of the Set-Cookie field that makes a client come back. proto is what the client speaks.
func (a affinity) setCookie(proto string) string {
	cookie := affinityCookie + "=" + a.value() + "; Path=/; Max-Age=2592000; HttpOnly; SameSite=Lax"
	if proto == "https" {
		cookie += "; Secure"
	}
	return cookie
}

// prefer returns the activator of the revision that an affinity names, when the route leads there and the revision
// wants affinity; else nil.
func (r *route) prefer(a affinity) *Activator {
	if a.revision == 0 {
		return nil
	}
	for i := range r.splits {
		if activator := r.splits[i].activator; activator.mark == a.revision {
			return activator
		}
	}
	return nil
}

// claimMarked takes a slot on the instance that has a mark, for a request that arrived at a time. It is nil, and
// nothing has changed, when there is no such instance, or no free slot on it: then the request claims any.
func (a *Activator) claimMarked(instance mark, arrived time.Time) *member {
	a.mu.Lock()
	defer a.mu.Unlock()
	m := a.marked[instance]
	if m == nil || a.closed != nil || !a.balancer.takeOn(m) {
		return nil
	}
	a.requests++
	a.busy -= arrived.Sub(a.epoch)
	a.inFlight++
	return m
}

// addMark lets claimMarked find an instance. It is called with mu held, as removeMark is.
func (a *Activator) addMark(m *member) {
	if a.mark == 0 {
		return
	}
	if a.marked == nil {
		a.marked = make(map[mark]*member)
	}
	m.mark = markOf(a.revision.Namespace, m.id)
	a.marked[m.mark] = m
}

func (a *Activator) removeMark(m *member) {
	if a.marked[m.mark] == m {
		delete(a.marked, m.mark)
	}
}

// stick chooses the revision and the instance that the request's cookie names, where they can be had; nil when the
// request is to claim any instance of x.activator.
func (x *exchange) stick(r *route) *member {
	x.affinity = affinityOf(x.request.Header)
	activator := r.prefer(x.affinity)
	if activator == nil {
		return nil
	}
	x.activator = activator
	m := activator.claimMarked(x.affinity.instance, x.arrived)
	if m == nil {
		return nil
	}
	if m, err := x.woken(m); err == nil {
		return m
	}
	return nil
}

// setAffinity lets the client come back to the instance that serves it, unless it does already.
func (x *exchange) setAffinity(header http.Header) {
	if x.activator.mark == 0 || x.member == nil {
		return
	}
	if served := (affinity{x.activator.mark, x.member.mark}); served != x.affinity {
		header.Add("Set-Cookie", served.setCookie(x.origin.forwardedProto(x.request.Header)))
	}
}
