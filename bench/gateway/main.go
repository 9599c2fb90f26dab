// Command gateway measures what the gateway costs a request: one warm instance behind Berth's gateway, behind
// nginx, behind the standard library's reverse proxy, and asked directly, in one run on one machine. With -peers
// HAProxy and Caddy are measured too.
//
// Each of them is a process of its own. The paths are measured in turns, several rounds: a ratio is that of two
// measurements of the same round, and the median of the rounds counts, so that what else the machine does falls on
// all alike. The gateway runs with its metrics on and its access log off; nginx and HAProxy with one worker,
// connections kept to the instance, and their access logs off.
//
// What is measured is in variants.go, what is printed in figures.go. http1.go and http2.go are the clients: one
// thread for all connections, so that the load takes as little as it can of a machine that it shares with what it
// measures. Every answer is checked: a fast wrong answer is not a result.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	o := options{}
	only := ""
	flag.IntVar(&o.rounds, "rounds", 15, "measurements of each path; the median counts")
	flag.DurationVar(&o.length, "length", 200*time.Millisecond, "length of one measurement with 64 connections; half of it with one connection")
	flag.StringVar(&only, "only", "", "what to measure, with commas between: "+allParts())
	flag.BoolVar(&o.peers, "peers", false, "measure HAProxy and Caddy too")
	flag.StringVar(&o.profile, "cpuprofile", "", "a file for a CPU profile of the gateway that is compared with the others; those of lookup are FILE.few and FILE.many")
	flag.Parse()
	if err := run(o, only); err != nil {
		fmt.Fprintln(os.Stderr, "bench/gateway:", err)
		os.Exit(1)
	}
}

// options are the benchmark's flags.
type options struct {
	rounds  int
	length  time.Duration
	peers   bool
	profile string
}

func run(o options, only string) error {
	switch flag.Arg(0) {
	case "instance":
		return runInstance()
	case "gateway":
		return runGateway(flag.Args()[1:])
	case "reverseproxy":
		return runReverseProxy(flag.Arg(1))
	case "":
	default:
		return fmt.Errorf("there is no role %q", flag.Arg(0))
	}
	parts, err := chooseParts(only)
	if err != nil {
		return err
	}
	if o.rounds < 1 || o.length < 10*time.Millisecond {
		return fmt.Errorf("-rounds is %d and -length %s: there must be at least 1 round, of 10 ms", o.rounds, o.length)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err = measureParts(ctx, o, parts)
	if ctx.Err() != nil {
		return errors.New("ended by a signal") // which the others got too, so that what they say is of no use
	}
	return err
}
