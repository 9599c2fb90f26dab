package bench

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// pollInterval is how often the floor tries to connect. Berth begins with 500 µs.
const pollInterval = 200 * time.Microsecond

// BuildHello builds examples/hello as it is deployed, in a directory, and returns the program's path.
func BuildHello(ctx context.Context, dir string) (string, error) {
	hello := filepath.Join(dir, "hello")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", hello, "./examples/hello")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building examples/hello: %w\n%s", err, out)
	}
	return hello, nil
}

// Floor starts a program directly, with PORT set, and asks it on the first connection that it takes: the least time that anything
// which starts it can take. It returns the time until it took the connection and the time until its whole answer.
func Floor(ctx context.Context, program string, args ...string) (listen, answer time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	l, err := net.Listen("tcp", "127.0.0.1:0") // a port that is free now
	if err != nil {
		return 0, 0, err
	}
	address := l.Addr().(*net.TCPAddr)
	l.Close()
	command := exec.Command(program, args...)
	command.Env = []string{"PORT=" + strconv.Itoa(address.Port)}
	start := time.Now()
	if err := command.Start(); err != nil {
		return 0, 0, err
	}
	defer func() {
		command.Process.Kill()
		command.Wait()
	}()
	_, status, err := GetOver(ctx, "http://"+address.String()+"/", func(ctx context.Context, address string) (net.Conn, error) {
		var dialer net.Dialer
		for {
			conn, err := dialer.DialContext(ctx, "tcp", address)
			if err == nil {
				listen = time.Since(start)
				return conn, nil
			}
			if ctx.Err() != nil {
				return nil, fmt.Errorf("%s does not listen: %w", program, err)
			}
			// Not time.Sleep, which rounds up to a millisecond.
			pause := syscall.NsecToTimespec(int64(pollInterval))
			if err := syscall.Nanosleep(&pause, nil); err != nil && err != syscall.EINTR {
				return nil, err
			}
		}
	})
	answer = time.Since(start)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("%s answered with status %d", program, status)
	}
	return listen, answer, err
}
