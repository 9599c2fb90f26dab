// Bloat takes memory: GET /?mb=N allocates N MiB, touches each page, and keeps them. With MB set it does so
// before it listens.
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
	"strconv"
	"sync"
)

// hoard keeps what was allocated.
type hoard struct {
	mu     sync.Mutex
	chunks [][]byte // guarded by mu
}

func (h *hoard) take(mb int) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	for range mb {
		chunk := make([]byte, 1<<20)
		for i := 0; i < len(chunk); i += 4096 {
			chunk[i] = 1
		}
		h.chunks = append(h.chunks, chunk)
	}
	return len(h.chunks)
}

func main() {
	var h hoard
	if mb, err := strconv.Atoi(os.Getenv("MB")); err == nil {
		fmt.Printf("bloat: taking %d MiB\n", mb)
		h.take(mb)
	}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		mb, err := strconv.Atoi(r.FormValue("mb"))
		if r.FormValue("mb") != "" && (err != nil || mb < 0) {
			http.Error(w, "mb wants a number of MiB", http.StatusBadRequest)
			return
		}
		fmt.Fprintf(w, "holding %d MiB\n", h.take(mb))
	})
	log.Fatal(http.ListenAndServe(":"+os.Getenv("PORT"), nil))
}
