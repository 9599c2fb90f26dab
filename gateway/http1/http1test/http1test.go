// Package http1test is a corpus of requests that programs between a client and an instance are known to read in
// different ways, with what has to become of each. Tests of the parser and of the gateway go through the same cases.
package http1test

import (
	"bytes"
	"io"
	"net/http/httputil"
	"strings"

	"github.com/berth-run/berth/gateway/http1"
)

// Case is what a client sends on a new connection, and what comes of it.
type Case struct {
	Name string
	Sent string // all of it
	// Forwarded are the requests that an instance gets, in order. Each is answered, with 200.
	Forwarded []Request
	// Refused is the status of the last answer, to what is not forwarded, after which the connection is closed. Zero when
	// all is forwarded.
	Refused int
	// Closes tells that the connection is closed although nothing is refused. Where it is not set, and nothing is
	// refused, another request may follow.
	Closes bool
	// Absent must be in no head that an instance gets, in any case of letters.
	Absent []string
}

// Request is a request as an instance has to understand it.
type Request struct {
	Method, Target string
	Body           string // its data, without chunks
}

// Host is the host that the requests are for.
const Host = "hello.test"

// Smuggling returns the whole corpus.
func Smuggling() []Case {
	var all []Case
	for _, family := range [][]Case{lengths(), encodings(), both(), lines(), requestLines(), hosts(), chunks(), trailers(), connections(), sequences()} {
		all = append(all, family...)
	}
	return all
}

// request is the text of a request for Host, with fields and a body.
func request(line string, fields string, body string) string {
	return line + "\r\nHost: " + Host + "\r\n" + fields + "\r\n" + body
}

func get(fields string) string { return request("GET /first HTTP/1.1", fields, "") }

func post(fields, body string) string { return request("POST /first HTTP/1.1", fields, body) }

// inner is a request to a path that nobody may see asked for: it is what is smuggled.
const inner = "GET /smuggled HTTP/1.1\r\nHost: " + Host + "\r\n\r\n"

func refused(name string, status int, sent string) Case {
	return Case{Name: name, Sent: sent, Refused: status}
}

// passed is a case of one request.
func passed(name, sent, method, target, body string) Case {
	return Case{Name: name, Sent: sent, Forwarded: []Request{{method, target, body}}}
}

func (c Case) closing() Case { c.Closes = true; return c }

func (c Case) without(texts ...string) Case { c.Absent = texts; return c }

func many(text string, n int) string { return strings.Repeat(text, n) }

// Read reads the requests that a connection brings, all of it being b, with package http1. It tells whether the last one
// closes the connection. Its error is an *http1.Error, or io.ErrUnexpectedEOF where b ends within a request.
func Read(b []byte, limits http1.Limits) (requests []Request, closes bool, err error) {
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
		if string(r.Method) == "CONNECT" {
			return requests, true, &http1.Error{Status: 405, Text: "CONNECT is not taken."}
		}
		body, rest, err := readBody(b[end:], r.Body, limits)
		if err != nil {
			return requests, err != io.ErrUnexpectedEOF, err
		}
		requests = append(requests, Request{string(r.Method), string(r.Target), string(body)})
		if r.Close {
			return requests, true, nil
		}
		b = rest
	}
	return requests, false, nil
}

func readBody(b []byte, length int64, limits http1.Limits) (body, rest []byte, err error) {
	if length != http1.Chunked {
		if int64(len(b)) < length {
			return nil, nil, io.ErrUnexpectedEOF
		}
		return b[:length], b[length:], nil
	}
	var chunks http1.Chunks
	b = bytes.Clone(b) // which is rewritten
	out, consumed, done, err := chunks.Normalize(b, limits)
	if err != nil {
		return nil, nil, err
	}
	if !done {
		return nil, nil, io.ErrUnexpectedEOF
	}
	body, err = io.ReadAll(httputil.NewChunkedReader(bytes.NewReader(b[:out])))
	return body, b[consumed:], err
}
