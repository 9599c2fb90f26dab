package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/bench"
)

// otherFiles are what a process may have open beside connections.
const otherFiles = 300

// group is as many gateways as it takes to have many connections, where the limit of open files of a process is
// low, and what holds connections to them.
type group struct {
	gateways []*child
	holders  []*holder
	before   float64 // KiB of memory that the gateways had without the connections
	kernel   float64 // KiB that the kernel had
	held     int     // connections that there are to be
}

// startGroup starts gateways for n connections that take a number of files each.
func startGroup(instance string, n, files int) (_ *group, err error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return nil, fmt.Errorf("reading the limit of open files: %w", err)
	}
	most := int(min(limit.Max, 1<<20)) - otherFiles
	if most < n {
		fmt.Printf("# a process may have %d files open here: %d connections, not %d\n", limit.Max, most, n)
		n = most
	}
	g := &group{held: n}
	defer func() {
		if err != nil {
			g.stop()
		}
	}()
	each := min(most/files, n)
	for left := n; left > 0; left -= each {
		gateway, err := startChild("gateway", "-concurrency", "0", instance)
		if err != nil {
			return nil, err
		}
		g.gateways = append(g.gateways, gateway)
		// What the first requests of a process leave for good is no cost of the connections.
		warm, err := newHTTP1Client(gateway.address, 64, &variants[0], [][]byte{variants[0].request(host)})
		if err != nil {
			return nil, err
		}
		_, err = warm.run(300 * time.Millisecond)
		warm.close()
		if err != nil {
			return nil, err
		}
		h, err := newHolder(gateway.address, min(each, left))
		if err != nil {
			return nil, err
		}
		g.holders = append(g.holders, h)
	}
	if g.before, err = g.memory(); err != nil {
		return nil, err
	}
	g.kernel, err = kernelMemory()
	return g, err
}

// ask asks over all connections and returns how many answered.
func (g *group) ask(request func(int) []byte, whole func(int, []byte) (bool, error)) (int, error) {
	sum := 0
	for _, h := range g.holders {
		n, err := h.ask(request, whole)
		if err != nil {
			return sum, err
		}
		sum += n
	}
	return sum, nil
}

// memory is what the gateways take, in KiB, without what they do not need any more.
func (g *group) memory() (float64, error) {
	sum := 0.0
	for _, gateway := range g.gateways {
		if err := gateway.settle(); err != nil {
			return 0, err
		}
		pss, err := bench.PSS(gateway.pid())
		if err != nil {
			return 0, err
		}
		sum += pss
	}
	return sum, nil
}

// grown returns how much memory each connection takes, in KiB, and prints what the kernel has for it beside.
func (g *group) grown(name string) (float64, error) {
	now, err := g.memory()
	if err != nil {
		return 0, err
	}
	kernel, err := kernelMemory()
	if err != nil {
		return 0, err
	}
	fmt.Printf("# %s: %d connections over %d gateway processes; the kernel has about %.1f KiB more for each, for both its ends and the instance's\n",
		name, g.held, len(g.gateways), (kernel-g.kernel)/float64(g.held))
	return (now - g.before) / float64(g.held), nil
}

func (g *group) stop() {
	for _, h := range g.holders {
		h.close()
	}
	for _, gateway := range g.gateways {
		gateway.stop()
	}
}

// kernelMemory is what the kernel has for its own objects and for what sockets hold, in KiB. Other work on the
// machine moves it.
func kernelMemory() (float64, error) {
	slab, err := field("/proc/meminfo", "Slab:", 1)
	if err != nil {
		return 0, err
	}
	pages, err := field("/proc/net/sockstat", "TCP:", 10) // "mem"
	return slab + pages*float64(os.Getpagesize()>>10), err
}

// field is a number of the line of a file that begins with a word.
func field(file, word string, number int) (float64, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > number && f[0] == word {
			return strconv.ParseFloat(f[number], 64)
		}
	}
	return 0, fmt.Errorf("%s has no field %d of %q", file, number, word)
}
