package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/coder/websocket"

	"github.com/berth-run/berth/engine"
)

// The channels of a command's WebSocket: the first byte of each message.
const (
	stdinChannel  = 0
	stdoutChannel = 1
	stderrChannel = 2
	statusChannel = 3
	resizeChannel = 4
	closeChannel  = 255 // the next byte is the channel that the client has closed; from v5 on
)

// maxResize bounds the message that tells a terminal's size.
const maxResize = 1 << 10

// openChannels begins to read what the client sends on a WebSocket, one message for each piece of a stream.
func (c *upgraded) openChannels(ctx context.Context, want wanted) (*session, error) {
	// The end of ctx ends the command; the connection is needed to say so.
	connected := context.WithoutCancel(ctx)
	s := &session{finish: func(status []byte) {
		ctx, cancel := context.WithTimeout(connected, writeTimeout)
		defer cancel()
		if _, err := c.channel(ctx, statusChannel).Write(status); err == nil {
			_ = c.web.Close(websocket.StatusNormalClosure, "")
		}
	}}
	in := input{conn: c}
	if want.stdin {
		s.stdin, in.stdin = io.Pipe()
	}
	if want.stdout {
		s.stdout = c.channel(ctx, stdoutChannel)
	}
	if want.stderr {
		s.stderr = c.channel(ctx, stderrChannel)
	}
	if want.terminal {
		in.sizes = make(chan engine.TerminalSize, 1)
		s.sizes = in.sizes
	}
	go func() {
		in.read(connected)
		c.cancel(errGone)
		if in.stdin != nil {
			_ = in.stdin.CloseWithError(errGone)
		}
	}()
	return s, nil
}

// input is what comes from the client.
type input struct {
	conn  *upgraded
	stdin *io.PipeWriter
	sizes chan engine.TerminalSize // holds the newest that was not read yet
}

// read passes on what the client sends, until its connection ends.
func (in *input) read(ctx context.Context) {
	for {
		_, message, err := in.conn.web.Reader(ctx)
		if err != nil {
			return
		}
		in.conn.touch()
		var head [1]byte
		switch _, err := io.ReadFull(message, head[:]); {
		case errors.Is(err, io.EOF):
			continue // an empty message
		case err != nil:
			return
		}
		if err := in.take(head[0], message); err != nil {
			_ = in.conn.web.Close(websocket.StatusPolicyViolation, err.Error())
			return
		}
		// What nobody wants is read all the same, up to the end of the message.
		if _, err := io.Copy(io.Discard, message); err != nil {
			return
		}
	}
}

// take passes on a message of a channel.
func (in *input) take(channel byte, message io.Reader) error {
	switch channel {
	case stdinChannel:
		if in.stdin == nil {
			return nil
		}
		if _, err := io.Copy(in.stdin, message); err != nil && !errors.Is(err, io.ErrClosedPipe) {
			return err
		}
		return nil
	case resizeChannel:
		var size engine.TerminalSize
		if err := json.NewDecoder(io.LimitReader(message, maxResize)).Decode(&size); err != nil {
			return fmt.Errorf("reading the terminal's size: %w", err)
		}
		if in.sizes != nil {
			renew(in.sizes, size)
		}
		return nil
	case closeChannel:
		var closed [1]byte
		if _, err := io.ReadFull(message, closed[:]); err != nil {
			return fmt.Errorf("reading which channel is closed: %w", err)
		}
		if closed[0] == stdinChannel && in.stdin != nil {
			_ = in.stdin.Close()
		}
		return nil
	}
	return fmt.Errorf("a message of channel %d came, which clients do not write to", channel)
}

// renew makes a size the newest. Nobody else sends to the channel, which holds one.
func renew(sizes chan engine.TerminalSize, size engine.TerminalSize) {
	select {
	case <-sizes: // nobody has looked since
	default:
	}
	sizes <- size
}

// writeFunc is an io.Writer that is a function.
type writeFunc func(p []byte) (int, error)

func (f writeFunc) Write(p []byte) (int, error) { return f(p) }

// channel is a writer to one channel of a WebSocket, for one goroutine at a time. The end of ctx ends what it writes.
func (c *upgraded) channel(ctx context.Context, number byte) io.Writer {
	message := []byte{number}
	return writeFunc(func(p []byte) (int, error) {
		message = append(message[:1], p...)
		if err := c.web.Write(ctx, websocket.MessageBinary, message); err != nil {
			return 0, err
		}
		return len(p), nil
	})
}
