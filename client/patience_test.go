package client

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berth-run/berth/serving"
)

// gone answers the first request with an empty list and then is away.
type gone struct{ asked int }

func (g *gone) RoundTrip(r *http.Request) (*http.Response, error) {
	if g.asked++; g.asked > 1 {
		return nil, errors.New("connection refused")
	}
	body := io.NopCloser(strings.NewReader(`{"metadata":{"resourceVersion":"1"},"items":[]}`))
	return &http.Response{StatusCode: 200, Body: body, Request: r}, nil
}

func TestWatch_GivesUpOnAServerThatStaysAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, err := New(Config{Server: "http://127.0.0.1:1"})
		if err != nil {
			t.Fatal(err)
		}
		server := &gone{}
		c.http.Transport = server
		begun := time.Now()
		var last error
		for _, err := range c.Objects(serving.KindConfigMap, "default").Watch(t.Context(), Selector{}) {
			last = err
		}
		if _, ok := errors.AsType[*UnreachableError](last); !ok {
			t.Errorf("the last error is %v", last)
		}
		if took := time.Since(begun); took < patience || took > patience+2*longPause {
			t.Errorf("it gave up after %s, want about %s", took, patience)
		}
		if server.asked > 30 {
			t.Errorf("it asked %d times", server.asked)
		}
	})
}
