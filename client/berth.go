package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/berth-run/berth/engine"
)

// group is the path of what is Berth's own, beside Knative's API.
const group = "/apis/berth.run/v1"

// Instance is one running or prepared copy of a revision, as the server lists it.
type Instance struct {
	ID        string         `json:"id"`
	Namespace string         `json:"namespace"`
	Service   string         `json:"service"`
	Revision  string         `json:"revision"`
	State     engine.State   `json:"state"`
	Since     time.Time      `json:"since"` // when it entered State
	Created   time.Time      `json:"created"`
	StartTook time.Duration  `json:"startTook"` // nanoseconds from start to ready, 0 before
	Stages    []engine.Stage `json:"stages"`
	// Unready says that it is in state ready and takes no requests for a while.
	Unready    bool                     `json:"unready,omitempty"`
	Containers []engine.ContainerStatus `json:"containers"`
	Address    string                   `json:"address,omitempty"` // its IP address, where the engine gives it one
}

// Info describes the server for people: "runtime" → "crun 1.8.1" and so on.
func (c *Client) Info(ctx context.Context) (map[string]string, error) {
	var reply struct {
		Info map[string]string `json:"info"`
	}
	err := c.call(ctx, request{method: http.MethodGet, path: group + "/info"}, &reply)
	return reply.Info, err
}

// Instances lists the instances of a namespace, or of all when it is "".
func (c *Client) Instances(ctx context.Context, namespace string) ([]Instance, error) {
	path := group + "/instances"
	if namespace != "" {
		path = group + "/namespaces/" + url.PathEscape(namespace) + "/instances"
	}
	var reply struct {
		Items []Instance `json:"items"`
	}
	err := c.call(ctx, request{method: http.MethodGet, path: path}, &reply)
	return reply.Items, err
}

// LogOptions choose lines of a service's log. The zero value is all that is kept.
type LogOptions struct {
	Follow             bool
	Tail               int           // only the last n lines; 0 is all, below 0 none of those there are
	Since              time.Duration // only lines of this long ago and since, in whole seconds; 0 is all
	Revision, Instance string
}

// Log yields the lines that a service's instances wrote, oldest first; with Follow it goes on until ctx ends. An
// error is yielded last.
func (c *Client) Log(ctx context.Context, namespace, service string, options LogOptions) iter.Seq2[engine.LogLine, error] {
	return func(yield func(engine.LogLine, error) bool) {
		if err := c.log(ctx, namespace, service, options, yield); err != nil && !errors.Is(err, errStopped) {
			yield(engine.LogLine{}, err)
		}
	}
}

func (c *Client) log(ctx context.Context, namespace, service string, options LogOptions, yield func(engine.LogLine, error) bool) error {
	reply, err := c.send(ctx, request{
		method: http.MethodGet,
		path:   group + "/namespaces/" + url.PathEscape(namespace) + "/services/" + url.PathEscape(service) + "/log",
		query:  options.query(),
	})
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	reader := bufio.NewReader(reply.Body)
	for {
		text, err := reader.ReadBytes('\n')
		if len(bytes.TrimSpace(text)) > 0 && (err == nil || errors.Is(err, io.EOF)) {
			var line engine.LogLine
			if err := json.Unmarshal(text, &line); err != nil {
				return fmt.Errorf("decoding a log line of service %q: %w", service, err)
			}
			if !yield(line, nil) {
				return errStopped
			}
		}
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, io.EOF) && !options.Follow:
			return nil
		case errors.Is(err, io.EOF):
			return &UnreachableError{Server: c.Server(), Err: errors.New("the log ended")}
		default:
			return &UnreachableError{Server: c.Server(), Err: fmt.Errorf("reading the log: %w", err)}
		}
	}
}

func (o LogOptions) query() url.Values {
	query := url.Values{}
	if o.Follow {
		query.Set("follow", "true")
	}
	if o.Tail != 0 {
		query.Set("tailLines", strconv.Itoa(max(o.Tail, 0)))
	}
	if o.Since > 0 {
		seconds := int((o.Since + time.Second - 1) / time.Second)
		query.Set("sinceSeconds", strconv.Itoa(seconds))
	}
	if o.Revision != "" {
		query.Set("revision", o.Revision)
	}
	if o.Instance != "" {
		query.Set("instance", o.Instance)
	}
	return query
}
