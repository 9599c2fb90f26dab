// Exit writes a line to standard error, waits for DELAY ("2s", none by default) and exits with CODE (0 by
// default).
package main

import (
	"fmt"
	"os"
	"strconv"
	"time"
)

func main() {
	fmt.Fprintln(os.Stderr, "exit: about to exit")
	if text := os.Getenv("DELAY"); text != "" {
		delay, err := time.ParseDuration(text)
		if err != nil {
			fmt.Fprintf(os.Stderr, "exit: reading DELAY: %v\n", err)
			os.Exit(125)
		}
		time.Sleep(delay)
	}
	code := 0
	if text := os.Getenv("CODE"); text != "" {
		var err error
		if code, err = strconv.Atoi(text); err != nil {
			fmt.Fprintf(os.Stderr, "exit: reading CODE: %v\n", err)
			os.Exit(125)
		}
	}
	os.Exit(code)
}
