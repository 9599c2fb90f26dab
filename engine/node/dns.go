package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	machineResolvConf = "/etc/resolv.conf"
	// maxQuestions bounds the questions that are under way; more are dropped, and asked again by who asked.
	maxQuestions = 512
	// maxQuestionsEach is an instance's share of them, so that none takes DNS from the others.
	maxQuestionsEach = 32
	// answerPatience is how long one server may take, before the next is asked.
	answerPatience = 3 * time.Second
	// idlePatience ends a TCP connection on which nothing is said, and streamPatience any.
	idlePatience   = 10 * time.Second
	streamPatience = 60 * time.Second
	maxMessage     = 65535
	dnsPort        = 53
)

// relay passes instances' DNS questions on to the machine's servers, which may be where instances cannot
// reach: systemd-resolved's are on 127.0.0.53. It reads no more of a message than its ID. It takes questions from
// its network only: where the machine routes for others, they could ask it too.
type relay struct {
	address netip.Addr // the gateway's
	network netip.Prefix
	fixed   []string // servers as HOST:PORT; empty: those of the machine
	logger  *slog.Logger

	packets *net.UDPConn
	streams *net.TCPListener
	cancel  context.CancelFunc // of everything that is under way
	running sync.WaitGroup

	mu      sync.Mutex
	asking  map[netip.Addr]int // questions and connections under way, by who asked
	total   int                // of asking
	read    time.Time          // modification time of the machine's file when it was read
	servers []string
	extra   string // its search and options lines
}

// openRelay listens on the gateway's address for questions from a network. An empty servers means the machine's.
func openRelay(address netip.Addr, network netip.Prefix, servers []string, logger *slog.Logger) (*relay, error) {
	r := &relay{address: address, network: network, logger: logger, asking: map[netip.Addr]int{}}
	for _, server := range servers {
		if err := checkServer(server); err != nil {
			return nil, err
		}
		r.fixed = append(r.fixed, withPort(server))
	}
	listen := netip.AddrPortFrom(address, dnsPort)
	var err error
	if r.packets, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(listen)); err != nil {
		return nil, fmt.Errorf("listening for instances' DNS questions: %w; if another DNS server listens on all addresses, give it an address of its own", err)
	}
	if r.streams, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(listen)); err != nil {
		r.packets.Close()
		return nil, fmt.Errorf("listening for instances' DNS questions: %w; if another DNS server listens on all addresses, give it an address of its own", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	r.running.Go(func() { r.servePackets(ctx) })
	r.running.Go(func() { r.serveStreams(ctx) })
	return r, nil
}

// checkServer checks a DNS server that the user has named.
func checkServer(server string) error {
	address, err := netip.ParseAddrPort(withPort(server))
	if err != nil || address.Port() == 0 {
		return fmt.Errorf("--dns=%s is not a DNS server: want its IP address, and its port unless that is %d, such as 192.0.2.53 or 192.0.2.53:5353", server, dnsPort)
	}
	return nil
}

func withPort(server string) string {
	if _, _, err := net.SplitHostPort(server); err == nil {
		return server
	}
	return net.JoinHostPort(strings.Trim(server, "[]"), strconv.Itoa(dnsPort))
}

// begin reports whether a question from an address is taken now; its end is told to done.
func (r *relay) begin(from netip.Addr) bool {
	if !r.network.Contains(from) {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.total >= maxQuestions || r.asking[from] >= maxQuestionsEach {
		return false
	}
	r.total++
	r.asking[from]++
	return true
}

func (r *relay) done(from netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.total--
	if r.asking[from]--; r.asking[from] == 0 {
		delete(r.asking, from)
	}
}

// resolvConf is an instance's /etc/resolv.conf.
func (r *relay) resolvConf() string {
	_, extra := r.machine()
	return "nameserver " + r.address.String() + "\n" + extra
}

// upstream lists the servers to ask.
func (r *relay) upstream() []string {
	if len(r.fixed) > 0 {
		return r.fixed
	}
	servers, _ := r.machine()
	return servers
}

// machine returns what the machine's resolv.conf says, reading it again when it has changed.
func (r *relay) machine() (servers []string, extra string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	info, err := os.Stat(machineResolvConf)
	if err != nil || info.ModTime().Equal(r.read) {
		return r.servers, r.extra
	}
	text, err := os.ReadFile(machineResolvConf)
	if err != nil {
		return r.servers, r.extra
	}
	r.servers, r.extra = parseResolvConf(string(text))
	r.read = info.ModTime()
	return r.servers, r.extra
}

func parseResolvConf(text string) (servers []string, extra string) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			servers = append(servers, withPort(fields[1]))
		case "search", "domain", "options":
			extra += strings.Join(fields, " ") + "\n"
		}
	}
	return servers, extra
}

func (r *relay) servePackets(ctx context.Context) {
	buffer := make([]byte, maxMessage)
	for {
		n, from, err := r.packets.ReadFromUDPAddrPort(buffer)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue // of one packet, such as an unreachable answer's
		}
		if !r.begin(from.Addr()) {
			continue
		}
		question := append([]byte(nil), buffer[:n]...)
		r.running.Go(func() {
			defer r.done(from.Addr())
			if answer := r.ask(ctx, question); answer != nil {
				_, _ = r.packets.WriteToUDPAddrPort(answer, from) // an instance that is gone does not matter
			}
		})
	}
}

// ask returns the first answer of a server, asking one after the other, or nil.
func (r *relay) ask(ctx context.Context, question []byte) []byte {
	if len(question) < 2 {
		return nil
	}
	for _, server := range r.upstream() {
		if answer, err := r.askServer(ctx, server, question); err == nil {
			return answer
		}
	}
	return nil
}

func (r *relay) askServer(ctx context.Context, server string, question []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, answerPatience)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "udp", server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err := conn.Write(question); err != nil {
		return nil, err
	}
	answer := make([]byte, maxMessage)
	for {
		n, err := conn.Read(answer)
		if err != nil {
			return nil, err
		}
		if n >= 2 && binary.BigEndian.Uint16(answer) == binary.BigEndian.Uint16(question) {
			return answer[:n], nil
		}
	}
}

func (r *relay) serveStreams(ctx context.Context) {
	for {
		conn, err := r.streams.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			r.logger.Warn("accepting an instance's DNS connection", "error", err)
			_ = sleep(ctx, time.Second) // out of files: some will be closed
			continue
		}
		from := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		if !r.begin(from) {
			conn.Close()
			continue
		}
		r.running.Go(func() {
			defer r.done(from)
			defer conn.Close()
			r.splice(ctx, conn)
		})
	}
}

// splice joins a connection to the first server that takes one.
func (r *relay) splice(ctx context.Context, conn net.Conn) {
	ctx, cancel := context.WithTimeout(ctx, streamPatience)
	defer cancel()
	for _, server := range r.upstream() {
		dialer := net.Dialer{Timeout: answerPatience}
		other, err := dialer.DialContext(ctx, "tcp", server)
		if err != nil {
			continue
		}
		defer other.Close()
		defer context.AfterFunc(ctx, func() { conn.Close(); other.Close() })()
		var back sync.WaitGroup
		back.Go(func() { copyIdle(conn, other) })
		copyIdle(other, conn)
		if half, ok := other.(*net.TCPConn); ok {
			_ = half.CloseWrite()
		}
		back.Wait()
		return
	}
}

// copyIdle copies until the end, or until nothing came for a while.
func copyIdle(to, from net.Conn) {
	buffer := make([]byte, 4<<10)
	for {
		_ = from.SetReadDeadline(deadlineIn(idlePatience))
		n, err := from.Read(buffer)
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				_ = to.Close()
			}
			return
		}
	}
}

// close stops listening and ends what is under way.
func (r *relay) close() {
	r.cancel()
	r.packets.Close()
	r.streams.Close()
	r.running.Wait()
}
