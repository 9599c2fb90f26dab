package api_test

import (
	"fmt"
	"net/http"
	"testing"
)

// BenchmarkCreate is one service written by one client over a socket, durable when it is answered.
func BenchmarkCreate(b *testing.B) {
	s := newServer(b)
	for i := 0; b.Loop(); i++ {
		s.do("POST", services, hello(fmt.Sprintf("s-%d", i))).want(b, http.StatusCreated)
	}
}

// BenchmarkGet is one service read by one client over a socket.
func BenchmarkGet(b *testing.B) {
	s := newServer(b)
	s.created(services, hello("hello"))
	for b.Loop() {
		s.do("GET", services+"/hello", "").want(b, http.StatusOK)
	}
}
