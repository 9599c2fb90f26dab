package gateway

import (
	"errors"
	"fmt"
	"io"
	"net/http"
)

// errBodyTooLarge is what reading a body ends with that is larger than Config.MaxBodyBytes.
var errBodyTooLarge = errors.New("the request's body is too large")

// overLimit returns why a request is larger than it may be, or nil. It bounds the body of one that does not say how
// long it is.
func (g *Gateway) overLimit(r *http.Request) *refusal {
	fields := 0
	for _, values := range r.Header {
		fields += len(values)
	}
	refused := g.config.overLimit(len(r.RequestURI), fields, r.ContentLength)
	if refused == nil && g.config.MaxBodyBytes > 0 && r.ContentLength < 0 && r.Body != nil {
		r.Body = &boundedBody{r.Body, g.config.MaxBodyBytes}
	}
	return refused
}

// overLimit returns why a request is larger than it may be, or nil: by the length of its target, the number of its
// header fields and the length of its body, which is negative where the head does not tell it.
func (c *Config) overLimit(target, fields int, body int64) *refusal {
	switch {
	case target > c.MaxTargetBytes:
		return targetTooLong(c.MaxTargetBytes)
	case fields > c.MaxHeaderFields:
		return tooManyFields(c.MaxHeaderFields)
	case c.MaxBodyBytes > 0 && body > c.MaxBodyBytes:
		return bodyTooLarge(c.MaxBodyBytes)
	}
	return nil
}

func targetTooLong(most int) *refusal {
	return &refusal{http.StatusRequestURITooLong, fmt.Sprintf("The request's path and query are longer than %d bytes, which is the most that the gateway takes.", most)}
}

func tooManyFields(most int) *refusal {
	return &refusal{http.StatusRequestHeaderFieldsTooLarge, fmt.Sprintf("The request has more than %d header fields, which is the most that the gateway takes.", most)}
}

func bodyTooLarge(most int64) *refusal {
	return &refusal{http.StatusRequestEntityTooLarge, fmt.Sprintf("The request's body is larger than %d bytes, which is the most that the gateway takes.", most)}
}

// boundedBody is a body of unknown length that ends with errBodyTooLarge after so many bytes. So it is never taken for
// a whole one: the instance sees that it breaks off.
type boundedBody struct {
	io.ReadCloser
	left int64 // -1 when there was more
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, errBodyTooLarge
	}
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1] // one more than it may be tells that there is more
	}
	n, err := b.ReadCloser.Read(p)
	if int64(n) > b.left {
		n, b.left = int(b.left), -1
		return n, errBodyTooLarge
	}
	b.left -= int64(n)
	return n, err
}
