package bolt

import (
	"errors"
	"testing"

	"github.com/berth-run/berth/store"
)

func TestHistory_KeepsAsManyEventsAsItMay(t *testing.T) {
	h := history{limit: 10, floor: 100}
	for version := uint64(101); version <= 120; version++ {
		h.add(record{version: version, data: []byte("{}")})
	}
	if _, err := h.after(109, 0, ""); !errors.Is(err, store.ErrGone) {
		t.Errorf("after 109, of which 110 is forgotten: got error %v, want ErrGone", err)
	}
	records, err := h.after(110, 0, "")
	if err != nil || len(records) != 10 || records[0].version != 111 {
		t.Errorf("after 110: got %d events and error %v, want 10 from 111 on", len(records), err)
	}
	if records, err := h.after(120, 0, ""); err != nil || len(records) != 0 {
		t.Errorf("after the newest: got %d events and error %v, want none", len(records), err)
	}
}

func TestHistory_KeepsFewerEventsWhenTheyAreLarge(t *testing.T) {
	h := history{limit: DefaultHistory}
	for version := uint64(1); version <= 40; version++ {
		h.add(record{version: version, data: make([]byte, 64<<10)})
	}
	if len(h.records) != 8 || h.bytes != 512<<10 || h.floor != 32 {
		t.Errorf("got %d events of %d bytes after version %d, want 8 of 512 KiB after 32", len(h.records), h.bytes, h.floor)
	}
}

func TestHistory_FindsTheEventsOfAKindInANamespace(t *testing.T) {
	h := history{limit: 10}
	h.add(record{version: 1, kind: 1, namespace: "a"})
	h.add(record{version: 2, kind: 2, namespace: "a"})
	h.add(record{version: 3, kind: 1, namespace: "b"})
	for namespace, want := range map[string]int{"": 2, "a": 1, "b": 1, "c": 0} {
		if records, err := h.after(0, 1, namespace); err != nil || len(records) != want {
			t.Errorf("namespace %q: got %d events and error %v, want %d", namespace, len(records), err, want)
		}
	}
}
