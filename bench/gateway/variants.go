package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// variant is one kind of request that the paths are compared by.
type variant struct {
	name  string
	about string
	path  string

	upload int  // bytes of each request's body
	body   int  // bytes of each answer's body
	fresh  bool // a new connection for each request
	http2  bool // HTTP/2 without TLS, with prior knowledge
}

// base is the name of the variant whose figures have no suffix.
const base = "base"

var variants = [...]variant{
	{name: base, about: "GET, 14 bytes back, kept connections", path: "/", body: len(hello)},
	{name: "1k", about: "GET, 1 KiB back, kept connections", path: "/1k", body: 1 << 10},
	{name: "64k", about: "GET, 64 KiB back, kept connections", path: "/64k", body: 64 << 10},
	{name: "upload", about: "POST of 100 KiB, 14 bytes back, kept connections", path: "/upload", upload: 100 << 10, body: len(hello)},
	{name: "newconn", about: "GET, 14 bytes back, a connection for each request", path: "/", body: len(hello), fresh: true},
	{name: "h2", about: "GET, 14 bytes back, HTTP/2 without TLS, 8 streams on each connection", path: "/", body: len(hello), http2: true},
}

// suffix is what the variant adds to the names of its figures.
func (v *variant) suffix() string {
	if v.name == base {
		return ""
	}
	return "_" + v.name
}

// request is what a client of HTTP/1.1 sends.
func (v *variant) request(host string) []byte {
	method, extra := "GET", ""
	if v.upload > 0 {
		method, extra = "POST", "Content-Length: "+strconv.Itoa(v.upload)+"\r\n"
	}
	if v.fresh {
		extra += "Connection: close\r\n"
	}
	head := method + " " + v.path + " HTTP/1.1\r\nHost: " + host + "\r\nUser-Agent: bench\r\nAccept: */*\r\n" + extra + "\r\n"
	return append([]byte(head), text(v.upload)...)
}

// text is a body of n bytes.
func text(n int) []byte {
	return []byte(strings.Repeat("0123456789abcdef", n/16+1)[:n])
}

// allParts lists what -only takes.
func allParts() string {
	var names []string
	for _, v := range variants {
		names = append(names, v.name)
	}
	for _, other := range alone {
		names = append(names, other.name)
	}
	return strings.Join(names, ",")
}

// chooseParts reads -only. Nothing chosen is everything.
func chooseParts(only string) ([]string, error) {
	all := strings.Split(allParts(), ",")
	if only == "" {
		return all, nil
	}
	chosen := strings.Split(only, ",")
	for _, name := range chosen {
		if !slices.Contains(all, name) {
			return nil, fmt.Errorf("-only has %q; there are %s", name, allParts())
		}
	}
	return chosen, nil
}
