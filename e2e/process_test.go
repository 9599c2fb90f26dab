package e2e

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-run/berth/server"
)

// Variables that tell the re-executed test binary to be a server on a state directory, and on which addresses.
const (
	serverDir     = "BERTH_E2E_SERVER"
	serverAPI     = "BERTH_E2E_API"
	serverGateway = "BERTH_E2E_GATEWAY"
	serverLogs    = "BERTH_E2E_ACCESS_LOG"  // not empty: it writes its access log, to standard output
	serverTLS     = "BERTH_E2E_CERTIFICATE" // not empty: it speaks TLS too, with the certificate and key in these files, CERTIFICATE:KEY
)

// parallel is how many tests run at the same time at least.
const parallel = 5

func TestMain(m *testing.M) {
	if dir := os.Getenv(serverDir); dir != "" {
		os.Exit(serve(dir))
	}
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		// The tests wait more than they compute: more of them at a time than there are CPUs.
		if err := flag.Set("test.parallel", strconv.Itoa(max(parallel, runtime.NumCPU()))); err != nil {
			fmt.Fprintln(os.Stderr, "setting how many tests run at a time:", err)
			os.Exit(2)
		}
	}
	os.Exit(m.Run())
}

// serve is `berth server` with the settings of tests: it runs until SIGTERM and prints its addresses as JSON.
func serve(dir string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	config := settings(dir)
	config.APIAddress = cmp.Or(os.Getenv(serverAPI), config.APIAddress)
	config.GatewayAddress = cmp.Or(os.Getenv(serverGateway), config.GatewayAddress)
	config.AccessLog = os.Getenv(serverLogs) != ""
	if certificate, key, ok := strings.Cut(os.Getenv(serverTLS), ":"); ok {
		config.TLS.Address, config.TLS.Certificates, config.TLS.Keys = "127.0.0.1:0", []string{certificate}, []string{key}
	}
	config.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	config.Ready = func(a server.Addresses) {
		if err := json.NewEncoder(os.Stdout).Encode(a); err != nil {
			fmt.Fprintln(os.Stderr, "printing the addresses:", err)
		}
	}
	if err := server.Run(ctx, config); err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		return 1
	}
	return 0
}

// process is a server that runs as a process of its own, to be killed.
type process struct {
	*platform
	cmd    *exec.Cmd
	log    *lockedBuffer
	output *bufio.Reader // standard output, after the addresses
}

// spawn runs a server on a state directory as a process of its own. The end of the test ends it.
func spawn(t *testing.T, dir string, env ...string) *process {
	t.Helper()
	return spawnAt(t, dir, server.Addresses{}, env...)
}

// again runs a server that has ended once more, on the same directory and addresses.
func (p *process) again() *process {
	p.t.Helper()
	return spawnAt(p.t, p.dir, p.addresses)
}

func spawnAt(t *testing.T, dir string, addresses server.Addresses, env ...string) *process {
	t.Helper()
	p := launch(t, dir, addresses, env...)
	timer := time.AfterFunc(patience, func() { _ = p.cmd.Process.Kill() })
	line, err := p.output.ReadBytes('\n')
	timer.Stop()
	if err != nil {
		t.Fatalf("server not ready: %v\n%s", err, p.log.String())
	}
	if err := json.Unmarshal(bytes.TrimSpace(line), &p.addresses); err != nil {
		t.Fatalf("addresses %q: %v", line, err)
	}
	p.connect()
	return p
}

// launch starts a server and returns at once. It prints its addresses when it is ready.
func launch(t *testing.T, dir string, addresses server.Addresses, env ...string) *process {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("instances need root: run the tests as root")
	}
	p := &process{platform: &platform{t: t, dir: dir, addresses: addresses}, log: &lockedBuffer{}}
	p.cmd = exec.Command(os.Args[0])
	p.cmd.Env = append(os.Environ(), serverDir+"="+dir, serverAPI+"="+addresses.API, serverGateway+"="+addresses.Gateway)
	p.cmd.Env = append(p.cmd.Env, env...)
	p.cmd.Stderr = p.log
	output, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.output = bufio.NewReader(output)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.stop = func() error {
		if p.cmd.ProcessState != nil {
			return nil
		}
		if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			return err
		}
		return p.cmd.Wait()
	}
	t.Cleanup(func() {
		if err := p.stop(); err != nil {
			t.Errorf("server stopped with: %v", err)
		}
		if t.Failed() {
			t.Logf("log of server %d:\n%s", p.cmd.Process.Pid, p.log.String())
		}
	})
	return p
}

// kill ends the server as kill -9 and a loss of power do, and returns when it is gone.
func (p *process) kill() {
	p.t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		p.t.Fatal(err)
	}
	if err := p.cmd.Wait(); p.cmd.ProcessState == nil {
		p.t.Fatal(err)
	}
}
