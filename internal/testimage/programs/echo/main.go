// Echo gives requests back in several ways:
//
//	/            the request as JSON: method, path, host, protocol, headers, body
//	/stream      the body, each piece as soon as it arrives
//	/sse?n=N     N server-sent events (3 by default), one each ?every (10ms by default)
//	/websocket   what is sent, message by message
//	/slow?ms=N   "first", and N milliseconds later "second"
//	/status?code=N   an answer with that status, and the header X-Echo
//	/bytes?n=N   N bytes
//
// It speaks HTTP/1 and, without TLS, HTTP/2.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/net/websocket"
)

// request is what / answers.
type request struct {
	Method   string      `json:"method"`
	Path     string      `json:"path"`
	Query    string      `json:"query"`
	Host     string      `json:"host"`
	Protocol string      `json:"protocol"`
	Remote   string      `json:"remote"`
	Header   http.Header `json:"header"`
	Body     string      `json:"body"`
	Revision string      `json:"revision"`
	Instance string      `json:"instance"`
}

func main() {
	http.HandleFunc("/", reflect)
	http.HandleFunc("/stream", stream)
	http.HandleFunc("/sse", events)
	http.HandleFunc("/slow", slow)
	http.HandleFunc("/status", status)
	http.HandleFunc("/bytes", bytes)
	// No check of the origin: this is a test program.
	http.Handle("/websocket", websocket.Server{Handler: func(c *websocket.Conn) {
		// The client went away when this fails.
		_, _ = io.Copy(c, c)
	}})
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Addr: ":" + os.Getenv("PORT"), Protocols: protocols}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	go func() {
		<-signals
		log.Print("echo: got SIGTERM, closing")
		server.Close()
	}()
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		log.Fatal(err)
	}
}

func reflect(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	hostname, err := os.Hostname()
	if err != nil {
		log.Print(err)
	}
	w.Header().Set("Content-Type", "application/json")
	answer(json.NewEncoder(w).Encode(request{
		Method:   r.Method,
		Path:     r.URL.Path,
		Query:    r.URL.RawQuery,
		Host:     r.Host,
		Protocol: r.Proto,
		Remote:   r.RemoteAddr,
		Header:   r.Header,
		Body:     string(body),
		Revision: os.Getenv("K_REVISION"),
		Instance: hostname,
	}))
}

func stream(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	// HTTP/1 servers read all of a request before they answer, unless told otherwise; HTTP/2 needs no telling.
	if err := control.EnableFullDuplex(); err != nil && r.ProtoMajor == 1 {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.WriteHeader(http.StatusOK)
	answer(control.Flush())
	buffer := make([]byte, 32<<10)
	for {
		n, err := r.Body.Read(buffer)
		if n > 0 {
			if _, err := w.Write(buffer[:n]); err != nil {
				answer(err)
				return
			}
			answer(control.Flush())
		}
		if err == io.EOF {
			return
		}
		if err != nil {
			answer(err)
			return
		}
	}
}

func events(w http.ResponseWriter, r *http.Request) {
	every, err := time.ParseDuration(r.FormValue("every"))
	if err != nil {
		every = 10 * time.Millisecond
	}
	w.Header().Set("Content-Type", "text/event-stream")
	for i := range number(r, "n", 3) {
		if _, err := fmt.Fprintf(w, "data: %d\n\n", i); err != nil {
			answer(err)
			return
		}
		answer(http.NewResponseController(w).Flush())
		select {
		case <-time.After(every):
		case <-r.Context().Done():
			return
		}
	}
}

func slow(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintln(w, "first")
	answer(http.NewResponseController(w).Flush())
	select {
	case <-time.After(time.Duration(number(r, "ms", 100)) * time.Millisecond):
		fmt.Fprintln(w, "second")
	case <-r.Context().Done():
		log.Print("echo: the client of /slow went away")
	}
}

func status(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Echo", "yes")
	w.WriteHeader(min(max(number(r, "code", 200), 200), 599))
}

func bytes(w http.ResponseWriter, r *http.Request) {
	chunk := make([]byte, 64<<10)
	for left := number(r, "n", 1<<20); left > 0; left -= len(chunk) {
		if _, err := w.Write(chunk[:min(left, len(chunk))]); err != nil {
			answer(err)
			return
		}
	}
}

func number(r *http.Request, name string, otherwise int) int {
	n, err := strconv.Atoi(r.FormValue(name))
	if err != nil {
		return otherwise
	}
	return n
}

// answer logs that an answer did not reach the client.
func answer(err error) {
	if err != nil {
		log.Printf("echo: answering: %v", err)
	}
}
