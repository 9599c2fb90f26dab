package gateway

import (
	"errors"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// fate is what became of the bytes of a request whose connection has ended without a byte of an answer.
type fate int

const (
	// taken is a request that the instance's TCP took, or may have taken: it must not be sent again.
	taken fate = iota
	// undecided is a request on a connection that the instance has ended before it took any of it. The reset that
	// says that nobody will take it any more has not come yet.
	undecided
	// untaken is a request of which the instance's TCP took nothing, and never will: it may be sent again, whatever
	// it asks for.
	untaken
)

// fateWait is how long the reset that decides an undecided fate is waited for. It comes at once from an instance that
// has closed the connection. One that has only ended its own side sends none. It is longer than TCP waits before it
// sends once more what was lost, 200 ms.
const fateWait = 300 * time.Millisecond

// fateOf tells the fate of a request on a connection (a TCP socket that this side has not shut down) where a read has
// found the end of the stream instead of an answer. A read that found a reset needs no question: what it was sent may
// have been taken. sent is how many bytes the socket accepted of the request, the last that was sent on it; sendErr
// is the error of the first send that failed, or nil. Nothing must be recorded before the request is sent. Once only:
// the question takes the socket's error.
//
// An instance that closes a connection for its idleness, at the moment that a request is sent, refuses the request
// with a reset that follows the end of its stream. Linux then leaves this behind, which proves it:
//
//   - the socket's error is EPIPE: a reset came, and the end of the stream came before it. A reset alone, ECONNRESET,
//     proves nothing: it is also what a program causes that reads a request, acts on it and breaks off, or that closes
//     with the request unread; TCP does not look at the acknowledgement that such a reset carries.
//   - none of the request's bytes is acknowledged (SIOCOUTQ counts those that are not). The end of the stream
//     acknowledges what came before it, so a program that has read a request before it closed is known by that.
//
// What is left is a program that ends its own side first, then reads a request that it cannot answer any more, acts on it
// all the same, and closes or breaks off within the 40 ms that its acknowledgement may take.
func fateOf(fd, sent int, sendErr error) fate {
	// The error comes first: when it says that the connection is reset, what is acknowledged does not change any more.
	pending, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return taken
	}
	reset := syscall.Errno(pending)
	if reset == 0 && sendErr != nil && !errors.As(sendErr, &reset) { // the send took the socket's error
		return taken
	}
	unacknowledged, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
	switch {
	case err != nil || unacknowledged < sent:
		return taken
	case reset == 0:
		return undecided
	case reset == unix.EPIPE:
		return untaken
	default:
		return taken
	}
}

// untaken tells whether the instance took nothing of what was written since begin, and never will. It is asked when a
// read has found the end of the stream instead of an answer, and nobody writes any more. It waits, but not for longer
// than fateWait and not beyond the deadline, zero for none, for the proof. A connection that cannot be looked at proves
// nothing.
func (c *conn) untaken(deadline time.Time) bool {
	if c.raw == nil {
		return false
	}
	limit := time.Now().Add(fateWait)
	if !deadline.IsZero() && deadline.Before(limit) {
		limit = deadline
	}
	if c.SetReadDeadline(limit) != nil {
		return false
	}
	found := taken
	err := c.raw.Read(func(fd uintptr) bool { // again at each event of the socket, until true
		found = fateOf(int(fd), c.sent, c.sendErr)
		return found != undecided
	})
	return err == nil && found == untaken
}
