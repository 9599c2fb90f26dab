package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// peer is another proxy, running as a process of its own with a folder of its own.
type peer struct {
	name    string
	address string
	http2   string // the address that speaks HTTP/2
	pids    []int  // of the processes that requests go through

	command *exec.Cmd
	folder  string
}

// peers start the other proxies in front of an instance.
var peers = [...]func(instance string) (*peer, error){startNginx}

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
	p.command = exec.Command(program, args...)
	p.command.Dir = p.folder
	p.command.Stderr = os.Stderr
	if err := p.command.Start(); err != nil {
		p.command = nil
		return err
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("tcp", p.address); err == nil {
			return c.Close()
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s does not listen on %s", p.name, p.address)
		}
	}
}

func (p *peer) stop() {
	if p.command != nil {
		p.command.Process.Signal(os.Interrupt)
		p.command.Wait()
	}
	os.RemoveAll(p.folder)
}
