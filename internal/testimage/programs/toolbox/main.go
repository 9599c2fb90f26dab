// Toolbox serves on PORT, and on port 9090 of loopback only, and is the tools that a shell would have: it is a command
// of its own image, for tests that run commands in containers.
//
//	toolbox             serves: / says where it is reached, and writes a line to standard output
//	toolbox cat         gives standard input back
//	toolbox echo WORDS  writes its arguments to standard output, and how many they are to standard error
//	toolbox env         writes the environment
//	toolbox exit CODE   exits with that code
//	toolbox sleep       goes on until it is ended
//	toolbox terminal    says whether standard input, output and error are terminals
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
	"syscall"

	"golang.org/x/term"
)

func main() {
	if len(os.Args) < 2 {
		serve()
		return
	}
	switch args := os.Args[2:]; os.Args[1] {
	case "cat":
		if _, err := io.Copy(os.Stdout, os.Stdin); err != nil {
			log.Fatal(err)
		}
	case "echo":
		fmt.Println(strings.Join(args, "|"))
		fmt.Fprintln(os.Stderr, len(args))
	case "env":
		fmt.Println(strings.Join(os.Environ(), "\n"))
	case "exit":
		code, err := strconv.Atoi(args[0])
		if err != nil {
			log.Fatal(err)
		}
		os.Exit(code)
	case "sleep":
		fmt.Println("sleeping")
		<-terminated()
	case "terminal":
		fmt.Println(term.IsTerminal(0), term.IsTerminal(1), term.IsTerminal(2))
	default:
		log.Fatalf("unknown command %q", os.Args[1])
	}
}

func serve() {
	handler := func(where string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Printf("a request for %s on %s\n", r.URL.Path, where)
			fmt.Fprintf(w, "%s of %s\n", where, os.Getenv("K_REVISION"))
		})
	}
	go func() { log.Fatal(http.ListenAndServe("127.0.0.1:9090", handler("loopback"))) }()
	go func() { log.Fatal(http.ListenAndServe(":"+os.Getenv("PORT"), handler("PORT"))) }()
	fmt.Println("toolbox: listening")
	<-terminated()
}

func terminated() <-chan os.Signal {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	return signals
}
