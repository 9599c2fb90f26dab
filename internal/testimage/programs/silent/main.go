// Silent never listens. It ends on SIGTERM, unless IGNORE_TERM is set.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	fmt.Println("silent: running, not listening")
	for s := range signals {
		fmt.Printf("silent: got %s\n", s)
		if os.Getenv("IGNORE_TERM") == "" {
			return
		}
	}
}
