package node

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/engine/enginetest"
)

func TestEngine_RuntimeRunsWhereItCannotBeChanged(t *testing.T) {
	e := openEngine(t, t.TempDir())
	var mount unix.Statfs_t
	err := e.namespace.do(func() error { return unix.Statfs(e.runtime.program, &mount) })
	if err != nil {
		t.Fatal(err)
	}
	if mount.Flags&unix.ST_RDONLY == 0 {
		t.Errorf("the mount that the runtime runs from can be written to: flags %#x", mount.Flags)
	}
	err = e.namespace.do(func() error {
		ours, err := os.Stat(e.runtime.program)
		if err != nil {
			return err
		}
		machines, err := os.Stat(e.runtime.path)
		if err == nil && !os.SameFile(ours, machines) {
			t.Errorf("what is run is not the machine's %q", e.runtime.path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestRuntime_GivesLaterContainersTheFilterOfTheFirst(t *testing.T) {
	e := openEngineWith(t, t.TempDir(), "crun")
	spec := enginetest.New(t, e).Spec(t, nil, "serve")
	var filters, configs [2][]byte
	for n := range filters {
		i, err := e.Prepare(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		defer i.Stop(0)
		err = e.namespace.do(func() error {
			var err, configErr error
			filters[n], err = os.ReadFile(filepath.Join(e.runtime.root, i.ID(), "seccomp.bpf"))
			configs[n], configErr = os.ReadFile(filepath.Join(e.bundles, i.ID(), "config.json"))
			return errors.Join(err, configErr)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(filters[0]) == 0 || !bytes.Equal(filters[0], filters[1]) {
		t.Errorf("the first container's filter has %d bytes, the second's %d: they differ", len(filters[0]), len(filters[1]))
	}
	rule := []byte(`"SCMP_ACT_ALLOW"`)
	if !bytes.Contains(configs[0], rule) || bytes.Contains(configs[1], rule) {
		t.Error("the rules of the filter are to be in the first container's configuration, and in no other")
	}
}
