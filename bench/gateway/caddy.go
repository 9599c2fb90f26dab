package main

import (
	"fmt"
	"net"
	"os/exec"
)

// caddyConfig serves both versions of HTTP on one address and changes nothing in bodies.
const caddyConfig = `{
	admin off
	auto_https off
	grace_period 1s
	servers {
		protocols h1 h2c
	}
	log {
		output discard
	}
}
http://%[1]s {
	bind 127.0.0.1
	reverse_proxy %[2]s {
		transport http {
			keepalive 120s
			keepalive_idle_conns 256
			keepalive_idle_conns_per_host 256
			compression off
		}
	}
}
`

func startCaddy(instance string) (*peer, error) {
	program, err := exec.LookPath("caddy")
	if err != nil {
		return nil, fmt.Errorf("looking for caddy (Debian's package caddy has it): %w", err)
	}
	p, err := preparePeer("caddy")
	if err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(p.address)
	config := ""
	if err == nil {
		config, err = p.configure("Caddyfile", fmt.Sprintf(caddyConfig, ":"+port, instance))
	}
	if err == nil {
		p.http2 = p.address
		err = p.start(program, "run", "--adapter", "caddyfile", "--config", config)
	}
	if err != nil {
		p.stop()
		return nil, err
	}
	p.pids = []int{p.process.Pid}
	return p, nil
}
