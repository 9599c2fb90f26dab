package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/moby/spdystream"

	"github.com/berth-run/berth/engine"
)

// openStreams waits until the client has opened the SPDY streams of a command, which say what they are in a header.
func (c *upgraded) openStreams(ctx context.Context, want wanted) (*session, error) {
	missing := map[string]bool{"error": true, "stdin": want.stdin, "stdout": want.stdout, "stderr": want.stderr, "resize": want.terminal}
	var mu sync.Mutex
	opened := map[string]*spdystream.Stream{}
	needed := 0
	for _, m := range missing {
		if m {
			needed++
		}
	}
	complete := make(chan struct{})
	conn, err := c.streams(ctx, func(stream *spdystream.Stream) {
		kind := stream.Headers().Get("streamType")
		mu.Lock()
		defer mu.Unlock()
		if ctx.Err() != nil || !missing[kind] || stream.SendReply(nil, false) != nil {
			refuse(stream)
			return
		}
		missing[kind] = false
		if opened[kind] = stream; len(opened) == needed {
			close(complete)
		}
	})
	if err != nil {
		return nil, err
	}
	// What the client sends where nobody reads would keep what serves it from ending.
	context.AfterFunc(ctx, func() {
		mu.Lock()
		defer mu.Unlock()
		for _, stream := range opened {
			_ = stream.Reset()
		}
	})
	select {
	case <-complete:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-time.After(streamPatience):
		return nil, fmt.Errorf("after %s the client has not opened all of its streams", streamPatience)
	}
	s := &session{finish: func(status []byte) { finishStreams(conn, opened, status) }}
	if want.stdin {
		s.stdin = spdyInput{opened["stdin"], c}
	}
	if want.stdout {
		s.stdout = opened["stdout"]
	}
	if want.stderr {
		s.stderr = opened["stderr"]
	}
	if want.terminal {
		sizes := make(chan engine.TerminalSize, 1)
		s.sizes = sizes
		go readSizes(sizes, opened["resize"])
	}
	return s, nil
}

// finishStreams sends how a command ended, ends the streams, and gives the client time to read what it was sent.
func finishStreams(conn *spdystream.Connection, opened map[string]*spdystream.Stream, status []byte) {
	const patience = 5 * time.Second
	_, _ = opened["error"].Write(status)
	for _, stream := range opened {
		_ = stream.Close()
	}
	select {
	case <-conn.CloseChan():
	case <-time.After(patience):
	}
}

// readSizes passes on a terminal's sizes until their stream ends.
func readSizes(sizes chan engine.TerminalSize, from io.Reader) {
	limited := &io.LimitedReader{R: from}
	decoder := json.NewDecoder(limited)
	for {
		var size engine.TerminalSize
		limited.N = maxResize
		if decoder.Decode(&size) != nil {
			return
		}
		renew(sizes, size)
	}
}

// spdyInput is what a client sends to a command.
type spdyInput struct {
	stream *spdystream.Stream
	conn   *upgraded
}

func (i spdyInput) Read(p []byte) (int, error) {
	n, err := i.stream.Read(p)
	i.conn.touch()
	return n, err
}

// Close lets what is still sent go nowhere.
func (i spdyInput) Close() error {
	go func() { _, _ = io.Copy(io.Discard, i.stream) }()
	return nil
}
