package certificate

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
)

// closeWait is how long the end of orders under way is waited for: they are told to end at once.
const closeWait = 5 * time.Second

var errClosed = errors.New("the certificates are closed")

// storage keeps certificates in files, and knows when nobody writes them any more: whoever does holds a lock.
type storage struct {
	*certmagic.FileStorage

	mu     sync.Mutex
	closed bool // guarded by mu
	held   sync.WaitGroup
}

// Lock waits for a lock.
func (s *storage) Lock(ctx context.Context, name string) error {
	if !s.enter() {
		return errClosed
	}
	err := s.FileStorage.Lock(ctx, name)
	if err != nil {
		s.held.Done()
	}
	return err
}

// TryLock takes a lock if nobody has it.
func (s *storage) TryLock(ctx context.Context, name string) (bool, error) {
	if !s.enter() {
		return false, errClosed
	}
	ok, err := s.FileStorage.TryLock(ctx, name)
	if !ok || err != nil {
		s.held.Done()
	}
	return ok, err
}

func (s *storage) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.held.Add(1)
	}
	return !s.closed
}

// Unlock gives a lock back, also when the work under it was told to end.
func (s *storage) Unlock(ctx context.Context, name string) error {
	defer s.held.Done()
	return s.FileStorage.Unlock(context.WithoutCancel(ctx), name)
}

// close gives no more locks and waits until those that are held are given back. It tells whether they were.
func (s *storage) close() bool {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	free := make(chan struct{})
	go func() {
		defer close(free)
		s.held.Wait()
	}()
	timer := time.NewTimer(closeWait)
	defer timer.Stop()
	select {
	case <-free:
		return true
	case <-timer.C:
		return false
	}
}
