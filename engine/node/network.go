package node

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// partBits is the size of the part of the configured network that one engine takes: 4093 instances.
	partBits = 20
	// spareLinks is how many prepared links are kept for the next instances.
	spareLinks = 8
	// idleLinks is how many links of ended instances are kept at most: each holds some kernel memory.
	idleLinks = 256
	// networkLock serializes engines of several servers where they change what they share: the network that they take
	// parts of, and forwarding. Only root may open what is in its directory, unlike /run/lock.
	networkLock = "/run/berth-network.lock"
	// linkPrefix begins the names of all engines' interfaces.
	linkPrefix = "bt"
	// instanceInterface is the name of an instance's interface, inside.
	instanceInterface = "eth0"
)

// Every link is a wire of its own with two ends, so all near ends have one hardware address and all far ends
// another. They are known, and so never asked for.
var (
	nearAddress = net.HardwareAddr{0x02, 0xbe, 0x47, 0, 0, 1}
	farAddress  = net.HardwareAddr{0x02, 0xbe, 0x47, 0, 0, 2}
)

// network gives instances their links: network namespaces with an address and a way out. A link costs some
// milliseconds to make and tens to delete, so links are made ahead and used again.
type network struct {
	prefix  netip.Prefix // the engine's part
	gateway netip.Addr   // the machine's address in it
	links   string       // what names of the engine's interfaces begin with
	users   bool         // links have user namespaces
	logger  *slog.Logger

	mu      sync.Mutex
	idle    []*link // oldest first
	next    netip.Addr
	free    []netip.Addr // of links that were deleted
	making  int
	closed  bool
	refills sync.WaitGroup
}

// link is a network namespace that is joined to the machine's by a pair of interfaces, and the user namespace that
// it belongs to, if it is not the machine's. Files hold them, no mounts, so they go when the process does.
type link struct {
	namespace *os.File
	users     *os.File // nil for the machine's user namespace
	ids       ids
	address   netip.Addr
	name      string // of the machine's end
}

// close gives up the namespaces; the interfaces go with them.
func (l *link) close() {
	if l.namespace != nil {
		l.namespace.Close()
	}
	if l.users != nil {
		l.users.Close()
	}
}

// namespacePath is what the OCI runtime opens to join a namespace that this process holds.
func namespacePath(namespace *os.File) string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), namespace.Fd())
}

// openNetwork takes a free part of a network for an engine whose interfaces' names begin with links.
func openNetwork(within netip.Prefix, links string, logger *slog.Logger) (*network, error) {
	if !within.Addr().Is4() || within.Bits() > 29 {
		return nil, fmt.Errorf("taking a part of the instance network %q: it must be an IPv4 network of at least 8 addresses, such as 10.213.0.0/16", within)
	}
	lock, err := lockFile(networkLock, unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unlock(lock) }()
	if err := errors.Join(deleteLinks(links), deleteGatewayAddress(links)); err != nil {
		return nil, err
	}
	part, err := freePart(within.Masked())
	if err != nil {
		return nil, err
	}
	gateway := part.Addr().Next()
	n := &network{prefix: part, gateway: gateway, links: links, logger: logger, next: gateway.Next()}
	// The gateway's address is on the loopback interface, as not every kernel has dummy ones. It claims the part.
	if err := addGatewayAddress(gateway, links); err != nil {
		return nil, err
	}
	return n, nil
}

// addressLabel marks the engine's address on the loopback interface.
func addressLabel(links string) string { return "lo:" + links }

func addGatewayAddress(gateway netip.Addr, links string) error {
	loopback, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("finding the loopback interface: %w", err)
	}
	address := &netlink.Addr{IPNet: hostRoute(gateway), Label: addressLabel(links), Scope: unix.RT_SCOPE_HOST}
	if err := netlink.AddrAdd(loopback, address); err != nil {
		return fmt.Errorf("giving the machine the address %s: %w", gateway, err)
	}
	return nil
}

func deleteGatewayAddress(links string) error {
	addresses, err := listAddresses()
	if err != nil {
		return err
	}
	for _, address := range addresses {
		if address.Label != addressLabel(links) {
			continue
		}
		loopback, err := netlink.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("finding the loopback interface: %w", err)
		}
		if err := netlink.AddrDel(loopback, &address); err != nil {
			return fmt.Errorf("deleting the machine's address %s: %w", address.IPNet, err)
		}
	}
	return nil
}

func hostRoute(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(32, 32)}
}

// freePart returns the first part of a network that overlaps no address and no route of this machine.
func freePart(within netip.Prefix) (netip.Prefix, error) {
	used, err := usedPrefixes()
	if err != nil {
		return netip.Prefix{}, err
	}
	bits := max(partBits, within.Bits())
	for address := within.Addr(); within.Contains(address); address = advance(address, 1<<(32-bits)) {
		part := netip.PrefixFrom(address, bits)
		if !slices.ContainsFunc(used, part.Overlaps) {
			return part, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("taking a part of the instance network %q: the machine uses addresses in all of it; give another with --instance-network", within)
}

func advance(a netip.Addr, by uint32) netip.Addr {
	octets := a.As4()
	binary.BigEndian.PutUint32(octets[:], binary.BigEndian.Uint32(octets[:])+by)
	return netip.AddrFrom4(octets)
}

// offset is how far an address is from the first of its network.
func offset(within netip.Prefix, a netip.Addr) uint32 {
	first, octets := within.Masked().Addr().As4(), a.As4()
	return binary.BigEndian.Uint32(octets[:]) - binary.BigEndian.Uint32(first[:])
}

// usedPrefixes lists the networks that the machine has addresses in or routes to.
func usedPrefixes() ([]netip.Prefix, error) {
	addresses, err := listAddresses()
	if err != nil {
		return nil, err
	}
	routes, err := listRoutes()
	if err != nil {
		return nil, err
	}
	var used []netip.Prefix
	add := func(n *net.IPNet) {
		if n == nil {
			return
		}
		if address, ok := netip.AddrFromSlice(n.IP.To4()); ok {
			if bits, _ := n.Mask.Size(); bits > 0 { // 0: the default route
				used = append(used, netip.PrefixFrom(address, bits).Masked())
			}
		}
	}
	for _, address := range addresses {
		add(address.IPNet)
	}
	for _, route := range routes {
		add(route.Dst)
	}
	return used, nil
}

// deleteLinks deletes the interfaces whose names begin with links, of a former life.
func deleteLinks(links string) error {
	const patience = 10 * time.Second
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		all, err := listLinks()
		if err != nil {
			return err
		}
		all = slices.DeleteFunc(all, func(l netlink.Link) bool { return !strings.HasPrefix(l.Attrs().Name, links) })
		if len(all) == 0 {
			return nil
		}
		for _, l := range all {
			// One whose namespace ends at this moment is deleted by the kernel: not there, or not yet gone.
			if err := netlink.LinkDel(l); err != nil && time.Now().After(deadline) {
				return fmt.Errorf("deleting interface %q: %w", l.Attrs().Name, err)
			}
		}
	}
}

// list lists things of the kernel, again when they changed meanwhile.
func list[T any](what func() ([]T, error)) ([]T, error) {
	const tries = 20
	var all []T
	var err error
	for range tries {
		if all, err = what(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

func listAddresses() ([]netlink.Addr, error) {
	all, err := list(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("listing the machine's addresses: %w", err)
	}
	return all, nil
}

func listRoutes() ([]netlink.Route, error) {
	all, err := list(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("listing the machine's routes: %w", err)
	}
	return all, nil
}

func listLinks() ([]netlink.Link, error) {
	all, err := list(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing the machine's interfaces: %w", err)
	}
	return all, nil
}

// take returns a link for a new instance.
func (n *network) take() (*link, error) {
	n.mu.Lock()
	if len(n.idle) > 0 {
		l := n.idle[0]
		n.idle = n.idle[1:]
		n.mu.Unlock()
		n.refill()
		return l, nil
	}
	n.mu.Unlock()
	l, err := n.make()
	n.refill()
	return l, err
}

// give returns the link of an instance in which no process is left. Without CAP_NET_ADMIN no process could have
// changed it, and its sockets ended with the processes. It is used again last, so that late packets find nobody.
func (n *network) give(l *link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed || len(n.idle) >= idleLinks {
		l.close()
		n.free = append(n.free, l.address)
		return
	}
	n.idle = append(n.idle, l)
}

// refill makes links in the background until enough are spare.
func (n *network) refill() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed || n.making > 0 || len(n.idle) >= spareLinks {
		return
	}
	n.making++
	n.refills.Go(func() {
		for {
			l, err := n.make()
			n.mu.Lock()
			if err == nil {
				n.idle = append(n.idle, l)
			}
			if err != nil || n.closed || len(n.idle) >= spareLinks {
				n.making--
				n.mu.Unlock()
				if err != nil {
					n.logger.Warn("making a spare network link", "error", err)
				}
				return
			}
			n.mu.Unlock()
		}
	})
}

// allocate returns an address that no link has.
func (n *network) allocate() (netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.prefix.Contains(n.next.Next()) { // the last address of the part is left out
		a := n.next
		n.next = n.next.Next()
		return a, nil
	}
	if len(n.free) > 0 {
		a := n.free[0]
		n.free = n.free[1:]
		return a, nil
	}
	return netip.Addr{}, fmt.Errorf("no address is left in the instance network %s", n.prefix)
}

// make makes a link.
func (n *network) make() (*link, error) {
	address, err := n.allocate()
	if err != nil {
		return nil, err
	}
	octets := address.As4()
	l := &link{address: address, name: fmt.Sprintf("%s%d", n.links, binary.BigEndian.Uint32(octets[:])&(1<<12-1))}
	done := make(chan error, 1)
	onOwnThread(func() { done <- n.makeOnThread(l) })
	if err := <-done; err != nil {
		l.close()
		n.mu.Lock()
		n.free = append(n.free, address)
		n.mu.Unlock()
		return nil, fmt.Errorf("making network link %q: %w", l.name, err)
	}
	return l, nil
}

// makeOnThread makes a link. It leaves the thread in the new network namespace.
func (n *network) makeOnThread(l *link) error {
	machine, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("opening netlink: %w", err)
	}
	defer machine.Close()
	if err := n.enterNew(l); err != nil {
		return err
	}
	// Inside: no IPv6, whose way out is not filtered; ports below 1024 and ping for every user, as in Docker.
	for _, setting := range [][2]string{
		{"ipv6/conf/all/disable_ipv6", "1"},
		{"ipv6/conf/default/disable_ipv6", "1"},
		{"ipv4/ip_unprivileged_port_start", "0"},
		{"ipv4/ping_group_range", "0 2147483647"},
	} {
		if err := setSysctl(setting[0], setting[1]); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	inside, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("opening netlink inside: %w", err)
	}
	defer inside.Close()
	pair := netlink.NewVeth(netlink.LinkAttrs{Name: l.name, HardwareAddr: nearAddress})
	pair.PeerName, pair.PeerHardwareAddr = instanceInterface, farAddress
	pair.PeerNamespace = netlink.NsFd(l.namespace.Fd())
	if err := machine.LinkAdd(pair); err != nil {
		return fmt.Errorf("making the pair of interfaces: %w", err)
	}
	if err := n.setInside(inside, l); err != nil {
		return err
	}
	return n.setOutside(machine, l)
}

// enterNew makes the link's namespaces and leaves the thread in the one of its network.
func (n *network) enterNew(l *link) error {
	var err error
	if n.users {
		// The network's first address is unused, and the second the gateway's.
		l.ids = ids{first: firstID + (offset(n.prefix, l.address)-2)*idsEach}
		if l.users, l.namespace, err = newNamespaces(l.ids); err != nil {
			return err
		}
		if err := unix.Setns(int(l.namespace.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("entering the network namespace: %w", err)
		}
		return nil
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("making a network namespace: %w", err)
	}
	if l.namespace, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return fmt.Errorf("opening the network namespace: %w", err)
	}
	return nil
}

// setInside gives the instance's end its address and its route to everywhere.
func (n *network) setInside(inside *netlink.Handle, l *link) error {
	loopback, err := inside.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("finding the loopback interface inside: %w", err)
	}
	if err := inside.LinkSetUp(loopback); err != nil {
		return fmt.Errorf("setting the loopback interface up: %w", err)
	}
	far, err := inside.LinkByName(instanceInterface)
	if err != nil {
		return fmt.Errorf("finding interface %q inside: %w", instanceInterface, err)
	}
	if err := inside.AddrAdd(far, &netlink.Addr{IPNet: hostRoute(l.address)}); err != nil {
		return fmt.Errorf("giving the instance the address %s: %w", l.address, err)
	}
	if err := inside.LinkSetUp(far); err != nil {
		return fmt.Errorf("setting interface %q up inside: %w", instanceInterface, err)
	}
	if err := inside.NeighSet(neighbour(far, n.gateway, nearAddress)); err != nil {
		return fmt.Errorf("telling the instance the gateway's hardware address: %w", err)
	}
	route := &netlink.Route{LinkIndex: far.Attrs().Index, Gw: n.gateway.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}
	if err := inside.RouteAdd(route); err != nil {
		return fmt.Errorf("adding the instance's default route: %w", err)
	}
	return nil
}

// setOutside routes the instance's address to the machine's end.
func (n *network) setOutside(machine *netlink.Handle, l *link) error {
	near, err := machine.LinkByName(l.name)
	if err != nil {
		return fmt.Errorf("finding interface %q: %w", l.name, err)
	}
	// The thread is in the instance's network namespace, and /proc/sys/net shows each thread the settings of its own:
	// the machine's are set from another thread.
	for _, setting := range [][2]string{
		{"ipv6/conf/" + l.name + "/disable_ipv6", "1"},
		{"ipv4/conf/" + l.name + "/rp_filter", "1"}, // an instance sends from its own address only
	} {
		if err := n.setMachineSysctl(setting[0], setting[1]); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := machine.LinkSetUp(near); err != nil {
		return fmt.Errorf("setting interface %q up: %w", l.name, err)
	}
	if err := machine.NeighSet(neighbour(near, l.address, farAddress)); err != nil {
		return fmt.Errorf("setting the hardware address of %s: %w", l.address, err)
	}
	route := &netlink.Route{LinkIndex: near.Attrs().Index, Dst: hostRoute(l.address), Src: n.gateway.AsSlice(), Scope: netlink.SCOPE_LINK}
	if err := machine.RouteAdd(route); err != nil {
		return fmt.Errorf("adding the route to %s: %w", l.address, err)
	}
	return nil
}

func neighbour(l netlink.Link, address netip.Addr, hardware net.HardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex: l.Attrs().Index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT,
		IP: address.AsSlice(), HardwareAddr: hardware,
	}
}

// setSysctl writes a network setting of the calling thread's network namespace.
func setSysctl(name, value string) error {
	if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
		return fmt.Errorf("setting net/%s to %s: %w", name, value, err)
	}
	return nil
}

// setMachineSysctl writes a network setting of the machine, whatever thread it is called on.
func (n *network) setMachineSysctl(name, value string) error {
	done := make(chan error, 1)
	go func() { done <- setSysctl(name, value) }() // on a thread that has not been moved
	return <-done
}

// close deletes the engine's links. Those that instances still hold must have been given back.
func (n *network) close() error {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.refills.Wait()
	n.mu.Lock()
	for _, l := range n.idle {
		l.close()
	}
	n.idle = nil
	n.mu.Unlock()
	return errors.Join(deleteLinks(n.links), deleteGatewayAddress(n.links))
}
