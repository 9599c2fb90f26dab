package node

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
)

const (
	// idsEach is how many user IDs, and group IDs, an instance has: 0 to 65535. Files of others are nobody's inside
	// (65534): they can be used as far as their mode lets everybody.
	idsEach = 1 << 16
	// firstID is the machine's ID for the first ID of the first instance. From here to 0x7ffdffff there is room
	// for every instance of an engine, and nothing else: the range lies above those that useradd, /etc/subuid
	// and systemd's containers are given, and below what does not fit in 31 bits
	// (https://systemd.io/UIDS-GIDS calls it unused). Several servers on one machine share it.
	firstID = 0x7000_0000
)

// The values of Config.UserNamespaces.
const (
	UserNamespacesOn   = "on"   // every instance has a user namespace; Open fails where it cannot
	UserNamespacesAuto = "auto" // where the machine can; else none has, which is logged
	UserNamespacesOff  = "off"  // none has
)

// ids are the user and group IDs of an instance, which the machine knows by other numbers: first is the machine's
// for the instance's 0. The zero value leaves all IDs as they are, without a user namespace.
type ids struct{ first uint32 }

// shifted reports whether the instance's IDs are not the machine's.
func (m ids) shifted() bool { return m.first != 0 }

// outside is the machine's number for an instance's ID.
func (m ids) outside(id uint32) int { return int(m.first) + int(id) }

// inside is the instance's number for one of the machine's IDs, if it has one.
func (m ids) inside(id uint32) (uint32, bool) {
	if !m.shifted() {
		return id, true
	}
	return id - m.first, id >= m.first && id-m.first < idsEach
}

// has reports whether the instance has an ID.
func (m ids) has(id uint32) bool { return !m.shifted() || id < idsEach }

// mappings is the instance's whole range as the OCI runtime wants it.
func (m ids) mappings() []specs.LinuxIDMapping {
	if !m.shifted() {
		return nil
	}
	return []specs.LinuxIDMapping{{ContainerID: 0, HostID: m.first, Size: idsEach}}
}

// newNamespaces makes a user namespace in which the IDs are m, and a network namespace that belongs to it. It must
// be called on a thread that runs nothing else meanwhile.
//
// The kernel makes a user namespace only for a new process. That process has no program of its own: it is traced,
// and so stops before the first instruction of the one it was given; by then it has done all it is for.
func newNamespaces(m ids) (users, network *os.File, err error) {
	mapping := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(m.first), Size: idsEach}}
	process, err := os.StartProcess("/proc/self/exe", []string{"berth-namespace"}, &os.ProcAttr{
		Env: []string{}, // not this process's
		Sys: &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
			UidMappings: mapping, GidMappings: mapping, GidMappingsEnableSetgroups: true,
			Ptrace: true, Pdeathsig: syscall.SIGKILL,
		},
	})
	if err != nil {
		return nil, nil, fmt.Errorf("making a user namespace: %w", namespaceError(err))
	}
	directory := fmt.Sprintf("/proc/%d/ns/", process.Pid)
	if users, err = os.Open(directory + "user"); err == nil {
		network, err = os.Open(directory + "net")
	}
	_ = process.Kill() // it is stopped, so it is there
	_, waitErr := process.Wait()
	if err = errors.Join(err, waitErr); err != nil {
		if users != nil {
			users.Close()
		}
		if network != nil {
			network.Close()
		}
		return nil, nil, fmt.Errorf("making a user namespace: %w", err)
	}
	return users, network, nil
}

// namespaceError says what is behind the error of a new process in new namespaces.
func namespaceError(err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC):
		return fmt.Errorf("there may be no more (sysctl user.max_user_namespaces and user.max_net_namespaces): %w", err)
	case errors.Is(err, syscall.EINVAL):
		return fmt.Errorf("the kernel has none (CONFIG_USER_NS): %w", err)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("the berth program must be executable by every user (chmod a+x): %w", err)
	}
	return err
}
