// Hello answers requests with the name of the revision and instance that serve them.
//
//	GET /             Hello from hello-00001 (instance hello-00001-x7k2p)
//	GET /sleep?ms=N   the same, after N milliseconds
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

// maxSleep bounds what a request may ask for.
const maxSleep = time.Hour

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	// Stop is asked for by SIGTERM: take no new request, finish those there are.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	port := os.Getenv("PORT")
	if port == "" {
		port = "8080"
	}
	listener, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	// Without a host name the greeting says so.
	hostname, _ := os.Hostname()
	greeting := fmt.Sprintf("Hello from %s (instance %s)\n", revision(), hostname)
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, greeting)
	})
	http.HandleFunc("/sleep", func(w http.ResponseWriter, r *http.Request) {
		ms, err := strconv.Atoi(r.URL.Query().Get("ms"))
		if err != nil || ms < 0 || time.Duration(ms) > maxSleep/time.Millisecond {
			http.Error(w, "ms wants a number of milliseconds, at most an hour", http.StatusBadRequest)
			return
		}
		select {
		case <-time.After(time.Duration(ms) * time.Millisecond):
			fmt.Fprint(w, greeting)
		case <-r.Context().Done():
		}
	})
	server := &http.Server{}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	log.Printf("listening on port %s", port)
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	// The platform ends what takes longer than its grace period.
	return server.Shutdown(context.Background())
}

func revision() string {
	if name := os.Getenv("K_REVISION"); name != "" {
		return name
	}
	return "no revision"
}
