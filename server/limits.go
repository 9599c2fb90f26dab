package server

import (
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/gateway"
)

// Limits bound what clients of services may take of the gateway.
type Limits struct {
	MaxHeaderBytes  ByteSize `flag:"max-header-bytes" help:"longest request line and header together; more is answered with 431"`
	MaxHeaderFields int      `flag:"max-header-fields" help:"most header fields of a request; more is answered with 431"`
	MaxURLLength    ByteSize `flag:"max-url-length" help:"longest path and query of a request; more is answered with 414"`
	MaxRequestBody  ByteSize `flag:"max-request-body" help:"largest request body; more is answered with 413; 0 is no limit"`

	ReadHeaderTimeout time.Duration `flag:"read-header-timeout" help:"longest time from a request's first byte to the end of its header"`
	KeepAliveTimeout  time.Duration `flag:"keep-alive-timeout" help:"how long a connection without requests is kept"`
	WriteTimeout      time.Duration `flag:"write-timeout" help:"how long a client may take no byte of what there is for it; then its connection is closed"`

	MaxStreams              int `flag:"max-streams" help:"most requests at the same time on one HTTP/2 connection"`
	MaxResets               int `flag:"max-resets" help:"most requests of one HTTP/2 connection that its client may take back within 10s, before they are answered; one more closes it, but not those of --trust-forwarded"`
	MaxConnections          int `flag:"max-connections" help:"most connections of clients; one more is answered with 503; 0 is no limit. Open files bound them too"`
	MaxConnectionsPerClient int `flag:"max-connections-per-client" help:"most connections of one IPv4 address or IPv6 /64 network, but not of this machine and --trust-forwarded; one more is answered with 429; 0 is no limit"`
}

// defaultLimits are the limits of a server that was given none.
func defaultLimits() Limits {
	return Limits{
		MaxHeaderBytes:  64 << 10,
		MaxHeaderFields: 100,
		MaxURLLength:    16 << 10,

		ReadHeaderTimeout: 10 * time.Second,
		KeepAliveTimeout:  2 * time.Minute,
		WriteTimeout:      time.Minute,

		MaxStreams:              100,
		MaxResets:               1000,
		MaxConnections:          50_000,
		MaxConnectionsPerClient: 10_000,
	}
}

// check calls wrong for each limit that cannot be worked with.
func (l Limits) check(wrong func(flag string, value any, want string)) {
	for flag, d := range map[string]time.Duration{
		"read-header-timeout": l.ReadHeaderTimeout, "keep-alive-timeout": l.KeepAliveTimeout, "write-timeout": l.WriteTimeout,
	} {
		if d <= 0 {
			wrong(flag, d, "it must be longer than 0")
		}
	}
	// Below these, requests of common clients are refused.
	for flag, least := range map[string]struct{ value, least int }{
		"max-header-bytes": {int(l.MaxHeaderBytes), 1024}, "max-header-fields": {l.MaxHeaderFields, 10}, "max-url-length": {int(l.MaxURLLength), 256},
		"max-streams": {l.MaxStreams, 1}, "max-resets": {l.MaxResets, 1},
	} {
		if least.value < least.least {
			wrong(flag, least.value, fmt.Sprintf("it must be %d or more", least.least))
		}
	}
	if l.MaxURLLength >= l.MaxHeaderBytes {
		wrong("max-url-length", l.MaxURLLength, fmt.Sprintf("it must be less than --max-header-bytes, %v", l.MaxHeaderBytes))
	}
	for flag, n := range map[string]int64{
		"max-request-body": int64(l.MaxRequestBody), "max-connections": int64(l.MaxConnections), "max-connections-per-client": int64(l.MaxConnectionsPerClient),
	} {
		if n < 0 {
			wrong(flag, n, "it must be 0, which is no limit, or more")
		}
	}
}

// fill sets the limits in the gateway's settings.
func (l Limits) fill(config *gateway.Config) {
	config.MaxHeaderBytes = int(l.MaxHeaderBytes)
	config.MaxHeaderFields = l.MaxHeaderFields
	config.MaxTargetBytes = int(l.MaxURLLength)
	config.MaxBodyBytes = int64(l.MaxRequestBody)
	config.ReadHeaderTimeout = l.ReadHeaderTimeout
	config.IdleTimeout = l.KeepAliveTimeout
	config.WriteTimeout = l.WriteTimeout
	config.MaxStreams = l.MaxStreams
	config.MaxResets = l.MaxResets
	config.MaxConnections = l.MaxConnections
	config.MaxConnectionsPerClient = l.MaxConnectionsPerClient
}

// reservedFiles is how many open files are left for what is not a connection of a client: the store, images, instances
// and their start.
const reservedFiles = 512

// withinFiles returns how many connections of clients there may be, of those that were asked for (0 is any number),
// when the process may have so many open files. Each takes two: one more leads to an instance.
func withinFiles(asked int, files uint64) int {
	fit := int(min(max(files, 2*reservedFiles)-reservedFiles, 1<<31) / 2)
	if asked == 0 {
		return fit
	}
	return min(asked, fit)
}

// boundConnections lowers the limit on connections to what the process may open, and says so.
func (l *Limits) boundConnections(logger *slog.Logger) error {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return fmt.Errorf("reading the limit of open files: %w", err)
	}
	fit := withinFiles(l.MaxConnections, files.Cur)
	if fit < l.MaxConnections {
		logger.Warn("fewer connections of clients are taken than --max-connections says, for want of open files; raise their limit (ulimit -n)",
			"taken", fit, "max-connections", l.MaxConnections, "open-files", files.Cur)
	}
	l.MaxConnections = fit
	return nil
}
