package gateway

import (
	"errors"
	"fmt"
	"io"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// socket is a connection that a loop owns: a file descriptor that never blocks, which Go's runtime knows nothing of.
// Its system calls do not enter Go's scheduler either (syscall.RawSyscall): none of them waits.
//
// The kernel tells of changes only (EPOLLET). So what it said is remembered here until a call shows that it is over.
type socket struct {
	fd       int
	gen      int32 // tells events of this socket from those of one that had its number before
	readable bool
	writable bool
	ended    bool  // the other side has ended its half, or all of it: reading will come to an end or to an error
	broken   bool  // nothing more can be written, and nothing more will come
	accepted int   // bytes that it took since this was set to 0
	sendErr  error // of the first write that failed
	runner   runner
}

// runner is what goes on with the work of a socket when it has changed.
type runner interface{ run() }

// errAgain says that a socket has nothing to read now.
var errAgain = errors.New("nothing to read yet")

// read reads what is there. It returns errAgain when nothing is, and io.EOF at the end.
func (s *socket) read(p []byte) (int, error) {
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, uintptr(s.fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), 0, 0, 0)
		switch errno {
		case 0:
			if n == 0 {
				s.ended = true
				return 0, io.EOF
			}
			if int(n) < len(p) && !s.ended {
				s.readable = false // a stream socket that gave less has no more (epoll(7))
			}
			return int(n), nil
		case syscall.EINTR:
		case syscall.EAGAIN:
			s.readable = false
			return 0, errAgain
		default:
			s.ended, s.broken = true, true
			return 0, errno
		}
	}
}

// write writes pieces in one call and returns how many bytes the kernel took: fewer than all when it has no room.
func (s *socket) write(pieces [][]byte) (int, error) {
	var vectors [maxPieces]syscall.Iovec
	used, total := 0, 0
	for _, p := range pieces {
		if len(p) > 0 {
			vectors[used].Base = &p[0]
			vectors[used].SetLen(len(p))
			used++
			total += len(p)
		}
	}
	if total == 0 {
		return 0, nil
	}
	for {
		var n uintptr
		var errno syscall.Errno
		if used == 1 {
			n, _, errno = syscall.RawSyscall6(syscall.SYS_SENDTO, uintptr(s.fd), uintptr(unsafe.Pointer(vectors[0].Base)),
				uintptr(total), syscall.MSG_NOSIGNAL, 0, 0)
		} else {
			message := syscall.Msghdr{Iov: &vectors[0], Iovlen: uint64(used)}
			n, _, errno = syscall.RawSyscall(syscall.SYS_SENDMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&message)), syscall.MSG_NOSIGNAL)
		}
		switch errno {
		case 0:
			s.accepted += int(n)
			if int(n) < total {
				s.writable = false
			}
			return int(n), nil
		case syscall.EINTR:
		case syscall.EAGAIN:
			s.writable = false
			return 0, nil
		default:
			s.broken = true
			if s.sendErr == nil {
				s.sendErr = errno
			}
			return 0, errno
		}
	}
}

// maxPieces is how many pieces one write takes.
const maxPieces = 4

// unacknowledged is how many bytes that were written the other side has not taken; 0 when that is not known.
func (s *socket) unacknowledged() int {
	n, err := unix.IoctlGetInt(s.fd, unix.SIOCOUTQ)
	if err != nil {
		return 0
	}
	return n
}

// shutdownWrite ends our half: the other side reads to the end.
func (s *socket) shutdownWrite() { syscall.Shutdown(s.fd, syscall.SHUT_WR) }

// reset makes the close that follows a reset, which the other side sees as an error and not as an end.
func (s *socket) reset() {
	syscall.SetsockoptLinger(s.fd, syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1})
}

// takeSocket takes the file descriptor out of what package net made: that is closed, its socket lives on in the
// descriptor that is returned. Go's runtime knows nothing of it any more.
func takeSocket(c io.Closer) (int, error) {
	defer c.Close()
	holder, ok := c.(syscall.Conn)
	if !ok {
		return -1, fmt.Errorf("a %T has no socket", c)
	}
	raw, err := holder.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd, duplicated := -1, error(nil)
	err = raw.Control(func(original uintptr) {
		fd, duplicated = unix.FcntlInt(original, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err = errors.Join(err, duplicated); err != nil {
		return -1, fmt.Errorf("taking a connection's socket: %w", err)
	}
	return fd, nil // it does not block: package net made it so
}
