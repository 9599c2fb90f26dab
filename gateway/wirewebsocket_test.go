package gateway

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"testing"

	"github.com/coder/websocket"
)

// dialWebSocket connects a client to hello.test at the gateway.
func dialWebSocket(t *testing.T, address string, options websocket.DialOptions) *websocket.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), wirePatience)
	defer cancel()
	options.Host = "hello.test"
	c, response, err := websocket.Dial(ctx, "ws://"+address+"/chat", &options)
	if err != nil {
		t.Fatalf("opening a WebSocket: %v (%v)", err, response)
	}
	t.Cleanup(func() { c.CloseNow() })
	c.SetReadLimit(-1)
	return c
}

// webSocketInstance hands each WebSocket to serve; when that returns the connection is closed without a word.
func webSocketInstance(t *testing.T, serve func(ctx context.Context, c *websocket.Conn)) *fakeInstance {
	return serveInstance(t, "a", func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"v2", "v1"}, CompressionMode: websocket.CompressionContextTakeover})
		if err != nil {
			t.Errorf("accepting a WebSocket: %v", err)
			return
		}
		defer c.CloseNow()
		c.SetReadLimit(-1)
		ctx, cancel := context.WithTimeout(context.Background(), wirePatience)
		defer cancel()
		serve(ctx, c)
	})
}

// echo sends every message back until the client closes.
func echo(ctx context.Context, c *websocket.Conn) {
	for {
		kind, message, err := c.Read(ctx)
		if err != nil {
			return
		}
		if err := c.Write(ctx, kind, message); err != nil {
			return
		}
	}
}

func TestWire_WebSocketsCarryMessagesOfAnyKindAndSize(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		revision := testRevision()
		for _, revision.HTTP2 = range []bool{false, true} { // which has no WebSockets: they are opened with HTTP/1.1
			a, address := serve(Config{}, revision, webSocketInstance(t, echo))
			for _, compression := range []websocket.CompressionMode{websocket.CompressionDisabled, websocket.CompressionContextTakeover} {
				c := dialWebSocket(t, address, websocket.DialOptions{Subprotocols: []string{"v1"}, CompressionMode: compression})
				if c.Subprotocol() != "v1" {
					t.Errorf("the subprotocol is %q", c.Subprotocol())
				}
				ctx, cancel := context.WithTimeout(t.Context(), wirePatience)
				defer cancel()
				for _, size := range []int{0, 125, 126, 65536} {
					for _, kind := range []websocket.MessageType{websocket.MessageText, websocket.MessageBinary} {
						message := bytes.Repeat([]byte("x"), size)
						if kind == websocket.MessageBinary {
							message = bytes.Repeat([]byte("\xff\x00"), size/2)
						}
						sent := make(chan error, 1)
						go func() { sent <- c.Write(ctx, kind, message) }()
						gotKind, got, err := c.Read(ctx)
						if err != nil || gotKind != kind || !bytes.Equal(got, message) {
							t.Fatalf("%s of %d bytes: got %s of %d bytes, %v", kind, size, gotKind, len(got), err)
						}
						if err := <-sent; err != nil {
							t.Fatal(err)
						}
					}
				}
				waitForLoad(t, a, 1, 0)
				if err := c.Close(websocket.StatusNormalClosure, ""); err != nil {
					t.Errorf("closing: %v", err)
				}
				waitForLoad(t, a, 0, 0)
			}
		}
	})
}

func TestWire_WebSocketsArePingedFromBothSides(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		pinged := make(chan error, 1)
		_, address := serve(Config{}, testRevision(), webSocketInstance(t, func(ctx context.Context, c *websocket.Conn) {
			ctx = c.CloseRead(ctx)
			pinged <- c.Ping(ctx)
			<-ctx.Done()
		}))
		c := dialWebSocket(t, address, websocket.DialOptions{})
		ctx, cancel := context.WithTimeout(t.Context(), wirePatience)
		defer cancel()
		ctx = c.CloseRead(ctx)
		if err := <-pinged; err != nil {
			t.Errorf("the instance's ping: %v", err)
		}
		if err := c.Ping(ctx); err != nil {
			t.Errorf("the client's ping: %v", err)
		}
	})
}

func TestWire_AWebSocketIsClosedByEitherSideWithItsReason(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		reasons := make(chan error, 1)
		a, address := serve(Config{}, testRevision(), webSocketInstance(t, func(ctx context.Context, c *websocket.Conn) {
			_, message, err := c.Read(ctx)
			if string(message) == "close" {
				c.Close(4001, "instance")
				return
			}
			reasons <- err
		}))
		ctx, cancel := context.WithTimeout(t.Context(), wirePatience)
		defer cancel()

		c := dialWebSocket(t, address, websocket.DialOptions{})
		if err := c.Close(4000, "client"); err != nil {
			t.Errorf("closing: %v", err)
		}
		var closed websocket.CloseError
		if err := <-reasons; !errors.As(err, &closed) || closed.Code != 4000 || closed.Reason != "client" {
			t.Errorf("the instance got %v", err)
		}
		waitForLoad(t, a, 0, 0)

		c = dialWebSocket(t, address, websocket.DialOptions{})
		if err := c.Write(ctx, websocket.MessageText, []byte("close")); err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.Read(ctx); !errors.As(err, &closed) || closed.Code != 4001 || closed.Reason != "instance" {
			t.Errorf("the client got %v", err)
		}
		waitForLoad(t, a, 0, 0)

		c = dialWebSocket(t, address, websocket.DialOptions{})
		c.CloseNow()
		if err := <-reasons; err == nil || errors.As(err, &closed) {
			t.Errorf("the instance got %v of a client that said nothing", err)
		}
		waitForLoad(t, a, 0, 0)
	})
}

func TestWire_AnInstanceMayRefuseAWebSocket(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		a, address := serve(Config{}, testRevision(), serveInstance(t, "a", func(w http.ResponseWriter, r *http.Request) {
			http.Error(w, "not you", http.StatusForbidden)
		}))
		c := dialWire(t, address)
		for range 2 { // the connection can be used again
			c.say(request("GET /", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: a"))
			c.expect(403, "not you\n")
		}
		waitForLoad(t, a, 0, 0)
	})
}

func TestWire_ATunnelCarriesWhatBothSidesSayAtOnce(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		const size = 8 << 20
		pour := func(c net.Conn) error {
			_, err := c.Write(make([]byte, size))
			return err
		}
		a, address := serve(Config{}, testRevision(), wireInstance(t, "a", func(in *wire) {
			in.head()
			in.say("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
			poured := make(chan error, 1)
			go func() { poured <- pour(in) }()
			in.bytes(size)
			if err := <-poured; err != nil {
				in.fail("writing: %v", err)
			}
		}))
		c := dialWire(t, address)
		c.say(request("GET /", "Connection: Upgrade", "Upgrade: x"))
		c.head()
		poured := make(chan error, 1)
		go func() { poured <- pour(c) }()
		c.bytes(size)
		if err := <-poured; err != nil {
			t.Errorf("writing: %v", err)
		}
		c.ends()
		c.Close()
		waitForLoad(t, a, 0, 0)
	})
}
