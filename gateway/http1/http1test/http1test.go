// Package http1test is a corpus of requests that programs between a client and an instance are known to read in
// different ways, with what has to become of each. Tests of the parser and of the gateway go through the same cases.
package http1test

import "strings"

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
