package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// nginx is a running nginx.
type nginx struct {
	command *exec.Cmd
	folder  string
	address string
	workers []int // process ids
}

const nginxConfig = `
daemon off;
worker_processes 1;
pid %[1]s/pid;
error_log %[1]s/error.log;
events { worker_connections 1024; }
http {
	access_log off;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	keepalive_requests 100000000;
	upstream instance { server %[2]s; keepalive 256; keepalive_requests 100000000; }
	server {
		listen %[3]s;
		location / {
			proxy_pass http://instance;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_set_header Host $host;
			proxy_set_header X-Forwarded-For $remote_addr;
			proxy_set_header X-Forwarded-Proto $scheme;
		}
	}
}
`

func startNginx(instance string) (*nginx, error) {
	program, err := exec.LookPath("nginx")
	if err != nil {
		return nil, fmt.Errorf("looking for nginx (Debian's package nginx-light has it): %w", err)
	}
	folder, err := os.MkdirTemp("", "berth-bench-")
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0") // a port that is free now
	if err != nil {
		return nil, err
	}
	n := &nginx{folder: folder, address: listener.Addr().String()}
	listener.Close()

	config := filepath.Join(folder, "nginx.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, nginxConfig, folder, instance, n.address), 0o644); err != nil {
		return nil, err
	}
	if err := os.Chmod(folder, 0o755); err != nil {
		return nil, err
	}
	n.command = exec.Command(program, "-p", folder, "-e", filepath.Join(folder, "error.log"), "-c", config)
	n.command.Stderr = os.Stderr
	if err := n.command.Start(); err != nil {
		return nil, err
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("tcp", n.address); err == nil {
			c.Close()
			break
		}
		if time.Now().After(end) {
			n.stop()
			return nil, fmt.Errorf("nginx does not listen on %s", n.address)
		}
	}
	pid := n.command.Process.Pid
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		n.stop()
		return nil, err
	}
	for _, field := range strings.Fields(string(children)) {
		worker, err := strconv.Atoi(field)
		if err != nil {
			n.stop()
			return nil, err
		}
		n.workers = append(n.workers, worker)
	}
	return n, nil
}

func (n *nginx) stop() {
	n.command.Process.Signal(os.Interrupt)
	n.command.Wait()
	os.RemoveAll(n.folder)
}
