// Moody is as well as it is told to be:
//
//	/                   "ready" or "unready", and how many requests it was asked before
//	/health?of=NAME     the status that was set for the name; else 503 for "never", 200 for others
//	/set?of=NAME&code=N&ms=M   sets it, for M milliseconds or, without, for good
//	/grpc.health.v1.Health/Check   SERVING, and NOT_SERVING for the service "down"
//
// With the argument "check NAME" it asks the program that serves, says what it answers, and exits with 1 unless that
// was 200.
package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// moods are the statuses that were set, by name.
type moods struct {
	mu    sync.Mutex
	codes map[string]int
}

func (m *moods) get(name string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if code := m.codes[name]; code != 0 {
		return code
	}
	return http.StatusOK
}

func (m *moods) set(name string, code int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.codes[name] = code
}

func main() {
	if len(os.Args) == 3 && os.Args[1] == "check" {
		check(os.Args[2])
		return
	}
	m := &moods{codes: map[string]int{"never": http.StatusServiceUnavailable}}
	var asked atomic.Int64
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		mood := "ready"
		if m.get("ready") != http.StatusOK {
			mood = "unready"
		}
		fmt.Fprintf(w, "%s %d", mood, asked.Add(1)-1)
	})
	http.HandleFunc("/health", func(w http.ResponseWriter, r *http.Request) {
		code := m.get(r.FormValue("of"))
		w.WriteHeader(code)
		fmt.Fprint(w, code)
	})
	http.HandleFunc("/set", func(w http.ResponseWriter, r *http.Request) {
		code, err := strconv.Atoi(r.FormValue("code"))
		if err != nil || code < 200 || code > 599 {
			http.Error(w, "code must be a status", http.StatusBadRequest)
			return
		}
		name := r.FormValue("of")
		m.set(name, code)
		if ms, err := strconv.Atoi(r.FormValue("ms")); err == nil {
			time.AfterFunc(time.Duration(ms)*time.Millisecond, func() { m.set(name, http.StatusOK) })
		}
	})
	http.HandleFunc("/grpc.health.v1.Health/Check", grpc)
	server := &http.Server{Addr: ":" + os.Getenv("PORT"), Protocols: new(http.Protocols)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	log.Fatal(server.ListenAndServe())
}

// grpc is the standard health service, by hand.
func grpc(w http.ResponseWriter, r *http.Request) {
	message, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	status := byte(1) // SERVING
	if strings.HasSuffix(string(message), "down") {
		status = 2
	}
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
	if _, err := w.Write([]byte{0, 0, 0, 0, 2, 8, status}); err != nil {
		log.Print(err)
	}
}

func check(name string) {
	response, err := http.Get("http://localhost:" + os.Getenv("PORT") + "/health?of=" + name)
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	fmt.Println("health is", response.StatusCode)
	if response.StatusCode != http.StatusOK {
		os.Exit(1)
	}
}
