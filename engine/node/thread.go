package node

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// onOwnThread runs f on an OS thread that runs nothing else and ends with f, so that f may change what the
// kernel keeps for each thread: namespaces, working directory. It returns when f has been started.
//
// The process's first thread is never used: it cannot end, and /proc/PID shows its namespaces as the process's.
func onOwnThread(f func()) {
	started := make(chan struct{})
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			onOwnThread(f) // while we hold the first thread, the other goroutine is on another one
			runtime.UnlockOSThread()
			close(started)
			return
		}
		close(started)
		f()
	}()
	<-started
}
