package http1

import (
	"bytes"
	"encoding/binary"
	"math/bits"
)

// Kind says which of the fields that a gateway treats in a way of their own a field is.
type Kind uint8

// The kinds of fields.
const (
	KindOther  Kind = iota // passed on as it is
	KindListed             // named by a Connection field: it ends here

	// Framing and routing: a gateway writes its own.
	KindHost
	KindContentLength
	KindTransferEncoding

	// For the next recipient only (RFC 9110, 7.6.1).
	KindConnection
	KindExpect
	KindUpgrade
	KindTE
	KindTrailer
	KindKeepAlive
	KindProxyConnection
	KindProxyAuthenticate
	KindProxyAuthorization
	KindHTTP2Settings

	// Where a request came from, which a gateway adds to or overwrites.
	KindForwarded
	KindForwardedFor   // X-Forwarded-For
	KindForwardedProto // X-Forwarded-Proto
	KindForwardedHost  // X-Forwarded-Host
	KindForwardedPort  // X-Forwarded-Port
	KindTraceparent
	KindTracestate
	KindCloudTrace // X-Cloud-Trace-Context

	// Passed on, but looked at.
	KindCookie
	KindSetCookie
	KindCacheControl
	KindContentType
	KindDate
	KindAuthorization
	KindServerlessAuthorization // X-Serverless-Authorization
)

// Field is one field of a head.
type Field struct {
	Kind  Kind
	Name  []byte // as it was sent
	Value []byte // without blanks around it
	Line  []byte // "Name: Value\r\n" as it was sent; nil when it must not be passed on so
}

// endsHere tells whether a field of this kind is not passed on as it was sent.
func (k Kind) endsHere() bool { return KindListed <= k && k <= KindHTTP2Settings }

// Classes of bytes.
const (
	isToken      = 1 << iota // may be in a method or in a field's name
	isUnderscore             // some servers read it as '-'
	isHost                   // may be in the name of a host
)

// classes has the classes of each byte.
var classes = func() (table [256]byte) {
	for c := byte('0'); c <= '9'; c++ {
		table[c] = isToken | isHost
	}
	for c := byte('a'); c <= 'z'; c++ {
		table[c] = isToken | isHost
		table[c-'a'+'A'] = isToken | isHost
	}
	for _, c := range []byte("!#$%&'*+`|^") {
		table[c] = isToken
	}
	for _, c := range []byte("-.~") {
		table[c] = isToken | isHost
	}
	table['_'] = isToken | isHost | isUnderscore
	return table
}()

// Each byte of a word.
const (
	each01 = 0x0101010101010101
	each20 = 0x2020202020202020
	each7F = 0x7f7f7f7f7f7f7f7f
	each80 = 0x8080808080808080
)

// endOfText returns the place of the first byte of b, from i on, that cannot be in a field's value or a reason: a
// control character other than a tab (RFC 9110, 5.5). In a head there is one: the end of the line.
func endOfText(b []byte, i int) int {
	for i+8 <= len(b) {
		w := binary.LittleEndian.Uint64(b[i:])
		// Bytes below 0x20, and those that are 0x7f. The lowest that is found is one; those above it may not be.
		found := ((w-each20)&^w | ((w^each7F)-each01)&^(w^each7F)) & each80
		if found == 0 {
			i += 8
			continue
		}
		i += bits.TrailingZeros64(found) / 8
		if b[i] != '\t' {
			return i
		}
		i++
	}
	for ; i < len(b); i++ {
		if c := b[i]; c < ' ' && c != '\t' || c == 0x7f {
			return i
		}
	}
	return i
}

// readField reads the line of a field, at i in head, into f. It returns the begin of the next line, which is 0 when
// the line is the empty one at the end of a head. Where bareLF is allowed a line may end with LF alone, as lenient
// instances send it.
func readField(head []byte, i int, f *Field, bareLF bool) (next int, err *Error) {
	begin := i
	classified := byte(0)
	for _, c := range head[begin:] {
		class := classes[c]
		if class&isToken == 0 {
			break
		}
		classified |= class
		i++
	}
	if i == len(head) || head[i] != ':' || i == begin {
		return badName(head, begin, i, bareLF)
	}
	name := head[begin:i]
	i++
	for i < len(head) && (head[i] == ' ' || head[i] == '\t') {
		i++
	}
	from := i
	i = endOfText(head, i)
	to := i
	switch {
	case i+1 < len(head) && head[i] == '\r' && head[i+1] == '\n':
		i += 2
		f.Line = head[begin:i:i]
	case bareLF && i < len(head) && head[i] == '\n':
		i++
		f.Line = nil // to be written anew
	default:
		return 0, badValue(head, name, i)
	}
	for to > from && (head[to-1] == ' ' || head[to-1] == '\t') {
		to--
	}
	f.Name, f.Value = name, head[from:to:to]
	f.Kind = kindOf(name)
	if f.Kind.endsHere() {
		f.Line = nil
	}
	if classified&isUnderscore != 0 {
		if err := checkUnderscores(name); err != nil {
			return 0, err
		}
	}
	return i, nil
}

// badName reads a line that does not begin with a name and a colon: it is the empty one, or there is an error.
func badName(head []byte, begin, i int, bareLF bool) (int, *Error) {
	line, _, found := bytes.Cut(head[begin:], crlf[1:])
	switch {
	case !found:
		return 0, refuse(400, "The header ends without an empty line: its last is %q.", cut(line))
	case string(line) == "\r", len(line) == 0 && bareLF:
		if begin+len(line)+1 < len(head) {
			return 0, refuse(400, "The header has an empty line before its end.")
		}
		return 0, nil
	case len(line) == 0:
		return 0, refuse(400, "The header ends with LF alone; end each line with CRLF.")
	}
	line = bytes.TrimSuffix(line, crlf[:1])
	switch {
	case i == begin && len(line) == 0:
		return 0, refuse(400, "The header has a line that is empty but for two CR; end it with CRLF.")
	case i == begin && (line[0] == ' ' || line[0] == '\t'):
		return 0, refuse(400, "The header line %q begins with a blank: folded lines are obsolete (RFC 9112, 5.2); send each field on one line.", cut(line))
	case i == begin && line[0] == ':':
		return 0, refuse(400, "The header line %q has no name before its colon.", cut(line))
	case head[i] == ' ' || head[i] == '\t':
		return 0, refuse(400, "The header line %q has a blank after its name; put the colon right behind the name (RFC 9112, 5.1).", cut(line))
	case head[i] != '\r' && head[i] != '\n':
		return 0, refuse(400, "The header line %q has the byte %#02x in its name; names have letters, digits and \"-\".", cut(line), head[i])
	}
	return 0, refuse(400, "The header line %q has no colon; send \"Name: value\".", cut(line))
}

func badValue(head, name []byte, i int) *Error {
	switch {
	case i == len(head):
		return refuse(400, "The header ends within the field %q.", cut(name))
	case head[i] == '\n':
		return refuse(400, "The line of the field %q ends with LF alone; end each line with CRLF.", cut(name))
	}
	return refuse(400, "The value of the field %q has the byte %#02x; values have no control characters.", cut(name), head[i])
}

// checkUnderscores refuses a name such as "Content_Length". Servers that hand fields to programs as variables (RFC
// 3875, 4.1.18) make one name of it and of the one with "-", which decides on framing or on who the client is.
func checkUnderscores(name []byte) *Error {
	if len(name) > len("x-serverless-authorization") {
		return nil // longer than any known
	}
	var dashed [len("x-serverless-authorization")]byte
	n := copy(dashed[:], name)
	for i := range n {
		if dashed[i] == '_' {
			dashed[i] = '-'
		}
	}
	switch k := kindOf(dashed[:n]); {
	case k == KindOther, k >= KindCookie && k != KindAuthorization && k != KindServerlessAuthorization:
		return nil
	}
	return refuse(400, "The field %q is read as %q by some servers; leave it away.", cut(name), dashed[:n])
}

// kindOf tells the kind of a field by its name.
func kindOf(name []byte) Kind {
	switch len(name) {
	case 2:
		return is(name, "te", KindTE)
	case 4:
		if k := is(name, "host", KindHost); k != KindOther {
			return k
		}
		return is(name, "date", KindDate)
	case 6:
		if k := is(name, "cookie", KindCookie); k != KindOther {
			return k
		}
		return is(name, "expect", KindExpect)
	case 7:
		if k := is(name, "upgrade", KindUpgrade); k != KindOther {
			return k
		}
		return is(name, "trailer", KindTrailer)
	case 9:
		return is(name, "forwarded", KindForwarded)
	case 10:
		switch name[0] | 0x20 {
		case 'c':
			return is(name, "connection", KindConnection)
		case 'k':
			return is(name, "keep-alive", KindKeepAlive)
		case 's':
			return is(name, "set-cookie", KindSetCookie)
		case 't':
			return is(name, "tracestate", KindTracestate)
		}
	case 11:
		return is(name, "traceparent", KindTraceparent)
	case 12:
		return is(name, "content-type", KindContentType)
	case 13:
		if k := is(name, "cache-control", KindCacheControl); k != KindOther {
			return k
		}
		return is(name, "authorization", KindAuthorization)
	case 14:
		if k := is(name, "content-length", KindContentLength); k != KindOther {
			return k
		}
		return is(name, "http2-settings", KindHTTP2Settings)
	case 15:
		return is(name, "x-forwarded-for", KindForwardedFor)
	case 16:
		switch name[12] | 0x20 {
		case 'h':
			return is(name, "x-forwarded-host", KindForwardedHost)
		case 'p':
			return is(name, "x-forwarded-port", KindForwardedPort)
		case 't':
			return is(name, "proxy-connection", KindProxyConnection)
		}
	case 17:
		switch name[0] | 0x20 {
		case 't':
			return is(name, "transfer-encoding", KindTransferEncoding)
		case 'x':
			return is(name, "x-forwarded-proto", KindForwardedProto)
		}
	case 18:
		return is(name, "proxy-authenticate", KindProxyAuthenticate)
	case 19:
		return is(name, "proxy-authorization", KindProxyAuthorization)
	case 21:
		return is(name, "x-cloud-trace-context", KindCloudTrace)
	case 26:
		return is(name, "x-serverless-authorization", KindServerlessAuthorization)
	}
	return KindOther
}

func is(name []byte, known string, kind Kind) Kind {
	if equalFold(name, known) {
		return kind
	}
	return KindOther
}

// equalFold tells whether b, of bytes that are visible, is known, which is lower-case, but for the case of letters.
func equalFold(b []byte, known string) bool {
	if len(b) != len(known) {
		return false
	}
	for i := range b {
		if c := b[i]; c|0x20 != known[i] || c < ' ' {
			return false
		}
	}
	return true
}

// listItem cuts the next item off a comma-separated list, without blanks around it. Empty ones are allowed (RFC
// 9110, 5.6.1).
func listItem(list []byte) (item, rest []byte) {
	item, rest, _ = bytes.Cut(list, comma)
	for len(item) > 0 && (item[0] == ' ' || item[0] == '\t') {
		item = item[1:]
	}
	for len(item) > 0 && (item[len(item)-1] == ' ' || item[len(item)-1] == '\t') {
		item = item[:len(item)-1]
	}
	return item, rest
}

var comma = []byte(",")

// maxListed bounds how many fields a Connection field may name, beside those that end here in any case: each
// is searched among all fields.
const maxListed = 32

// connection is what the Connection fields of a message say.
type connection struct {
	close, keepAlive, upgrade bool
	listed                    int // names of fields that do not end here in any case
}

func (c *connection) read(value []byte) *Error {
	for len(value) > 0 {
		var item []byte
		item, value = listItem(value)
		switch {
		case len(item) == 0:
		case equalFold(item, "close"):
			c.close = true
		case equalFold(item, "keep-alive"):
			c.keepAlive = true
		case equalFold(item, "upgrade"):
			c.upgrade = true
		case kindOf(item) == KindOther || kindOf(item) >= KindForwarded:
			if c.listed++; c.listed > maxListed {
				return refuse(400, "The Connection field names more than %d fields; the last is %q.", maxListed, cut(item))
			}
		}
	}
	return nil
}

// markListed gives KindListed to the fields that a Connection field names. Framing stays what it is whatever is
// named, and so does what tells where a request came from: a client cannot have that left away.
func markListed(fields []Field) {
	for i := range fields {
		if fields[i].Kind != KindConnection {
			continue
		}
		for value := fields[i].Value; len(value) > 0; {
			var item []byte
			item, value = listItem(value)
			if len(item) == 0 || kindOf(item).endsHere() || equalFold(item, "close") {
				continue
			}
			for j := range fields {
				f := &fields[j]
				if (f.Kind == KindOther || f.Kind >= KindCookie) && bytes.EqualFold(f.Name, item) {
					f.Kind, f.Line = KindListed, nil
				}
			}
		}
	}
}

// readLength reads a Content-Length: digits alone. A sign, a list of lengths, even of equal ones, or a number with a
// prefix would be one length to some and another one to others.
func readLength(value []byte) (int64, bool) {
	const maxDigits = 18 // of a number that fits
	if len(value) == 0 || len(value) > maxDigits {
		return 0, false
	}
	n := int64(0)
	for _, c := range value {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = 10*n + int64(c-'0')
	}
	return n, true
}

// isProtocol tells whether value is one protocol of an Upgrade field: "name" or "name/version".
func isProtocol(value []byte) bool {
	slashes := 0
	for i, c := range value {
		switch {
		case c == '/' && i > 0 && i < len(value)-1:
			slashes++
		case classes[c]&isToken == 0:
			return false
		}
	}
	return len(value) > 0 && slashes <= 1
}

// reuse returns fields, emptied. What one message with many fields needed is not kept.
func reuse(fields []Field) []Field {
	const keep = 128
	if cap(fields) > keep {
		return nil
	}
	return fields[:0]
}

// extend appends a field and returns it.
func extend(fields []Field) ([]Field, *Field) {
	if len(fields) < cap(fields) {
		fields = fields[:len(fields)+1]
	} else {
		fields = append(fields, Field{})
	}
	return fields, &fields[len(fields)-1]
}
