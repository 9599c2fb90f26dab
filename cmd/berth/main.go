// Command berth runs containers the way Cloud Run does, on a machine of yours: the server and its command line.
package main

import (
	"context"
	"os"

	"github.com/berth-run/berth/cli"
)

func main() {
	os.Exit(cli.Main(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
