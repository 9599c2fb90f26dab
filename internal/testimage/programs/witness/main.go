// Witness says with every answer, in the header X-Instance, which instance it is from:
//
//	/say?word=W&n=N        W, N times; a request with a body gets it back instead, framed as it came
//	/work?ms=N&word=W      W, N milliseconds later
//	/events?n=N&every=D    N server-sent events and one that is the end; SIGUSR1 ends all that are open now
//	/websocket             its name, then what is sent, message by message
//	/witness.Witness/Echo  gRPC: the message, and in a trailer that all is well
//	/unready?ms=N          /health fails for so long
//	/health                for probes
//
// It speaks HTTP/1 and, without TLS, HTTP/2. On SIGTERM it breaks everything off and ends.
package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/websocket"
)

// witness is what this instance knows of itself.
type witness struct {
	name         string
	unreadyUntil atomic.Int64 // nanoseconds since 1970

	mu   sync.Mutex
	over chan struct{} // closed to end the events that are open; guarded by mu
}

func main() {
	name, err := os.Hostname()
	if err != nil {
		log.Fatal(err)
	}
	w := &witness{name: name, over: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("/say", w.say)
	mux.HandleFunc("/work", w.work)
	mux.HandleFunc("/events", w.events)
	mux.HandleFunc("/witness.Witness/Echo", w.grpc)
	mux.HandleFunc("/unready", w.unready)
	mux.HandleFunc("/health", w.health)
	// No check of the origin: this is a test program.
	mux.Handle("/websocket", websocket.Server{Handler: w.talk})

	server := &http.Server{Addr: ":" + os.Getenv("PORT"), Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("X-Instance", w.name)
		mux.ServeHTTP(rw, r)
	})}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGUSR1)
	go func() {
		for s := range signals {
			if s == syscall.SIGTERM {
				server.Close()
				return
			}
			w.endEvents()
		}
	}()
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		log.Fatal(err)
	}
}

func (w *witness) say(rw http.ResponseWriter, r *http.Request) {
	if r.ContentLength == 0 {
		n, _ := strconv.Atoi(r.FormValue("n"))
		fmt.Fprint(rw, strings.Repeat(r.FormValue("word"), n))
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	if r.ContentLength > 0 {
		rw.Header().Set("Content-Length", strconv.Itoa(len(body)))
	}
	for len(body) > 0 {
		n, err := rw.Write(body[:min(len(body), 10_000)])
		if err != nil {
			return // the client is gone
		}
		body = body[n:]
	}
}

func (w *witness) work(rw http.ResponseWriter, r *http.Request) {
	ms, err := strconv.Atoi(r.FormValue("ms"))
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	select {
	case <-time.After(time.Duration(ms) * time.Millisecond):
		fmt.Fprint(rw, r.FormValue("word"))
	case <-r.Context().Done():
	}
}

func (w *witness) events(rw http.ResponseWriter, r *http.Request) {
	n, err := strconv.Atoi(r.FormValue("n"))
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	every, err := time.ParseDuration(r.FormValue("every"))
	if err != nil || every <= 0 {
		http.Error(rw, "every must be a time above 0", http.StatusBadRequest)
		return
	}
	w.mu.Lock()
	over := w.over
	w.mu.Unlock()
	rw.Header().Set("Content-Type", "text/event-stream")
	control := http.NewResponseController(rw)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for i := 0; ; i++ {
		if i == n {
			break
		}
		if _, err := fmt.Fprintf(rw, "data: %d\n\n", i); err != nil {
			return // the client is gone
		}
		if err := control.Flush(); err != nil {
			return
		}
		select {
		case <-tick.C:
			continue
		case <-r.Context().Done():
			return
		case <-over:
		}
		break
	}
	fmt.Fprint(rw, "data: end\n\n")
}

// endEvents ends the streams of events that are open now.
func (w *witness) endEvents() {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.over)
	w.over = make(chan struct{})
}

func (w *witness) talk(c *websocket.Conn) {
	defer c.Close() // says so to the client, too
	if err := websocket.Message.Send(c, w.name); err != nil {
		return // the client is gone
	}
	for {
		var message string
		if err := websocket.Message.Receive(c, &message); err != nil {
			return
		}
		if err := websocket.Message.Send(c, message); err != nil {
			return
		}
	}
}

// grpc is by hand: a unary call is a request whose body is one frame, answered with one.
func (w *witness) grpc(rw http.ResponseWriter, r *http.Request) {
	rw.Header().Set("Content-Type", "application/grpc")
	frame, err := io.ReadAll(r.Body)
	if err != nil {
		return // the client is gone
	}
	if _, err := rw.Write(frame); err != nil {
		return
	}
	rw.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
}

func (w *witness) unready(rw http.ResponseWriter, r *http.Request) {
	ms, err := strconv.Atoi(r.FormValue("ms"))
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	w.unreadyUntil.Store(time.Now().Add(time.Duration(ms) * time.Millisecond).UnixNano())
	fmt.Fprint(rw, r.FormValue("word"))
}

func (w *witness) health(rw http.ResponseWriter, _ *http.Request) {
	if time.Now().UnixNano() < w.unreadyUntil.Load() {
		rw.WriteHeader(http.StatusServiceUnavailable)
	}
}
