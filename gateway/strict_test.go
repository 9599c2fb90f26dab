package gateway

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-run/berth/gateway/http1"
	"github.com/berth-run/berth/gateway/http1/http1test"
)

// pieces is a connection that brings bytes in pieces of these sizes, over and over.
type pieces struct {
	net.Conn
	rest  []byte
	sizes []byte // each one more than it says
	at    int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		return 0, io.EOF
	}
	size := 1 << 20
	if len(p.sizes) > 0 {
		size = int(p.sizes[p.at%len(p.sizes)]) + 1
		p.at++
	}
	n := copy(b[:min(size, len(b))], p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

var strictTestLimits = http1.Limits{Head: 64 << 10, Target: 16 << 10, Fields: 100}

// readStrict reads the requests of a strict connection with the standard library, to the first error.
func readStrict(b, sizes []byte) (requests []http1test.Request, err error) {
	j := New(Config{}).newJudge()
	reader := bufio.NewReader(newStrictConn(&pieces{rest: b, sizes: sizes}, j))
	for {
		if n := len(requests); n > 0 && requests[n-1].Method == http.MethodPost { // as the standard library's server does
			next, _ := reader.Peek(4)
			reader.Discard(len(next) - len(bytes.TrimLeft(next, "\r\n")))
		}
		if _, err := reader.Peek(1); err == io.EOF {
			return requests, nil
		}
		r, err := http.ReadRequest(reader)
		if err != nil {
			return requests, err
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return requests, err
		}
		if r.Method == http.MethodConnect {
			return requests, io.EOF
		}
		target := r.RequestURI
		if !strings.HasPrefix(target, "/") && target != "*" {
			target = targetPath(target)
		}
		requests = append(requests, http1test.Request{Method: r.Method, Target: target, Body: string(body)})
		if r.Close {
			return requests, nil
		}
	}
}

func TestStrictConn_LetsTheStandardLibraryReadNothingElse(t *testing.T) {
	for _, sizes := range [][]byte{nil, {0}, {2}, {6, 0, 1}, {13}, {100}} {
		for _, c := range http1test.Smuggling() {
			if c.Name == "an empty line before the request" && len(sizes) > 0 && sizes[0] == 0 {
				continue // refused when it comes in parts
			}
			requests, err := readStrict([]byte(c.Sent), sizes)
			if (err != nil) != (c.Refused != 0) {
				t.Errorf("%s, in pieces of %v: error %v, want status %d", c.Name, sizes, err, c.Refused)
			}
			if diff := cmp.Diff(c.Forwarded, requests); diff != "" {
				t.Errorf("%s, in pieces of %v: %s", c.Name, sizes, diff)
			}
		}
	}
}

func TestStrictConn_LeavesOtherProtocolsAlone(t *testing.T) {
	const upgrade = "GET / HTTP/1.1\r\nHost: hello.test\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
	const other = "\x00\n\n words \r\n\r\n of another protocol"
	for _, sizes := range [][]byte{nil, {0}, {6}} {
		c := newStrictConn(&pieces{rest: []byte(upgrade + other), sizes: sizes}, New(Config{}).newJudge())
		reader := bufio.NewReader(c)
		if _, err := http.ReadRequest(reader); err != nil {
			t.Fatal(err)
		}
		release(c)
		if got, err := io.ReadAll(reader); err != nil || string(got) != other {
			t.Errorf("got %q, error %v; want %q", got, err, other)
		}

		preface := "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + other
		c = newStrictConn(&pieces{rest: []byte(preface), sizes: sizes}, New(Config{}).newJudge())
		if got, err := io.ReadAll(c); err != nil || string(got) != preface {
			t.Errorf("got %q, error %v; want %q", got, err, preface)
		}
	}
}

// FuzzStrictConn looks for bytes in which the standard library sees a request that package http1 does not see behind
// the same bytes. It may see fewer.
func FuzzStrictConn(f *testing.F) {
	for i, c := range http1test.Smuggling() {
		if len(c.Sent) < 1000 {
			f.Add([]byte(c.Sent), []byte{byte(i % 50)})
		}
	}
	f.Fuzz(func(t *testing.T, b, sizes []byte) {
		if bytes.HasPrefix(b, []byte("PRI * HTTP/2.0\r\n\r\n")) {
			return // whatever follows is HTTP/2
		}
		got, err := readStrict(b, sizes)
		want, _, _ := http1test.Read(b, strictTestLimits)
		if len(got) > len(want) {
			t.Fatalf("%q: %d requests, want %d; then %v", b, len(got), len(want), err)
		}
		for i := range got {
			if got[i].Target == "/" && want[i].Target == "*" { // OPTIONS of an absolute target without a path
				got[i].Target = "*"
			}
		}
		if diff := cmp.Diff(want[:len(got):len(got)], got); diff != "" && len(got) > 0 {
			t.Fatalf("%q: %s", b, diff)
		}
	})
}
