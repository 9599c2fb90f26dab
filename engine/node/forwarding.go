package node

import (
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// forwardingTable is there while forwarding is on for Berth's sake alone: it drops what is neither from nor to an
// instance, so that the machine is no router for everybody. All engines share it, and it outlives one that is killed.
const forwardingTable = tablePrefix + "forwarding"

const forwardingScript = "add table inet " + forwardingTable + "\ndelete table inet " + forwardingTable + "\ntable inet " + forwardingTable + ` {
	chain forward {
		type filter hook forward priority filter; policy drop;
		iifname "` + linkPrefix + `*" accept
		oifname "` + linkPrefix + `*" accept
	}
}
`

// forwarding is the machine's setting that lets packets pass from instances to the network and back.
type forwarding struct {
	firewall *firewall
	guards   bool // forwardingTable is wanted
	logger   *slog.Logger
}

// ensure makes sure that the machine forwards. When no other program needs that, it forwards for instances only.
func (f *forwarding) ensure() error {
	lock, err := lockNetwork()
	if err != nil {
		return err
	}
	defer func() { _ = unlock(lock) }()
	on, err := f.on()
	if err != nil {
		return err
	}
	chains, err := f.firewall.list("chains")
	if err != nil {
		return err
	}
	guarded := hasTable(chains, forwardingTable)
	shared := translatesElsewhere(chains)
	switch {
	case shared && guarded:
		if err := f.firewall.deleteTable(forwardingTable); err != nil {
			return err
		}
		f.guards = false
		f.logger.Info("another program translates addresses, and so needs forwarding too: it is no longer kept to instances, and stays on")
	case shared:
		f.guards = false
	case !guarded && (!on || f.guards):
		if err := f.firewall.run(forwardingScript); err != nil {
			return err
		}
		f.guards = true
	default:
		f.guards = guarded
	}
	if on {
		return nil
	}
	if err := setSysctl("ipv4/ip_forward", "1"); err != nil {
		return err
	}
	f.logger.Info("set net.ipv4.ip_forward to 1, so that instances reach the network", "instances_only", f.guards)
	return nil
}

// close switches forwarding off again, if it is on for the sake of this engine alone.
func (f *forwarding) close() error {
	lock, err := lockNetwork()
	if err != nil {
		return err
	}
	defer func() { _ = unlock(lock) }()
	chains, err := f.firewall.list("chains")
	if err != nil {
		return err
	}
	if !hasTable(chains, forwardingTable) || hasEngine(chains) {
		return nil
	}
	if !translatesElsewhere(chains) {
		if err := setSysctl("ipv4/ip_forward", "0"); err != nil {
			return err
		}
		f.logger.Info("set net.ipv4.ip_forward back to 0")
	}
	return f.firewall.deleteTable(forwardingTable)
}

func (f *forwarding) on() (bool, error) {
	const setting = "/proc/sys/net/ipv4/ip_forward"
	text, err := os.ReadFile(setting)
	if err != nil {
		return false, fmt.Errorf("reading %s: %w", setting, err)
	}
	return strings.TrimSpace(string(text)) != "0", nil
}

func hasTable(chains, name string) bool { return strings.Contains(chains, "table inet "+name+" {") }

// hasEngine reports whether an engine's table is in what nft lists.
func hasEngine(chains string) bool {
	return regexp.MustCompile(`table inet ` + tablePrefix + `[0-9a-f]{6} \{`).MatchString(chains)
}

// translatesElsewhere reports whether a program other than Berth translates the addresses of what is forwarded, as
// Docker, libvirt and others do that need forwarding.
func translatesElsewhere(chains string) bool {
	for _, c := range parseChains(chains) {
		if c.kind == "nat" && c.hook == "postrouting" && !c.ours() {
			return true
		}
	}
	return false
}

// lockNetwork keeps other engines from changing what all share, until unlock.
func lockNetwork() (*os.File, error) { return lockFile(networkLock, unix.LOCK_EX) }
