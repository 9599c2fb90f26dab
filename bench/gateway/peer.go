package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// peer is another proxy, running as a process of its own with a folder of its own.
type peer struct {
	name    string
	address string
	http2   string // the address that speaks HTTP/2
	pids    []int  // of the processes that requests go through

	process *os.Process
	ended   chan struct{} // closed when the process has ended
	folder  string
}

// startPeers starts the other proxies in front of an instance. One that is not there is left out, aloud.
func startPeers(instance string, all bool) []*peer {
	starts := []func(string) (*peer, error){startNginx}
	if all {
		starts = append(starts, startHAProxy, startCaddy)
	}
	var started []*peer
	for _, start := range starts {
		p, err := start(instance)
		if err != nil {
			fmt.Printf("# left out: %v\n", err)
			continue
		}
		started = append(started, p)
	}
	return started
}

// preparePeer makes a peer's folder and finds addresses for it.
func preparePeer(name string) (*peer, error) {
	p := &peer{name: name}
	var err error
	if p.address, err = freeAddress(); err != nil {
		return nil, err
	}
	if p.http2, err = freeAddress(); err != nil {
		return nil, err
	}
	if p.folder, err = os.MkdirTemp("", "berth-bench-"); err != nil {
		return nil, err
	}
	return p, os.Chmod(p.folder, 0o755) // a worker may be another user
}

// freeAddress is an address that nobody listens at now.
func freeAddress() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer listener.Close()
	return listener.Addr().String(), nil
}

// configure writes a file of the peer's folder and returns its path.
func (p *peer) configure(name, content string) (string, error) {
	path := filepath.Join(p.folder, name)
	return path, os.WriteFile(path, []byte(content), 0o644)
}

// start runs the peer's program and waits until it listens.
func (p *peer) start(program string, args ...string) error {
	command := exec.Command(program, args...)
	command.Dir = p.folder
	command.Env = append(os.Environ(), "HOME="+p.folder) // Caddy keeps files there
	var wrote bytes.Buffer
	command.Stderr = &wrote
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} // should the benchmark be killed
	if err := command.Start(); err != nil {
		return err
	}
	p.process, p.ended = command.Process, make(chan struct{})
	var exit error
	go func() {
		exit = command.Wait()
		close(p.ended)
	}()
	limit := time.After(5 * time.Second)
	for {
		if c, err := net.Dial("tcp", p.address); err == nil {
			return c.Close()
		}
		select {
		case <-p.ended:
			return fmt.Errorf("starting %s: %v; it wrote:\n%s", p.name, exit, wrote.String())
		case <-limit:
			return fmt.Errorf("%s does not listen on %s", p.name, p.address)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (p *peer) stop() {
	if p.process != nil {
		p.process.Signal(os.Interrupt)
		<-p.ended
	}
	os.RemoveAll(p.folder)
}
