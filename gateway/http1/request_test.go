package http1_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-run/berth/gateway/http1"
)

// parse parses a request that must be in order.
func parse(t *testing.T, head string) *http1.Request {
	t.Helper()
	r := new(http1.Request)
	if err := r.Parse([]byte(head), http1.Limits{}); err != nil {
		t.Fatalf("parsing %q: %v", head, err)
	}
	return r
}

// refusal parses a request that must be refused.
func refusal(t *testing.T, head string, limits http1.Limits) *http1.Error {
	t.Helper()
	var refused *http1.Error
	if err := new(http1.Request).Parse([]byte(head), limits); !errors.As(err, &refused) {
		t.Fatalf("parsing %q: %v, want it to be refused", head, err)
	}
	return refused
}

func TestRequest_ReadsWhatCurlSends(t *testing.T) {
	r := parse(t, "POST /a%20b?c=%zz HTTP/1.1\r\nHost: hello.test:8080\r\nUser-Agent: curl/8.1\r\nAccept:*/*\r\nContent-Length: 12 \r\nX-Empty:\r\nX-Tabs:\t a \t b\t\r\n\r\n")
	got := map[string]any{"method": string(r.Method), "target": string(r.Target), "host": string(r.Host), "minor": r.Minor, "body": r.Body, "close": r.Close}
	want := map[string]any{"method": "POST", "target": "/a%20b?c=%zz", "host": "hello.test:8080", "minor": 1, "body": int64(12), "close": false}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{
		`2 "Host" "hello.test:8080" ""`, `0 "User-Agent" "curl/8.1" "User-Agent: curl/8.1\r\n"`, `0 "Accept" "*/*" "Accept:*/*\r\n"`,
		`3 "Content-Length" "12" ""`, `0 "X-Empty" "" "X-Empty:\r\n"`, `0 "X-Tabs" "a \t b" "X-Tabs:\t a \t b\t\r\n"`,
	}, describe(r.Fields)); diff != "" {
		t.Error(diff)
	}
}

func TestRequest_ReadsConnectionOptions(t *testing.T) {
	for _, c := range []struct {
		head    string
		close   bool
		upgrade string
	}{
		{"GET / HTTP/1.1\r\nHost: a\r\n\r\n", false, ""},
		{"GET / HTTP/1.1\r\nHost: a\r\nConnection: Close\r\n\r\n", true, ""},
		{"GET / HTTP/1.1\r\nHost: a\r\nConnection: x-a, ,close\r\n\r\n", true, ""},
		{"GET / HTTP/1.0\r\n\r\n", true, ""},
		{"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", false, ""},
		{"GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n", true, ""},
		{"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\r\n", false, "websocket"},
		{"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n", false, ""},
		{"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: a, b\r\nConnection: upgrade\r\n\r\n", false, ""},
		{"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: a\r\nUpgrade: a\r\nConnection: upgrade\r\n\r\n", false, ""},
		{"GET / HTTP/1.0\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", true, ""},
	} {
		r := parse(t, c.head)
		if r.Close != c.close || string(r.Upgrade) != c.upgrade {
			t.Errorf("%q: close %v, upgrade %q; want %v, %q", c.head, r.Close, r.Upgrade, c.close, c.upgrade)
		}
	}
}

func TestRequest_MarksFieldsThatConnectionNames(t *testing.T) {
	r := parse(t, "GET / HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nx-b: 2\r\nCookie: c\r\nX-Forwarded-For: 1.2.3.4\r\nContent-Length: 1\r\n"+
		"Connection: x-a, X-Forwarded-For, content-length, close\r\nConnection: X-B,cookie\r\nX-C: 3\r\nx-A: 4\r\n\r\n")
	if diff := cmp.Diff([]string{
		`2 "Host" "a" ""`, `1 "X-A" "1" ""`, `1 "x-b" "2" ""`, `1 "Cookie" "c" ""`, `16 "X-Forwarded-For" "1.2.3.4" "X-Forwarded-For: 1.2.3.4\r\n"`,
		`3 "Content-Length" "1" ""`, `5 "Connection" "x-a, X-Forwarded-For, content-length, close" ""`, `5 "Connection" "X-B,cookie" ""`,
		`0 "X-C" "3" "X-C: 3\r\n"`, `1 "x-A" "4" ""`,
	}, describe(r.Fields)); diff != "" {
		t.Error(diff)
	}
	if r.Body != 1 {
		t.Errorf("body is %d, want 1: framing is not for Connection to name", r.Body)
	}
	many := strings.Repeat("x,", 100)
	if got := refusal(t, "GET / HTTP/1.1\r\nHost: a\r\nConnection: "+many+"\r\n\r\n", http1.Limits{}); got.Status != 400 {
		t.Errorf("status is %d, want 400", got.Status)
	}
}

func TestRequest_SplitsAbsoluteTargets(t *testing.T) {
	for _, c := range []struct{ method, target, want string }{
		{"GET", "http://a.test", "/"},
		{"GET", "HTTP://A.test/b?c", "/b?c"},
		{"GET", "https://a.test?c", "/?c"},
		{"OPTIONS", "http://a.test", "*"},
		{"OPTIONS", "*", "*"},
		{"CONNECT", "a.test:443", "a.test:443"},
		{"GET", "//b/c", "//b/c"},
		{"GET", "/\xc3\xbc", "/\xc3\xbc"},
	} {
		r := parse(t, c.method+" "+c.target+" HTTP/1.1\r\nHost: a.test\r\n\r\n")
		if string(r.Target) != c.want || !strings.EqualFold(string(r.Host), "a.test") {
			t.Errorf("%s %s: target %q of host %q, want %q of a.test", c.method, c.target, r.Target, r.Host, c.want)
		}
	}
}

func TestRequest_KeepsLimits(t *testing.T) {
	head := "GET /0123456789 HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nX-B: 1\r\n\r\n"
	for _, c := range []struct {
		limits http1.Limits
		status int
	}{
		{http1.Limits{Head: len(head), Target: 11, Fields: 2}, 0},
		{http1.Limits{Head: len(head) - 1}, 431},
		{http1.Limits{Target: 10}, 414},
		{http1.Limits{Fields: 1}, 431},
	} {
		var refused *http1.Error
		err := new(http1.Request).Parse([]byte(head), c.limits)
		if errors.As(err, &refused); err != nil && refused.Status != c.status || err == nil && c.status != 0 {
			t.Errorf("%+v: %v, want status %d", c.limits, err, c.status)
		}
	}
	limits := http1.Limits{Head: 100, Target: 20}
	for _, c := range []struct {
		begin  string
		status int
	}{
		{"", 0}, {"GET /0123456789012345678", 0}, {"GET /01234567890123456789", 414},
		{"GET / HTTP/1.1\r\nX: " + strings.Repeat("x", 80), 0}, {"GET / HTTP/1.1\r\nX: " + strings.Repeat("x", 81), 431},
	} {
		if got := limits.Exceeded([]byte(c.begin)); got == nil && c.status != 0 || got != nil && got.Status != c.status {
			t.Errorf("%q: %v, want status %d", c.begin, got, c.status)
		}
	}
}

func TestFindEnd_FindsTheEmptyLineByteByByte(t *testing.T) {
	for _, head := range []string{"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.1\nHost: a\n\n", "GET / HTTP/1.1\nHost: a\n\r\n", "G\r\r\nX\n\r\r\nY\r\n\r\n"} {
		next := 0
		for n := range len(head) {
			end := 0
			if end, next = http1.FindEnd([]byte(head[:n]), next); end != 0 {
				t.Fatalf("%q ends at %d", head[:n], end)
			}
		}
		if end, _ := http1.FindEnd([]byte(head+"more\r\n\r\n"), next); end != len(head) {
			t.Errorf("%q ends at %d, want %d", head, end, len(head))
		}
	}
	if n := http1.EmptyLines([]byte("\r\n\r\n\rGET")); n != 4 {
		t.Errorf("empty lines have %d bytes, want 4", n)
	}
}

func TestRequest_AllocatesNothing(t *testing.T) {
	var r http1.Request
	for _, head := range [][]byte{[]byte(curlHead), []byte(browserHead)} {
		if n := testing.AllocsPerRun(100, func() {
			if err := r.Parse(head, http1.Limits{Head: 64 << 10, Target: 8 << 10, Fields: 100}); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%v allocations for %.40q", n, head)
		}
	}
}

const (
	curlHead    = "GET / HTTP/1.1\r\nHost: hello.default.localhost:8080\r\nUser-Agent: curl/8.14.1\r\nAccept: */*\r\n\r\n"
	browserHead = "GET /static/app.js?v=3 HTTP/1.1\r\nHost: hello.example.com\r\nConnection: keep-alive\r\nCache-Control: max-age=0\r\n" +
		"sec-ch-ua: \"Chromium\";v=\"130\", \"Not?A_Brand\";v=\"99\"\r\nsec-ch-ua-mobile: ?0\r\nsec-ch-ua-platform: \"Linux\"\r\nUpgrade-Insecure-Requests: 1\r\n" +
		"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Safari/537.36\r\n" +
		"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8\r\nSec-Fetch-Site: none\r\n" +
		"Sec-Fetch-Mode: navigate\r\nSec-Fetch-User: ?1\r\nSec-Fetch-Dest: document\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n" +
		"Accept-Language: en-US,en;q=0.9\r\nCookie: session=0123456789abcdef0123456789abcdef; theme=dark\r\n\r\n"
	responseHead = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nDate: Sun, 22 Nov 2026 01:50:00 GMT\r\nContent-Length: 12\r\n\r\n"
)

func BenchmarkRequest(b *testing.B) {
	for _, c := range []struct{ name, head string }{{"curl", curlHead}, {"browser", browserHead}} {
		b.Run(c.name, func(b *testing.B) {
			var r http1.Request
			head := []byte(c.head)
			b.SetBytes(int64(len(head)))
			b.ReportAllocs()
			for b.Loop() {
				if end, _ := http1.FindEnd(head, 0); end != len(head) {
					b.Fatal(end)
				}
				if err := r.Parse(head, http1.Limits{Head: 64 << 10, Target: 8 << 10, Fields: 100}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkResponse(b *testing.B) {
	var r http1.Response
	head := []byte(responseHead)
	b.SetBytes(int64(len(head)))
	b.ReportAllocs()
	for b.Loop() {
		if end, _ := http1.FindEnd(head, 0); end != len(head) {
			b.Fatal(end)
		}
		if err := r.Parse(head); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkChunks(b *testing.B) {
	body := []byte("1000\r\n" + strings.Repeat("x", 0x1000) + "\r\n1000\r\n" + strings.Repeat("x", 0x1000) + "\r\n0\r\n\r\n")
	p := bytes.Clone(body)
	var c http1.Chunks
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		c.Reset()
		if _, _, done, err := c.Normalize(p, http1.Limits{}); !done || err != nil {
			b.Fatal(done, err)
		}
	}
}
