package http1_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"strings"
	"testing"

	"github.com/berth-run/berth/gateway/http1"
)

// FuzzRequest compares with net/http: what we take, it takes, and reads in the same way; and so what we pass on. It
// takes more than we do.
func FuzzRequest(f *testing.F) {
	f.Add([]byte(curlHead))
	f.Add([]byte(browserHead))
	f.Add([]byte("POST http://a.test:80?x HTTP/1.1\r\nHost: A.test:80\r\nTransfer-Encoding: chunked\r\nTrailer: x\r\nTE: trailers\r\n\r\n"))
	f.Add([]byte("OPTIONS * HTTP/1.0\r\nX-A:\tb\r\nContent-Length: 007\r\nConnection: x-a, keep-alive\r\nPragma: no-cache\r\n\r\n"))
	f.Add([]byte("CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]\r\nUpgrade: a/b\r\nConnection: upgrade\r\nExpect: 100-continue\r\n\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		checkFindEnd(t, data)
		var r http1.Request
		if r.Parse(data, http1.Limits{}) != nil {
			return
		}
		if end, _ := http1.FindEnd(data, 0); end != len(data) {
			t.Fatalf("a head of %d bytes was taken, its end is at %d", len(data), end)
		}
		compare(t, data, &r)

		// What an instance gets.
		passed := forwarded(&r)
		var again http1.Request
		if err := again.Parse(passed, http1.Limits{}); err != nil {
			t.Fatalf("what is passed on is refused: %v", err)
		}
		if !bytes.Equal(again.Method, r.Method) || !bytes.Equal(again.Target, r.Target) || !bytes.EqualFold(again.Host, r.Host) || again.Body != r.Body {
			t.Fatalf("passed on it is another request: %+v and %+v", again, r)
		}
		compare(t, passed, &again)
	})
}

// forwarded is a request as it is passed on when there is nothing to add.
func forwarded(r *http1.Request) []byte {
	b := fmt.Appendf(nil, "%s %s HTTP/1.1\r\n", r.Method, r.Target)
	if len(r.Host) > 0 {
		b = fmt.Appendf(b, "Host: %s\r\n", r.Host)
	} else {
		b = append(b, "Host: none\r\n"...)
		r.Host = []byte("none")
	}
	for _, f := range r.Fields {
		b = append(b, f.Line...)
	}
	switch {
	case r.Body == http1.Chunked:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	case r.Body > 0:
		b = fmt.Appendf(b, "Content-Length: %d\r\n", r.Body)
	}
	return append(b, "\r\n"...)
}

func compare(t *testing.T, head []byte, r *http1.Request) {
	t.Helper()
	fields, trailer := 0, false
	for _, f := range r.Fields {
		switch f.Kind {
		case http1.KindHost, http1.KindTransferEncoding:
		case http1.KindTrailer:
			trailer = true
		default:
			fields++
		}
		if f.Line != nil && (!bytes.HasSuffix(f.Line, []byte("\r\n")) || bytes.IndexByte(f.Line[:len(f.Line)-2], '\n') >= 0 || !bytes.HasPrefix(f.Line, f.Name)) {
			t.Fatalf("line %q of field %q", f.Line, f.Name)
		}
	}
	if trailer {
		return // net/http looks into the field, which ends here and is of no matter to framing
	}
	want, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(head)))
	if err != nil {
		t.Fatalf("net/http does not take %q: %v", head, err)
	}
	if want.Method != string(r.Method) || !strings.EqualFold(want.Host, string(r.Host)) && r.Method[0] != 'C' {
		t.Fatalf("%s for %q, net/http has %s for %q", r.Method, r.Host, want.Method, want.Host)
	}
	target := want.RequestURI
	if !strings.HasPrefix(target, "/") && target != "*" && want.Method != "CONNECT" {
		// net/http leaves absolute-form to its caller, and gives an empty path as "/" also for OPTIONS.
		_, target, _ = strings.Cut(target, "://")
		at := strings.IndexAny(target, "/?")
		switch {
		case at < 0 && want.Method == "OPTIONS":
			target = "*"
		case at < 0:
			target = "/"
		case target[at] == '?':
			target = "/" + target[at:]
		default:
			target = target[at:]
		}
	}
	if target != string(r.Target) {
		t.Fatalf("target %q, net/http has %q", r.Target, target)
	}
	if want.ContentLength != r.Body {
		t.Fatalf("body of %d, net/http has %d", r.Body, want.ContentLength)
	}
	count := 0
	for _, values := range want.Header {
		count += len(values)
	}
	if _, ok := want.Header["Pragma"]; ok {
		return // net/http makes a Cache-Control of it
	}
	if count != fields {
		t.Fatalf("%d fields, net/http has %d: %v", fields, count, want.Header)
	}
}

// checkFindEnd compares with a search for the first empty line.
func checkFindEnd(t *testing.T, data []byte) {
	t.Helper()
	want := 0
	for i := range data {
		if rest := data[i:]; data[i] == '\n' {
			if bytes.HasPrefix(rest[1:], []byte("\n")) {
				want = i + 2
				break
			} else if bytes.HasPrefix(rest[1:], []byte("\r\n")) {
				want = i + 3
				break
			}
		}
	}
	next := 0
	for n := range len(data) + 1 {
		var end int
		if end, next = http1.FindEnd(data[:n], next); end != 0 {
			if end != want {
				t.Fatalf("the head's end is at %d, found at %d", want, end)
			}
			return
		}
	}
	if want != 0 {
		t.Fatalf("the head's end at %d was not found", want)
	}
}

// FuzzResponse compares with net/http.
func FuzzResponse(f *testing.F) {
	f.Add([]byte(responseHead))
	f.Add([]byte("HTTP/1.0 404\nX-A:\tb\nContent-Length: 5\r\ncontent-length:5\r\n\n"))
	f.Add([]byte("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade, x-a\r\nUpgrade: websocket\r\nX-A: b\r\nTransfer-Encoding: chunked\r\n\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var r http1.Response
		if r.Parse(data) != nil {
			return
		}
		want, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(data)), nil)
		trailer, pragma, fields := false, false, 0
		for _, f := range r.Fields {
			switch f.Kind {
			case http1.KindTrailer:
				trailer = true
			case http1.KindTransferEncoding:
			default:
				fields++
			}
			pragma = pragma || bytes.EqualFold(f.Name, []byte("Pragma"))
			if f.Line != nil && !bytes.HasSuffix(f.Line, []byte("\r\n")) {
				t.Fatalf("line %q of field %q", f.Line, f.Name)
			}
		}
		if trailer {
			return // net/http looks into the field
		}
		if err != nil {
			t.Fatalf("net/http does not take %q: %v", data, err)
		}
		if want.StatusCode != r.Status || want.ProtoMinor != r.Minor {
			t.Fatalf("HTTP/1.%d %d, net/http has HTTP/1.%d %d", r.Minor, r.Status, want.ProtoMinor, want.StatusCode)
		}
		if r.Minor == 0 && r.Body == http1.Chunked {
			return // net/http ignores Transfer-Encoding in HTTP/1.0; RFC 9112, 6.1 lets us process and then close, as we do
		}
		if r.Status >= 200 && r.Status != 204 && r.Status != 304 {
			if got := max(r.Body, -1); got != want.ContentLength {
				t.Fatalf("body of %d, net/http has %d", r.Body, want.ContentLength)
			}
			if r.Body != http1.Chunked && want.Close && !r.Close && r.Body != http1.UntilClose {
				t.Fatalf("the connection stays open, net/http closes it")
			}
		}
		count := 0
		lengths := 0
		for key, values := range want.Header {
			if count += len(values); key == "Content-Length" {
				lengths = len(values)
			}
		}
		for _, f := range r.Fields {
			if f.Kind == http1.KindContentLength {
				lengths-- // net/http keeps one of several, and none beside chunked
			}
		}
		if !pragma && count != fields+lengths {
			t.Fatalf("%d fields, net/http has %d: %v", fields, count, want.Header)
		}
	})
}

// FuzzChunks compares with the standard library's reader, and one piece with many.
func FuzzChunks(f *testing.F) {
	f.Add([]byte("5;a=b\r\nhello\r\n0\r\nX-A: b\r\n\r\nrest"), []byte{1, 2, 3})
	f.Add([]byte("0005  \r\nhello\r\n0a\r\n0123456789\r\n00\r\n\r\n"), []byte{7})
	f.Add([]byte("0\r\nHost: a\r\nX-B: a\r\n\r\n"), []byte{1})
	f.Fuzz(func(t *testing.T, body, splits []byte) {
		limits := http1.Limits{Head: 200, Fields: 5}
		out, rest, done, err := normalize(body, limits, whole)
		at := 0
		piecemeal := func() int {
			if len(splits) == 0 {
				return 1
			}
			at++
			return int(splits[at%len(splits)])%50 + 1
		}
		out2, rest2, done2, err2 := normalize(body, limits, piecemeal)
		if done != done2 || (err == nil) != (err2 == nil) || err == nil && (!bytes.Equal(out, out2) || !bytes.Equal(rest, rest2)) {
			t.Fatalf("at once: %q, rest %q, %v, %v; in pieces: %q, rest %q, %v, %v", out, rest, done, err, out2, rest2, done2, err2)
		}
		if err != nil || !done {
			return
		}
		twice, left, done, err := normalize(out, limits, piecemeal)
		if err != nil || !done || len(left) > 0 || !bytes.Equal(out, twice) {
			t.Fatalf("%q becomes %q, rest %q, error %v", out, twice, left, err)
		}
		data, err := io.ReadAll(httputil.NewChunkedReader(bytes.NewReader(out)))
		if err != nil {
			t.Fatalf("%q is not a chunked body: %v", out, err)
		}
		before, err := io.ReadAll(httputil.NewChunkedReader(bytes.NewReader(body)))
		if err != nil && (bytes.Contains(body, []byte(" ;")) || bytes.Contains(body, []byte("\t;"))) {
			return // RFC 9112, 7.1.1 allows a blank before an extension, the standard library does not
		}
		if err != nil || !bytes.Equal(data, before) {
			t.Fatalf("data is %q, was %q, error %v", data, before, err)
		}
	})
}
