package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"golang.org/x/net/dns/dnsmessage"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/berth-run/berth/internal/testimage"
	"github.com/berth-run/berth/server"
	"github.com/berth-run/berth/serving"
)

// inspected is what the test program inspect answers about its surroundings.
type inspected struct {
	Env, Status, Cgroup, Files, Content, Interfaces map[string]string
	Mounts, Devices                                 []string
	PID, UID, GID                                   int
	Hostname, Stdin                                 string
	Limits                                          map[string]uint64
}

// tried is what it answers to an attempt.
type tried struct {
	OK     bool
	Error  string
	Values []string
}

// inspect asks a service about its surroundings.
func (p *platform) inspect(url string) inspected {
	p.t.Helper()
	var v inspected
	p.decode(url, &v)
	return v
}

// try has a service attempt something.
func (p *platform) try(url, path string, values ...string) tried {
	p.t.Helper()
	var v tried
	p.decode(url+path+"?"+query(values), &v)
	return v
}

func query(values []string) string {
	q := url.Values{}
	for pair := range slices.Chunk(values, 2) {
		q.Set(pair[0], pair[1])
	}
	return q.Encode()
}

func (p *platform) decode(url string, into any) {
	p.t.Helper()
	a := p.get(url)
	if a.status != 200 {
		p.t.Fatalf("GET %s: %d %q", url, a.status, a.body)
	}
	if err := json.Unmarshal([]byte(a.body), into); err != nil {
		p.t.Fatalf("GET %s: %q: %v", url, a.body, err)
	}
}

// check compares one fact of a clause of the contract.
func check[T comparable](t *testing.T, clause, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %s is %v, want %v", clause, what, got, want)
	}
}

func TestContract_WhatAnInstanceFinds(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	image := program(t, "inspect")
	url := p.deploy(service("plain", image)).Status.URL.String()
	v := p.inspect(url)
	t.Run("C10 C11 KM6 KM15 the default port is 8080, in PORT", func(t *testing.T) {
		check(t, "C11", "PORT", v.Env["PORT"], "8080")
	})
	t.Run("C26 KS16 names are in the environment", func(t *testing.T) {
		check(t, "C26", "K_SERVICE", v.Env["K_SERVICE"], "plain")
		check(t, "C26", "K_REVISION", v.Env["K_REVISION"], "plain-00001")
		check(t, "C26", "K_CONFIGURATION", v.Env["K_CONFIGURATION"], "plain")
	})
	t.Run("C29 HOME is the user's of /etc/passwd", func(t *testing.T) {
		check(t, "C29", "HOME", v.Env["HOME"], "/home/nonroot")
	})
	t.Run("C63 C64 KM22 KS21 limits hold and can be seen", func(t *testing.T) {
		if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
			check(t, "C64", "memory.max", v.Cgroup["/sys/fs/cgroup/memory.max"], fmt.Sprint(512<<20))
			check(t, "C64", "cpu.max", v.Cgroup["/sys/fs/cgroup/cpu.max"], "100000 100000")
			return
		}
		check(t, "C64", "memory limit", v.Cgroup["/sys/fs/cgroup/memory/memory.limit_in_bytes"], fmt.Sprint(512<<20))
		check(t, "C64", "CPU quota", v.Cgroup["/sys/fs/cgroup/cpu/cpu.cfs_quota_us"], "100000")
		check(t, "C64", "CPU period", v.Cgroup["/sys/fs/cgroup/cpu/cpu.cfs_period_us"], "100000")
	})
	t.Run("C69 C73 no privileges, none to gain, system calls filtered", func(t *testing.T) {
		check(t, "C69", "NoNewPrivs", v.Status["NoNewPrivs"], "1")
		check(t, "C69", "CapEff", v.Status["CapEff"], "0000000000000000")
		check(t, "C69", "CapBnd", v.Status["CapBnd"], "00000000a80425fb") // as Docker's
		check(t, "C73", "Seccomp", v.Status["Seccomp"], "2")              // a filter
	})
	t.Run("C71 PIDs, network and names of its own", func(t *testing.T) {
		check(t, "C71", "PID", v.PID, 1)
		check(t, "C71", "number of interfaces", len(v.Interfaces), 2) // lo and eth0
		check(t, "C71", "HOSTNAME", v.Env["HOSTNAME"], v.Hostname)
		if !strings.HasPrefix(v.Hostname, "plain-00001-") {
			t.Errorf("C71: the host name is %q", v.Hostname)
		}
	})
	t.Run("C75 open files are limited", func(t *testing.T) {
		var machine syscall.Rlimit
		if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &machine); err != nil {
			t.Fatal(err)
		}
		check(t, "C75", "open files", v.Limits["nofile"], min(25000, machine.Max))
		check(t, "C75", "core", v.Limits["core"], 0)
	})
	t.Run("C77 KS14 hosts and resolv.conf", func(t *testing.T) {
		contains(t, "C77: /etc/hosts", v.Content["/etc/hosts"], []string{"127.0.0.1\tlocalhost user-container"})
		contains(t, "KS14: /etc/resolv.conf", v.Content["/etc/resolv.conf"], []string{"nameserver "})
	})
	t.Run("KM19 KS14 devices", func(t *testing.T) {
		for _, name := range []string{"fd", "full", "null", "ptmx", "random", "stderr", "stdin", "stdout", "tty", "urandom", "zero"} {
			if !slices.Contains(v.Devices, "/dev/"+name) {
				t.Errorf("KM19: there is no /dev/%s", name)
			}
		}
		if slices.Contains(v.Devices, "/dev/console") {
			t.Error("KS14: there is a /dev/console")
		}
		for _, number := range []string{"0", "1", "2"} {
			if v.Files[number] == "" {
				t.Errorf("KM19: file %s is not open", number)
			}
		}
	})
	t.Run("KM19 /tmp is for all to write", func(t *testing.T) {
		if got := p.try(url, "/write", "path", "/tmp/mine"); !got.OK {
			t.Errorf("KM19: user %d writes to /tmp: %s", v.UID, got.Error)
		}
	})
	t.Run("KS2 standard input is at its end", func(t *testing.T) {
		check(t, "KS2", "stdin", v.Stdin, "/dev/null")
	})
	t.Run("KS20 KS22 cgroups and sysctls are read-only", func(t *testing.T) {
		for _, mount := range v.Mounts {
			fields := strings.Fields(mount)
			where, options := fields[4], strings.Split(fields[5], ",")
			if (strings.HasPrefix(where, "/sys") || where == "/proc/sys") && !slices.Contains(options, "ro") {
				t.Errorf("KS20 KS22: %s is mounted %s", where, fields[5])
			}
		}
	})
}

func TestContract_RootInAnInstanceIsNotRootOfTheMachine(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	registry := testimage.Serve(t, testimage.Options{})
	s := service("root", registry.Push(t, withUser(t, images.Program(t, "inspect"), "ghost"), "inspect:1"))
	container := &s.Spec.Template.Spec.Containers[0]
	container.Ports = []serving.ContainerPort{{ContainerPort: 8090}}
	container.Resources.Limits = serving.ResourceList{
		"cpu": resource.MustParse("500m"), "memory": resource.MustParse("96Mi"),
	}
	url := p.deploy(s).Status.URL.String()
	v := p.inspect(url)
	// C76: a USER that the image does not have is root. C10: the port is the service's.
	check(t, "C76", "UID", v.UID, 0)
	check(t, "C76", "GID", v.GID, 0)
	check(t, "C10", "PORT", v.Env["PORT"], "8090")
	if quota, v1 := v.Cgroup["/sys/fs/cgroup/cpu/cpu.cfs_quota_us"]; v1 {
		check(t, "C65", "CPU quota", quota, "50000")
		check(t, "C65", "memory limit", v.Cgroup["/sys/fs/cgroup/memory/memory.limit_in_bytes"], fmt.Sprint(96<<20))
	}
	for _, call := range []string{"adjtimex", "bpf", "mount", "settimeofday"} {
		if got := p.try(url, "/try", "call", call); got.OK || got.Error != "operation not permitted" {
			t.Errorf("C72 C73: %s: %+v", call, got)
		}
	}
	for _, path := range []string{
		"/proc/sys/kernel/hostname", "/proc/sys/vm/drop_caches", "/proc/sysrq-trigger", "/sys/kernel/mm/ksm/run",
		"/sys/fs/cgroup/file", "/sys/fs/cgroup/memory/memory.limit_in_bytes",
	} {
		if got := p.try(url, "/write", "path", path); got.OK {
			t.Errorf("C70: root may write to %s", path)
		}
	}
	for _, path := range []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware/efi"} {
		if got := p.try(url, "/file", "path", path); got.OK && strings.Join(got.Values, "") != "" {
			t.Errorf("C70: root may read %s", path)
		}
	}

	// C39: the file system is writable, in memory, and gone with the instance.
	before := p.usage(url)
	const mib = 32
	if got := p.try(url, "/write", "path", "/written", "size", fmt.Sprint(mib<<20)); !got.OK {
		t.Fatalf("C39: %s", got.Error)
	}
	if grown := p.usage(url) - before; grown < mib<<20 {
		t.Errorf("C39: %d MiB of files grew the memory used by %d bytes", mib, grown)
	}
	p.awaitZero("root")
	if got := p.try(url, "/file", "path", "/written"); got.OK {
		t.Error("C39: the next instance has a file that the last one wrote")
	}
}

// usage is the memory that a service's only instance uses, in bytes.
func (p *platform) usage(url string) int {
	p.t.Helper()
	for _, path := range []string{"/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes"} {
		if got := p.try(url, "/file", "path", path); got.OK {
			n := 0
			if _, err := fmt.Sscan(got.Values[0], &n); err != nil {
				p.t.Fatalf("%s: %q: %v", path, got.Values, err)
			}
			return n
		}
	}
	p.t.Fatal("the instance does not see how much memory it uses")
	return 0
}

// withUser is an image that runs as another user.
func withUser(t *testing.T, image v1.Image, user string) v1.Image {
	t.Helper()
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	changed := config.Config
	changed.User = user
	image, err = mutate.Config(image, changed)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func TestContract_RunAsUser(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	s := service("user", program(t, "inspect"))
	user := int64(1234)
	s.Spec.Template.Spec.Containers[0].SecurityContext = &serving.SecurityContext{RunAsUser: &user}
	v := p.inspect(p.deploy(s).Status.URL.String())
	check(t, "KM16", "UID", v.UID, 1234)
	check(t, "C29", "HOME of a user that the image does not know", v.Env["HOME"], "/home")

	user = -1 // KM17
	if _, _, err := p.Services("default").Apply(t.Context(), s); err == nil || !strings.Contains(err.Error(), "runAsUser") {
		t.Errorf("KM17: runAsUser -1: %v", err)
	}
}

func TestContract_HeadersOfARequest(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	s := p.deploy(service("echo", program(t, "echo")))
	var got struct {
		Host   string
		Header map[string][]string
	}
	p.decode(s.Status.URL.String(), &got)
	header := func(name string) string { return strings.Join(got.Header[name], "|") }
	check(t, "KM9", "Host", got.Host, s.Status.URL.Host)
	check(t, "KM10 C32", "Forwarded", header("Forwarded"), "for=127.0.0.1;proto=http")
	check(t, "KS8 C31", "X-Forwarded-For", header("X-Forwarded-For"), "127.0.0.1")
	check(t, "KS9 C33", "X-Forwarded-Proto", header("X-Forwarded-Proto"), "http")
	trace, _, _ := strings.Cut(header("X-Cloud-Trace-Context"), "/")
	if len(trace) != 32 || !strings.HasPrefix(header("Traceparent"), "00-"+trace+"-") {
		t.Errorf("C34 C35: X-Cloud-Trace-Context is %q, traceparent %q", header("X-Cloud-Trace-Context"), header("Traceparent"))
	}
}

func TestContract_StartupProbeDecides(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	image := program(t, "echo")
	probed := func(name, path string) *serving.Service {
		s := service(name, image)
		s.Spec.Template.Spec.Containers[0].StartupProbe = &serving.Probe{
			ProbeHandler:     serving.ProbeHandler{HTTPGet: &serving.HTTPGetAction{Path: path, Port: intstr.FromInt32(0)}},
			FailureThreshold: 2, PeriodSeconds: 1,
		}
		return s
	}
	p.applied(probed("never", "/status?code=503"), "startup probe", "GET /status?code=503 on port 8080 answered 503")
	p.deploy(probed("soon", "/status?code=204"))
}

func TestContract_SIGTERMThenSIGKILL(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	image := program(t, "inspect")
	p.deploy(service("polite", image))
	stays := p.deploy(service("stays", image, "STAY=yes"))
	first := p.inspect(stays.Status.URL.String()).Hostname
	p.awaitZero("polite")
	p.awaitZero("stays")
	log := p.mustBerth("logs", "polite")
	contains(t, "C54: the log", log, []string{"inspect: got SIGTERM"})
	log = p.mustBerth("logs", "stays")
	contains(t, "C54: the log", log, []string{"inspect: got SIGTERM", "inspect: staying"})
	if next := p.inspect(stays.Status.URL.String()).Hostname; next == first {
		t.Errorf("C54: %s still runs", first)
	}
}

func TestContract_NamesAreResolvedByTheConfiguredServers(t *testing.T) {
	t.Parallel()
	address := dnsServer(t, "db.example.com.", [4]byte{192, 0, 2, 7})
	p := start(t, func(c *server.Config) { c.DNS = []string{address} })
	url := p.deploy(service("inspect", program(t, "inspect"))).Status.URL.String()
	if got := p.try(url, "/lookup", "host", "db.example.com"); !got.OK || !slices.Equal(got.Values, []string{"192.0.2.7"}) {
		t.Errorf("KS14: db.example.com: %+v", got)
	}
	if got := p.try(url, "/lookup", "host", "none.example.com"); got.OK || !strings.Contains(got.Error, "no such host") {
		t.Errorf("KS14: none.example.com: %+v", got)
	}
}

// dnsServer answers questions for one name, on 127.0.0.1. The end of the test stops it.
func dnsServer(t *testing.T, name string, address [4]byte) string {
	t.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var answering sync.WaitGroup
	t.Cleanup(func() {
		conn.Close()
		answering.Wait()
	})
	answering.Go(func() {
		buffer := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFrom(buffer)
			if err != nil {
				return // closed
			}
			var question dnsmessage.Message
			if err := question.Unpack(buffer[:n]); err != nil {
				t.Errorf("question: %v", err)
				continue
			}
			reply, err := answerTo(question, name, address)
			if err != nil {
				t.Errorf("answer: %v", err)
				continue
			}
			if _, err := conn.WriteTo(reply, from); err != nil {
				return // closed
			}
		}
	})
	return conn.LocalAddr().String()
}

func answerTo(m dnsmessage.Message, name string, address [4]byte) ([]byte, error) {
	m.Response, m.RecursionAvailable = true, true
	m.Additionals = nil
	if q := m.Questions[0]; q.Name.String() != name {
		m.RCode = dnsmessage.RCodeNameError
	} else if q.Type == dnsmessage.TypeA {
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 60},
			Body:   &dnsmessage.AResource{A: address},
		}}
	}
	return m.Pack()
}
