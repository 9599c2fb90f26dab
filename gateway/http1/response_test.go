package http1_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-run/berth/gateway/http1"
)

func describe(fields []http1.Field) []string {
	var all []string
	for _, f := range fields {
		all = append(all, fmt.Sprintf("%d %q %q %q", f.Kind, f.Name, f.Value, f.Line))
	}
	return all
}

func TestResponse_ReadsFraming(t *testing.T) {
	for _, c := range []struct {
		head   string
		status int
		body   int64
		close  bool
	}{
		{"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 200, 5, false},
		{"HTTP/1.1 200\r\ncontent-length: 5\r\nContent-Length: 5\r\n\r\n", 200, 5, false},
		{"HTTP/1.1 404 \r\nTransfer-Encoding: Chunked\r\n\r\n", 404, http1.Chunked, false},
		{"HTTP/1.1 200 OK\nContent-Length: 0\n\n", 200, 0, false},
		{"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", 200, http1.UntilClose, true},
		{"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", 200, 5, true},
		{"HTTP/1.1 999 So l\xc3\xa4uft das\r\n\r\n", 999, http1.UntilClose, false},
		{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", 200, http1.Chunked, true},
	} {
		var r http1.Response
		if err := r.Parse([]byte(c.head)); err != nil {
			t.Errorf("%q: %v", c.head, err)
			continue
		}
		if r.Status != c.status || r.Body != c.body || r.Close != c.close {
			t.Errorf("%q: status %d, body %d, close %v; want %d, %d, %v", c.head, r.Status, r.Body, r.Close, c.status, c.body, c.close)
		}
	}
}

func TestResponse_RefusesWhatIsMalformed(t *testing.T) {
	for _, head := range []string{
		"\r\n", "HTTP/1.1\r\n\r\n", "HTTP/1.1 20 OK\r\n\r\n", "HTTP/1.1 2000 OK\r\n\r\n", "HTTP/1.1 099 OK\r\n\r\n", "HTTP/1.1 +20 OK\r\n\r\n",
		"HTTP/1.2 200 OK\r\n\r\n", "HTTP/2.0 200 OK\r\n\r\n", "http/1.1 200 OK\r\n\r\n", "HTTP/1.1  200 OK\r\n\r\n", "HTTP/1.1 200OK\r\n\r\n",
		"HTTP/1.1 200 O\x00K\r\n\r\n", "HTTP/1.1 200 O\rK\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 9999999999999999999\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
		"HTTP/1.1 200 OK\r\nA\r\n\r\n", "HTTP/1.1 200 OK\r\n: a\r\n\r\n", "HTTP/1.1 200 OK\r\nA : a\r\n\r\n", "HTTP/1.1 200 OK\r\nA: a\r\n b\r\n\r\n",
		"HTTP/1.1 200 OK\r\nA: a\rb\r\n\r\n", "HTTP/1.1 200 OK\r\nA: a\x00b\r\n\r\n", "HTTP/1.1 200 OK\r\nA: a\r\n", "HTTP/1.1 200 OK\r\nA: a\r\n\r",
		"HTTP/1.1 200 OK\r\nContent_Length: 5\r\n\r\n",
	} {
		var refused *http1.Error
		if err := new(http1.Response).Parse([]byte(head)); !errors.As(err, &refused) {
			t.Errorf("%q: %v, want an *Error", head, err)
		}
	}
}

func TestResponse_PassesOnNoLineThatEndsWithLFAlone(t *testing.T) {
	var r http1.Response
	if err := r.Parse([]byte("HTTP/1.1 101 Switching Protocols\nConnection: upgrade, x-b\nUpgrade: websocket\r\nX-A: a\nX-C: c\r\nX-B: b\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	if string(r.Reason) != "Switching Protocols" || string(r.Upgrade) != "websocket" {
		t.Errorf("reason %q, upgrade %q", r.Reason, r.Upgrade)
	}
	if diff := cmp.Diff([]string{
		`5 "Connection" "upgrade, x-b" ""`, `7 "Upgrade" "websocket" ""`, `0 "X-A" "a" ""`, `0 "X-C" "c" "X-C: c\r\n"`, `1 "X-B" "b" ""`,
	}, describe(r.Fields)); diff != "" {
		t.Error(diff)
	}
}
