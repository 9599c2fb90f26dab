package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// trace is what a server has made on the machine outside of its state directory, each thing under a name that no
// other thing, before or after, has.
type trace struct {
	processes  []string // "1234 started at 5678"
	groups     []string // directories of cgroups
	interfaces []string // "bt3f9a2c12 (index 34)"
	addresses  []string // on the loopback interface
	tables     []string // of packet rules
	mounts     []string // "1234 started at 5678 sees /directory"
}

// all lists everything of a trace.
func (t trace) all() []string {
	return slices.Concat(t.processes, t.groups, t.interfaces, t.addresses, t.tables, t.mounts)
}

// mark is what names of a server's things are made from.
func mark(stateDir string) string {
	sum := sha256.Sum256([]byte(filepath.Join(stateDir, "node")))
	return hex.EncodeToString(sum[:3])
}

// traceOf looks for everything that a server on a state directory has made. Instances are also found by a
// variable in their environment whose value is the directory: see traced.
func traceOf(t *testing.T, dir string) trace {
	t.Helper()
	mark := mark(dir)
	var found trace
	groups, err := filepath.Glob("/sys/fs/cgroup/*/berth-" + mark)
	if err != nil {
		t.Fatal(err)
	}
	v2, _ := filepath.Glob("/sys/fs/cgroup/berth-" + mark)
	for _, root := range append(groups, v2...) {
		found.groups = append(found.groups, root)
		entries, _ := os.ReadDir(root) // it may go at this moment
		for _, e := range entries {
			if e.IsDir() {
				found.groups = append(found.groups, filepath.Join(root, e.Name()))
			}
		}
	}
	directories, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, directory := range directories {
		name := filepath.Base(directory) + " started at " + startTime(directory)
		cgroup, _ := os.ReadFile(filepath.Join(directory, "cgroup")) // it may end at this moment
		environment, _ := os.ReadFile(filepath.Join(directory, "environ"))
		if strings.Contains(string(cgroup), "/berth-"+mark+"/") || strings.Contains(string(environment), tracer+"="+dir+"\x00") {
			found.processes = append(found.processes, name)
		}
		threads, _ := filepath.Glob(filepath.Join(directory, "task", "[0-9]*", "mountinfo"))
		seen := map[string]bool{}
		for _, path := range threads {
			namespace, err := os.Readlink(filepath.Join(filepath.Dir(path), "ns", "mnt"))
			if err != nil || seen[namespace] {
				continue
			}
			seen[namespace] = true
			mounts, _ := os.ReadFile(path)
			for line := range strings.Lines(string(mounts)) {
				if strings.Contains(line, dir+"/") {
					found.mounts = append(found.mounts, name+" sees "+strings.Fields(line)[4])
				}
			}
		}
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Name, "bt"+mark) {
			found.interfaces = append(found.interfaces, fmt.Sprintf("%s (index %d)", l.Name, l.Index))
		}
	}
	found.addresses = grep(t, "bt"+mark, "ip", "-4", "address", "show", "dev", "lo")
	found.tables = grep(t, "berth_"+mark, "nft", "list", "tables")
	return found
}

// tracer is the environment variable by which traceOf finds instances, whatever cgroup they are in.
const tracer = "BERTH_E2E_TRACE"

// traced is the environment of instances that traceOf is to find.
func traced(dir string) string { return tracer + "=" + dir }

// startTime tells apart processes that had the same ID one after the other.
func startTime(directory string) string {
	stat, err := os.ReadFile(filepath.Join(directory, "stat"))
	if err != nil {
		return "?"
	}
	_, after, _ := strings.Cut(string(stat), ") ") // the name may hold anything
	if fields := strings.Fields(after); len(fields) > 19 {
		return fields[19]
	}
	return "?"
}

// grep returns the lines of a command's output that hold a word.
func grep(t *testing.T, word string, command ...string) []string {
	t.Helper()
	output, err := exec.Command(command[0], command[1:]...).Output()
	if err != nil {
		t.Fatalf("%s: %v", strings.Join(command, " "), err)
	}
	var lines []string
	whole := regexp.MustCompile(`\b` + regexp.QuoteMeta(word) + `\b`)
	for line := range strings.Lines(string(output)) {
		if whole.MatchString(line) {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// stopped stops a server and sees to it that nothing is left but its state directory, which can be removed.
func (p *platform) stopped() {
	p.t.Helper()
	if len(traceOf(p.t, p.dir).all()) == 0 {
		p.t.Error("a running server leaves no traces: the test does not look where they are")
	}
	if err := p.stop(); err != nil {
		p.t.Errorf("server stopped with: %v", err)
	}
	if left := traceOf(p.t, p.dir).all(); len(left) > 0 {
		p.t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
	if err := os.RemoveAll(p.dir); err != nil {
		p.t.Errorf("removing the state directory: %v", err)
	}
}

// common lists what is in both lists.
func common(a, b []string) []string {
	var both []string
	for _, x := range a {
		if slices.Contains(b, x) {
			both = append(both, x)
		}
	}
	return both
}
