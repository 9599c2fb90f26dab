package http1_test

import (
	"bytes"
	"errors"
	"io"
	"net/http/httputil"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-run/berth/gateway/http1"
	"github.com/berth-run/berth/gateway/http1/http1test"
)

// readAll reads what a connection brings, up to its end or to what is refused.
func readAll(b []byte, limits http1.Limits) (requests []http1test.Request, closes bool, err error) {
	for len(b) > 0 {
		b = b[http1.EmptyLines(b):]
		end, _ := http1.FindEnd(b, 0)
		if end == 0 {
			if refused := limits.Exceeded(b); refused != nil {
				return requests, true, refused
			}
			return requests, false, io.ErrUnexpectedEOF
		}
		var r http1.Request
		if err := r.Parse(b[:end], limits); err != nil {
			return requests, true, err
		}
		b = b[end:]
		var body []byte
		if r.Body == http1.Chunked {
			out, rest, done, err := normalize(bytes.Clone(b), limits, whole)
			if err == nil && !done {
				err = io.ErrUnexpectedEOF
			}
			if err != nil {
				return requests, true, err
			}
			if body, err = io.ReadAll(httputil.NewChunkedReader(bytes.NewReader(out))); err != nil {
				return requests, true, err
			}
			b = rest
		} else {
			if int64(len(b)) < r.Body {
				return requests, false, io.ErrUnexpectedEOF
			}
			body, b = b[:r.Body], b[r.Body:]
		}
		if string(r.Method) == "CONNECT" {
			return requests, true, &http1.Error{Status: 405}
		}
		requests = append(requests, http1test.Request{Method: string(r.Method), Target: string(r.Target), Body: string(body)})
		if r.Close {
			return requests, true, nil
		}
	}
	return requests, false, nil
}

func TestRequest_IsReadInOneWayOrRefused(t *testing.T) {
	limits := http1.Limits{Head: 64 << 10, Target: 8 << 10, Fields: 1000}
	names := map[string]bool{}
	for _, c := range http1test.Smuggling() {
		if names[c.Name] {
			t.Errorf("%s: there are two", c.Name)
		}
		names[c.Name] = true
		requests, closes, err := readAll([]byte(c.Sent), limits)
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
		_, _, err := readAll([]byte(c.Sent), http1.Limits{Head: 64 << 10, Target: 8 << 10, Fields: 1000})
		if err != nil && (len(err.Error()) > 600 || len(err.Error()) < 20 && c.Refused != 405) {
			t.Errorf("%s: %q", c.Name, err)
		}
		if err != nil {
			t.Logf("%s: %v", c.Name, err)
		}
	}
}
