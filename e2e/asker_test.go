package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
)

// callTime is how long a client waits for all of an answer at most: what takes longer has been forgotten.
const callTime = 60 * time.Second

// asker is one client that asks the program witness again and again, in one way.
type asker struct {
	kind      string
	hosts     *hosts
	transport *http.Transport
	pause     time.Duration // before each request
	ask       func(ctx context.Context, a *asker, c *call) error

	gateway string // host:port that is dialed for every host
	secure  bool   // over TLS
	ledger  *ledger
}

// calls counts the requests of all askers.
var traces atomic.Uint64

// run asks until ctx ends. A request that has begun then is still answered.
func (a *asker) run(ctx context.Context) {
	defer a.transport.CloseIdleConnections()
	tick := time.NewTicker(a.pause)
	defer tick.Stop()
	for ctx.Err() == nil {
		// An error is the ledger's to judge.
		_ = a.once(context.WithoutCancel(ctx))
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// once asks once.
func (a *asker) once(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	c := call{kind: a.kind, number: int(traces.Add(1)), began: time.Now()}
	err := a.ask(ctx, a, &c)
	c.ended = time.Now()
	a.ledger.enter(c, err)
	return err
}

// send sends a request and returns the answer when it has begun well.
func (a *asker) send(ctx context.Context, c *call, method, target string, body io.Reader, header http.Header) (*http.Response, error) {
	scheme := "http://"
	if a.secure {
		scheme = "https://"
	}
	request, err := http.NewRequestWithContext(ctx, method, scheme+a.gateway+target, body)
	if err != nil {
		return nil, err
	}
	request.Host = a.hosts.any()
	if header != nil {
		request.Header = header
	}
	request.Header.Set("Traceparent", "00-"+c.trace()+"-00000000000000ff-01")
	reply, err := a.transport.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	c.answered, c.instance = time.Now(), reply.Header.Get("X-Instance")
	if reply.StatusCode == http.StatusOK {
		return reply, nil
	}
	defer reply.Body.Close()
	text, err := io.ReadAll(io.LimitReader(reply.Body, 10_000))
	return nil, errors.Join(&refusedError{reply.StatusCode, string(text)}, err)
}

// expect reads an answer that must be the bytes wanted.
func expect(reply *http.Response, want []byte) error {
	defer reply.Body.Close()
	got, err := io.ReadAll(reply.Body)
	switch {
	case err != nil:
		return &cutError{err}
	case !bytes.Equal(got, want):
		return fmt.Errorf("%d bytes %.100q came, %d were expected", len(got), got, len(want))
	case reply.Header.Get("X-Instance") == "":
		return errors.New("the answer has no X-Instance")
	}
	return nil
}

// get asks for a few or many bytes.
func get(ctx context.Context, a *asker, c *call) error {
	n := 1 + rand.IntN(20)
	if rand.IntN(10) == 0 {
		n = 10_000 // more than the buffers on the way
	}
	reply, err := a.send(ctx, c, http.MethodGet, fmt.Sprintf("/say?word=%s&n=%d", c.trace(), n), nil, nil)
	if err != nil {
		return err
	}
	return expect(reply, bytes.Repeat([]byte(c.trace()), n))
}

// post sends a body of known length and wants it back.
func post(ctx context.Context, a *asker, c *call) error {
	body := bytes.Repeat([]byte(c.trace()), 1+rand.IntN(4000))
	reply, err := a.send(ctx, c, http.MethodPost, "/say", bytes.NewReader(body), nil)
	if err != nil {
		return err
	}
	if reply.ContentLength != int64(len(body)) {
		reply.Body.Close()
		return fmt.Errorf("the answer's length is %d, want %d", reply.ContentLength, len(body))
	}
	return expect(reply, body)
}

// postChunked sends a body piece by piece and wants it back.
func postChunked(ctx context.Context, a *asker, c *call) error {
	body := bytes.Repeat([]byte(c.trace()), 1+rand.IntN(4000))
	unsized := struct{ io.Reader }{bytes.NewReader(body)} // net/http asks no more of it than to be read
	reply, err := a.send(ctx, c, http.MethodPost, "/say", unsized, nil)
	if err != nil {
		return err
	}
	return expect(reply, body)
}

// work keeps an instance busy for a while.
func work(shortest, longest int) func(context.Context, *asker, *call) error {
	return func(ctx context.Context, a *asker, c *call) error {
		ms := shortest + rand.IntN(longest-shortest+1)
		reply, err := a.send(ctx, c, http.MethodGet, fmt.Sprintf("/work?ms=%d&word=%s", ms, c.trace()), nil, nil)
		if err != nil {
			return err
		}
		return expect(reply, []byte(c.trace()))
	}
}

// follow reads server-sent events for up to some tenths of a second.
func follow(longest int) func(context.Context, *asker, *call) error {
	return func(ctx context.Context, a *asker, c *call) error { return followFor(ctx, a, c, 1+rand.IntN(longest)) }
}

func followFor(ctx context.Context, a *asker, c *call, n int) error {
	reply, err := a.send(ctx, c, http.MethodGet, fmt.Sprintf("/events?n=%d&every=100ms", n), nil, nil)
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	events := bufio.NewReader(reply.Body)
	for i := range n + 1 {
		if err := nextEvent(events, i, n); err != nil {
			return err
		}
	}
	if rest, err := io.ReadAll(events); err != nil || len(rest) > 0 {
		return errors.Join(fmt.Errorf("%.100q came after the end", rest), err)
	}
	return nil
}

// nextEvent reads event i of n, of which the one after the last is the end.
func nextEvent(events *bufio.Reader, i, n int) error {
	want := fmt.Sprintf("data: %d\n\n", i)
	if i == n {
		want = "data: end\n\n"
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(events, got); err != nil {
		return &cutError{err}
	}
	return errorUnless(string(got) == want, "event %q came, %q was expected", got, want)
}

// talk holds a conversation of up to some tenths of a second over a WebSocket.
func talk(longest int) func(context.Context, *asker, *call) error {
	return func(ctx context.Context, a *asker, c *call) error { return talkFor(ctx, a, c, 1+rand.IntN(longest)) }
}

func talkFor(ctx context.Context, a *asker, c *call, n int) error {
	header := http.Header{"Traceparent": {"00-" + c.trace() + "-00000000000000ff-01"}}
	socket, reply, err := websocket.Dial(ctx, "ws://"+a.gateway+"/websocket", &websocket.DialOptions{
		HTTPClient: &http.Client{Transport: a.transport}, HTTPHeader: header, Host: a.hosts.any(),
	})
	if err != nil {
		if reply == nil {
			return err
		}
		c.answered = time.Now()
		text, _ := io.ReadAll(reply.Body) // what the library has read of it
		return &refusedError{reply.StatusCode, string(text)}
	}
	c.answered = time.Now()
	defer socket.CloseNow()
	_, name, err := socket.Read(ctx)
	if err != nil {
		return &cutError{err}
	}
	c.instance = string(name)
	for i := range n {
		said := fmt.Sprint("message ", i, " of ", c.trace())
		if err := socket.Write(ctx, websocket.MessageText, []byte(said)); err != nil {
			return &cutError{err}
		}
		_, heard, err := socket.Read(ctx)
		if err != nil {
			return &cutError{err}
		}
		if string(heard) != said {
			return fmt.Errorf("said %q, heard %q", said, heard)
		}
		pace(ctx, 100*time.Millisecond)
	}
	if err := socket.Close(websocket.StatusNormalClosure, ""); err != nil {
		return &cutError{err}
	}
	return nil
}

// callGRPC makes a unary call of gRPC.
func callGRPC(ctx context.Context, a *asker, c *call) error {
	message := []byte(strings.Repeat(c.trace(), 1+rand.IntN(100)))
	frame := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)
	header := http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}}
	reply, err := a.send(ctx, c, http.MethodPost, "/witness.Witness/Echo", bytes.NewReader(frame), header)
	if err != nil {
		return err
	}
	if err := expect(reply, frame); err != nil {
		return err
	}
	status := reply.Trailer.Get("Grpc-Status")
	return errorUnless(status == "0", "the trailer says that grpc-status is %q", status)
}

// unreadyFor is how long an instance fails its readiness probe that is told to: its period is a second.
const unreadyFor = 2500 * time.Millisecond

// unready has an instance fail its readiness probe for a while.
func unready(ctx context.Context, a *asker, c *call) error {
	reply, err := a.send(ctx, c, http.MethodPost, fmt.Sprintf("/unready?ms=%d&word=%s", unreadyFor.Milliseconds(), c.trace()), http.NoBody, nil)
	if err != nil {
		return err
	}
	return expect(reply, []byte(c.trace()))
}

// hosts are names by which a service is asked; any of them may be chosen.
type hosts struct {
	mu     sync.Mutex
	own    []string // the service's own and its tags'
	mapped []string
}

func (h *hosts) any() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.mapped) > 0 && rand.IntN(2) == 0 {
		return h.mapped[rand.IntN(len(h.mapped))]
	}
	return h.own[rand.IntN(len(h.own))]
}

func (h *hosts) set(mapped []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mapped = mapped
}

// keepsAlive, newEachTime and speaksHTTP2 are the transports of askers.
func keepsAlive() *http.Transport  { return &http.Transport{} }
func newEachTime() *http.Transport { return &http.Transport{DisableKeepAlives: true} }

func speaksHTTP2() *http.Transport {
	t := &http.Transport{Protocols: new(http.Protocols)}
	t.Protocols.SetUnencryptedHTTP2(true)
	return t
}
