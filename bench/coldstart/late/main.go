// Late is a program that takes half a second before it listens, as those do that load much or compile at their start.
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
	"time"
)

const start = 500 * time.Millisecond

func main() {
	time.Sleep(start)
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "hello") })
	log.Fatal(http.ListenAndServe(":"+os.Getenv("PORT"), nil))
}
