package gateway

import (
	"hash/maphash"
	"sync/atomic"
)

// hosts finds the entry of a host, by open addressing with linear probing. Readers take no lock, and look at one or two
// slots however many hosts there are: at most half of the slots are used. Changes are serialised by the caller; each
// costs the same, but for the one that makes room, which costs as much as the changes since the last that did.
//
// An entry's host never changes, and it leaves its slot only for the gone one: so a reader that has seen no empty slot has missed no
// entry that was there all the time.
type hosts struct {
	slots atomic.Pointer[slots] // nil until the first entry
	used  int                   // slots that are not empty, those of removed entries included
	live  int                   // entries
}

// slots are a power of two in number.
type slots struct {
	seed maphash.Seed // strangers choose hosts, but cannot choose those that share a slot
	at   []slot
}

// slot is written hash first, and read entry first: whoever sees the entry sees its hash. The hash spares a look at
// other hosts' entries.
type slot struct {
	entry atomic.Pointer[entry]
	hash  atomic.Uint64
}

// gone is where an entry was: what came behind it is still found.
var gone = new(entry)

const leastSlots = 16

// find returns the entry of a host, or nil.
func (h *hosts) find(host string) *entry {
	s := h.slots.Load()
	if s == nil {
		return nil
	}
	hash := maphash.String(s.seed, host)
	for i := hash; ; i++ {
		slot := s.slot(i)
		e := slot.entry.Load()
		if e == nil || slot.hash.Load() == hash && e != gone && e.host == host {
			return e
		}
	}
}

// slot is the one that a search comes to; it begins at a host's hash.
func (s *slots) slot(i uint64) *slot { return &s.at[i&uint64(len(s.at)-1)] }

// add adds the entry of a host that has none.
func (h *hosts) add(e *entry) {
	s := h.slots.Load()
	if s == nil || 2*(h.used+1) > len(s.at) {
		s = h.makeRoom()
	}
	if s.put(e) {
		h.used++
	}
	h.live++
}

// remove removes an entry.
func (h *hosts) remove(e *entry) {
	s := h.slots.Load()
	for i := maphash.String(s.seed, e.host); ; i++ {
		if slot := s.slot(i); slot.entry.Load() == e {
			slot.entry.Store(gone)
			h.live--
			return
		}
	}
}

// put stores an entry, and tells whether its slot had been empty.
func (s *slots) put(e *entry) bool {
	hash := maphash.String(s.seed, e.host)
	for i := hash; ; i++ {
		slot := s.slot(i)
		if in := slot.entry.Load(); in == nil || in == gone {
			slot.hash.Store(hash)
			slot.entry.Store(e)
			return in == nil
		}
	}
}

// makeRoom replaces the slots by four times as many as there are entries, or a few more.
func (h *hosts) makeRoom() *slots {
	n := leastSlots
	for n < 4*(h.live+1) {
		n *= 2
	}
	next := &slots{seed: maphash.MakeSeed(), at: make([]slot, n)}
	if before := h.slots.Load(); before != nil {
		for i := range before.at {
			if e := before.at[i].entry.Load(); e != nil && e != gone {
				next.put(e)
			}
		}
	}
	h.used = h.live
	h.slots.Store(next)
	return next
}
