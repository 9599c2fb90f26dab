package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"text/template"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// tablePrefix begins the names of all engines' tables.
	tablePrefix = "berth_"
	// restorePause is the least time between two restorations of the table.
	restorePause = time.Second
	// patrolPeriod is how often the machine's other packet rules and its forwarding are looked at.
	patrolPeriod = time.Minute
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

// firewall is the table of one engine, and the watch over it.
type firewall struct {
	nft        string // the program's path
	table      string
	script     string // installs the table
	installed  string // what nft says of the table as installed
	network    *network
	forwarding *forwarding
	told       map[string]bool // obstacles that were told of
	logger     *slog.Logger

	changes  *os.File // tells of changes to packet rules
	cancel   context.CancelFunc
	watching sync.WaitGroup
}

// openFirewall installs the rules in one step, so that there is no moment without them, and keeps them installed.
func openFirewall(table string, n *network, logger *slog.Logger) (*firewall, error) {
	nft, err := exec.LookPath("nft")
	if err != nil {
		return nil, fmt.Errorf("finding nft, which keeps instances apart: %w; install it with: apt-get install nftables", err)
	}
	f := &firewall{nft: nft, table: table, network: n, told: map[string]bool{}, logger: logger}
	f.forwarding = &forwarding{firewall: f, logger: logger}
	var script strings.Builder
	err = firewallScript.Execute(&script, struct{ Table, Links, Gateway, Network string }{
		table, n.links, n.gateway.String(), n.prefix.String(),
	})
	if err != nil {
		return nil, fmt.Errorf("writing the packet rules: %w", err)
	}
	f.script = script.String()
	if err := f.open(); err != nil {
		return nil, errors.Join(err, f.close())
	}
	return f, nil
}

func (f *firewall) open() error {
	var err error
	if f.changes, err = packetRuleChanges(); err != nil { // before installing: no change is missed
		return err
	}
	if err := f.run(f.script); err != nil {
		return fmt.Errorf("installing the packet rules that keep instances apart: %w; the kernel needs nf_tables with nft_ct, nft_nat, nft_masq and nft_reject", err)
	}
	if f.installed, err = f.list("table", "inet", f.table); err != nil {
		return fmt.Errorf("reading the packet rules that were installed: %w", err)
	}
	if err := f.forwarding.ensure(); err != nil {
		return fmt.Errorf("letting instances reach the network: %w", err)
	}
	f.tellObstacles()
	ctx, cancel := context.WithCancel(context.Background())
	f.cancel = cancel
	changed := make(chan struct{}, 1)
	f.watching.Go(func() { f.notice(changed) })
	f.watching.Go(func() { f.watch(ctx, changed) })
	return nil
}

// packetRuleChanges opens a socket to which the kernel sends every change of nftables' rules.
func packetRuleChanges() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("watching the packet rules: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("watching the packet rules: %w", err)
	}
	return os.NewFile(uintptr(fd), "changes of packet rules"), nil
}

// notice puts a value into changed when the table may have been changed, until changes is closed.
func (f *firewall) notice(changed chan<- struct{}) {
	const largest = 16 << 10 // more than the kernel sends at once
	message := make([]byte, largest)
	for {
		n, err := f.changes.Read(message)
		switch {
		case errors.Is(err, os.ErrClosed):
			return
		case err != nil: // it came faster than it was read: anything may have happened
		case !bytes.Contains(message[:n], []byte(f.table+"\x00")) && !bytes.Contains(message[:n], []byte(forwardingTable+"\x00")):
			continue // each message names its table
		}
		select {
		case changed <- struct{}{}:
		default: // the last one has not been looked at
		}
	}
}

// watch restores the table when another program has changed or removed it, as "nft flush ruleset" does whenever
// nftables' service is started: without it nothing keeps instances apart.
func (f *firewall) watch(ctx context.Context, changed <-chan struct{}) {
	patrol := time.NewTicker(patrolPeriod)
	defer patrol.Stop()
	failing := false
	for {
		var again <-chan time.Time // when restoring has failed
		if failing {
			again = time.After(restorePause)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-again:
		case <-patrol.C:
			f.tellObstacles()
		}
		restored, err := f.restore()
		switch {
		case err != nil && !failing:
			f.logger.Error("restoring the packet rules that keep instances apart: they do not until it is done", "table", f.table, "error", err)
		case restored:
			f.logger.Error("another program had removed or changed the packet rules that keep instances apart; they are restored", "table", f.table)
		}
		failing = err != nil
		if err := f.forwarding.ensure(); err != nil {
			f.logger.Warn("looking after forwarding, without which instances reach no network", "error", err)
		}
		if restored && sleep(ctx, restorePause) != nil {
			return
		}
	}
}

// restore installs the table again if it is not as it was installed, and reports whether it was not.
func (f *firewall) restore() (bool, error) {
	if now, err := f.list("table", "inet", f.table); err == nil && now == f.installed {
		return false, nil
	}
	if err := f.run(f.script); err != nil {
		return false, err
	}
	return true, nil
}

func (f *firewall) run(script string) error {
	cmd := exec.Command(f.nft, "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("running nft: %w: %s", err, strings.TrimSpace(string(output)))
	}
	return nil
}

// list is what nft lists: "tables", "chains", or "table", family and name.
func (f *firewall) list(what ...string) (string, error) {
	output, err := exec.Command(f.nft, append([]string{"list"}, what...)...).Output()
	if err != nil {
		return "", fmt.Errorf("running nft list %s: %w", strings.Join(what, " "), err)
	}
	return string(output), nil
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
	if f.cancel != nil {
		f.cancel()
	}
	if f.changes != nil {
		f.changes.Close()
	}
	f.watching.Wait()
	return errors.Join(f.deleteTable(f.table), f.forwarding.close())
}

func (f *firewall) deleteTable(name string) error {
	return f.run(fmt.Sprintf("add table inet %[1]s\ndelete table inet %[1]s\n", name))
}
