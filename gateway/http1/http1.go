// Package http1 reads what arrives on an HTTP/1.x connection: heads of requests and responses, and chunked bodies
// (RFC 9110, RFC 9112). It works in place and allocates nothing for a message that is in order: what it returns
// are parts of the bytes it was given, good for as long as they stay.
//
// It decides how a message is framed, and refuses each request that anyone behind it could read in another way
// (RFC 9112, 11.2). It does no I/O and knows nothing of services: what is done with a message is package gateway's.
// Start reading at [Request.Parse]; field.go reads a line, chunks.go a body.
package http1

import (
	"bytes"
	"fmt"
)

// Limits bound what a stranger may send. Zero is no limit.
type Limits struct {
	Head   int // bytes of a head, with the empty line at its end; also of a trailer
	Target int // bytes of the request target
	Fields int // number of fields in a head, beside Host, or in a trailer
}

// Lengths of bodies beside plain numbers of bytes.
const (
	Chunked    = -1 // in chunks, as [Chunks] reads them
	UntilClose = -2 // to the end of the connection; responses only
)

// Error is what is wrong with a message. The connection is of no more use: where the message ends is not known.
type Error struct {
	Status int    // that a client is answered with: 400, 414, 417, 431, 501 or 505
	Text   string // a sentence or two for the client: what was seen, quoted and cut, and what to do
}

// Error returns the text.
func (e *Error) Error() string { return e.Text }

func refuse(status int, format string, args ...any) *Error {
	return &Error{status, fmt.Sprintf(format, args...)}
}

// cut is the part of what was seen that an error quotes.
func cut(b []byte) []byte { return b[:min(len(b), 80)] }

// FindEnd returns the length of the head at the begin of b, up to and with its empty line, or 0 when that is not
// there yet. Then next is the place to search on from, once more has been appended to b: a head that comes byte
// by byte costs no more than its length.
//
// A line that ends with LF alone also ends the head when it is empty: it is for Parse to refuse, at once and not
// when the client has waited long enough for an answer.
func FindEnd(b []byte, from int) (end, next int) {
	for i := from; ; {
		n := bytes.IndexByte(b[i:], '\n')
		if n < 0 {
			return 0, len(b)
		}
		i += n + 1
		switch rest := b[i:]; {
		case len(rest) > 0 && rest[0] == '\n':
			return i + 1, 0
		case len(rest) > 1 && rest[0] == '\r' && rest[1] == '\n':
			return i + 2, 0
		case len(rest) == 0 || len(rest) == 1 && rest[0] == '\r':
			return 0, i - 1 // the empty line may be beginning here
		}
	}
}

// EmptyLines is how many bytes of empty lines (CRLF) b begins with. They are no part of a request that follows
// them (RFC 9112, 2.2).
func EmptyLines(b []byte) int {
	n := 0
	for len(b)-n >= 2 && b[n] == '\r' && b[n+1] == '\n' {
		n += 2
	}
	return n
}

// Exceeded tells what is wrong with the begin of a request whose end is not there yet, or nil while there is room
// for more.
func (l Limits) Exceeded(begin []byte) *Error {
	line, _, _ := bytes.Cut(begin[:min(len(begin), maxMethod+2+l.Target)], crlf[1:])
	if method, target, ok := bytes.Cut(line, space); ok && l.Target > 0 {
		target, _, _ = bytes.Cut(target, space)
		if len(target) > l.Target {
			return targetTooLong(target, l, method)
		}
	}
	if l.Head > 0 && len(begin) >= l.Head {
		return headTooLong(l)
	}
	return nil
}

// maxMethod bounds how far a target is searched for; the longest registered method has 17 bytes.
const maxMethod = 64

var (
	crlf  = []byte("\r\n")
	space = []byte(" ")
)

func headTooLong(l Limits) *Error {
	return refuse(431, "The request's line and header are longer than %d bytes; send fewer or shorter fields.", l.Head)
}

func targetTooLong(target []byte, l Limits, method []byte) *Error {
	return refuse(414, "The target of the %.20q request is longer than %d bytes: it begins with %q; send what is long in the body.",
		method, l.Target, cut(target))
}
