// Otherport listens on the address in LISTEN (":3000" by default), whatever PORT says.
package main

import (
	"cmp"
	"fmt"
	"log"
	"net/http"
	"os"
)

func main() {
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "otherport") })
	log.Fatal(http.ListenAndServe(cmp.Or(os.Getenv("LISTEN"), ":3000"), nil))
}
