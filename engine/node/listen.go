package node

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// listened lists the TCP addresses on which processes in the network namespace of process pid listen, as
// "127.0.0.1:8080" or "[::]:3000".
func listened(pid int) []string {
	var addresses []string
	for _, table := range []string{"tcp", "tcp6"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		if err != nil {
			continue // the process is gone, or there is no IPv6
		}
		for line := range strings.Lines(string(text)) {
			if address, ok := parseListener(line); ok && !slices.Contains(addresses, address) {
				addresses = append(addresses, address)
			}
		}
	}
	return addresses
}

// parseListener reads a line of /proc/net/tcp or tcp6: "0: 0100007F:1F90 00000000:0000 0A …", where the address
// is in words of the machine's byte order, the port is not, and 0A means listening.
func parseListener(line string) (string, bool) {
	const listening = "0A"
	fields := strings.Fields(line)
	if len(fields) < 4 || fields[3] != listening {
		return "", false
	}
	words, port, found := strings.Cut(fields[1], ":")
	number, err := strconv.ParseUint(port, 16, 16)
	raw, hexErr := hex.DecodeString(words)
	if !found || err != nil || hexErr != nil || len(raw)%4 != 0 {
		return "", false
	}
	for word := range slices.Chunk(raw, 4) {
		slices.Reverse(word) // little-endian, as are all machines that Berth runs on
	}
	address, ok := netip.AddrFromSlice(raw)
	if !ok {
		return "", false
	}
	return netip.AddrPortFrom(address, uint16(number)).String(), true
}
