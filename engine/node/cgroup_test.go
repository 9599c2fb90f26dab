package node

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
)

// v2Groups are cgroups of version 2 in a directory that stands for their mount: the kernel's files do not appear in
// it by themselves.
func v2Groups(t *testing.T) *cgroups {
	t.Helper()
	return &cgroups{v2: true, roots: map[string]string{"": t.TempDir()}, name: "berth-012345"}
}

func TestCgroups_OfVersion2AreThereOnceOpen(t *testing.T) {
	c := v2Groups(t)
	group := filepath.Join(c.roots[""], c.name)
	former := filepath.Join(group, "hello-00001-aaaaa")
	if err := os.MkdirAll(former, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := c.open(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(former); err == nil {
		t.Error("the group of an instance of a former server is left")
	}
	for _, directory := range []string{c.roots[""], group} {
		if _, err := os.Stat(filepath.Join(directory, "cgroup.subtree_control")); err != nil {
			t.Errorf("no controllers are enabled: %v", err)
		}
	}
	if c.countsSwap() {
		t.Error("swap is counted where the kernel has no memory.swap.max")
	}
	if err := os.WriteFile(filepath.Join(group, "memory.swap.max"), []byte("max\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if !c.countsSwap() {
		t.Error("swap is not counted where the kernel has memory.swap.max")
	}
}

func TestCgroups_InstancesWeighOneProgramForEachProcessor(t *testing.T) {
	v1 := &cgroups{roots: map[string]string{"cpu": t.TempDir()}, name: "berth-012345"}
	v2 := v2Groups(t)
	for _, c := range []struct {
		groups *cgroups
		file   string
		each   int
	}{
		{v1, filepath.Join(v1.roots["cpu"], v1.name, "cpu.shares"), 1024},
		{v2, filepath.Join(v2.roots[""], v2.name, "cpu.weight"), 100},
	} {
		if err := c.groups.open(); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(c.file)
		if want := strconv.Itoa(c.each * runtime.NumCPU()); err != nil || string(text) != want {
			t.Errorf("%s holds %q (%v), want %s", c.file, text, err, want)
		}
	}
}
