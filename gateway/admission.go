package gateway

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
)

// admission counts the connections of clients, and says which ones are too many: in all, or of one client. It is asked
// once for each connection, not for each request.
//
// A client is an IPv4 address, or the /64 network of an IPv6 address, which is what one customer has. The machine
// itself and the proxies in Config.TrustForwarded are not limited as clients: theirs are the connections of many.
type admission struct {
	most          int // in all; 0 is no limit
	mostPerClient int // 0 is no limit
	trusted       []netip.Prefix

	refusedAll, refusedClient atomic.Uint64

	mu      sync.Mutex
	open    int                // guarded by mu
	clients map[netip.Addr]int // connections of each limited client, never 0; guarded by mu
}

// enter counts a connection from an address, or says why it is not taken. Each one that was counted must leave, once.
func (a *admission) enter(from netip.Addr) *refusal {
	client, limited := a.client(from)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.most > 0 && a.open >= a.most {
		a.refusedAll.Add(1)
		return &refusal{http.StatusServiceUnavailable, fmt.Sprintf("The gateway has %d connections, which is as many as it takes. Try again later.", a.open)}
	}
	if limited {
		n := a.clients[client]
		if n >= a.mostPerClient {
			a.refusedClient.Add(1)
			return &refusal{http.StatusTooManyRequests, fmt.Sprintf("There are %d connections from %s, which is as many as one client may have. Use them again, or close some.", n, from)}
		}
		if a.clients == nil {
			a.clients = make(map[netip.Addr]int)
		}
		a.clients[client] = n + 1
	}
	a.open++
	return nil
}

// leave ends what enter began.
func (a *admission) leave(from netip.Addr) {
	client, limited := a.client(from)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.open--
	if !limited {
		return
	}
	if n := a.clients[client] - 1; n > 0 {
		a.clients[client] = n
	} else {
		delete(a.clients, client)
	}
}

// count is how many connections there are.
func (a *admission) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.open
}

// client is whom an address stands for, and whether its connections are limited.
func (a *admission) client(from netip.Addr) (netip.Addr, bool) {
	from = from.Unmap().WithZone("")
	if a.mostPerClient == 0 || !from.IsValid() || from.IsLoopback() || containsAddr(a.trusted, from) {
		return from, false
	}
	if from.Is6() {
		network, _ := from.Prefix(64) // fails only for lengths that there are not
		return network.Addr(), true
	}
	return from, true
}

func containsAddr(prefixes []netip.Prefix, address netip.Addr) bool {
	for _, prefix := range prefixes {
		if prefix.Contains(address) {
			return true
		}
	}
	return false
}

// appendResponse appends a refusal as a whole HTTP/1.1 response, after which the connection ends.
func (r *refusal) appendResponse(b []byte) []byte {
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(r.status), 10)
	b = append(append(b, ' '), http.StatusText(r.status)...)
	b = append(b, "\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(len(r.text)+1), 10)
	b = append(append(b, "\r\n\r\n"...), r.text...)
	return append(b, '\n')
}

// addressOfConn is the IP address of a connection's other side; the zero address when it has none.
func addressOfConn(c net.Conn) netip.Addr {
	if tcp, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr()
	}
	return netip.Addr{}
}
