// Ticker works in the background, without requests: it counts every millisecond. Each request is told the count, and which
// process it is.
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
	"sync/atomic"
	"time"
)

func main() {
	var count atomic.Int64
	go func() {
		for range time.Tick(time.Millisecond) {
			count.Add(1)
		}
	}()
	began := time.Now().UnixNano()
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, count.Load(), began) })
	log.Fatal(http.ListenAndServe(":"+os.Getenv("PORT"), nil))
}
