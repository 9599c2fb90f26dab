// Crash ends on request: GET /exit?code=N exits, /panic panics, /abort closes the connection
// in the middle of an answer. Anything else answers "alive".
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
	"strconv"
)

func main() {
	http.HandleFunc("/exit", func(w http.ResponseWriter, r *http.Request) {
		code, err := strconv.Atoi(r.FormValue("code"))
		if err != nil {
			http.Error(w, "code wants a number", http.StatusBadRequest)
			return
		}
		log.Printf("exiting with code %d as asked", code)
		os.Exit(code)
	})
	http.HandleFunc("/panic", func(http.ResponseWriter, *http.Request) {
		// The server recovers panics of handlers, not those of other goroutines.
		go panic("panicking as asked")
		select {}
	})
	http.HandleFunc("/abort", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000")
		fmt.Fprintln(w, "the beginning")
		if err := http.NewResponseController(w).Flush(); err != nil {
			log.Print(err)
		}
		panic(http.ErrAbortHandler)
	})
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "alive") })
	log.Fatal(http.ListenAndServe(":"+os.Getenv("PORT"), nil))
}
