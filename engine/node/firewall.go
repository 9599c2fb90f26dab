package node

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"text/template"
)

// firewall is the engine's table of packet rules. What it says, in the order of the chains: an instance may ask
// the machine's DNS relay and nothing else of the machine; it reaches neither other instances nor link-local
// addresses, where clouds keep their credentials; it reaches the rest of the world under the machine's address;
// and nobody but the machine reaches it.
var firewallScript = template.Must(template.New("firewall").Parse(`
add table inet {{.Table}}
delete table inet {{.Table}}
table inet {{.Table}} {
	chain input {
		type filter hook input priority filter; policy accept;
		iifname != "{{.Links}}*" accept
		ct state established,related accept
		ip daddr {{.Gateway}} udp dport 53 accept
		ip daddr {{.Gateway}} tcp dport 53 accept
		reject with icmpx type admin-prohibited
	}
	chain forward {
		type filter hook forward priority filter; policy accept;
		iifname "{{.Links}}*" oifname "{{.Links}}*" reject with icmpx type admin-prohibited
		iifname "{{.Links}}*" ip daddr 169.254.0.0/16 reject with icmpx type admin-prohibited
		iifname "{{.Links}}*" accept
		oifname "{{.Links}}*" ct state established,related accept
		oifname "{{.Links}}*" drop
	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr {{.Network}} oifname != "{{.Links}}*" masquerade
	}
}
`))

// firewall is the table of one engine.
type firewall struct {
	nft   string // the program's path
	table string
}

// openFirewall installs the rules in one step: there is no moment without them.
func openFirewall(table string, n *network, logger *slog.Logger) (*firewall, error) {
	nft, err := exec.LookPath("nft")
	if err != nil {
		return nil, fmt.Errorf("finding nft, which keeps instances apart: %w; install it with: apt-get install nftables", err)
	}
	f := &firewall{nft: nft, table: table}
	var script strings.Builder
	err = firewallScript.Execute(&script, struct{ Table, Links, Gateway, Network string }{
		table, n.links, n.gateway.String(), n.prefix.String(),
	})
	if err != nil {
		return nil, fmt.Errorf("writing the packet rules: %w", err)
	}
	if err := f.run(script.String()); err != nil {
		return nil, fmt.Errorf("installing the packet rules that keep instances apart: %w; the kernel needs nf_tables with nft_ct, nft_nat, nft_masq and nft_reject", err)
	}
	const forwarding = "/proc/sys/net/ipv4/ip_forward"
	text, err := os.ReadFile(forwarding)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("reading %s: %w", forwarding, err), f.close())
	}
	if strings.TrimSpace(string(text)) == "0" {
		if err := setSysctl("ipv4/ip_forward", "1"); err != nil {
			return nil, errors.Join(fmt.Errorf("letting instances reach the network: %w", err), f.close())
		}
		logger.Info("set net.ipv4.ip_forward to 1, so that instances reach the network; it stays set")
	}
	if f.forwardingDropped() {
		logger.Warn("the machine's own packet rules drop what is forwarded, as Docker sets them: instances reach no network until it is allowed",
			"allow", fmt.Sprintf("iptables -I DOCKER-USER -i '%[1]s+' -j ACCEPT; iptables -I DOCKER-USER -o '%[1]s+' -j ACCEPT", n.links))
	}
	return f, nil
}

// forwardingDropped reports whether iptables' table has a policy of dropping. A rule of ours that accepts does
// not outvote it.
func (f *firewall) forwardingDropped() bool {
	output, err := exec.Command(f.nft, "list", "chain", "ip", "filter", "FORWARD").Output()
	return err == nil && strings.Contains(string(output), "policy drop")
}

func (f *firewall) run(script string) error {
	cmd := exec.Command(f.nft, "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("running nft: %w: %s", err, strings.TrimSpace(string(output)))
	}
	return nil
}

// version is nft's: "v1.0.6".
func (f *firewall) version() string {
	output, err := exec.Command(f.nft, "--version").Output()
	if fields := strings.Fields(string(output)); err == nil && len(fields) > 1 {
		return fields[1]
	}
	return "unknown"
}

// close removes the table.
func (f *firewall) close() error {
	return f.run(fmt.Sprintf("add table inet %[1]s\ndelete table inet %[1]s\n", f.table))
}
