package main

import (
	"fmt"
	"os/exec"
)

// haproxyConfig lets any client's request use any kept connection, and has buffers for the largest body.
const haproxyConfig = `
global
	nbthread 1
	maxconn 4096
	tune.bufsize 131072
defaults
	mode http
	maxconn 4096
	timeout connect 5s
	timeout client 300s
	timeout server 300s
	timeout http-keep-alive 120s
	http-reuse always
	option forwardfor
frontend clients
	bind %[1]s backlog 4096
	bind %[2]s backlog 4096 proto h2
	http-request set-header X-Forwarded-Proto http
	default_backend instances
backend instances
	server instance %[3]s
`

func startHAProxy(instance string) (*peer, error) {
	program, err := exec.LookPath("haproxy")
	if err != nil {
		return nil, fmt.Errorf("looking for haproxy (Debian's package haproxy has it): %w", err)
	}
	p, err := preparePeer("haproxy")
	if err != nil {
		return nil, err
	}
	config, err := p.configure("haproxy.cfg", fmt.Sprintf(haproxyConfig, p.address, p.http2, instance))
	if err == nil {
		err = p.start(program, "-db", "-f", config)
	}
	if err != nil {
		p.stop()
		return nil, err
	}
	p.pids = []int{p.process.Pid}
	return p, nil
}
