package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/gateway/http1"
)

// exchange is one request and its response, while it is in the gateway.
type exchange struct {
	gateway   *Gateway
	writer    http.ResponseWriter
	request   *http.Request
	activator *Activator
	member    *member  // the instance that it is on, or was last; nil before
	affinity  affinity // what the client's cookie says, where the route has affinity
	origin    origin
	guard     *streamGuard // nil where the connection is guarded: HTTP/1.1
	body      *clientBody  // nil when the request has none, or it has not been asked for
	kept      keptBody     // the same, as instances that speak HTTP/1.1 get it
	pump      *bodyPump    // the same, as instances that speak HTTP/2 get it

	arrived  time.Time
	claimed  time.Time // zero while it has no instance
	instance string
	timing   *timing // nil for a request that has not waited

	began  bool  // the response's head has been given to the client: status is final
	cut    bool  // the response ended early, and the client must see that
	status int   // what the client got, 499 when it was gone
	sent   int64 // bytes of the response's body
}

// refusal is a response that the gateway gives itself.
type refusal struct {
	status int
	text   string
}

// The texts of contract 1.2.
const (
	textNoInstance = "The request was aborted because there was no available instance. The Cloud Run service might have " +
		"reached its maximum container instance limit or the service was otherwise not able to scale to incoming requests. " +
		"This might be caused by a sudden increase in traffic, a long container startup time or a long request processing time." // E9
	textTooSlow    = "The request was aborted because there was no available instance"       // E10
	textNotStarted = "The request failed because the instance could not start successfully." // E11
	textMemory     = "While handling this request, the container instance was found to be using too much memory and was terminated. " +
		"This is likely to cause a new container instance to be used for the next request to this revision. If you see this " +
		"message frequently, you may have a memory leak in your code or may need more memory. Consider creating a new revision " +
		"with more memory." // E12
	textBroken  = "The request failed because either the HTTP response was malformed or connection to the instance had an error." // E13
	textTimeout = "The request has been terminated because it has reached the maximum request timeout."                           // E15
	// textShort is added to what is said of requests that were given no instance.
	textShort = "The memory that this machine has for instances is used up: no other instance could start."
	// textTruncated is for the service's owner, in the log: the client has got a status already.
	textTruncated = "Truncated response body" // E17
)

// statusClientGone is what the log and the metrics say of a request whose client went away. No client sees it.
const statusClientGone = 499

// The end of an instance is known some time after the end of its connections: usually within exitWait. On a busy
// machine it takes longer, up to dyingWait; meanwhile the instance takes no new connection.
const (
	exitWait  = 50 * time.Millisecond
	dyingWait = 2 * time.Second
)

// isHopeless tells whether a request that instances have refused for so long is not tried again: what refused it last is
// not an instance whose end is not known yet.
func isHopeless(m *member, refused time.Duration) bool {
	return refused > dyingWait && !hasExited(m.instance)
}

// Errors of forwarding, beside errUnreachable and errMalformed.
var (
	errClientGone = errors.New("the client is gone")
	errTruncated  = errors.New("the response ended early")
)

const allowedMethods = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"

// refuse returns why a request is not taken at all, or nil.
func refuse(r *http.Request) *refusal {
	if refused := refuseMethod(r.Method); refused != nil {
		return refused
	}
	// HTTP/2 has no rules of HTTP/1.1's, in which the request may be passed on.
	if wrong := http1.CheckTarget(r.Method, r.RequestURI); wrong != nil {
		return &refusal{status: wrong.Status, text: wrong.Text}
	}
	for name := range r.Header {
		if wrong := http1.CheckName(name); wrong != nil {
			return &refusal{status: wrong.Status, text: wrong.Text}
		}
	}
	return nil
}

func refuseMethod(method string) *refusal {
	switch method {
	case http.MethodGet, http.MethodPost, http.MethodHead, http.MethodPut, http.MethodPatch, http.MethodDelete:
	case http.MethodTrace, http.MethodConnect: // contract C19
		return &refusal{status: http.StatusMethodNotAllowed, text: strings.Clone(method) + " requests are not delivered to services."}
	default:
		if !isToken(method) {
			return &refusal{status: http.StatusBadRequest, text: "The request's method is not a valid one."}
		}
	}
	return nil
}

func unknownHost(host string) *refusal {
	if host == "" {
		return &refusal{status: http.StatusNotFound, text: "The request names no host; send a Host field with that of a service."}
	}
	return &refusal{status: http.StatusNotFound, text: fmt.Sprintf("No service has the host %.253q.", host)}
}

// reply answers a request with a refusal.
func (x *exchange) reply(with *refusal) { x.redirect(with, "") }

// redirect answers a request with a refusal that names another URL, "" for none.
func (x *exchange) redirect(with *refusal, location string) {
	h := x.writer.Header()
	clear(h)
	if location != "" {
		h["Location"] = []string{location}
	}
	h["Content-Type"] = []string{"text/plain; charset=utf-8"}
	h["Content-Length"] = []string{strconv.Itoa(len(with.text) + 1)}
	if with.status == http.StatusMethodNotAllowed {
		h["Allow"] = []string{allowedMethods}
	}
	if x.request.ProtoMajor == 1 && hasBody(x.request) {
		x.lingerForBody() // net/http waits for a body that nobody has asked for
	}
	x.endConnection()
	if x.activator == nil {
		x.gateway.metrics.unrouted(with.status)
	}
	x.began, x.status = true, with.status
	x.writer.WriteHeader(with.status)
	if x.request.Method != http.MethodHead {
		n, _ := x.writer.Write([]byte(with.text + "\n")) // a client that is gone is no matter here
		x.sent = int64(n)
	}
}

// fail ends a request that went wrong: with a refusal while nothing was sent to the client, else with a cut.
// member is the instance that it was on, or nil.
func (x *exchange) fail(err error, member *member) {
	switch {
	case x.began:
		x.cut = true
		x.flush() // what there is of the response, also its head; a client that is gone is no matter here
		if !errors.Is(err, errClientGone) && x.request.Context().Err() == nil {
			x.gateway.config.Logger.Warn(cutMessage(err), x.logFields(err)...)
		}
		return
	case x.request.Context().Err() != nil || errors.Is(err, errClientGone):
		x.status = statusClientGone
		x.cut = true
		return
	}
	x.gateway.config.Logger.Debug("request failed", x.logFields(err)...)
	x.reply(x.gateway.refusalOf(x.request.Context(), err, member))
}

// refusalOf is what the client is told of an error. member is the instance that the request was on, or nil. It may wait
// a moment for the news that the instance has ended.
func (g *Gateway) refusalOf(ctx context.Context, err error, member *member) *refusal {
	var started *startFailure
	var closed *closedError
	var short *shortError
	switch {
	case errors.As(err, &short):
		r := g.refusalOf(ctx, short.err, member)
		r.text += "\n" + textShort
		return r
	case errors.As(err, &started):
		return &refusal{status: http.StatusInternalServerError, text: textNotStarted + "\n" + publicReason(started.err)}
	case errors.As(err, &closed):
		return &refusal{status: http.StatusNotFound, text: fmt.Sprintf("The request was not delivered: %s.", closed.err)}
	case errors.Is(err, errTooSlow):
		return &refusal{status: http.StatusInternalServerError, text: textTooSlow}
	case errors.Is(err, errQueueFull), errors.Is(err, errFull):
		return &refusal{status: http.StatusTooManyRequests, text: textNoInstance}
	case errors.Is(err, errTimeout), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return &refusal{status: http.StatusGatewayTimeout, text: textTimeout}
	case errors.Is(err, errBodyTooLarge):
		return bodyTooLarge(g.config.MaxBodyBytes)
	case errors.Is(err, errBadBody):
		return &refusal{status: http.StatusBadRequest, text: "The request's body is malformed."}
	case member != nil && !errors.Is(err, errMalformed) && ranOutOfMemory(ctx, member.instance):
		return &refusal{status: http.StatusInternalServerError, text: textMemory}
	}
	return &refusal{status: http.StatusServiceUnavailable, text: textBroken}
}

// cutMessage is what the log says of a response that had begun and could not be finished.
func cutMessage(err error) string {
	if errors.Is(err, errTruncated) && !errors.Is(err, os.ErrDeadlineExceeded) {
		return textTruncated
	}
	return "response cut"
}

func (x *exchange) logFields(err error) []any {
	revision := &x.activator.revision
	return []any{"namespace", revision.Namespace, "service", revision.Service, "revision", revision.Name,
		"instance", x.instance, "error", err}
}

// ranOutOfMemory tells whether an instance whose connection broke was ended for its memory.
func ranOutOfMemory(ctx context.Context, instance engine.Instance) bool {
	if !exitsWithin(ctx, exitWait, instance) {
		dialing, cancel := context.WithTimeout(ctx, exitWait)
		defer cancel()
		if c, err := instance.Dial(dialing); err == nil { // it has broken one connection off, and lives
			c.Close()
			return false
		}
		if !exitsWithin(ctx, dyingWait, instance) {
			return false
		}
	}
	return instance.Exit().OOM
}

func exitsWithin(ctx context.Context, wait time.Duration, instance engine.Instance) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-instance.Exited():
		return true
	case <-ctx.Done():
		return false
	case <-timer.C:
		return false
	}
}

// publicReason is the part of a failed start that any client may read: what the container did, in one line,
// without its log. What went wrong on the machine is for its operator.
func publicReason(err error) string {
	var start *engine.StartError
	if !errors.As(err, &start) || start.Reason == engine.ReasonEngine || start.Reason == engine.ReasonImageNotPulled {
		return "The machine could not run it; the conditions of the service tell its owner why."
	}
	line, _, _ := strings.Cut(start.Error(), "\n")
	return strings.TrimSuffix(line, "; last lines of its log:")
}

// deadline is when the response must have begun; zero for never.
func (x *exchange) deadline() time.Time { return x.activator.revision.deadline(x.arrived, x.claimed) }

// deadline is when the response to a request must have begun that arrived, and was given to an instance, at these
// times; zero for never.
func (r *Revision) deadline(arrived, claimed time.Time) time.Time {
	var at time.Time
	if r.Timeout > 0 {
		at = arrived.Add(r.Timeout)
	}
	for _, limit := range [...]time.Duration{r.ResponseStart, r.Idle} {
		if start := claimed.Add(limit); limit > 0 && (at.IsZero() || start.Before(at)) {
			at = start
		}
	}
	return at
}

// record counts and logs an exchange that has ended.
func (x *exchange) record(tag string) {
	if metrics := x.activator.metrics.Load(); metrics != nil {
		metrics.observe(x.status, time.Since(x.arrived))
	}
	x.gateway.metrics.waited(x.timing)
	if x.gateway.log != nil {
		x.gateway.log.write(&logLine{
			arrived: x.arrived, claimed: x.claimed, ended: time.Now(),
			method: x.request.Method, host: x.request.Host, path: x.request.URL.Path,
			status: x.status, sent: x.sent, cut: x.cut && x.began,
			revision: &x.activator.revision, instance: x.instance, tag: tag, trace: &x.origin.trace, timing: x.timing,
		})
	}
}
