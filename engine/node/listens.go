package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// listensQuiet is how long after the last start the kernel goes on telling: switching that on and off interrupts every
	// processor.
	listensQuiet = time.Second
	// tcpListen is the state of a socket that listens, as the kernel numbers them (include/net/tcp_states.h).
	tcpListen = 10
)

// listens tells when programs begin to listen for TCP connections, so that nobody need try their ports again and again.
// The kernel tells of it by its tracepoint sock:inet_sock_set_state, read as perf_event_open(2) describes: a ring of
// memory for each processor. Nothing is traced while nobody waits, and nothing is left behind when the process ends.
//
// It is a hint: that somebody listens in a network namespace, not where. Whoever waits tries, and tries from time to time
// without it. A nil *listens never tells anything: on machines where the kernel does not let us.
type listens struct {
	rings []*ring
	ready *os.File // an epoll of the rings, which the runtime's poller waits for

	mu      sync.Mutex
	waiting map[uint64]map[*listening]struct{} // by the inode of the network namespace
	on      bool                               // the kernel tells
	closed  bool
	quiet   *time.Timer // turns it off; nil while it is off
	reading sync.WaitGroup
}

// listening is one wait for programs in a network namespace. heard has a value when one has begun to listen since it was
// received from last; it may have one for no reason. A nil *listening hears nothing.
type listening struct {
	heard chan struct{}

	listens   *listens
	namespace uint64
}

// openListens begins to watch. Its error says why that is not possible on this machine.
func openListens(namespace *mountNamespace, dir string) (*listens, error) {
	var id uint64
	err := namespace.do(func() (err error) {
		id, err = listenTracepoint(dir)
		return err
	})
	if err != nil {
		return nil, err
	}
	processors, err := onlineProcessors()
	if err != nil {
		return nil, err
	}
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making an epoll: %w", err)
	}
	// Not blocking, so that the runtime's poller takes it.
	if err := unix.SetNonblock(epoll, true); err != nil {
		unix.Close(epoll)
		return nil, fmt.Errorf("making an epoll: %w", err)
	}
	l := &listens{ready: os.NewFile(uintptr(epoll), "perf events"), waiting: map[uint64]map[*listening]struct{}{}}
	for _, processor := range processors {
		r, err := openRing(id, processor)
		if err == nil {
			l.rings = append(l.rings, r)
			err = unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, r.fd, &unix.EpollEvent{Events: unix.EPOLLIN})
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("asking processor %d: %w", processor, err), l.close())
		}
	}
	l.reading.Go(l.read)
	return l, nil
}

// listenTracepoint is the number of the tracepoint. dir is an empty place to mount a file system at for a moment. It runs
// in the mount namespace.
func listenTracepoint(dir string) (uint64, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, err
	}
	defer os.Remove(dir)
	if err := unix.Mount("tracefs", dir, "tracefs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return 0, fmt.Errorf("mounting tracefs: %w", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	text, err := os.ReadFile(filepath.Join(dir, "events/sock/inet_sock_set_state/id"))
	if err != nil {
		return 0, fmt.Errorf("finding the tracepoint: %w", err)
	}
	return strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
}

// onlineProcessors are the numbers of the machine's processors.
func onlineProcessors() ([]int, error) {
	text, err := os.ReadFile("/sys/devices/system/cpu/online")
	if err != nil {
		return nil, fmt.Errorf("listing the processors: %w", err)
	}
	return parseProcessors(strings.TrimSpace(string(text)))
}

// parseProcessors reads a list as "0-3,5".
func parseProcessors(list string) ([]int, error) {
	const most = 1 << 13 // as many as Linux can have
	var all []int
	for part := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(part, "-")
		from, err := strconv.ParseUint(first, 10, 16)
		to := from
		if err == nil && isRange {
			to, err = strconv.ParseUint(last, 10, 16)
		}
		if err != nil || to < from || to >= most {
			return nil, fmt.Errorf("listing the processors: %q is no list of them", list)
		}
		for n := from; n <= to; n++ {
			all = append(all, int(n))
		}
	}
	return all, nil
}

// watch begins to wait for programs in a network namespace, given by its inode. The caller ends it.
func (l *listens) watch(namespace uint64) *listening {
	if l == nil {
		return nil
	}
	w := &listening{heard: make(chan struct{}, 1), listens: l, namespace: namespace}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting[namespace] == nil {
		l.waiting[namespace] = map[*listening]struct{}{}
	}
	l.waiting[namespace][w] = struct{}{}
	if l.quiet != nil {
		l.quiet.Stop()
		l.quiet = nil
	}
	if !l.on && !l.closed {
		l.on = true
		l.turn(unix.PERF_EVENT_IOC_ENABLE)
	}
	return w
}

// end ends the wait. Calling it again does nothing.
func (w *listening) end() {
	if w == nil {
		return
	}
	l := w.listens
	l.mu.Lock()
	defer l.mu.Unlock()
	of := l.waiting[w.namespace]
	if _, ok := of[w]; !ok {
		return
	}
	delete(of, w)
	if len(of) > 0 {
		return
	}
	delete(l.waiting, w.namespace)
	if len(l.waiting) == 0 && l.on && !l.closed {
		l.quiet = time.AfterFunc(listensQuiet, l.turnOff)
	}
}

// channel is what is received from; nil, on which nothing comes, where nothing is heard.
func (w *listening) channel() <-chan struct{} {
	if w == nil {
		return nil
	}
	return w.heard
}

func (l *listens) turnOff() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.waiting) > 0 || !l.on {
		return
	}
	l.on, l.quiet = false, nil
	l.turn(unix.PERF_EVENT_IOC_DISABLE)
}

// turn switches the rings. One of a processor that has gone tells no more, which is no matter: it is a hint. l.mu is held.
func (l *listens) turn(request uint) {
	for _, r := range l.rings {
		_ = unix.IoctlSetInt(r.fd, request, 0)
	}
}

// read tells those who wait what comes in, until close.
func (l *listens) read() {
	raw, err := l.ready.SyscallConn()
	if err != nil {
		return
	}
	// It ends when the file is closed.
	_ = raw.Read(func(fd uintptr) bool {
		for {
			// Whom the kernel names is no matter: a ring is named once, and the poller may have been the one to hear it.
			var events [8]unix.EpollEvent
			n, err := unix.EpollWait(int(fd), events[:], 0)
			for _, r := range l.rings {
				r.drain(l.tell)
			}
			if err != nil && err != unix.EINTR {
				return true
			}
			if err == nil && n == 0 {
				return false
			}
		}
	})
}

// tell wakes those who wait for programs in a thread's network namespace; all, when that is not known any more, or when
// it was not told which thread it was: 0.
func (l *listens) tell(thread uint32) {
	var status unix.Stat_t
	known := thread != 0 && unix.Stat("/proc/"+strconv.FormatUint(uint64(thread), 10)+"/ns/net", &status) == nil
	l.mu.Lock()
	defer l.mu.Unlock()
	if known {
		wake(l.waiting[status.Ino])
		return
	}
	for _, of := range l.waiting {
		wake(of)
	}
}

func wake(all map[*listening]struct{}) {
	for w := range all {
		select {
		case w.heard <- struct{}{}:
		default:
		}
	}
}

func (l *listens) close() error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	l.closed = true
	if l.quiet != nil {
		l.quiet.Stop()
	}
	l.mu.Unlock()
	errs := []error{l.ready.Close()}
	l.reading.Wait()
	for _, r := range l.rings {
		errs = append(errs, r.close())
	}
	return errors.Join(errs...)
}

// ring is what one processor tells: a page of records that the kernel writes and we read.
type ring struct {
	fd     int
	memory []byte
	head   *uint64 // where the kernel writes next
	tail   *uint64 // where we read next
	words  []uint64
}

// openRing opens a tracepoint on a processor, for sockets that begin to listen. It is off.
func openRing(tracepoint uint64, processor int) (*ring, error) {
	attr := &unix.PerfEventAttr{
		Type: unix.PERF_TYPE_TRACEPOINT, Config: tracepoint, Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{})),
		Sample: 1, Sample_type: unix.PERF_SAMPLE_TID, Wakeup: 1, Bits: unix.PerfBitDisabled,
	}
	fd, err := unix.PerfEventOpen(attr, -1, processor, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("perf_event_open: %w", err)
	}
	filter, err := unix.BytePtrFromString("newstate == " + strconv.Itoa(tcpListen))
	if err == nil {
		if _, _, code := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.PERF_EVENT_IOC_SET_FILTER, uintptr(unsafe.Pointer(filter))); code != 0 {
			err = fmt.Errorf("filtering by the new state: %w", code)
		}
	}
	page := os.Getpagesize()
	var memory []byte
	if err == nil {
		// The first page says how far both are, the second one has the records: 200 and more.
		memory, err = unix.Mmap(fd, 0, 2*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	about := (*unix.PerfEventMmapPage)(unsafe.Pointer(&memory[0]))
	return &ring{
		fd: fd, memory: memory, head: &about.Data_head, tail: &about.Data_tail,
		words: unsafe.Slice((*uint64)(unsafe.Pointer(&memory[page])), page/8),
	}, nil
}

// drain reads what has been written, and calls tell for each thread; with 0 where records were lost.
func (r *ring) drain(tell func(thread uint32)) {
	head, tail := atomic.LoadUint64(r.head), atomic.LoadUint64(r.tail)
	for tail < head {
		// A record begins with its type, flags and size, and is a multiple of 8 bytes long.
		first := r.word(tail)
		size := first >> 48
		switch uint32(first) {
		case unix.PERF_RECORD_SAMPLE: // the process, then the thread
			tell(uint32(r.word(tail+8) >> 32))
		case unix.PERF_RECORD_LOST:
			tell(0)
		}
		if size < 8 { // never
			tail = head
			break
		}
		tail += size
	}
	atomic.StoreUint64(r.tail, tail)
}

func (r *ring) word(at uint64) uint64 { return r.words[at/8%uint64(len(r.words))] }

func (r *ring) close() error {
	return errors.Join(unix.Munmap(r.memory), unix.Close(r.fd))
}

// namespaceInode names a network namespace as listens does.
func namespaceInode(namespace *os.File) uint64 {
	var status syscall.Stat_t
	if err := syscall.Fstat(int(namespace.Fd()), &status); err != nil {
		return 0 // nobody's
	}
	return status.Ino
}
