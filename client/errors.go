package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/berth-run/berth/serving"
)

// maxErrorBody bounds what is read of a reply that says no.
const maxErrorBody = 1 << 20

// StatusError is the server's "no", with what it said.
type StatusError struct {
	serving.Status
}

// Error is the server's message as it is.
func (e *StatusError) Error() string { return e.Message }

// IsNotFound reports whether err says that the object does not exist.
func IsNotFound(err error) bool { return hasCode(err, http.StatusNotFound) }

// IsConflict reports whether err says that the object changed since it was read. (That an object exists already
// has the same code and is another reason: see [IsAlreadyExists].)
func IsConflict(err error) bool {
	return hasCode(err, http.StatusConflict) && !IsAlreadyExists(err)
}

// IsAlreadyExists reports whether err says that an object of this name exists.
func IsAlreadyExists(err error) bool {
	status, ok := errors.AsType[*StatusError](err)
	return ok && status.Reason == "AlreadyExists"
}

// IsGone reports whether err says that a version is too old to watch from.
func IsGone(err error) bool { return hasCode(err, http.StatusGone) }

func hasCode(err error, code int32) bool {
	status, ok := errors.AsType[*StatusError](err)
	return ok && status.Code == code
}

// statusError reads the Status in a reply. Something in between that answers in another language (a proxy's HTML)
// becomes a Status that says so.
func statusError(reply *http.Response) *StatusError {
	body, _ := io.ReadAll(io.LimitReader(reply.Body, maxErrorBody)) // what could be read is all there is to say
	var status serving.Status
	if err := json.Unmarshal(body, &status); err == nil && status.Kind == "Status" {
		if status.Code == 0 {
			status.Code = int32(reply.StatusCode)
		}
		if status.Message == "" {
			status.Message = fmt.Sprintf("%s %s: the server answered %s", reply.Request.Method, reply.Request.URL.Path, reply.Status)
		}
		return &StatusError{Status: status}
	}
	text, _, _ := strings.Cut(strings.TrimSpace(string(body)), "\n")
	if len(text) > 200 {
		text = text[:200] + "…"
	}
	status = serving.Status{Status: "Failure", Code: int32(reply.StatusCode)}
	if reply.StatusCode == http.StatusBadRequest && strings.HasPrefix(text, "Client sent an HTTP request to an HTTPS server") {
		status.Message = fmt.Sprintf("asking the server at http://%s: it speaks HTTPS: use https:// in its URL", reply.Request.URL.Host)
		return &StatusError{Status: status}
	}
	status.Message = fmt.Sprintf("%s %s: the server answered %s", reply.Request.Method, reply.Request.URL.Path, reply.Status)
	if text != "" {
		status.Message += fmt.Sprintf(": %q", text)
	}
	return &StatusError{Status: status}
}
