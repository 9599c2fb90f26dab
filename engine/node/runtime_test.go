package node

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestEngine_RuntimeRunsWhereItCannotBeChanged(t *testing.T) {
	e := openEngine(t, t.TempDir())
	err := e.namespace.do(func() error {
		file, err := os.OpenFile(e.runtime.program, os.O_WRONLY, 0)
		if err == nil {
			file.Close()
		}
		return err
	})
	if !errors.Is(err, unix.EROFS) {
		t.Errorf("opening the runtime's program for writing, where it is run: %v, want %v", err, unix.EROFS)
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
