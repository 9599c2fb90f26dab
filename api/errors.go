package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

// statusError is an error that knows how it looks on the wire.
type statusError struct{ status v1.Status }

func (e *statusError) Error() string { return e.status.Message }

// Status makes a statusError one of Kubernetes' API errors.
func (e *statusError) Status() v1.Status { return e.status }

// objectError is an error that names an object which the request's path does not name.
type objectError struct {
	*statusError
	cause error
}

func (e *objectError) Unwrap() error { return e.cause }

// statusOf is the one place where errors become what clients see. An error that none of the cases knows is the
// platform's fault: 500, and its text is shown because the one user of the API is the platform's owner.
func statusOf(err error, kind serving.Kind, name string) v1.Status {
	var known interface{ Status() v1.Status }
	var tooLarge *http.MaxBytesError
	var e *statusError
	switch {
	case errors.As(err, &known):
		e = &statusError{known.Status()}
	case errors.Is(err, store.ErrNotFound):
		e = notFound(kind, name)
	case errors.Is(err, store.ErrAlreadyExists):
		e = failure(http.StatusConflict, v1.StatusReasonAlreadyExists, fmt.Sprintf("%s %q already exists", kind, name))
	case errors.Is(err, store.ErrConflict):
		e = conflict(kind, name, "the object has been modified; please apply your changes to the latest version and try again")
	case errors.Is(err, store.ErrTerminating): // begun since takesObjects looked
		e = forbidden(kind, name, err.Error())
	case errors.Is(err, store.ErrGone):
		e = expired(err.Error())
	case errors.As(err, &tooLarge):
		e = failure(http.StatusRequestEntityTooLarge, v1.StatusReasonRequestEntityTooLarge,
			fmt.Sprintf("the request's body is larger than %d bytes, the most that is taken", tooLarge.Limit))
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		e = failure(http.StatusGatewayTimeout, v1.StatusReasonTimeout, "the request ended before it was answered: "+err.Error())
	default:
		e = failure(http.StatusInternalServerError, v1.StatusReasonInternalError, "Internal error occurred: "+err.Error())
	}
	s := e.status
	s.TypeMeta = v1.TypeMeta{Kind: "Status", APIVersion: "v1"}
	s.Status = v1.StatusFailure
	if s.Details == nil && kind.Plural != "" {
		s.Details = &v1.StatusDetails{Group: kind.Group, Kind: kind.Plural, Name: name}
	}
	return s
}

func failure(code int32, reason v1.StatusReason, message string) *statusError {
	return &statusError{v1.Status{Status: v1.StatusFailure, Code: code, Reason: reason, Message: message}}
}

func notFound(kind serving.Kind, name string) *statusError {
	e := failure(http.StatusNotFound, v1.StatusReasonNotFound, fmt.Sprintf("%s %q not found", kind, name))
	e.status.Details = &v1.StatusDetails{Group: kind.Group, Kind: kind.Plural, Name: name}
	return e
}

func noSuchPath(path string) *statusError {
	e := failure(http.StatusNotFound, v1.StatusReasonNotFound,
		fmt.Sprintf("the server could not find the requested resource: there is nothing at %s", path))
	e.status.Details = &v1.StatusDetails{} // kubectl debug crashes without
	return e
}

func conflict(kind serving.Kind, name, why string) *statusError {
	return failure(http.StatusConflict, v1.StatusReasonConflict,
		fmt.Sprintf("Operation cannot be fulfilled on %s %q: %s", kind, name, why))
}

func badRequest(format string, args ...any) *statusError {
	return failure(http.StatusBadRequest, v1.StatusReasonBadRequest, fmt.Sprintf(format, args...))
}

// fieldManagerRequired is the refusal of an apply that does not say who applies.
func fieldManagerRequired() *statusError {
	const why = "is required for apply patch"
	e := failure(http.StatusUnprocessableEntity, v1.StatusReasonInvalid, `PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: `+why)
	e.status.Details = &v1.StatusDetails{Group: "meta.k8s.io", Kind: "PatchOptions", Causes: []v1.StatusCause{
		{Type: v1.CauseTypeFieldValueRequired, Message: "Required value: " + why, Field: "fieldManager"},
	}}
	return e
}

// patchDoesNotApply has a cause, without which kubectl does not show why.
func patchDoesNotApply(kind serving.Kind, name string, why error) *statusError {
	e := failure(http.StatusUnprocessableEntity, v1.StatusReasonInvalid,
		fmt.Sprintf("the server rejected our request due to an error in our request: applying the patch: %s", why))
	e.status.Details = &v1.StatusDetails{Group: kind.Group, Kind: kind.Plural, Name: name, Causes: []v1.StatusCause{
		{Type: v1.CauseTypeFieldValueInvalid, Message: why.Error(), Field: "patch"},
	}}
	return e
}

func objectTooLarge(changed string, size int) *statusError {
	return failure(http.StatusRequestEntityTooLarge, v1.StatusReasonRequestEntityTooLarge,
		fmt.Sprintf("the %s object has %d bytes, and %d is the most that is taken", changed, size, maxBody))
}

func forbidden(kind serving.Kind, name, why string) *statusError {
	return failure(http.StatusForbidden, v1.StatusReasonForbidden, fmt.Sprintf("%s %q is forbidden: %s", kind, name, why))
}

func unauthorized(why string) *statusError {
	return failure(http.StatusUnauthorized, v1.StatusReasonUnauthorized,
		"Unauthorized: "+why+`; send the header "Authorization: Bearer TOKEN" with the token that the server keeps in its state directory`)
}

// tooLargeVersion is the answer to who has seen a later version than there is: a store that was restored from a backup
// comes to it in time, or the client lists again without a version.
func tooLargeVersion(want, have uint64) *statusError {
	e := failure(http.StatusGatewayTimeout, v1.StatusReasonTimeout, fmt.Sprintf("Too large resource version: %d, current: %d", want, have))
	e.status.Details = &v1.StatusDetails{RetryAfterSeconds: 1, Causes: []v1.StatusCause{
		{Type: v1.CauseTypeResourceVersionTooLarge, Message: "Too large resource version"},
	}}
	return e
}

func expired(why string) *statusError {
	return failure(http.StatusGone, v1.StatusReasonExpired, why+": list again and go on from the list's resourceVersion")
}

func methodNotAllowed(method, path string, allowed []string) *statusError {
	return failure(http.StatusMethodNotAllowed, v1.StatusReasonMethodNotAllowed,
		fmt.Sprintf("the server does not allow this method on the requested resource: %s %s; it takes %s", method, path, strings.Join(allowed, ", ")))
}

func unsupportedMediaType(got string, supported ...string) *statusError {
	if got == "" {
		got = "(none)"
	}
	return failure(http.StatusUnsupportedMediaType, v1.StatusReasonUnsupportedMediaType,
		fmt.Sprintf("the body of the request was in an unknown format: Content-Type is %s; accepted media types include: %s", got, strings.Join(supported, ", ")))
}

func notAcceptable(accept string) *statusError {
	return failure(http.StatusNotAcceptable, v1.StatusReasonNotAcceptable,
		fmt.Sprintf("only the following media types are accepted: application/json; the request's Accept is %q", accept))
}

func headerTooLarge(size int) *statusError {
	return failure(http.StatusRequestHeaderFieldsTooLarge, "RequestHeaderFieldsTooLarge",
		fmt.Sprintf("the request's header has %d bytes, and %d is the most that is taken", size, maxHeader))
}

func tooManyStreams(limit int) *statusError {
	e := failure(http.StatusTooManyRequests, v1.StatusReasonTooManyRequests,
		fmt.Sprintf("%d watches, followed logs, commands and forwarded ports are open, the most at once; end some, or try again later", limit))
	e.status.Details = &v1.StatusDetails{RetryAfterSeconds: 5}
	return e
}

func notReady(err error) *statusError {
	return failure(http.StatusServiceUnavailable, v1.StatusReasonServiceUnavailable, "not ready: "+err.Error())
}
