package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	heldConnections = 10_000
	webSocketHold   = 10 * time.Second
)

// measureIdle prints what a kept connection costs that has had one request.
func measureIdle(ctx context.Context, _ options, instance string) error {
	g, err := startGroup(instance, heldConnections, 1)
	if err != nil {
		return err
	}
	defer g.stop()
	request := variants[0].request(host)
	answered, err := g.ask(func(int) []byte { return request }, func(_ int, got []byte) (bool, error) {
		head, body, err := parseHead(got)
		return head > 0 && len(got) == head+body, err
	})
	if err != nil {
		return err
	}
	if answered != g.held {
		return fmt.Errorf("%d of %d connections were answered", answered, g.held)
	}
	each, err := g.grown("idle")
	if err != nil {
		return err
	}
	fmt.Printf("gateway_idle_conn_kib %.2f KiB\n", each)
	return ctx.Err()
}

// measureWebSockets prints how many WebSockets are there after a while, and what each costs.
func measureWebSockets(ctx context.Context, _ options, instance string) error {
	g, err := startGroup(instance, heldConnections, 2)
	if err != nil {
		return err
	}
	defer g.stop()
	opened, err := g.ask(func(int) []byte { return webSocketRequest }, func(_ int, got []byte) (bool, error) {
		if !bytes.HasSuffix(got, []byte("\r\n\r\n")) {
			return false, nil
		}
		if !bytes.HasPrefix(got, []byte("HTTP/1.1 101 ")) {
			return false, fmt.Errorf("unexpected answer to a WebSocket's request %.200q", got)
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	if opened != g.held {
		return fmt.Errorf("%d of %d WebSockets were opened", opened, g.held)
	}
	select {
	case <-time.After(webSocketHold):
	case <-ctx.Done():
		return ctx.Err()
	}
	held, err := g.ask(func(number int) []byte { return webSocketFrame(number, true) }, func(number int, got []byte) (bool, error) {
		want := webSocketFrame(number, false)
		if !bytes.HasPrefix(want, got) {
			return false, fmt.Errorf("a WebSocket's echo is %q, not %q", got, want)
		}
		return len(got) == len(want), nil
	})
	if err != nil {
		return err
	}
	each, err := g.grown("websockets")
	if err != nil {
		return err
	}
	fmt.Printf("gateway_websockets %d count\n", held)
	fmt.Printf("gateway_websocket_kib %.2f KiB\n", each)
	if held != g.held {
		return errors.New("WebSockets were lost")
	}
	return nil
}

// webSocketRequest opens a WebSocket (RFC 6455, section 4.1), with that section's example of a key.
var webSocketRequest = []byte("GET " + webSocketPath + " HTTP/1.1\r\nHost: " + host + "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
	"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")

// webSocketFrame is a message of 8 bytes that no other connection sends, as clients send it, masked (with zeros), or
// as servers do (RFC 6455, section 5.2).
func webSocketFrame(number int, masked bool) []byte {
	if masked {
		return fmt.Appendf(nil, "\x81\x88\x00\x00\x00\x00%08d", number)
	}
	return fmt.Appendf(nil, "\x81\x08%08d", number)
}
