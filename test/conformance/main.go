// Command conformance runs Knative Serving's own conformance tests against a berth server, from start to end: it
// builds the suite and its images from the module knative.dev/serving, serves the images, starts a server with an
// empty state directory, runs every test, and looks for what is left behind. `make conformance` runs it.
//
// It is a module of its own, so that what the suite is built from stays out of the product's, and it knows the
// server only as any client does: by its command line, its kubeconfig and its API. Start reading at run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// options are what the command line says.
type options struct {
	berth     string // the server's program
	cache     string // folder of what is built, and of the logs
	run       string // regular expression of the tests to run; empty is all
	parallel  int    // how many tests of a package run at the same time
	twice     bool
	keep      bool // the state directory stays
	skipBuild bool // take what a former run has built
	verbose   bool
}

func main() {
	var o options
	flag.StringVar(&o.berth, "berth", "bin/berth", "the server's `program`")
	flag.StringVar(&o.cache, "cache", "bin/conformance", "`folder` of what is built and of the logs: server.log, and one for each package and run")
	flag.StringVar(&o.run, "run", "", "run only tests that match this `regexp`, as go test does")
	flag.IntVar(&o.parallel, "parallel", runtime.GOMAXPROCS(0), "how many tests run at the same time")
	flag.BoolVar(&o.twice, "twice", false, "run the tests twice on the same server")
	flag.BoolVar(&o.keep, "keep", false, "keep the server's state directory")
	flag.BoolVar(&o.skipBuild, "skip-build", false, "take the suite and the images that a former run has built")
	flag.BoolVar(&o.verbose, "v", false, "show all output of the tests as it comes")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	total, err := run(ctx, o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
	}
	fmt.Printf("conformance: %d passed, %d failed, %d skipped\n", total.passed, total.failed, total.skipped)
	if err != nil || total.failed > 0 || total.skipped > 0 || total.passed == 0 {
		os.Exit(1)
	}
}

// run does all of it. The tally holds what was counted until an error.
func run(ctx context.Context, o options) (total tally, err error) {
	if err := os.MkdirAll(o.cache, 0o755); err != nil {
		return total, err
	}
	if o.cache, err = filepath.Abs(o.cache); err != nil {
		return total, err
	}
	if !o.skipBuild {
		began := time.Now()
		if err := build(ctx, o.cache); err != nil {
			return total, err
		}
		fmt.Printf("built the suite and %d images in %s\n", len(images), seconds(time.Since(began)))
	}
	registry, err := serveImages(o.cache)
	if err != nil {
		return total, err
	}
	defer registry.Close()
	p, err := start(ctx, o)
	if err != nil {
		return total, err
	}
	defer func() { err = errors.Join(err, p.stop(o.keep)) }()
	if err := p.seed(ctx); err != nil {
		return total, err
	}
	runs := 1
	if o.twice {
		runs = 2
	}
	first, err := p.residue(ctx, nil)
	if err != nil {
		return total, err
	}
	before := first
	for i := range runs {
		began := time.Now()
		counted, subtests, err := runSuites(ctx, o, i+1, p.kubeconfig(), registry.Host)
		total.add(counted)
		if err != nil {
			return total, err
		}
		fmt.Printf("run %d: %d tests with %d subtests in %s\n", i+1, counted.all(), subtests, seconds(time.Since(began)))
		after, err := p.settle(ctx, first)
		if err != nil {
			return total, err
		}
		fmt.Printf("run %d left %s\n", i+1, after)
		if err := after.check(before, i > 0); err != nil {
			return total, fmt.Errorf("after run %d: %w", i+1, err)
		}
		before = after
	}
	return total, nil
}

// seconds prints a duration in tenths of seconds.
func seconds(d time.Duration) string { return fmt.Sprintf("%.1fs", d.Seconds()) }
