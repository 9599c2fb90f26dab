package node

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

// question is a message with an ID that no server would understand.
func question(id byte) []byte { return []byte{0, id, 'q'} }

// testRelay is a relay for 127.8.0.0/16, and the server that it asks, which hands on the IDs of what it was asked.
func testRelay(t *testing.T) (r *relay, server *net.UDPConn) {
	t.Helper()
	server, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	r, err = openRelay(netip.MustParseAddr("127.8.0.1"), netip.MustParsePrefix("127.8.0.0/16"),
		[]string{server.LocalAddr().String()}, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.close)
	return r, server
}

// asker is a socket that asks the relay from an address.
func asker(t *testing.T, r *relay, network, from string) net.Conn {
	t.Helper()
	var local net.Addr = &net.UDPAddr{IP: net.ParseIP(from)}
	if network == "tcp4" {
		local = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	dialer := net.Dialer{LocalAddr: local}
	conn, err := dialer.DialContext(t.Context(), network, netip.AddrPortFrom(r.address, dnsPort).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestRelay_GivesNobodyMoreThanAShare(t *testing.T) {
	r, server := testRelay(t)
	greedy, modest := asker(t, r, "udp4", "127.8.0.2"), asker(t, r, "udp4", "127.8.0.3")
	for id := range byte(2 * maxQuestionsEach) {
		if _, err := greedy.Write(question(id)); err != nil {
			t.Fatal(err)
		}
	}
	const last = 255
	if _, err := modest.Write(question(last)); err != nil {
		t.Fatal(err)
	}
	// The server answers nobody until it has seen the question of the modest.
	buffer := make([]byte, 16)
	for buffer[1] = 0; buffer[1] != last; {
		_, from, err := server.ReadFromUDP(buffer)
		if err != nil {
			t.Fatal(err)
		}
		if buffer[1] == last {
			if _, err := server.WriteToUDP(question(last), from); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.mu.Lock()
	taken := r.asking[netip.MustParseAddr("127.8.0.2")]
	r.mu.Unlock()
	if taken != maxQuestionsEach {
		t.Errorf("%d questions of the greedy are under way, want %d", taken, maxQuestionsEach)
	}
	if n, err := modest.Read(buffer); err != nil || n != 3 || buffer[1] != last {
		t.Errorf("the modest got %q, %v", buffer[:n], err)
	}
}

func TestRelay_AnswersItsNetworkOnly(t *testing.T) {
	r, server := testRelay(t)
	const stranger, instance = 1, 2
	if _, err := asker(t, r, "udp4", "127.9.0.2").Write(question(stranger)); err != nil {
		t.Fatal(err)
	}
	inside := asker(t, r, "udp4", "127.8.0.2")
	if _, err := inside.Write(question(instance)); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 16)
	if _, _, err := server.ReadFromUDP(buffer); err != nil || buffer[1] != instance {
		t.Errorf("the server was asked %d first, want %d: %v", buffer[1], instance, err)
	}
	_, err := asker(t, r, "tcp4", "127.9.0.2").Read(buffer)
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection from a stranger ended with %v", err)
	} else if !errors.Is(err, io.EOF) && !strings.Contains(err.Error(), "reset") {
		t.Error(err)
	}
}

func TestRelay_RefusesServersThatAreNone(t *testing.T) {
	for _, server := range []string{"dns.example", "192.0.2.53:x", "192.0.2.53:0", "192.0.2.53:65536", "192.0.2", ""} {
		if err := checkServer(server); err == nil || !strings.Contains(err.Error(), "--dns="+server+" ") {
			t.Errorf("%q: got %v", server, err)
		}
	}
	for _, server := range []string{"192.0.2.53", "192.0.2.53:5353", "2001:db8::53", "[2001:db8::53]:53", "fe80::1%eth0"} {
		if err := checkServer(server); err != nil {
			t.Errorf("%q: got %v", server, err)
		}
	}
}
