package api

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/coder/websocket"
	"github.com/moby/spdystream"
	"github.com/moby/spdystream/spdy"
	"golang.org/x/sys/unix"
)

const (
	// spdyProtocol is what older clients upgrade to: streams that are multiplexed as in SPDY.
	spdyProtocol = "SPDY/3.1"
	// spdyVersionHeader is where they say what the streams are for.
	spdyVersionHeader = "X-Stream-Protocol-Version"
	// goneCheck is how often it is looked whether the client of an upgraded connection is still there, which is
	// otherwise not seen while nobody reads from it.
	goneCheck = 5 * time.Second
)

// errGone ends what was done for a client that has closed its connection.
var errGone = errors.New("the client has closed its connection")

// upgrade is a request to go on with another protocol than HTTP.
type upgrade struct {
	socket bool   // by WebSocket, not by SPDY
	chosen string // the subprotocol: the first of those supported that the client offers
}

// upgradeOf reads what a client wants to go on with. The supported subprotocols are by preference.
func upgradeOf(r *http.Request, overSocket, overSPDY []string) (u upgrade, err error) {
	supported, offered := overSPDY, r.Header.Values(spdyVersionHeader)
	switch {
	case !contains(r.Header, "Connection", "upgrade"):
		err = badRequest("Upgrade request required: this path is for clients that upgrade an HTTP/1.1 connection to a WebSocket, such as kubectl")
	case contains(r.Header, "Upgrade", "websocket"):
		u.socket = true
		supported, offered = overSocket, nil
		for _, value := range r.Header.Values("Sec-WebSocket-Protocol") {
			offered = append(offered, strings.Split(value, ",")...)
		}
	case !contains(r.Header, "Upgrade", spdyProtocol):
		err = badRequest("the request's Upgrade is %q: it must be websocket or %s", r.Header.Get("Upgrade"), spdyProtocol)
	}
	if err != nil {
		return u, err
	}
	for i := range offered {
		offered[i] = strings.TrimSpace(offered[i])
	}
	for _, s := range supported {
		if slices.Contains(offered, s) {
			u.chosen = s
			return u, nil
		}
	}
	return u, badRequest("the client offers the protocols %q: one of %q is needed", offered, supported)
}

// contains tells whether a header is a list with an element, in any case of letters.
func contains(h http.Header, key, element string) bool {
	for _, value := range h.Values(key) {
		for part := range strings.SplitSeq(value, ",") {
			if strings.EqualFold(strings.TrimSpace(part), element) {
				return true
			}
		}
	}
	return false
}

// upgraded is a connection that left HTTP. Its context ends with the client, and after idleTimeout without touch.
type upgraded struct {
	chosen string          // see upgrade
	web    *websocket.Conn // nil for SPDY
	conn   net.Conn        // of SPDY

	ping   func(ctx context.Context) error // returns when it was answered
	idle   *time.Timer
	cancel context.CancelCauseFunc
}

// accept upgrades the connection of a request. When it cannot, the client has been told why. The caller calls close.
func (u upgrade) accept(w http.ResponseWriter, r *http.Request) (context.Context, *upgraded, error) {
	h := &hijacker{ResponseWriter: w}
	c := &upgraded{chosen: u.chosen}
	if u.socket {
		web, err := websocket.Accept(h, r, &websocket.AcceptOptions{Subprotocols: []string{u.chosen}})
		if err != nil {
			return nil, nil, err
		}
		web.SetReadLimit(maxMessage)
		c.web = web
		c.ping = web.Ping
	} else {
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", spdyProtocol)
		w.Header().Set(spdyVersionHeader, u.chosen)
		w.WriteHeader(http.StatusSwitchingProtocols)
		conn, buffer, err := h.Hijack()
		if err != nil {
			return nil, nil, fmt.Errorf("taking over the connection: %w", err)
		}
		c.conn = &buffered{conn, buffer.Reader}
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	c.cancel = cancel
	c.idle = time.AfterFunc(idleTimeout, func() { cancel(fmt.Errorf("nothing was sent for %s", idleTimeout)) })
	go watchGone(ctx, h.conn, cancel)
	if c.ping != nil {
		go c.pingNowAndThen(ctx)
	}
	return ctx, c, nil
}

// touch says that the connection is used.
func (c *upgraded) touch() { c.idle.Reset(idleTimeout) }

// close ends the connection at once, and its context.
func (c *upgraded) close() {
	c.cancel(nil)
	c.idle.Stop()
	if c.web != nil {
		_ = c.web.CloseNow()
	}
	if c.conn != nil {
		_ = c.conn.Close()
	}
}

// hijacker remembers the connection that was taken from the server.
type hijacker struct {
	http.ResponseWriter
	conn net.Conn
}

func (h *hijacker) Hijack() (conn net.Conn, buffer *bufio.ReadWriter, err error) {
	conn, buffer, err = http.NewResponseController(h.ResponseWriter).Hijack()
	h.conn = conn
	return conn, buffer, err
}

// buffered is a connection of which something has been read already.
type buffered struct {
	net.Conn
	reader *bufio.Reader
}

func (b *buffered) Read(p []byte) (int, error) { return b.reader.Read(p) }

// watchGone ends a context when the other side of a connection has closed it, also while nobody reads: a command that
// does not read what it is sent must not outlive its client.
func watchGone(ctx context.Context, conn net.Conn, cancel context.CancelCauseFunc) {
	if secure, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = secure.NetConn()
	}
	raw, ok := conn.(syscall.Conn)
	if !ok {
		return
	}
	socket, err := raw.SyscallConn()
	if err != nil {
		return
	}
	tick := time.NewTicker(goneCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		gone := false
		err := socket.Control(func(fd uintptr) {
			poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
			n, err := unix.Poll(poll, 0)
			gone = err == nil && n > 0 && poll[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
		})
		if err != nil || gone {
			cancel(errGone)
			return
		}
	}
}

// pingNowAndThen writes to a client now and then, until ctx ends. While nobody reads what a client sends, it is only by
// its machine's answer to what it is sent that its end is seen. Then pings are not answered, and become rare: each waits.
func (c *upgraded) pingNowAndThen(ctx context.Context) {
	const rarest = 10 * time.Minute
	// A WebSocket's ping that is cut short ends the connection, by which the client is still to be told why ctx ended.
	connected := context.WithoutCancel(ctx)
	for pause := goneCheck; ; pause = min(2*pause, rarest) {
		answered := make(chan error, 1)
		go func() { answered <- c.ping(connected) }()
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		select {
		case err := <-answered:
			if err != nil {
				c.cancel(errGone)
				return
			}
			pause = goneCheck / 2
		default:
		}
	}
}

// streams serves the SPDY streams that the client opens on a connection, until the connection or ctx ends. The handler
// must not block.
func (c *upgraded) streams(ctx context.Context, handle func(*spdystream.Stream)) (*spdystream.Connection, error) {
	conn := c.conn
	if c.web != nil {
		conn = websocket.NetConn(ctx, c.web, websocket.MessageBinary)
	}
	s, err := spdystream.NewConnectionWithOptions(&guarded{Conn: conn}, true,
		spdy.WithMaxControlFramePayloadSize(maxHeader), spdy.WithMaxHeaderFieldSize(maxHeader), spdy.WithMaxHeaderCount(100))
	if err != nil {
		return nil, fmt.Errorf("beginning %s: %w", spdyProtocol, err)
	}
	go func() {
		s.Serve(handle)
		c.cancel(errGone)
	}()
	if c.ping == nil {
		c.ping = func(context.Context) error {
			_, err := s.Ping()
			return err
		}
		go c.pingNowAndThen(ctx)
	}
	// What spdystream does to end a connection waits for the other side: closing what is below it does not.
	context.AfterFunc(ctx, func() { _ = conn.Close() })
	return s, nil
}

// refuse tells a client that a stream is not wanted, and forgets it: what is still sent on it would wait for a reader,
// and other streams behind it.
func refuse(stream *spdystream.Stream) {
	_ = stream.Refuse()
	_ = stream.Reset()
}

// guarded fails when a SPDY data frame is larger than maxFrame, as the library makes room for whatever is announced.
type guarded struct {
	net.Conn
	head [8]byte // of the frame that comes
	have int     // bytes of head
	left int     // bytes of the frame's payload
}

func (g *guarded) Read(p []byte) (int, error) {
	if g.have == len(g.head) && g.left == 0 {
		g.have = 0
	}
	if g.have < len(g.head) {
		n, err := g.Conn.Read(p[:min(len(p), len(g.head)-g.have)])
		g.have += copy(g.head[g.have:], p[:n])
		if g.have == len(g.head) {
			g.left = int(binary.BigEndian.Uint32(g.head[4:]) & 0xffffff)
			if control := g.head[0]&0x80 != 0; !control && g.left > maxFrame {
				return 0, fmt.Errorf("a SPDY frame has %d bytes, and %d is the most that is taken", g.left, maxFrame)
			}
		}
		return n, err
	}
	n, err := g.Conn.Read(p[:min(len(p), g.left)])
	g.left -= n
	return n, err
}

// touching is a writer that keeps a connection from being idle.
type touching struct {
	io.Writer
	conn *upgraded
}

func (t touching) Write(p []byte) (int, error) {
	t.conn.touch()
	return t.Writer.Write(p)
}
