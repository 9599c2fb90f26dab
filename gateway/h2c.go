package gateway

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// upgrader is a handler in front of the gateway that changes connections to HTTP/2 when a request of HTTP/1.1 asks for
// it with "Upgrade: h2c" (contract KS4; RFC 7540, 3.2). The changed connection goes to the same server as one that
// spoke HTTP/2 from its start, with that request as its first stream: so it has the same limits, and the same end.
//
// A request with a body is not changed: it is answered over HTTP/1.1, as the RFC lets a server do.
type upgrader struct {
	gateway  *Gateway
	server   *http.Server
	start    sync.Once
	upgraded *handedListener
}

func newUpgrader(g *Gateway, server *http.Server) *upgrader {
	return &upgrader{gateway: g, server: server, upgraded: newHandedListener(&net.TCPAddr{})}
}

// ServeHTTP implements [http.Handler].
func (u *upgrader) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	settings, ok := h2cSettings(r)
	if !ok || u.upgraded.isClosed() {
		u.gateway.ServeHTTP(w, r)
		return
	}
	if err := u.upgrade(w, r, settings); err != nil {
		u.gateway.config.Logger.Debug("changing a connection to HTTP/2", "error", err)
	}
}

func (u *upgrader) upgrade(w http.ResponseWriter, r *http.Request, settings []byte) error {
	stream, err := firstStream(r)
	if err != nil {
		return err
	}
	c, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return fmt.Errorf("taking over the client's connection: %w", err)
	}
	release(c)
	early, err := buffered.Reader.Peek(buffered.Reader.Buffered())
	if err == nil {
		_, err = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
	}
	if err != nil {
		c.Close()
		return fmt.Errorf("answering the client: %w", err)
	}
	u.start.Do(func() { go u.server.Serve(u.upgraded) }) // ends with the server, as its other listeners do
	u.upgraded.give(&h2cConn{Conn: c, early: bytes.Clone(early), settings: settings, stream: stream})
	return nil
}

// h2cSettings returns the settings of a request that asks for HTTP/2, and whether it does so in the way it must.
func h2cSettings(r *http.Request) ([]byte, bool) {
	upgrade := r.Header["Upgrade"]
	if len(upgrade) != 1 || !strings.EqualFold(upgrade[0], "h2c") || r.TLS != nil || r.ProtoMajor != 1 || r.ProtoMinor != 1 || hasBody(r) || refuse(r) != nil {
		return nil, false
	}
	tokens := connectionTokens(r.Header)
	encoded := r.Header["Http2-Settings"]
	if len(encoded) != 1 || !slices.Contains(tokens, "Upgrade") || !slices.Contains(tokens, "Http2-Settings") {
		return nil, false
	}
	settings, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(encoded[0], "="))
	if err != nil || len(settings)%settingSize != 0 || len(settings) > maxSettings*settingSize {
		return nil, false
	}
	return settings, true
}

const (
	settingSize = 6       // bytes of a setting in its frame
	maxSettings = 100     // of a request; there are fewer than ten kinds
	frameSize   = 1 << 14 // of the largest frame that everyone takes
)

// firstStream is a request as HTTP/2 frames: those of stream 1, which is ended. No entry of the compression's tables is
// used that a client could change, nor is any made, so the client's own compression is not disturbed.
func firstStream(r *http.Request) ([]byte, error) {
	var block, frames bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	field := func(name, value string) {
		encoder.WriteField(hpack.HeaderField{Name: name, Value: value, Sensitive: true}) // a bytes.Buffer takes it all
	}
	target := r.RequestURI
	if !strings.HasPrefix(target, "/") && target != "*" {
		target = r.URL.RequestURI()
	}
	field(":method", r.Method)
	field(":scheme", "http")
	field(":authority", r.Host)
	field(":path", target)
	ends := connectionTokens(r.Header)
	for key, values := range r.Header {
		switch key {
		case "Connection", "Keep-Alive", "Proxy-Connection", "Transfer-Encoding", "Upgrade", "Http2-Settings", "Te":
			continue
		}
		if slices.Contains(ends, key) {
			continue
		}
		for _, value := range values {
			field(strings.ToLower(key), value)
		}
	}
	if acceptsTrailers(r.Header) {
		field("te", "trailers")
	}

	framer := http2.NewFramer(&frames, nil)
	part := block.Next(frameSize)
	err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: part, EndStream: true, EndHeaders: block.Len() == 0})
	for err == nil && block.Len() > 0 {
		part = block.Next(frameSize)
		err = framer.WriteContinuation(1, block.Len() == 0, part)
	}
	if err != nil {
		return nil, fmt.Errorf("making a stream of a request: %w", err)
	}
	return frames.Bytes(), nil
}

// h2cConn is a connection that has changed to HTTP/2, as the server reads it: the client's preface, its settings (those
// of the request and those of its first frame, in one frame, which the server acknowledges once), the request, and what
// the client sends from then on.
type h2cConn struct {
	net.Conn
	early    []byte // what the client sent before the change
	settings []byte
	stream   []byte
	begun    bool
	pending  []byte // what is read next, before the connection
}

func (c *h2cConn) Read(p []byte) (int, error) {
	if !c.begun {
		c.begun = true
		if err := c.begin(); err != nil {
			c.Close() // there is no answer to it: nothing of HTTP/2 has been spoken, and HTTP/1.1 is over
			return 0, err
		}
	}
	if len(c.pending) == 0 {
		c.pending = nil
		return c.Conn.Read(p)
	}
	n := copy(p, c.pending)
	c.pending = c.pending[n:]
	return n, nil
}

// begin reads up to the client's first frame and puts the rest behind it.
func (c *h2cConn) begin() error {
	from := io.MultiReader(bytes.NewReader(c.early), c.Conn)
	var head [len(http2.ClientPreface) + 9]byte
	if _, err := io.ReadFull(from, head[:]); err != nil {
		return fmt.Errorf("reading the beginning of HTTP/2: %w", err)
	}
	preface, frame := head[:len(http2.ClientPreface)], head[len(http2.ClientPreface):]
	length := int(frame[0])<<16 | int(frame[1])<<8 | int(frame[2])
	settings := http2.FrameType(frame[3]) == http2.FrameSettings && frame[4] == 0
	if string(preface) != http2.ClientPreface || !settings || length%settingSize != 0 || length > frameSize {
		return errors.New("the client changed to HTTP/2 and does not speak it")
	}
	own := make([]byte, length)
	if _, err := io.ReadFull(from, own); err != nil {
		return fmt.Errorf("reading the beginning of HTTP/2: %w", err)
	}

	var all bytes.Buffer
	all.Write(preface)
	both := mergeSettings(c.settings, own)
	// The frame has the type and the flags of the client's.
	all.Write([]byte{byte(len(both) >> 16), byte(len(both) >> 8), byte(len(both))})
	all.Write(frame[3:])
	all.Write(both)
	all.Write(c.stream)
	if early := len(c.early) - len(head) - length; early > 0 {
		all.Write(c.early[len(c.early)-early:])
	}
	c.pending = all.Bytes()
	c.early, c.settings, c.stream = nil, nil, nil
	return nil
}

// mergeSettings returns what holds after one list of settings and then another, with each setting once: the server takes
// no frame that has one twice.
func mergeSettings(first, second []byte) []byte {
	merged := second
	for len(first) > 0 {
		last := first[len(first)-settingSize:]
		first = first[:len(first)-settingSize]
		if !slices.ContainsFunc(slices.Collect(slices.Chunk(merged, settingSize)), func(s []byte) bool { return s[0] == last[0] && s[1] == last[1] }) {
			merged = append(merged, last...)
		}
	}
	return merged
}
