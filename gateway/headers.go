package gateway

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/textproto"
	"strconv"
	"strings"
)

// origin is what the gateway tells an instance of where a request came from, and under which trace it runs
// (contract C31-C35, KM10, KS8-KS10).
type origin struct {
	address string // the client's IP address, without port
	proto   string // http or https
	trusted bool   // the client is a proxy whose own X-Forwarded-… fields count
	trace   traceContext
}

func (g *Gateway) origin(r *http.Request) origin {
	o := origin{proto: "http", trace: traceOf(r.Header)}
	if r.TLS != nil {
		o.proto = "https"
	}
	o.address, _, _ = net.SplitHostPort(r.RemoteAddr)
	if len(g.config.TrustForwarded) > 0 {
		if address, err := netip.ParseAddr(o.address); err == nil {
			o.trusted = containsAddr(g.config.TrustForwarded, address.Unmap())
		}
	}
	return o
}

// appendForwardedFor appends the value of X-Forwarded-For: the client, after what trusted proxies said.
func (o *origin) appendForwardedFor(b []byte, header http.Header) []byte {
	return append(o.appendBefore(b, header["X-Forwarded-For"]), o.address...)
}

// forwardedProto is the value of X-Forwarded-Proto.
func (o *origin) forwardedProto(header http.Header) string {
	if before := header["X-Forwarded-Proto"]; o.trusted && len(before) > 0 {
		return before[0]
	}
	return o.proto
}

// appendForwarded appends the value of Forwarded (RFC 7239).
func (o *origin) appendForwarded(b []byte, header http.Header) []byte {
	return o.appendElement(o.appendBefore(b, header["Forwarded"]))
}

// appendElement appends what Forwarded says of the client.
func (o *origin) appendElement(b []byte) []byte {
	b = append(b, "for="...)
	if strings.IndexByte(o.address, ':') >= 0 { // IPv6 needs brackets, and they need quotes
		b = append(append(append(b, `"[`...), o.address...), `]"`...)
	} else {
		b = append(b, o.address...)
	}
	return append(append(b, ";proto="...), o.proto...)
}

func (o *origin) appendBefore(b []byte, before []string) []byte {
	if o.trusted {
		for _, value := range before {
			b = append(append(b, value...), ", "...)
		}
	}
	return b
}

// stripped tells whether a field of a client's request does not reach the instance as the client sent it:
// hop-by-hop fields (RFC 9110, 7.6.1), those about the message's framing, and those that the gateway writes.
// What the Connection field names is beside these.
func (o *origin) stripped(key string) bool {
	switch key {
	case "Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings", "Content-Length", "Host", "Expect",
		"Forwarded", "X-Forwarded-For", "X-Forwarded-Proto", "Traceparent":
		return true
	case "X-Cloud-Trace-Context":
		return o.trace.made // written from the same ids as traceparent, then
	case "X-Forwarded-Host", "X-Forwarded-Port":
		return !o.trusted
	case "Tracestate":
		return o.trace.made // it belongs to a traceparent that was not there
	}
	return false
}

// originForm is a request's target as an instance gets it, which is not a proxy: of "http://host/path?query" what follows
// the host, byte for byte (RFC 9112, 3.2).
func originForm(method, target string) string {
	if strings.HasPrefix(target, "/") || target == "*" {
		return target
	}
	_, target, _ = strings.Cut(target, "://")
	at := strings.IndexAny(target, "/?")
	switch {
	case at < 0 && method == http.MethodOptions:
		return "*"
	case at < 0:
		return "/"
	case target[at] == '?':
		return "/" + target[at:]
	}
	return target[at:]
}

// connectionTokens are the fields, beyond the usual, that a Connection header names: they end here.
func connectionTokens(header http.Header) []string {
	var tokens []string
	for _, value := range header["Connection"] {
		if strings.EqualFold(value, "keep-alive") || strings.EqualFold(value, "close") {
			continue
		}
		for token := range strings.SplitSeq(value, ",") {
			if token = textproto.TrimString(token); token != "" {
				tokens = append(tokens, textproto.CanonicalMIMEHeaderKey(token))
			}
		}
	}
	return tokens
}

// upgradeOf is the protocol that a request asks to change to, or empty. A change to HTTP/2 is not passed on: what
// follows it would be requests that the gateway does not see. Nor is one that comes with a body.
func upgradeOf(r *http.Request) string {
	upgrade := r.Header["Upgrade"]
	if len(upgrade) != 1 || hasBody(r) || r.ProtoMajor != 1 || r.ProtoMinor != 1 || !isToken(strings.ReplaceAll(upgrade[0], "/", "")) {
		return ""
	}
	if strings.HasPrefix(strings.ToLower(upgrade[0]), "h2") {
		return ""
	}
	for _, token := range connectionTokens(r.Header) {
		if token == "Upgrade" {
			return upgrade[0]
		}
	}
	return ""
}

// expectsContinue tells whether the client waits for a word before it sends the body. An HTTP/1.0 client never does
// (RFC 9110, 10.1.1).
func expectsContinue(r *http.Request) bool {
	return hasBody(r) && r.ProtoAtLeast(1, 1) && strings.EqualFold(r.Header.Get("Expect"), "100-continue")
}

// acceptsTrailers tells whether the client said "TE: trailers", which gRPC asks for.
func acceptsTrailers(header http.Header) bool {
	for _, value := range header["Te"] {
		for token := range strings.SplitSeq(value, ",") {
			if strings.EqualFold(textproto.TrimString(token), "trailers") {
				return true
			}
		}
	}
	return false
}

// traceContext is the trace that a request belongs to, as W3C Trace Context has it.
type traceContext struct {
	trace [32]byte // lower-case hex
	span  [16]byte // lower-case hex
	flags [2]byte
	made  bool // there was no traceparent
}

// traceOf reads traceparent, else X-Cloud-Trace-Context, else begins a trace that is not sampled.
func traceOf(header http.Header) traceContext {
	one := func(key string) string {
		if v := header[key]; len(v) == 1 {
			return v[0]
		}
		return ""
	}
	return newTrace(one("Traceparent"), one("X-Cloud-Trace-Context"))
}

// newTrace is the trace that two fields tell of; they are empty where there is not exactly one.
func newTrace(traceparent, cloud string) traceContext {
	var t traceContext
	if t.parse(traceparent) {
		return t
	}
	t = traceContext{made: true, flags: [2]byte{'0', '0'}}
	if cloud != "" && t.parseCloud(cloud) {
		return t
	}
	var b [24]byte
	binary.BigEndian.PutUint64(b[0:], rand.Uint64()|1<<63) // never all zero, which is not a valid id
	binary.BigEndian.PutUint64(b[8:], rand.Uint64())
	binary.BigEndian.PutUint64(b[16:], rand.Uint64()|1<<63)
	hex.Encode(t.trace[:], b[:16])
	hex.Encode(t.span[:], b[16:])
	return t
}

// parse reads "00-<32 hex>-<16 hex>-<2 hex>". Later versions may have more after it.
func (t *traceContext) parse(s string) bool {
	if len(s) < 55 || s[2] != '-' || s[35] != '-' || s[52] != '-' || s[:2] == "ff" ||
		!isLowerHex(s[:2]) || !isLowerHex(s[3:35]) || !isLowerHex(s[36:52]) || !isLowerHex(s[53:55]) ||
		s[:2] == "00" && len(s) != 55 || len(s) > 55 && s[55] != '-' {
		return false
	}
	if strings.Trim(s[3:35], "0") == "" || strings.Trim(s[36:52], "0") == "" {
		return false
	}
	copy(t.trace[:], s[3:35])
	copy(t.span[:], s[36:52])
	copy(t.flags[:], s[53:55])
	return true
}

// parseCloud reads "<32 hex>/<decimal>;o=<0 or 1>"; the parts after the trace may be missing.
func (t *traceContext) parseCloud(s string) bool {
	s, options, _ := strings.Cut(s, ";")
	trace, span, _ := strings.Cut(s, "/")
	trace = strings.ToLower(trace)
	if len(trace) != 32 || !isLowerHex(trace) || strings.Trim(trace, "0") == "" {
		return false
	}
	id, err := strconv.ParseUint(span, 10, 64)
	if err != nil || id == 0 {
		id = rand.Uint64() | 1<<63
	}
	copy(t.trace[:], trace)
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], id)
	hex.Encode(t.span[:], b[:])
	if options == "o=1" {
		t.flags[1] = '1'
	}
	return true
}

// appendTraceparent appends the W3C form.
func (t *traceContext) appendTraceparent(b []byte) []byte {
	b = append(b, "00-"...)
	b = append(b, t.trace[:]...)
	b = append(b, '-')
	b = append(b, t.span[:]...)
	b = append(b, '-')
	return append(b, t.flags[:]...)
}

// appendCloud appends the form of X-Cloud-Trace-Context: the span is a decimal number there.
func (t *traceContext) appendCloud(b []byte) []byte {
	b = append(b, t.trace[:]...)
	b = append(b, '/')
	var span [8]byte
	hex.Decode(span[:], t.span[:])
	b = strconv.AppendUint(b, binary.BigEndian.Uint64(span[:]), 10)
	b = append(b, ";o="...)
	return append(b, '0'+(hexDigit(t.flags[1])&1))
}

func hexDigit(c byte) byte {
	if c >= 'a' {
		return c - 'a' + 10
	}
	return c - '0'
}

func isLowerHex(s string) bool {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
