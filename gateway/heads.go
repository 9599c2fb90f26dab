package gateway

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"github.com/berth-run/berth/gateway/http1"
)

// view is b as a string, without copying it. It is good only for as long as b is not written to: for a look at it, never
// to be kept.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// passedUpgrade is the protocol that a request asks to change to, or empty: "h2c" for HTTP/2, which ends here, and
// otherwise one that is the instance's to change to. One that comes with a body is not.
func passedUpgrade(r *http1.Request) string {
	if len(r.Upgrade) == 0 || r.Body != 0 {
		return ""
	}
	upgrade := view(r.Upgrade)
	if strings.EqualFold(upgrade, "h2c") {
		return "h2c"
	}
	if len(upgrade) >= 2 && strings.EqualFold(upgrade[:2], "h2") {
		return ""
	}
	return upgrade
}

// writeHead makes the request's head as the instance gets it.
func (c *client) writeHead(r *http1.Request, upgrade string) {
	x := &c.relay
	x.trace = traceOfFields(r.Fields)
	o := origin{address: c.address, proto: "http", trusted: c.trusted, trace: x.trace}
	x.method, x.target, x.host = len(r.Method), len(r.Target), len(r.Host)
	b := append(append(x.head[:0], r.Method...), ' ')
	b = append(append(b, r.Target...), headHost...)
	b = append(append(b, r.Host...), "\r\n"...)

	trailer := false
	cloudTrace := false
	var before forwarded // what trusted proxies said
	for i := range r.Fields {
		f := &r.Fields[i]
		switch f.Kind {
		case http1.KindListed, http1.KindHost, http1.KindContentLength, http1.KindTransferEncoding, http1.KindConnection,
			http1.KindExpect, http1.KindUpgrade, http1.KindTE, http1.KindKeepAlive, http1.KindProxyConnection,
			http1.KindProxyAuthenticate, http1.KindProxyAuthorization, http1.KindHTTP2Settings, http1.KindTraceparent:
			continue
		case http1.KindTrailer:
			trailer = r.Body == http1.Chunked
			if !trailer {
				continue
			}
		case http1.KindForwarded, http1.KindForwardedFor, http1.KindForwardedProto:
			if c.trusted {
				before.add(f)
			}
			continue
		case http1.KindForwardedHost, http1.KindForwardedPort:
			if !c.trusted {
				continue
			}
		case http1.KindTracestate:
			if x.trace.made {
				continue
			}
		case http1.KindCloudTrace:
			if x.trace.made {
				continue
			}
			cloudTrace = true
		}
		if f.Line != nil {
			b = append(b, f.Line...)
		} else {
			b = appendLine(b, view(f.Name), view(f.Value))
		}
	}

	if upgrade != "" {
		b = append(b, "Connection: Upgrade\r\nUpgrade: "...)
		b = append(append(b, upgrade...), "\r\n"...)
	}
	if r.Trailers {
		b = append(b, "Te: trailers\r\n"...)
	}
	switch {
	case r.Body == http1.Chunked:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	case r.Body > 0:
		b = append(b, "Content-Length: "...)
		b = append(strconv.AppendInt(b, r.Body, 10), "\r\n"...)
	case string(r.Method) == http.MethodPost || string(r.Method) == http.MethodPut || string(r.Method) == http.MethodPatch:
		b = append(b, "Content-Length: 0\r\n"...)
	}
	if r.Continue {
		b = append(b, "Expect: 100-continue\r\n"...)
	}
	x.head = append(o.appendFields(b, &before, cloudTrace), "\r\n"...)
}

const headHost = " HTTP/1.1\r\nHost: "

// forwarded are the values of the X-Forwarded-… and Forwarded fields of a request, each list joined.
type forwarded struct{ by, of, proto []byte }

func (v *forwarded) add(f *http1.Field) {
	list := &v.of
	switch f.Kind {
	case http1.KindForwarded:
		list = &v.by
	case http1.KindForwardedProto:
		if v.proto == nil {
			v.proto = f.Value
		}
		return
	}
	*list = append(append(*list, f.Value...), ", "...)
}

// protocol is what the client of a request speaks: what a trusted proxy says, else http.
func (c *client) protocol(r *http1.Request) string {
	if c.trusted {
		for i := range r.Fields {
			if f := &r.Fields[i]; f.Kind == http1.KindForwardedProto {
				if string(f.Value) == "https" {
					return "https"
				}
				break
			}
		}
	}
	return "http"
}

// affinityOfFields is affinityOf for a request on a loop.
func affinityOfFields(fields []http1.Field) affinity {
	for i := range fields {
		if fields[i].Kind == http1.KindCookie {
			if found := affinityIn(view(fields[i].Value)); found != (affinity{}) {
				return found
			}
		}
	}
	return affinity{}
}

// newAffinity is where the client is to come back to; false when it does already, or when there is no affinity.
func (c *client) newAffinity() (affinity, bool) {
	x := &c.relay
	if x.activator.mark == 0 || x.member == nil {
		return affinity{}, false
	}
	served := affinity{x.activator.mark, x.member.mark}
	return served, served != x.affinity
}

// appendFields appends the fields that tell an instance where a request came from (contract C31-C35).
func (o *origin) appendFields(b []byte, before *forwarded, cloudTrace bool) []byte {
	b = append(append(append(b, "X-Forwarded-For: "...), before.of...), o.address...)
	b = append(append(b, "\r\nForwarded: "...), before.by...)
	b = o.appendElement(b)
	b = append(b, "\r\nX-Forwarded-Proto: "...)
	if before.proto != nil {
		b = append(b, before.proto...)
	} else {
		b = append(b, o.proto...)
	}
	b = append(b, "\r\nTraceparent: "...)
	b = append(o.trace.appendTraceparent(b), "\r\n"...)
	if !cloudTrace {
		b = append(b, "X-Cloud-Trace-Context: "...)
		b = append(o.trace.appendCloud(b), "\r\n"...)
	}
	return b
}

// traceOfFields is traceOf for a request on a loop.
func traceOfFields(fields []http1.Field) traceContext {
	var parent, cloud []byte
	parents, clouds := 0, 0
	for i := range fields {
		switch fields[i].Kind {
		case http1.KindTraceparent:
			parent = fields[i].Value
			parents++
		case http1.KindCloudTrace:
			cloud = fields[i].Value
			clouds++
		}
	}
	if parents != 1 {
		parent = nil
	}
	if clouds != 1 {
		cloud = nil
	}
	return newTrace(view(parent), view(cloud))
}

// appendHead appends the response's head as the client gets it. none says that no body follows, whatever the fields say.
func (c *client) appendHead(b []byte, r *http1.Response, none bool) []byte {
	private := false
	if c.loop.gateway.config.PrivateCookies {
		_, private = c.newAffinity()
		for i := range r.Fields {
			private = private || r.Fields[i].Kind == http1.KindSetCookie
		}
	}
	b = appendStatus(b, r)
	length := false
	for i := range r.Fields {
		f := &r.Fields[i]
		switch f.Kind {
		case http1.KindContentLength:
			if r.Body < 0 || length || r.Status == http.StatusNoContent { // which has none (RFC 9110, 8.6)
				continue
			}
			length = true
		case http1.KindCacheControl:
			if private {
				continue
			}
		case http1.KindTrailer:
			if r.Body != http1.Chunked {
				continue
			}
		default:
			if endsHere(f.Kind) {
				continue
			}
		}
		b = appendFieldLine(b, f)
	}
	if served, ok := c.newAffinity(); ok {
		b = appendLine(b, "Set-Cookie", served.setCookie(c.relay.proto))
	}
	b = c.appendTiming(b)
	if private {
		b = append(b, "Cache-Control: private\r\n"...)
	}
	if r.Body < 0 && (!none || c.relay.isHead && r.Body == http1.Chunked) { // to HEAD what GET would get
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	}
	if c.last {
		b = append(b, "Connection: close\r\n"...)
	}
	return append(b, "\r\n"...)
}

func appendFieldLine(b []byte, f *http1.Field) []byte {
	if f.Line != nil {
		return append(b, f.Line...)
	}
	return appendLine(b, view(f.Name), view(f.Value))
}

// endsHere tells whether a field of a response is for the gateway only (RFC 9110, 7.6.1).
func endsHere(kind http1.Kind) bool {
	switch kind {
	case http1.KindListed, http1.KindConnection, http1.KindKeepAlive, http1.KindProxyConnection, http1.KindProxyAuthenticate,
		http1.KindTE, http1.KindUpgrade, http1.KindTransferEncoding:
		return true
	}
	return false
}

func appendStatus(b []byte, r *http1.Response) []byte {
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(r.Status), 10)
	b = append(append(b, ' '), r.Reason...)
	return append(b, "\r\n"...)
}

// appendInterim appends the head of a response before the final one.
func appendInterim(b []byte, r *http1.Response) []byte {
	b = appendStatus(b, r)
	for i := range r.Fields {
		if f := &r.Fields[i]; !endsHere(f.Kind) && f.Kind != http1.KindContentLength && f.Kind != http1.KindTrailer {
			b = appendFieldLine(b, f)
		}
	}
	return append(b, "\r\n"...)
}

// appendSwitch appends the head of a 101.
func (c *client) appendSwitch(b []byte, r *http1.Response) []byte {
	b = append(b, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"...)
	b = appendLine(b, "Upgrade", view(r.Upgrade))
	for i := range r.Fields {
		if f := &r.Fields[i]; !endsHere(f.Kind) && f.Kind != http1.KindContentLength {
			b = appendFieldLine(b, f)
		}
	}
	if served, ok := c.newAffinity(); ok {
		b = appendLine(b, "Set-Cookie", served.setCookie(c.relay.proto))
	}
	return append(c.appendTiming(b), "\r\n"...)
}

// appendTiming appends where the time of a request that waited went, when that is asked for.
func (c *client) appendTiming(b []byte) []byte {
	if c.relay.timing == nil || !c.loop.gateway.config.ServerTiming {
		return b
	}
	b = append(b, "Server-Timing: "...)
	return append(c.relay.timing.appendServerTiming(b), "\r\n"...)
}

// appendRefusal appends a response that the gateway gives itself.
func appendRefusal(b []byte, with *refusal, location string, now time.Time, last, isHead bool) []byte {
	b = fmt.Appendf(b, "HTTP/1.1 %d %s\r\n", with.status, http.StatusText(with.status))
	b = append(b, "Content-Type: text/plain; charset=utf-8\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(len(with.text)+1), 10)
	b = append(b, "\r\nDate: "...)
	b = now.UTC().AppendFormat(b, http.TimeFormat)
	b = append(b, "\r\n"...)
	if with.status == http.StatusMethodNotAllowed {
		b = append(b, "Allow: "+allowedMethods+"\r\n"...)
	}
	if location != "" {
		b = appendLine(b, "Location", location)
	}
	if last {
		b = append(b, "Connection: close\r\n"...)
	}
	b = append(b, "\r\n"...)
	if isHead {
		return b
	}
	return append(append(b, with.text...), '\n')
}

// record counts and logs a request that has ended.
func (c *client) record(activator *Activator) {
	l, x := c.loop, &c.relay
	if metrics := activator.metrics.Load(); metrics != nil {
		metrics.observe(x.status, l.now.Sub(x.arrived))
	}
	l.gateway.metrics.waited(x.timing)
	if l.gateway.log == nil {
		return
	}
	head := view(x.head)
	method, rest := head[:x.method], head[x.method+1:]
	path := rest[:x.target]
	host := rest[x.target+len(headHost):][:x.host]
	path, _, _ = strings.Cut(path, "?")
	if strings.IndexByte(path, '%') >= 0 {
		if plain, err := url.PathUnescape(path); err == nil {
			path = plain
		}
	}
	line := logLine{
		arrived: x.arrived, claimed: x.claimed, ended: l.now, method: method, host: host, path: path, status: x.status, sent: x.sent,
		cut: x.cut && x.begun, revision: &activator.revision, tag: x.tag, trace: &x.trace, timing: x.timing,
	}
	line.instance = x.instance
	l.gateway.log.write(&line)
}
