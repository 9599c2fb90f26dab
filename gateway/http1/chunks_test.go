package http1_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/berth-run/berth/gateway/http1"
)

// normalize gives a body to Chunks in pieces of as many bytes as split says, over and over, with what was not consumed
// before each. It returns what is passed on and what is left.
func normalize(body []byte, limits http1.Limits, split func() int) (out, rest []byte, done bool, err error) {
	var c http1.Chunks
	var held []byte
	for {
		n := min(len(body), split())
		held = append(bytes.Clone(held), body[:n]...)
		body = body[n:]
		size, consumed, done, err := c.Normalize(held, limits)
		if err != nil {
			return out, nil, false, err
		}
		if size > consumed {
			panic("more is passed on than was consumed")
		}
		out = append(out, held[:size]...)
		held = held[consumed:]
		if done || len(body) == 0 {
			return out, append(held, body...), done, nil
		}
	}
}

func whole() int        { return 1 << 20 }
func byteByByte() int   { return 1 }
func threeByThree() int { return 3 }

func TestChunks_PassesOnOneUnambiguousForm(t *testing.T) {
	for _, c := range []struct{ body, out, rest string }{
		{"0\r\n\r\n", "0\r\n\r\n", ""},
		{"5\r\nhello\r\n0\r\n\r\nGET /", "5\r\nhello\r\n0\r\n\r\n", "GET /"},
		{"0005\r\nhello\r\n000\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n", ""},
		{"a;x=\"y\" \r\n0123456789\r\n0;last\r\n\r\n", "a\r\n0123456789\r\n0\r\n\r\n", ""},
		{"5  \r\nhello\r\n0 ;x\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n", ""},
		{"2\r\n\r\n\r\n0\r\n\r\n", "2\r\n\r\n\r\n0\r\n\r\n", ""},
		{"1\r\na\r\n0\r\nGrpc-Status: 0\r\nX-A:b \r\n\r\nmore", "1\r\na\r\n0\r\nGrpc-Status: 0\r\nX-A:b \r\n\r\n", "more"},
		{"0\r\nHost: evil\r\nX-A: a\r\ncontent-LENGTH: 5\r\nTransfer-Encoding: chunked\r\nConnection: close\r\nX-Forwarded-For: 1\r\nRange: a\r\nAuthorization: b\r\nX-B: b\r\n\r\n",
			"0\r\nX-A: a\r\nX-B: b\r\n\r\n", ""},
	} {
		for _, split := range []func() int{whole, byteByByte, threeByThree} {
			out, rest, done, err := normalize([]byte(c.body), http1.Limits{Head: 1000, Fields: 20}, split)
			if err != nil || !done || string(out) != c.out || string(rest) != c.rest {
				t.Errorf("%q: %q and rest %q, done %v, error %v; want %q and rest %q", c.body, out, rest, done, err, c.out, c.rest)
			}
		}
	}
}

func TestChunks_PassesOnDataBeforeTheChunkIsComplete(t *testing.T) {
	out, rest, done, err := normalize([]byte("64;x\r\nabc"), http1.Limits{}, whole)
	if err != nil || done || string(out) != "64\r\nabc" || len(rest) != 0 {
		t.Errorf("%q and rest %q, done %v, error %v", out, rest, done, err)
	}
}

func TestChunks_RefusesWhatIsAmbiguous(t *testing.T) {
	for _, c := range []struct {
		body   string
		status int
	}{
		{"\r\n", 400}, {"\n", 400}, {";\r\n", 400}, {" 5\r\nhello\r\n", 400}, {"\t5\r\n", 400}, {"+5\r\nhello\r\n", 400}, {"-5\r\n", 400}, {"0x5\r\nhello\r\n", 400},
		{"x\r\n", 400}, {"5x\r\nhello\r\n", 400}, {"5 x\r\nhello\r\n", 400}, {"5,5\r\nhello\r\n", 400}, {"5\nhello\r\n", 400}, {"5\rhello\r\n", 400}, {"5;a\nhello\r\n", 400},
		{"5;a\rb\r\nhello\r\n", 400}, {"5;a\x00b\r\nhello\r\n", 400}, {"5\x00\r\nhello\r\n", 400}, {"8000000000000000\r\n", 400}, {"ffffffffffffffff\r\n", 400},
		{"10000000000000005\r\n", 400}, {"00000000000000005\r\nhello\r\n", 400},
		{"5\r\nhello!\r\n", 400}, {"5\r\nhello\n0\r\n\r\n", 400}, {"5\r\nhello\rX", 400}, {"5\r\nhell\r\n0\r\n\r\n", 400}, {"5\r\nhello0\r\n\r\n", 400},
		{"0\r\n\n", 400}, {"0\r\n\rX", 400}, {"0\r\nX: a\n\r\n", 400}, {"0\r\nX : a\r\n\r\n", 400}, {"0\r\n X: a\r\n\r\n", 400}, {"0\r\nX\r\n\r\n", 400},
		{"0\r\nX: a\r\n b\r\n\r\n", 400}, {"0\r\nX: a\x00\r\n\r\n", 400}, {"0\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400}, {"0\r\nContent_Length: 5\r\n\r\n", 400},
		{"5;" + strings.Repeat("x", 5000) + "\r\nhello\r\n", 400}, {"5;" + strings.Repeat("x", 5000), 400},
		{strings.Repeat("1;"+strings.Repeat("x", 1000)+"\r\na\r\n", 30), 400},
		{"0\r\nX: " + strings.Repeat("x", 1000) + "\r\n\r\n", 431}, {"0\r\nX: " + strings.Repeat("x", 1000), 431}, {"0\r\n" + strings.Repeat("X: a\r\n", 21) + "\r\n", 431},
	} {
		for _, split := range []func() int{whole, byteByByte, threeByThree} {
			var refused *http1.Error
			_, _, _, err := normalize([]byte(c.body), http1.Limits{Head: 1000, Fields: 20}, split)
			if !errors.As(err, &refused) || refused.Status != c.status {
				t.Errorf("%.100q: %v, want status %d", c.body, err, c.status)
			}
		}
	}
}

func TestChunks_TakesManySmallChunks(t *testing.T) {
	body := strings.Repeat("1\r\na\r\n", 100_000) + "0\r\n\r\n"
	out, _, done, err := normalize([]byte(body), http1.Limits{}, func() int { return 4096 })
	if err != nil || !done || string(out) != body {
		t.Errorf("%d bytes, done %v, error %v", len(out), done, err)
	}
}
