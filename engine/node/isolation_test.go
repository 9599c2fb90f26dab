package node

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/engine/enginetest"
	"github.com/berth-run/berth/image"
)

// canConnect reports whether an instance can make a TCP connection.
func canConnect(t *testing.T, i engine.Instance, address string) bool {
	t.Helper()
	status, _ := enginetest.Request(t, i, http.MethodGet, "/dial?address="+url.QueryEscape(address))
	return status == http.StatusOK
}

func TestInstance_ReachesNeitherOthersNorTheMachine(t *testing.T) {
	t.Parallel()
	e := openEngine(t, t.TempDir())
	other := openEngine(t, t.TempDir()) // side by side
	if e.network.prefix.Overlaps(other.network.prefix) {
		t.Fatalf("two engines took %s and %s", e.network.prefix, other.network.prefix)
	}
	s, otherSuite := enginetest.New(t, e), enginetest.New(t, other)
	i := s.Start(t, nil, "serve")
	neighbour := s.Start(t, nil, "serve").(*instance)
	stranger := otherSuite.Start(t, nil, "serve").(*instance)
	machine, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer machine.Close()
	port := machine.Addr().(*net.TCPAddr).Port

	own := i.(*instance).link.address
	if !canConnect(t, i, fmt.Sprintf("%s:8080", own)) || !canConnect(t, i, "127.0.0.1:8080") {
		t.Error("an instance cannot connect to itself")
	}
	forbidden := map[string]string{
		"a neighbour":               fmt.Sprintf("%s:8080", neighbour.link.address),
		"another engine's instance": fmt.Sprintf("%s:8080", stranger.link.address),
		"the gateway address":       fmt.Sprintf("%s:%d", e.network.gateway, port),
		"another engine's gateway":  fmt.Sprintf("%s:%d", other.network.gateway, port),
		"cloud metadata":            "169.254.169.254:80",
	}
	addresses, err := listAddresses()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		if !a.IP.IsLoopback() {
			forbidden["the machine's "+a.IP.String()] = fmt.Sprintf("%s:%d", a.IP, port)
		}
	}
	var tries sync.WaitGroup // at once: most end when the program has waited long enough
	for what, address := range forbidden {
		tries.Go(func() {
			status, _, err := enginetest.Ask(t.Context(), i, http.MethodGet, "/dial?address="+url.QueryEscape(address))
			if err != nil || status == http.StatusOK {
				t.Errorf("connecting to %s at %s: status %d, error %v; want that an instance cannot", what, address, status, err)
			}
		})
	}
	tries.Wait()
	enginetest.Get(t, neighbour, "/")
	enginetest.Get(t, stranger, "/")
}

// outside is a network namespace that stands for the world: 198.18.0.2, behind the machine's 198.18.0.1.
func outside(t *testing.T) (listener net.Listener) {
	t.Helper()
	result := make(chan error, 1)
	hold := make(chan struct{})
	name := fmt.Sprintf("bw%d", os.Getpid())
	onOwnThread(func() {
		result <- func() error {
			machine, err := netlink.NewHandle(unix.NETLINK_ROUTE)
			if err != nil {
				return err
			}
			defer machine.Close()
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			namespace, err := os.Open("/proc/thread-self/ns/net")
			if err != nil {
				return err
			}
			defer namespace.Close()
			pair := netlink.NewVeth(netlink.LinkAttrs{Name: name})
			pair.PeerName, pair.PeerNamespace = "eth0", netlink.NsFd(namespace.Fd())
			if err := machine.LinkAdd(pair); err != nil {
				return err
			}
			near, err := machine.LinkByName(name)
			if err != nil {
				return err
			}
			if err := machine.AddrAdd(near, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(198, 18, 0, 1).To4(), Mask: net.CIDRMask(30, 32)}}); err != nil {
				return err
			}
			if err := machine.LinkSetUp(near); err != nil {
				return err
			}
			far, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(far, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(198, 18, 0, 2).To4(), Mask: net.CIDRMask(30, 32)}}); err != nil {
				return err
			}
			if err := netlink.LinkSetUp(far); err != nil {
				return err
			}
			listener, err = net.Listen("tcp4", "198.18.0.2:0")
			return err
		}()
		<-hold
	})
	t.Cleanup(func() { close(hold) })
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return listener
}

func TestInstance_ReachesTheWorldUnderTheMachinesAddress(t *testing.T) {
	world := outside(t)
	from := make(chan net.Addr, 1)
	go func() {
		if conn, err := world.Accept(); err == nil {
			from <- conn.RemoteAddr()
			conn.Close()
		}
	}()
	s := enginetest.New(t, openEngine(t, t.TempDir()))
	if !canConnect(t, s.Start(t, nil, "serve"), world.Addr().String()) {
		t.Fatal("an instance cannot connect to the world")
	}
	if address := (<-from).(*net.TCPAddr).IP.String(); address != "198.18.0.1" {
		t.Errorf("the world saw %s, want the machine's address", address)
	}
}

// answer makes a DNS answer to a question: the A record 192.0.2.7, or none for other types.
func answer(question []byte) []byte {
	end := 12
	for question[end] != 0 {
		end += int(question[end]) + 1
	}
	end += 5
	a := append([]byte(nil), question[:end]...)
	binary.BigEndian.PutUint16(a[2:], 0x8180)
	binary.BigEndian.PutUint16(a[6:], 0)
	binary.BigEndian.PutUint32(a[8:], 0)
	if binary.BigEndian.Uint16(question[end-4:]) == 1 {
		binary.BigEndian.PutUint16(a[6:], 1)
		a = append(a, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7)
	}
	return a
}

func TestInstance_AsksTheMachinesDNSServers(t *testing.T) {
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
	dir := t.TempDir()
	images, err := image.Open(filepath.Join(dir, "images"), image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer images.Close()
	e, err := Open(Config{Dir: filepath.Join(dir, "node"), Images: images, Network: netip.MustParsePrefix("10.213.0.0/16"), LogKeep: LeastLogKeep, DNS: []string{server.LocalAddr().String()}})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	i := enginetest.New(t, e).Start(t, nil, "serve")
	defer i.Stop(0)
	if got := enginetest.Get(t, i, "/resolve?name=service.example."); got != "192.0.2.7" {
		t.Errorf("got %q", got)
	}
	resolv := enginetest.Get(t, i, "/read?path=/etc/resolv.conf")
	if !strings.HasPrefix(resolv, "nameserver "+e.network.gateway.String()+"\n") {
		t.Errorf("resolv.conf is %q", resolv)
	}
}

func TestInstance_WritesToMemoryWithinItsLimit(t *testing.T) {
	t.Parallel()
	s := enginetest.New(t, openEngine(t, t.TempDir()))
	i := s.Start(t, func(spec *engine.Spec) { spec.Container.Memory = 64 << 20 }, "serve")
	if status, body := enginetest.Request(t, i, http.MethodPost, "/write?path=/data&mib=16"); status != http.StatusOK {
		t.Fatalf("writing 16 MiB: %s", body)
	}
	in := i.(*instance)
	usage := filepath.Join(in.engine.cgroups.roots["memory"], in.engine.cgroups.path(in.id), "memory.usage_in_bytes")
	if in.engine.cgroups.v2 {
		usage = filepath.Join(cgroupMount, in.engine.cgroups.path(in.id), "memory.current")
	}
	text, err := os.ReadFile(usage)
	if err != nil {
		t.Fatal(err)
	}
	var bytes int64
	if _, err := fmt.Sscan(string(text), &bytes); err != nil || bytes < 16<<20 {
		t.Errorf("the instance uses %s bytes of memory after writing 16 MiB", text)
	}
	go func() { // it may be killed before it answers
		conn, err := i.Dial(t.Context())
		if err == nil {
			fmt.Fprint(conn, "POST /write?path=/more&mib=128 HTTP/1.1\r\nHost: instance\r\nContent-Length: 0\r\n\r\n")
		}
	}()
	<-i.Exited()
	if exit := i.Exit(); !exit.OOM {
		t.Errorf("exit %+v after writing more than its memory, want OOM", exit)
	}
}

func TestInstance_FindsTheContractsFiles(t *testing.T) {
	t.Parallel()
	s := enginetest.New(t, openEngine(t, t.TempDir()))
	i := s.Start(t, func(spec *engine.Spec) {
		spec.Container.User, spec.Container.CPURequest = new(int64(1000)), 125
	}, "serve")
	read := func(path string) string { return enginetest.Get(t, i, "/read?path="+path) }
	if hosts := read("/etc/hosts"); !strings.Contains(hosts, "127.0.0.1\tlocalhost user-container\n") {
		t.Errorf("/etc/hosts is %q (contract C77)", hosts)
	}
	if name := read("/etc/hostname"); strings.TrimSpace(name) != enginetest.Inspect(t, i).Hostname {
		t.Errorf("/etc/hostname is %q", name)
	}
	if !i.(*instance).engine.cgroups.v2 { // KS21
		for file, want := range map[string]string{
			"memory/memory.limit_in_bytes": "268435456", "cpu/cpu.shares": "128",
			"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000", "pids/pids.max": fmt.Sprint(maxProcesses),
		} {
			if got := strings.TrimSpace(read("/sys/fs/cgroup/" + file)); got != want {
				t.Errorf("%s is %q, want %q", file, got, want)
			}
		}
	}
	root := s.Start(t, nil, "serve")
	for _, path := range []string{"/proc/sys/kernel/hostname", "/sys/fs/cgroup/memory/memory.limit_in_bytes", "/proc/sysrq-trigger", "/sys/kernel/mm/ksm/run"} {
		if status, _ := enginetest.Request(t, root, http.MethodPost, "/write?path="+path); status == http.StatusOK {
			t.Errorf("root can write to %s (contract C70)", path)
		}
	}
	for path, can := range map[string]bool{
		"/tmp/file": true, "/dev/null": true, "/dev/shm/file": true, "/dev/stderr": true,
		"/etc/hosts": false, "/proc/sys/kernel/hostname": false, "/sys/fs/cgroup/memory/memory.limit_in_bytes": false, "/proc/sysrq-trigger": false,
	} {
		status, body := enginetest.Request(t, i, http.MethodPost, "/write?path="+path)
		if (status == http.StatusOK) != can {
			t.Errorf("writing to %s: status %d %s", path, status, strings.TrimSpace(body))
		}
	}
	if status, _ := enginetest.Request(t, i, http.MethodGet, "/read?path=/dev/console"); status == http.StatusOK {
		t.Error("/dev/console is there (KS14)")
	}
	for _, device := range []string{"full", "null", "random", "urandom", "zero", "tty", "ptmx", "fd", "stdin", "stdout", "stderr"} {
		if _, err := os.Lstat(fmt.Sprintf("/proc/%d/root/dev/%s", i.(*instance).containers[0].life.process.pid, device)); err != nil {
			t.Errorf("KM19: %v", err)
		}
	}
}

func TestInstance_OpensNoDevicesOfItsImage(t *testing.T) {
	t.Parallel()
	runtimes(t, func(t *testing.T, e *Engine) {
		i := enginetest.New(t, e).Start(t, nil, "serve").(*instance)
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", i.containers[0].life.process.pid))
		if err != nil {
			t.Fatal(err)
		}
		checked := false
		for line := range strings.Lines(string(text)) { // "36 35 0:31 / / rw,nodev - overlay …"
			if fields := strings.Fields(line); fields[4] == "/" {
				checked = true
				if !slices.Contains(strings.Split(fields[5], ","), "nodev") {
					t.Errorf("its root is mounted with %s", fields[5])
				}
			}
		}
		if !checked {
			t.Errorf("it has no root: %s", text)
		}
		if got := enginetest.Get(t, i, "/read?path=/dev/stdin"); got != "" {
			t.Errorf("stdin has %q", got)
		}
	})
}
