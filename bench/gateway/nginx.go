package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// nginxConfig has what was fastest for each variant when they were tried side by side: bodies go on as they arrive,
// as through the gateway, and one buffer holds the largest response. Nothing is ever written to a file. HTTP/2
// without TLS has a port of its own: nginx before 1.25 speaks nothing else there.
const nginxConfig = `
daemon off;
worker_processes 1;
pid %[1]s/pid;
error_log %[1]s/error.log;
events { worker_connections 4096; }
http {
	access_log off;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	keepalive_requests 100000000;
	tcp_nodelay on;
	client_body_buffer_size 128k;
	proxy_request_buffering off;
	proxy_buffering off;
	proxy_buffer_size 80k;
	proxy_buffers 4 80k;
	proxy_busy_buffers_size 160k;
	upstream instance { server %[2]s; keepalive 256; keepalive_requests 100000000; }
	server {
		listen %[3]s backlog=4096;
		listen %[4]s http2 backlog=4096;
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

func startNginx(instance string) (_ *peer, err error) {
	program, err := exec.LookPath("nginx")
	if err != nil {
		return nil, fmt.Errorf("looking for nginx (Debian's package nginx-light has it): %w", err)
	}
	p, err := preparePeer("nginx")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.stop()
		}
	}()
	config, err := p.configure("nginx.conf", fmt.Sprintf(nginxConfig, p.folder, instance, p.address, p.http2))
	if err != nil {
		return nil, err
	}
	if err := p.start(program, "-p", p.folder, "-e", filepath.Join(p.folder, "error.log"), "-c", config); err != nil {
		return nil, err
	}
	if p.pids, err = awaitWorkers(p.process.Pid); err != nil {
		return nil, err
	}
	return p, nil
}

// awaitWorkers returns the children of nginx's first process, which requests go through. It listens before it has any.
func awaitWorkers(pid int) ([]int, error) {
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		if err != nil {
			return nil, err
		}
		var workers []int
		for _, field := range strings.Fields(string(children)) {
			worker, err := strconv.Atoi(field)
			if err != nil {
				return nil, err
			}
			workers = append(workers, worker)
		}
		if len(workers) > 0 {
			return workers, nil
		}
	}
	return nil, errors.New("nginx has no worker")
}
