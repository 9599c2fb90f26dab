package http1

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"net/netip"
)

const (
	each21 = 0x2121212121212121
	each23 = 0x2323232323232323
)

// endOfTarget returns the place of the first byte of b, from i on, that cannot be in a request target: a space, a
// control character, or the "#" of a fragment. Bytes beyond ASCII should be percent-encoded, but are often not; they
// mean nothing to framing and are passed on.
func endOfTarget(b []byte, i int) int {
	for ; i+8 <= len(b); i += 8 {
		w := binary.LittleEndian.Uint64(b[i:])
		found := ((w-each21)&^w | ((w^each7F)-each01)&^(w^each7F) | ((w^each23)-each01)&^(w^each23)) & each80
		if found != 0 {
			return i + bits.TrailingZeros64(found)/8
		}
	}
	for ; i < len(b); i++ {
		if c := b[i]; c <= ' ' || c == 0x7f || c == '#' {
			return i
		}
	}
	return i
}

// readTarget checks the target's form (RFC 9112, 3.2), makes absolute-form origin-form, and returns its authority.
func (r *Request) readTarget() (authority []byte, err *Error) {
	target := r.Target
	switch {
	case string(r.Method) == "CONNECT":
		if !validAuthority(target) {
			return nil, refuse(400, "The target of CONNECT is %q; send host:port.", cut(target))
		}
		return nil, nil
	case target[0] == '/':
		return nil, checkEscapes(target)
	case len(target) == 1 && target[0] == '*':
		if string(r.Method) != "OPTIONS" {
			return nil, refuse(400, "The target of the %q request is \"*\", which is for OPTIONS; send a path.", cut(r.Method))
		}
		return nil, nil
	}

	scheme, rest, ok := bytes.Cut(target, []byte("://"))
	if !ok || !equalFold(scheme, "http") && !equalFold(scheme, "https") {
		return nil, refuse(400, "The target %q is neither a path nor an http URL; send what begins with \"/\".", cut(target))
	}
	end := bytes.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	authority, path := rest[:end:end], rest[end:]
	if !validAuthority(authority) {
		return nil, badHost("The target's host", authority)
	}
	switch {
	case len(path) == 0 && string(r.Method) == "OPTIONS":
		path = []byte("*") // RFC 9112, 3.2.4
	case len(path) == 0:
		path = []byte("/")
	case path[0] == '?':
		path = append([]byte("/"), path...)
	}
	r.Target = path
	return authority, checkEscapes(path)
}

// checkEscapes refuses a path with a "%" that two hexadecimal digits do not follow: servers differ in what they make
// of it. The query is the program's own.
func checkEscapes(target []byte) *Error {
	first := bytes.IndexByte(target, '%')
	if first < 0 {
		return nil
	}
	path := target
	if query := bytes.IndexByte(target, '?'); query >= 0 {
		path = target[:query]
	}
	for i := first; i < len(path); i++ {
		if path[i] == '%' && (i+2 >= len(path) || hexDigit(path[i+1]) > 15 || hexDigit(path[i+2]) > 15) {
			return refuse(400, "The target %q has a \"%%\" without two hexadecimal digits after it; send %%25 for a percent sign.", cut(target))
		}
	}
	return nil
}

// setHost sets Host, which HTTP/1.1 wants exactly one of, and which an absolute-form target must agree with:
// who believes the target and who believes the field must come to the same service.
func (r *Request) setHost(authority, host []byte, hosts int) *Error {
	switch {
	case hosts > 1:
		return refuse(400, "There are %d Host fields; send one.", hosts)
	case hosts == 0 && r.Minor > 0:
		return refuse(400, "There is no Host field; HTTP/1.1 needs one (RFC 9112, 3.2).")
	case hosts > 0 && !validAuthority(host):
		return badHost("The Host field", host)
	case hosts > 0 && authority != nil && !bytes.EqualFold(authority, host):
		return refuse(400, "The target names the host %q and the Host field %q; send the same.", cut(authority), cut(host))
	}
	r.Host = host
	if authority != nil {
		r.Host = authority
	}
	return nil
}

func badHost(where string, host []byte) *Error {
	if len(host) == 0 {
		return refuse(400, "%s is empty; send the name of the service's host.", where)
	}
	return refuse(400, "%s is %q; send a host name of letters, digits, \"-\" and \".\", or an IP address, and after a colon a port.", where, cut(host))
}

// validAuthority tells whether b is a host, and perhaps a port: no user, no list, and no percent-encoding, which
// names of services do not need (RFC 3986, 3.2.2 allows more).
func validAuthority(b []byte) bool {
	i := 0
	if len(b) > 0 && b[0] == '[' { // an IPv6 address
		end := bytes.IndexByte(b, ']')
		if end < 0 || bytes.IndexByte(b[:end], '%') >= 0 { // a zone is of one machine
			return false
		}
		if address, err := netip.ParseAddr(string(b[1:end])); err != nil || !address.Is6() {
			return false
		}
		i = end + 1
	} else {
		for i < len(b) && classes[b[i]]&isHost != 0 {
			i++
		}
		if i == 0 {
			return false
		}
	}
	if i == len(b) {
		return true
	}
	if b[i] != ':' || len(b)-i > len(":65535") {
		return false
	}
	for _, c := range b[i+1:] {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

// hexDigit is the value of a hexadecimal digit, or more than 15.
func hexDigit(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 0xff
}
