package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// NotPulledError says that an image is not on this machine.
type NotPulledError struct{ Image string }

func (e *NotPulledError) Error() string {
	return fmt.Sprintf("image %q is not on this machine: pull it first", e.Image)
}

// NotFoundError says that the registry answered and has no such image.
type NotFoundError struct {
	Image string
	Err   error // what the registry said; nil when that was nothing
}

func (e *NotFoundError) Error() string {
	return fmt.Sprintf("image %q does not exist%s; check the name and the tag, and that it was pushed", e.Image, because(e.Err))
}

// Unwrap returns what the registry said.
func (e *NotFoundError) Unwrap() error { return e.Err }

// UnauthorizedError says that the registry refused the credentials, or wants some. Many registries answer so
// for repositories that do not exist, too.
type UnauthorizedError struct {
	Image     string
	Anonymous bool  // no credentials were sent
	Err       error // what the registry said; nil when that was nothing
}

func (e *UnauthorizedError) Error() string {
	if e.Anonymous {
		return fmt.Sprintf("image %q needs credentials, or does not exist%s; give the service an image pull secret or log in to the registry on the server", e.Image, because(e.Err))
	}
	return fmt.Sprintf("image %q may not be read with the given credentials, or does not exist%s; check the user name, the password and their rights", e.Image, because(e.Err))
}

// Unwrap returns what the registry said.
func (e *UnauthorizedError) Unwrap() error { return e.Err }

// UnreachableError says that the registry gave no usable answer.
type UnreachableError struct {
	Image    string
	Registry string
	Err      error // nil when nothing is known of the cause
}

func (e *UnreachableError) Error() string {
	cause := because(e.Err)
	text := fmt.Sprintf("image %q: registry %s did not answer%s", e.Image, e.Registry, cause)
	switch {
	case strings.Contains(cause, "server gave HTTP response to HTTPS client"):
		return text + "; it speaks plain HTTP: allow that with --insecure-registry"
	case strings.Contains(cause, "x509:"):
		return text + "; its certificate is not trusted by this machine"
	}
	return text + "; check the name, that the registry runs, and this machine's network"
}

// Unwrap returns the cause.
func (e *UnreachableError) Unwrap() error { return e.Err }

// because is a cause in an error's text.
func because(err error) string {
	if err == nil {
		return ""
	}
	return ": " + err.Error()
}

// PlatformError says that an image is for other machines (contract C2, C4).
type PlatformError struct {
	Image string
	Has   []string // platforms it has: "linux/arm64"
	Needs string
}

func (e *PlatformError) Error() string {
	has := "no platform that runs programs"
	if len(e.Has) > 0 {
		has = strings.Join(e.Has, ", ") + " only"
	}
	return fmt.Sprintf("image %q has %s, servers need %s: build it for %s", e.Image, has, e.Needs, e.Needs)
}

// DigestError says that bytes are not what their digest promises: they were damaged or tampered with.
type DigestError struct {
	What      string // "layer sha256:… as sent by the registry"
	Want, Got string
}

func (e *DigestError) Error() string {
	return fmt.Sprintf("%s is damaged: its digest is %s, want %s; push the image again if it stays so", e.What, e.Got, e.Want)
}

// UnpackError says that a layer is not a usable archive of a Linux file system: what it holds is refused.
type UnpackError struct {
	Entry string // name in the archive; empty when the archive itself is at fault
	Err   error
}

func (e *UnpackError) Error() string {
	if e.Entry == "" {
		return e.Err.Error()
	}
	return fmt.Sprintf("entry %q: %v", e.Entry, e.Err)
}

// Unwrap returns the cause.
func (e *UnpackError) Unwrap() error { return e.Err }

// registryError gives an error of talking to a registry its type. Other errors get the image's name.
func registryError(doing, image, registry string, anonymous bool, err error) error {
	var answer *transport.Error
	if errors.As(err, &answer) {
		switch answer.StatusCode {
		case http.StatusNotFound:
			return &NotFoundError{Image: image, Err: err}
		case http.StatusUnauthorized, http.StatusForbidden:
			return &UnauthorizedError{Image: image, Anonymous: anonymous, Err: err}
		}
		return &UnreachableError{Image: image, Registry: registry, Err: err}
	}
	// Not net.Error: every syscall.Errno is one, those of the disk too.
	var connection *net.OpError
	var host *net.DNSError
	var address *url.Error
	if errors.As(err, &connection) || errors.As(err, &host) || errors.As(err, &address) ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, errStalled) {
		return &UnreachableError{Image: image, Registry: registry, Err: err}
	}
	return fmt.Errorf("%s image %q: %w", doing, image, err)
}

// diskError adds the directory and the remedy to "no space left on device".
func diskError(dir string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("disk full: no room for the image in %s: free space there: %w", dir, err)
	}
	return err
}
