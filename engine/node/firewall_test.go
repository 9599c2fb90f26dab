package node

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/berth-run/berth/engine/enginetest"
	"github.com/berth-run/berth/image"
)

// ownNetwork tells the re-executed test binary that it is in a network namespace that nobody else uses.
const ownNetwork = "BERTH_TEST_OWN_NETWORK"

// inOwnNetwork runs the test again in a process with a network namespace of its own, where packet rules and
// forwarding are nobody else's. It reports whether this is that process.
func inOwnNetwork(t *testing.T) bool {
	t.Helper()
	if os.Getenv(ownNetwork) == t.Name() {
		enginetest.LoadProgram(t, os.Getenv(programFile))
		loopback, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(loopback)
		}
		if err != nil {
			t.Fatal(err)
		}
		return true
	}
	again := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	again.Env = append(again.Environ(), ownNetwork+"="+t.Name(), programFile+"="+enginetest.SaveProgram(t))
	again.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	output, err := again.CombinedOutput()
	if err != nil || !strings.Contains(string(output), "--- PASS: "+t.Name()) {
		t.Errorf("in a network of its own: %v\n%s", err, output)
	}
	return false
}

// told is a slog.Handler that hands on what is logged.
type told chan slog.Record

func (h told) Enabled(context.Context, slog.Level) bool           { return true }
func (h told) Handle(_ context.Context, record slog.Record) error { h <- record; return nil }
func (h told) WithAttrs([]slog.Attr) slog.Handler                 { return h }
func (h told) WithGroup(string) slog.Handler                      { return h }

// expect waits until something with text in its message is logged, and returns its attribute key.
func (h told) expect(t *testing.T, text, key string) (value string) {
	t.Helper()
	late := time.After(time.Minute)
	for {
		select {
		case record := <-h:
			t.Log(record.Message)
			if !strings.Contains(record.Message, text) {
				continue
			}
			record.Attrs(func(a slog.Attr) bool {
				if a.Key == key {
					value = a.Value.String()
				}
				return true
			})
			return value
		case <-late:
			t.Fatalf("nobody said %q", text)
		}
	}
}

// openTold opens an engine of which the test hears what it logs.
func openTold(t *testing.T, dns ...string) (*Engine, told) {
	t.Helper()
	dir, heard := t.TempDir(), make(told, 100)
	images, err := image.Open(filepath.Join(dir, "images"), image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { images.Close() })
	e, err := Open(Config{
		Dir: filepath.Join(dir, "node"), Images: images, Network: netip.MustParsePrefix("10.213.0.0/16"),
		LogKeep: LeastLogKeep, DNS: dns, Logger: slog.New(heard),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("closing the engine: %v", err)
		}
	})
	return e, heard
}

func shell(t *testing.T, script string) string {
	t.Helper()
	output, err := exec.Command("sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, output)
	}
	return string(output)
}

func setForwarding(t *testing.T, to string) {
	t.Helper()
	if err := setSysctl("ipv4/ip_forward", to); err != nil {
		t.Fatal(err)
	}
}

func forwards(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

func TestFirewall_IsRestoredWhenAnotherProgramRemovesIt(t *testing.T) {
	t.Parallel()
	if !inOwnNetwork(t) {
		return
	}
	setForwarding(t, "0")
	e, heard := openTold(t)
	openEngine(t, t.TempDir()) // another's rules are restored too
	rules := func() string { return shell(t, "nft list ruleset") }
	// Every line is there once for each engine, and none for others: the order of tables does not matter.
	sorted := func(text string) string { return shell(t, "sort <<'end'\n"+text+"end\n") }
	before := sorted(rules())
	s := enginetest.New(t, e)
	i, neighbour := s.Start(t, nil, "serve"), s.Start(t, nil, "serve").(*instance)
	for _, script := range []string{
		"nft flush ruleset",
		"nft delete table inet " + e.firewall.table,
		"nft flush chain inet " + e.firewall.table + " forward",
		"nft insert rule inet " + e.firewall.table + " forward accept",
	} {
		shell(t, script)
		heard.expect(t, "they are restored", "")
		if canConnect(t, i, fmt.Sprintf("%s:8080", neighbour.link.address)) {
			t.Errorf("after %s an instance reaches another", script)
		}
	}
	// The other engine's table and the one of both are restored by whoever comes first.
	for deadline := time.Now().Add(time.Minute); sorted(rules()) != before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the rules are\n%s\nwant the lines\n%s", rules(), before)
		}
	}
}

func TestFirewall_IsLeftAloneWhenOthersChangeTheirs(t *testing.T) {
	t.Parallel()
	if !inOwnNetwork(t) {
		return
	}
	e, _ := openTold(t)
	shell(t, "nft add table inet other; nft add chain inet other input; nft delete table inet other")
	if restored, err := e.firewall.restore(); restored || err != nil {
		t.Errorf("restored: %v, %v", restored, err)
	}
}

func TestForwarding_IsForInstancesOnly(t *testing.T) {
	t.Parallel()
	if !inOwnNetwork(t) {
		return
	}
	setForwarding(t, "0")
	world := outside(t)
	go func() {
		for {
			conn, err := world.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	e, _ := openTold(t)
	second := openEngine(t, t.TempDir())
	if forwards(t) != "1" {
		t.Fatal("forwarding is off")
	}
	if !canConnect(t, enginetest.New(t, e).Start(t, nil, "serve"), world.Addr().String()) {
		t.Error("an instance cannot connect to the world")
	}
	// A neighbour in the network uses the machine as its router.
	shell(t, `ip netns add berth-test-$$ && trap 'ip netns delete berth-test-$$' EXIT
		ip link add lan0 type veth peer name eth0 netns berth-test-$$
		ip address add 198.18.1.1/30 dev lan0; ip link set lan0 up
		ip -n berth-test-$$ address add 198.18.1.2/30 dev eth0; ip -n berth-test-$$ link set eth0 up
		ip -n berth-test-$$ route add default via 198.18.1.1
		nft add table inet counting; nft add chain inet counting forward '{ type filter hook forward priority 10; }'
		nft add rule inet counting forward iifname lan0 counter
		ping() { ip netns exec berth-test-$$ timeout 1 bash -c 'echo > /dev/udp/198.18.0.2/9'; }
		ping; nft list table inet counting | grep -q 'packets 0' || { echo the machine forwards for a neighbour; exit 1; }
		# Without the rule it would be forwarded. The engine restores the rule at once: try until a packet is faster.
		for try in $(seq 100); do
			nft delete table inet `+forwardingTable+` 2>/dev/null; ping
			nft list table inet counting | grep -q 'packets 0' || exit 0
		done
		echo the test does not count what is forwarded; exit 1`)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if forwards(t) != "1" {
		t.Error("forwarding was switched off while another engine needs it")
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	if forwards(t) != "0" {
		t.Error("forwarding stays on after the last engine")
	}
	if tables := shell(t, "nft list tables"); strings.Contains(tables, tablePrefix) {
		t.Errorf("tables are left: %s", tables)
	}
}

func TestForwarding_StaysAsItWas(t *testing.T) {
	t.Parallel()
	if !inOwnNetwork(t) {
		return
	}
	setForwarding(t, "1")
	e, _ := openTold(t)
	if strings.Contains(shell(t, "nft list tables"), forwardingTable) {
		t.Error("a machine that was a router is none any more")
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if forwards(t) != "1" {
		t.Error("it was switched off")
	}
}

func TestForwarding_IsLeftToOthersThatNeedIt(t *testing.T) {
	t.Parallel()
	if !inOwnNetwork(t) {
		return
	}
	setForwarding(t, "0")
	e, heard := openTold(t)
	shell(t, "iptables -t nat -A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE")
	// At a change it looks, not only now and then; it may have seen the one above already.
	shell(t, "nft add counter inet "+forwardingTable+" look 2>/dev/null || true")
	heard.expect(t, "another program translates addresses", "")
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if forwards(t) != "1" || strings.Contains(shell(t, "nft list tables"), tablePrefix) {
		t.Errorf("forwarding is %s, tables are %s", forwards(t), shell(t, "nft list tables"))
	}
}

// TestObstacles_AreToldWithARemedyThatWorks has the machine's rules drop everything, and then does what the engine
// says.
func TestObstacles_AreToldWithARemedyThatWorks(t *testing.T) {
	t.Parallel()
	if !inOwnNetwork(t) {
		return
	}
	server, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	defer serving.Wait()
	defer server.Close()
	serving.Go(func() {
		buffer := make([]byte, 4096)
		for {
			n, from, err := server.ReadFrom(buffer)
			if err != nil {
				return
			}
			_, _ = server.WriteTo(answer(buffer[:n]), from)
		}
	})
	world := outside(t)
	serving.Go(func() {
		for {
			conn, err := world.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	})
	defer world.Close()
	for name, rules := range map[string]string{
		"iptables": `iptables -P INPUT DROP; iptables -P FORWARD DROP; iptables -A INPUT -i lo -j ACCEPT
			iptables -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT; iptables -A INPUT -p tcp --dport 22 -j ACCEPT; iptables -A OUTPUT -j ACCEPT`,
		"Docker": `iptables -N DOCKER-USER; iptables -A DOCKER-USER -j RETURN; iptables -A FORWARD -j DOCKER-USER; iptables -P FORWARD DROP; iptables -P INPUT DROP
			iptables -A INPUT -i lo -j ACCEPT; iptables -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT`,
		"nftables": `nft add table inet filter
			nft add chain inet filter input '{ type filter hook input priority 0; policy drop; }'; nft add rule inet filter input iifname lo accept
			nft add rule inet filter input ct state established,related accept
			nft add chain inet filter forward '{ type filter hook forward priority 0; policy drop; }'`,
	} {
		t.Run(name, func(t *testing.T) {
			shell(t, rules)
			defer shell(t, "nft flush ruleset")
			e, heard := openTold(t, server.LocalAddr().String())
			s := enginetest.New(t, e)
			i := s.Start(t, nil, "serve")
			defer i.Stop(0)
			remedies := map[string]string{}
			for range 2 {
				remedy := heard.expect(t, "the machine's own packet rules drop", "allow")
				remedies[remedy] = remedy
			}
			if len(remedies) != 2 || canConnect(t, i, world.Addr().String()) {
				t.Fatalf("remedies %q; or the rules drop nothing, and the test tests nothing", remedies)
			}
			for remedy := range remedies {
				shell(t, remedy)
			}
			if !canConnect(t, i, world.Addr().String()) {
				t.Errorf("an instance cannot connect to the world after %q", remedies)
			}
			if got := enginetest.Get(t, i, "/resolve?name=service.example."); got != "192.0.2.7" {
				t.Errorf("an instance resolves %q after %q", got, remedies)
			}
			chains, err := e.firewall.list("chains")
			if err != nil {
				t.Fatal(err)
			}
			for _, hook := range []string{"input", "forward"} {
				if obstacle := e.firewall.obstacle(parseChains(chains), hook); obstacle != "" {
					t.Errorf("it still says: %s", obstacle)
				}
			}
		})
	}
}

func TestObstacles_AreNamedInTheWordsOfTheirProgram(t *testing.T) {
	f := &firewall{network: &network{prefix: netip.MustParsePrefix("10.213.0.0/20"), gateway: netip.MustParseAddr("10.213.0.1"), links: "bt3f9a2c"}}
	ufw := "table ip filter {\n\tchain ufw-user-input {\n\t}\n}\n"
	for _, test := range []struct {
		chain chain
		rules string
		want  string
	}{
		{chain{family: "ip", table: "filter", name: "INPUT", hook: "input"}, ufw, "ufw allow from 10.213.0.0/20 to 10.213.0.1 port 53"},
		{chain{family: "ip", table: "filter", name: "FORWARD", hook: "forward"}, ufw, "ufw route allow from 10.213.0.0/20"},
		{chain{family: "inet", table: "firewalld", name: "filter_INPUT", hook: "input"}, "", "firewall-cmd --permanent --zone=trusted --add-source=10.213.0.0/20 && firewall-cmd --reload"},
	} {
		if got := f.remedy(test.chain, test.rules); got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
	for rule, want := range map[string][2]bool{ // at input, at forward
		`ip saddr 10.213.0.0/20 counter packets 0 bytes 0 accept`:                              {true, true},
		`ip saddr 10.213.0.0/16 accept`:                                                        {true, true},
		`ip saddr 10.213.0.0/24 accept`:                                                        {false, false},
		`ip saddr 10.213.0.0/20 ip daddr 10.213.0.1 udp dport 53 counter accept`:               {true, false},
		`ip saddr 10.213.0.0/20 tcp dport 22 accept`:                                           {false, false},
		`iifname "bt3f9a2c*" accept`:                                                           {true, true},
		`iifname "bt*" accept`:                                                                 {true, true},
		`iifname "eth0" udp dport 53 accept`:                                                   {false, false},
		`udp dport 53 accept`:                                                                  {true, false},
		`ct state established,related accept`:                                                  {false, false},
		`counter packets 0 bytes 0 accept`:                                                     {false, false},
		`ip saddr 10.213.0.0/20 drop`:                                                          {false, false},
		`ip saddr 10.213.0.0/20 goto filter_FWD_trusted`:                                       {true, true},
		`type filter hook input priority filter; policy accept;`:                               {false, false},
		`oifname "bt3f9a2c*" accept`:                                                           {false, false},
		`ip daddr 10.213.0.0/20 ct state established,related counter packets 0 bytes 0 accept`: {false, false},
	} {
		for i, hook := range []string{"input", "forward"} {
			if got := f.accepts(strings.Fields(rule), hook); got != want[i] {
				t.Errorf("%s at %s: got %v, want %v", rule, hook, got, want[i])
			}
		}
	}
}
