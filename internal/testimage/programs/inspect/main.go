// Inspect tells what a program in a container can see and do:
//
//	/            all that can be seen, as JSON
//	/file?path=P a file's content, or a directory's names
//	/stat?path=P the mode of what is at a path, and the number of its user
//	/write?path=P   tries to write a file
//	/lookup?host=H  asks the DNS
//	/dial?address=A&network=N   opens a connection
//	/spin?ms=N   uses one CPU fully for that long, and tells the CPU time that it got
//	/log?n=N&size=S  writes N lines of S bytes to standard output
//	/try?call=C     makes a system call that only the machine's owner may make: adjtimex, bpf, mount, settimeofday
//
// On SIGTERM it says so and ends; with STAY set it goes on, and says so ten times a second.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// timeout bounds what reaches out of the container.
const timeout = 3 * time.Second

// view is what / answers.
type view struct {
	Env        map[string]string `json:"env"`
	Args       []string          `json:"args"`
	Directory  string            `json:"directory"`
	PID        int               `json:"pid"`
	UID        int               `json:"uid"`
	GID        int               `json:"gid"`
	Groups     []int             `json:"groups"`
	Hostname   string            `json:"hostname"`
	Stdin      string            `json:"stdin"`
	Mounts     []string          `json:"mounts"`     // lines of /proc/self/mountinfo
	Status     map[string]string `json:"status"`     // of /proc/self/status: CapEff, Seccomp, NoNewPrivs and so on
	Cgroup     map[string]string `json:"cgroup"`     // limits, by path
	Files      map[string]string `json:"files"`      // open files, by number
	Content    map[string]string `json:"content"`    // resolv.conf, hosts and hostname, by path
	Devices    []string          `json:"devices"`    // names in /dev
	Interfaces map[string]string `json:"interfaces"` // addresses, by name
	Limits     map[string]uint64 `json:"limits"`     // soft limits
}

func main() {
	http.HandleFunc("/", inspect)
	http.HandleFunc("/file", file)
	http.HandleFunc("/stat", stat)
	http.HandleFunc("/write", write)
	http.HandleFunc("/lookup", lookup)
	http.HandleFunc("/dial", dial)
	http.HandleFunc("/spin", spin)
	http.HandleFunc("/log", lines)
	http.HandleFunc("/try", try)
	go sayGoodbye()
	log.Print("inspect: listening")
	log.Fatal(http.ListenAndServe(":"+os.Getenv("PORT"), nil))
}

// result is what an attempt answers.
type result struct {
	OK     bool     `json:"ok"`
	Error  string   `json:"error,omitempty"`
	Values []string `json:"values,omitempty"`
	TookMS int64    `json:"tookMs"`
}

func answer(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(value); err != nil {
		log.Printf("inspect: answering: %v", err)
	}
}

func attempt(w http.ResponseWriter, try func() ([]string, error)) {
	begin := time.Now()
	values, err := try()
	r := result{OK: err == nil, Values: values, TookMS: time.Since(begin).Milliseconds()}
	if err != nil {
		r.Error = err.Error()
	}
	answer(w, r)
}

func inspect(w http.ResponseWriter, r *http.Request) {
	v := view{
		Env:        map[string]string{},
		Args:       os.Args,
		PID:        os.Getpid(),
		UID:        os.Getuid(),
		GID:        os.Getgid(),
		Mounts:     strings.Split(strings.TrimSpace(read("/proc/self/mountinfo")), "\n"),
		Status:     map[string]string{},
		Cgroup:     map[string]string{},
		Files:      map[string]string{},
		Content:    map[string]string{},
		Interfaces: map[string]string{},
		Limits:     map[string]uint64{},
	}
	for _, env := range os.Environ() {
		name, value, _ := strings.Cut(env, "=")
		v.Env[name] = value
	}
	// What cannot be seen stays empty: that is an answer, too.
	v.Directory, _ = os.Getwd()
	v.Groups, _ = os.Getgroups()
	v.Hostname, _ = os.Hostname()
	v.Stdin, _ = os.Readlink("/proc/self/fd/0")
	for line := range strings.Lines(read("/proc/self/status")) {
		name, value, _ := strings.Cut(line, ":")
		v.Status[name] = strings.TrimSpace(value)
	}
	for _, path := range cgroupFiles() {
		if text := read(path); text != "" {
			v.Cgroup[path] = strings.TrimSpace(text)
		}
	}
	open, _ := os.ReadDir("/proc/self/fd")
	for _, e := range open {
		v.Files[e.Name()], _ = os.Readlink("/proc/self/fd/" + e.Name())
	}
	for _, path := range []string{"/etc/resolv.conf", "/etc/hosts", "/etc/hostname"} {
		v.Content[path] = read(path)
	}
	v.Devices, _ = filepath.Glob("/dev/*")
	interfaces, _ := net.Interfaces()
	for _, i := range interfaces {
		addresses, _ := i.Addrs()
		v.Interfaces[i.Name] = fmt.Sprint(addresses)
	}
	for name, number := range map[string]int{"nofile": syscall.RLIMIT_NOFILE, "core": syscall.RLIMIT_CORE} {
		var limit syscall.Rlimit
		if err := syscall.Getrlimit(number, &limit); err == nil {
			v.Limits[name] = limit.Cur
		}
	}
	answer(w, v)
}

func cgroupFiles() []string {
	return []string{
		"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/pids.max",
		"/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes",
		"/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us", "/sys/fs/cgroup/cpu/cpu.shares",
		"/sys/fs/cgroup/pids/pids.max", "/proc/self/cgroup",
	}
}

func read(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(data)
}

func file(w http.ResponseWriter, r *http.Request) {
	path := r.FormValue("path")
	attempt(w, func() ([]string, error) {
		if entries, err := os.ReadDir(path); err == nil {
			names := []string{}
			for _, e := range entries {
				names = append(names, e.Name())
			}
			return names, nil
		}
		data, err := os.ReadFile(path)
		return []string{string(data)}, err
	})
}

func stat(w http.ResponseWriter, r *http.Request) {
	attempt(w, func() ([]string, error) {
		info, err := os.Stat(r.FormValue("path"))
		if err != nil {
			return nil, err
		}
		owner := -1
		if s, ok := info.Sys().(*syscall.Stat_t); ok {
			owner = int(s.Uid)
		}
		return []string{info.Mode().String(), strconv.Itoa(owner)}, nil
	})
}

func write(w http.ResponseWriter, r *http.Request) {
	path := r.FormValue("path")
	size, err := strconv.Atoi(r.FormValue("size"))
	if err != nil {
		size = 1
	}
	attempt(w, func() ([]string, error) {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
		if err != nil {
			return nil, err
		}
		buffered := bufio.NewWriterSize(f, 1<<20)
		for range size {
			if err := buffered.WriteByte('x'); err != nil {
				return nil, errors.Join(err, f.Close())
			}
		}
		return nil, errors.Join(buffered.Flush(), f.Close())
	})
}

func lookup(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	attempt(w, func() ([]string, error) {
		return net.DefaultResolver.LookupHost(ctx, r.FormValue("host"))
	})
}

func dial(w http.ResponseWriter, r *http.Request) {
	network := r.FormValue("network")
	if network == "" {
		network = "tcp"
	}
	attempt(w, func() ([]string, error) {
		c, err := net.DialTimeout(network, r.FormValue("address"), timeout)
		if err != nil {
			return nil, err
		}
		return []string{c.LocalAddr().String()}, c.Close()
	})
}

func spin(w http.ResponseWriter, r *http.Request) {
	ms, err := strconv.Atoi(r.FormValue("ms"))
	if err != nil {
		http.Error(w, "ms wants a number of milliseconds", http.StatusBadRequest)
		return
	}
	attempt(w, func() ([]string, error) {
		var before, after syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &before); err != nil {
			return nil, err
		}
		for end := time.Now().Add(time.Duration(ms) * time.Millisecond); time.Now().Before(end); {
			continue
		}
		err := syscall.Getrusage(syscall.RUSAGE_SELF, &after)
		used := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
		return []string{time.Duration(used).String()}, err
	})
}

func lines(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.Atoi(r.FormValue("n"))
	size, sizeErr := strconv.Atoi(r.FormValue("size"))
	if err != nil || sizeErr != nil || size < 0 {
		http.Error(w, "n and size want numbers", http.StatusBadRequest)
		return
	}
	attempt(w, func() ([]string, error) {
		out := bufio.NewWriter(os.Stdout)
		for i := range n {
			if _, err := fmt.Fprintf(out, "%d %s\n", i, strings.Repeat("x", size)); err != nil {
				return nil, err
			}
		}
		return nil, out.Flush()
	})
}

func try(w http.ResponseWriter, r *http.Request) {
	const bpf = 321 // of Linux on amd64
	calls := map[string]func() error{
		"adjtimex": func() error {
			const offset = 1 // adjusts the time by 0
			_, err := syscall.Adjtimex(&syscall.Timex{Modes: offset})
			return err
		},
		"bpf": func() error {
			_, _, number := syscall.Syscall(bpf, 0, 0, 0)
			if number != 0 {
				return number
			}
			return nil
		},
		"mount":        func() error { return syscall.Mount("tmpfs", "/tmp", "tmpfs", 0, "") },
		"settimeofday": func() error { return syscall.Settimeofday(&syscall.Timeval{Sec: time.Now().Unix()}) },
	}
	call := calls[r.FormValue("call")]
	if call == nil {
		http.Error(w, "call wants the name of a system call", http.StatusBadRequest)
		return
	}
	attempt(w, func() ([]string, error) { return nil, call() })
}

func sayGoodbye() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	<-signals
	log.Print("inspect: got SIGTERM")
	if os.Getenv("STAY") == "" {
		os.Exit(0)
	}
	for range time.Tick(100 * time.Millisecond) {
		log.Print("inspect: staying")
	}
}
