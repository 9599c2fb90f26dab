package http1_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-run/berth/gateway/http1"
	"github.com/berth-run/berth/gateway/http1/http1test"
)

func TestRequest_IsReadInOneWayOrRefused(t *testing.T) {
	limits := http1.Limits{Head: 64 << 10, Target: 8 << 10, Fields: 1000}
	names := map[string]bool{}
	for _, c := range http1test.Smuggling() {
		if names[c.Name] {
			t.Errorf("%s: there are two", c.Name)
		}
		names[c.Name] = true
		requests, closes, err := http1test.Read([]byte(c.Sent), limits)
		var refused *http1.Error
		switch errors.As(err, &refused); {
		case refused == nil && err != nil:
			t.Errorf("%s: %v", c.Name, err)
		case refused == nil && c.Refused != 0:
			t.Errorf("%s: not refused, want status %d", c.Name, c.Refused)
		case refused != nil && refused.Status != c.Refused:
			t.Errorf("%s: refused with %d, want %d: %v", c.Name, refused.Status, c.Refused, err)
		}
		if diff := cmp.Diff(c.Forwarded, requests); diff != "" {
			t.Errorf("%s: %s", c.Name, diff)
		}
		if closes != (c.Closes || c.Refused != 0) {
			t.Errorf("%s: closes the connection: %v", c.Name, closes)
		}
	}
	if len(names) < 120 {
		t.Errorf("the corpus has %d cases", len(names))
	}
	t.Logf("%d cases", len(names))
}

func TestError_NamesWhatWasSeenInShort(t *testing.T) {
	for _, c := range http1test.Smuggling() {
		_, _, err := http1test.Read([]byte(c.Sent), http1.Limits{Head: 64 << 10, Target: 8 << 10, Fields: 1000})
		if err != nil && (len(err.Error()) > 600 || len(err.Error()) < 20 && c.Refused != 405) {
			t.Errorf("%s: %q", c.Name, err)
		}
		if err != nil {
			t.Logf("%s: %v", c.Name, err)
		}
	}
}
