package certificate

import (
	"errors"
	"testing"

	"github.com/caddyserver/certmagic"
)

func TestStorage_ClosesWhenItsLocksAreGivenBack(t *testing.T) {
	s := &storage{FileStorage: &certmagic.FileStorage{Path: t.TempDir()}}
	if err := s.Lock(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if ok, err := s.TryLock(t.Context(), "b"); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if ok, err := s.TryLock(t.Context(), "a"); ok || err != nil {
		t.Errorf("a lock that is held was taken: %v %v", ok, err)
	}
	closed := make(chan bool, 1)
	go func() { closed <- s.close() }()
	for _, name := range []string{"a", "b"} {
		select {
		case <-closed:
			t.Fatalf("closed while lock %s is held", name)
		default:
		}
		if err := s.Unlock(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
	if !<-closed {
		t.Error("it gave up waiting")
	}
	if err := s.Lock(t.Context(), "c"); !errors.Is(err, errClosed) {
		t.Errorf("a lock of closed storage: %v", err)
	}
}
