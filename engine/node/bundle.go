package node

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/image"
)

const (
	// maxProcesses bounds an instance's processes and threads, so that a fork bomb stays inside.
	maxProcesses = 4096
	// maxOpenFiles is the limit of open files (contract C75), or the machine's when that is lower.
	maxOpenFiles = 25000
	// leastOOMScore makes the kernel, short of memory, end instances before the server.
	leastOOMScore = 500
	// cpuPeriod is the period of the CPU limit, in microseconds.
	cpuPeriod   = 100_000
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// capabilities are those that root has in a container: what Docker gives.
var capabilities = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// maskedPaths tell about, or control, the machine; the container finds them empty.
var maskedPaths = []string{
	"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
	"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
	"/sys/devices/virtual/powercap", "/sys/firmware",
}

var readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}

// bundle is what an OCI runtime configuration is written from.
type bundle struct {
	spec        engine.Spec
	container   *engine.Container
	image       image.Config
	user        user
	hostname    string
	cgroupsPath string
	network     string // path of the network namespace
	users       string // path of the user namespace; "" for the machine's
	ids         ids    // in the user namespace
	volumes     []specs.Mount
	openFiles   uint64
	oomScore    int
	annotations map[string]string
	swapCounted bool // the memory limit can be made to hold for memory and swap together
	unified     bool // cgroups v2
}

// environment is what the program finds in its environment: the image's, the user's over it, and over both what
// only the platform sets (contract C11, C26, C30).
func (b *bundle) environment() []string {
	names := []string{}
	values := map[string]string{}
	set := func(name, value string) {
		if _, seen := values[name]; !seen {
			names = append(names, name)
		}
		values[name] = value
	}
	set("PATH", defaultPath)
	set("HOSTNAME", b.hostname)
	set("HOME", b.user.home)
	for _, e := range b.image.Env {
		if name, value, found := strings.Cut(e, "="); found && name != "" {
			set(name, value)
		}
	}
	for _, e := range b.container.Env {
		set(e.Name, e.Value)
	}
	if b.container.Port > 0 {
		set("PORT", strconv.Itoa(b.container.Port))
	}
	set("K_SERVICE", b.spec.Service)
	set("K_CONFIGURATION", b.spec.Configuration)
	set("K_REVISION", b.spec.Revision)
	env := make([]string, len(names))
	for i, name := range names {
		env[i] = name + "=" + values[name]
	}
	return env
}

// variable is the value that an environment variable has, or "".
func (b *bundle) variable(name string) string {
	for _, e := range b.environment() {
		if value, found := strings.CutPrefix(e, name+"="); found {
			return value
		}
	}
	return ""
}

// args is the program and its arguments. A command of the user's replaces the image's arguments too.
func (b *bundle) args() []string {
	c := b.container
	command, args := b.image.Entrypoint, b.image.Cmd
	if c.Command != nil {
		command, args = c.Command, nil
	}
	if c.Args != nil {
		args = c.Args
	}
	return slices.Concat(command, args)
}

// workingDir is where the program starts.
func (b *bundle) workingDir() string {
	dir := b.image.WorkingDir
	if b.container.WorkingDir != "" {
		dir = b.container.WorkingDir
	}
	return path.Clean("/" + dir)
}

// write writes the bundle's config.json.
func (b *bundle) write(dir string) error {
	config, err := b.config()
	if err != nil {
		return err
	}
	text, err := json.Marshal(config)
	if err != nil {
		return fmt.Errorf("encoding the container's configuration: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), text, 0o600); err != nil {
		return fmt.Errorf("writing the container's configuration: %w", err)
	}
	return nil
}

func (b *bundle) config() (*specs.Spec, error) {
	config := &specs.Spec{
		Version:     "1.0.2", // the newest that old runtimes take; nothing newer is used
		Hostname:    b.hostname,
		Annotations: b.annotations,
		Root:        &specs.Root{Path: "rootfs", Readonly: b.container.ReadOnly},
		Mounts:      b.mounts(),
		Process: &specs.Process{
			Args:            b.args(),
			Env:             b.environment(),
			Cwd:             b.workingDir(),
			User:            specs.User{UID: b.user.uid, GID: b.user.gid, AdditionalGids: b.user.groups},
			Capabilities:    b.capabilities(),
			NoNewPrivileges: true, // contract C69
			OOMScoreAdj:     &b.oomScore,
			Rlimits: []specs.POSIXRlimit{
				{Type: "RLIMIT_NOFILE", Soft: b.openFiles, Hard: b.openFiles},
				{Type: "RLIMIT_CORE", Soft: 0, Hard: 0},
			},
		},
		Linux: &specs.Linux{
			CgroupsPath: b.cgroupsPath,
			Resources:   b.resources(),
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
				{Type: specs.MountNamespace}, {Type: specs.CgroupNamespace},
				{Type: specs.NetworkNamespace, Path: b.network},
			},
			MaskedPaths:   maskedPaths,
			ReadonlyPaths: readonlyPaths,
		},
	}
	if b.users != "" { // contract C71
		config.Linux.Namespaces = append(config.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: b.users})
		config.Linux.UIDMappings, config.Linux.GIDMappings = b.ids.mappings(), b.ids.mappings()
	}
	if b.compiled() {
		// The runtime takes the compiled filter. One that did not would let no system call pass.
		config.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
		return config, nil
	}
	filter, err := seccomp.GetDefaultProfile(config)
	if err != nil {
		return nil, fmt.Errorf("making the container's system call filter: %w", err)
	}
	config.Linux.Seccomp = filter
	return config, nil
}

// compiled tells whether the annotations have the system call filter as the runtime compiled it before.
func (b *bundle) compiled() bool { return b.annotations[compiledFilter] != "" }

// capabilities gives root what it may have, and other users none that they could use or regain.
func (b *bundle) capabilities() *specs.LinuxCapabilities {
	bounding := bounding(b.container)
	c := &specs.LinuxCapabilities{Bounding: bounding}
	if b.user.uid == 0 {
		c.Effective, c.Permitted = bounding, bounding
	}
	return c
}

// bounding is Docker's set of capabilities, less what the container drops and with what it adds.
func bounding(c *engine.Container) []string {
	if len(c.Drop)+len(c.Add) == 0 {
		return capabilities
	}
	bounding := slices.DeleteFunc(slices.Clone(capabilities), func(name string) bool {
		return slices.ContainsFunc(c.Drop, func(drop string) bool { return strings.EqualFold(drop, "ALL") || capability(drop) == name })
	})
	for _, add := range c.Add {
		if name := capability(add); !slices.Contains(bounding, name) {
			bounding = append(bounding, name)
		}
	}
	return bounding
}

// capability is the kernel's name for a capability, which may be given without its prefix.
func capability(name string) string {
	return "CAP_" + strings.TrimPrefix(strings.ToUpper(name), "CAP_")
}

func (b *bundle) mounts() []specs.Mount {
	shm := []string{"nosuid", "noexec", "nodev", "mode=1777"}
	if limit := b.container.Memory; limit > 0 {
		shm = append(shm, "size="+strconv.FormatInt(limit, 10)) // in memory, and so within its limit
	}
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: shm},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: cgroupMount, Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
	}
	if !b.unified {
		// The folder that holds the mounts of version 1 stays writable with crun (contract KS20). It is a tmpfs of the
		// container's; as a bind mount, crun would mount the machine's over it in a user namespace.
		mounts = append(mounts, specs.Mount{Destination: cgroupMount, Source: "tmpfs", Type: "tmpfs", Options: []string{"remount", "nosuid", "noexec", "nodev", "relatime", "ro"}})
	}
	return append(mounts, b.volumes...)
}

func (b *bundle) resources() *specs.LinuxResources {
	r := &specs.LinuxResources{
		Devices: allowedDevices(),
		Pids:    &specs.LinuxPids{Limit: pointer(int64(maxProcesses))},
	}
	const leastShares = 2 // of the kernel
	if share := cmp.Or(b.container.CPURequest, b.container.CPU); share > 0 {
		r.CPU = &specs.LinuxCPU{Shares: pointer(uint64(max(share*1024/1000, leastShares)))}
	}
	if limit := b.cpuLimit(); limit > 0 {
		r.CPU.Quota, r.CPU.Period = pointer(quota(limit)), pointer(uint64(cpuPeriod))
	}
	if memory := b.container.Memory; memory > 0 {
		r.Memory = &specs.LinuxMemory{Limit: &memory}
		if b.swapCounted {
			r.Memory.Swap = &memory // both together: no swap
		}
		if b.unified {
			// One process over the limit ends the instance (contract C56); for version 1 see memory.go.
			r.Unified = map[string]string{"memory.oom.group": "1"}
		}
	}
	return r
}

// allowedDevices denies every device but those that each container has.
func allowedDevices() []specs.LinuxDeviceCgroup {
	allow := func(kind string, major, minor int64, access string) specs.LinuxDeviceCgroup {
		d := specs.LinuxDeviceCgroup{Allow: true, Type: kind, Access: access}
		if major >= 0 {
			d.Major = &major
		}
		if minor >= 0 {
			d.Minor = &minor
		}
		return d
	}
	return []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		allow("c", -1, -1, "m"), // making a device file is harmless when it cannot be opened
		allow("b", -1, -1, "m"),
		allow("c", 1, 3, "rwm"),    // null
		allow("c", 1, 5, "rwm"),    // zero
		allow("c", 1, 7, "rwm"),    // full
		allow("c", 1, 8, "rwm"),    // random
		allow("c", 1, 9, "rwm"),    // urandom
		allow("c", 5, 0, "rwm"),    // tty
		allow("c", 5, 2, "rwm"),    // ptmx
		allow("c", 136, -1, "rwm"), // pts
	}
}

func pointer[T any](v T) *T { return &v }
