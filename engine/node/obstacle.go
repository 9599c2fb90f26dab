package node

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// chain is a base chain of packet rules.
type chain struct {
	family, table, name string // "ip", "filter", "FORWARD"
	kind, hook          string // "filter", "forward"
	drops               bool   // what no rule accepts
}

func (c chain) ours() bool { return c.family == "inet" && strings.HasPrefix(c.table, tablePrefix) }

// parseChains reads what "nft list chains" prints: nested blocks, with one line for a base chain's hook.
func parseChains(text string) []chain {
	var all []chain
	var current chain
	for line := range strings.Lines(text) {
		fields := strings.Fields(strings.ReplaceAll(line, ";", " "))
		switch {
		case len(fields) == 4 && fields[0] == "table":
			current = chain{family: fields[1], table: fields[2]}
		case len(fields) == 3 && fields[0] == "chain":
			current.name = fields[1]
		case len(fields) > 3 && fields[0] == "type":
			c := current
			c.kind, c.hook = fields[1], fields[3]
			c.drops = strings.Contains(line, "policy drop")
			all = append(all, c)
		}
	}
	return all
}

// tellObstacles warns, once for each, of packet rules of the machine's that keep instances from its DNS relay or from
// the network. Who accepts in one table does not outvote who drops in another.
func (f *firewall) tellObstacles() {
	chains, err := f.list("chains")
	if err != nil {
		f.logger.Warn("looking for packet rules that get in the way of instances", "error", err)
		return
	}
	what := map[string]string{
		"input":   "the machine's own packet rules drop what it is sent: instances get no answer to DNS questions until that is allowed",
		"forward": "the machine's own packet rules drop what is forwarded: instances reach no network until that is allowed",
	}
	for hook, message := range what {
		allow := f.obstacle(parseChains(chains), hook)
		if allow != "" && !f.told[hook] {
			f.logger.Warn(message, "allow", allow)
		}
		f.told[hook] = allow != ""
	}
}

// obstacle is how to allow what the machine's rules drop at a hook; "" when they drop nothing of instances'.
func (f *firewall) obstacle(chains []chain, hook string) string {
	for _, c := range chains {
		// firewalld's chains accept, but end in a rule that rejects.
		if c.ours() || c.hook != hook || c.kind != "filter" || !c.drops && c.table != "firewalld" {
			continue
		}
		rules, err := f.list("table", c.family, c.table)
		if err != nil || f.allowed(rules, hook) {
			continue // it is gone, or does not mind
		}
		return f.remedy(c, rules)
	}
	return ""
}

// allowed reports whether one of a table's rules accepts what instances send at a hook. It reads rules as an
// administrator would at a glance, not what leads to them.
func (f *firewall) allowed(rules, hook string) bool {
	other := map[string]string{"input": "forward", "forward": "input"}[hook]
	in := ""
	for line := range strings.Lines(rules) {
		fields := strings.Fields(line)
		if len(fields) == 3 && fields[0] == "chain" {
			in = strings.ToLower(fields[1])
		}
		if !strings.Contains(in, "output") && !strings.Contains(in, other) && f.accepts(fields, hook) {
			return true
		}
	}
	return false
}

// accepts reports whether a rule accepts what comes from instances, to anywhere or, at the input hook, to the relay.
func (f *firewall) accepts(rule []string, hook string) bool {
	// firewalld's zone of that name accepts everything.
	if !slices.ContainsFunc(rule, func(field string) bool { return field == "accept" || strings.HasSuffix(field, "_trusted") }) {
		return false
	}
	fromInstances, toRelay := false, false
	for i := range len(rule) - 1 {
		value := strings.Trim(rule[i+1], `"`)
		switch rule[i] {
		case "state", "oifname", "oif", "sport":
			return false
		case "saddr":
			if fromInstances = covers(value, f.network.prefix); !fromInstances {
				return false
			}
		case "daddr":
			if hook != "input" || !covers(value, netip.PrefixFrom(f.network.gateway, f.network.gateway.BitLen())) {
				return false
			}
		case "iifname", "iif":
			if fromInstances = strings.HasSuffix(value, "*") && strings.HasPrefix(f.network.links, strings.TrimSuffix(value, "*")); !fromInstances {
				return false
			}
		case "dport":
			if toRelay = hook == "input" && (value == fmt.Sprint(dnsPort) || value == "domain"); !toRelay {
				return false
			}
		}
	}
	return fromInstances || toRelay
}

// covers reports whether an address or a network in a rule has all of another.
func covers(text string, other netip.Prefix) bool {
	network, err := netip.ParsePrefix(text)
	if err != nil {
		address, err := netip.ParseAddr(text)
		if err != nil {
			return false
		}
		network = netip.PrefixFrom(address, address.BitLen())
	}
	return network.Bits() <= other.Bits() && network.Contains(other.Addr())
}

// remedy is the command that allows instances what a chain drops, in the words of the program that has made it.
func (f *firewall) remedy(c chain, rules string) string {
	instances, relay := f.network.prefix.String(), f.network.gateway.String()
	input := c.hook == "input"
	iptables := c.family == "ip" && c.name == strings.ToUpper(c.name)
	switch {
	case c.table == "firewalld":
		return fmt.Sprintf("firewall-cmd --permanent --zone=trusted --add-source=%s && firewall-cmd --reload", instances)
	case strings.Contains(rules, "chain ufw-") && input:
		return fmt.Sprintf("ufw allow from %s to %s port %d", instances, relay, dnsPort)
	case strings.Contains(rules, "chain ufw-"):
		return "ufw route allow from " + instances
	case iptables && input:
		return fmt.Sprintf("iptables -I %[1]s -s %[2]s -d %[3]s -p udp --dport %[4]d -j ACCEPT; iptables -I %[1]s -s %[2]s -d %[3]s -p tcp --dport %[4]d -j ACCEPT",
			c.name, instances, relay, dnsPort)
	case iptables:
		name := c.name
		if strings.Contains(rules, "chain DOCKER-USER ") {
			name = "DOCKER-USER"
		}
		return fmt.Sprintf("iptables -I %[1]s -s %[2]s -j ACCEPT; iptables -I %[1]s -d %[2]s -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT", name, instances)
	case input:
		return fmt.Sprintf("nft insert rule %s %s %s ip saddr %s ip daddr %s accept", c.family, c.table, c.name, instances, relay)
	}
	return fmt.Sprintf("nft insert rule %[1]s %[2]s %[3]s ip saddr %[4]s accept; nft insert rule %[1]s %[2]s %[3]s ip daddr %[4]s ct state established,related accept",
		c.family, c.table, c.name, instances)
}
