package enginetest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-run/berth/engine"
)

// helperPort is where the suite's sidecars listen.
const helperPort = 9000

// WithSidecar gives instances a sidecar named "helper", which runs the suite's program with arguments.
func (s *Suite) WithSidecar(change func(*engine.Container), args ...string) func(*engine.Spec) {
	return func(spec *engine.Spec) {
		helper := engine.Container{
			Name: "helper", Image: s.Image, Credentials: engine.Credentials{Insecure: true}, Args: args, CPU: 500, Memory: 64 << 20,
		}
		if change != nil {
			change(&helper)
		}
		spec.Sidecars = append(spec.Sidecars, helper)
	}
}

// Exec runs the suite's program in a container, and returns its code and what it wrote.
func Exec(t testing.TB, i engine.Instance, container string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code, failure := i.Exec(t.Context(), engine.Command{
		Container: container, Args: append([]string{"/bin/program"}, args...), Stdout: &out, Stderr: &err,
	})
	if failure != nil {
		t.Fatalf("running %q: %v", args, failure)
	}
	return code, out.String(), err.String()
}

func sidecarsShareTheNetwork(t *testing.T, s *Suite) {
	i := s.Start(t, s.WithSidecar(func(c *engine.Container) {
		c.StartupProbe = &engine.Probe{TCP: &engine.TCPProbe{Port: helperPort}}
		c.Env = []engine.Env{{Name: "MINE", Value: "helper's"}}
	}, "listen", fmt.Sprint(":", helperPort)))
	for _, address := range []string{"localhost", "127.0.0.1"} {
		Get(t, i, fmt.Sprintf("/dial?address=%s:%d", address, helperPort))
	}
	code, body, said := Exec(t, i, "helper", "ask", "GET", fmt.Sprintf("http://localhost:%d/", port))
	if code != 0 || body != "hello\n" {
		t.Errorf("the sidecar does not reach the container that requests go to: code %d, %q %q", code, body, said)
	}
	_, text, _ := Exec(t, i, "helper", "ask", "GET", fmt.Sprintf("http://localhost:%d/inspect", helperPort))
	var helper Found
	if err := json.Unmarshal([]byte(text), &helper); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	own := Inspect(t, i)
	if helper.Hostname != own.Hostname {
		t.Errorf("the sidecar's hostname is %q, the other's is %q", helper.Hostname, own.Hostname)
	}
	if own.PID != 1 || helper.PID != 1 {
		t.Errorf("they are processes %d and %d, want each the first of its own", own.PID, helper.PID)
	}
	for _, e := range helper.Env {
		if strings.HasPrefix(e, "PORT=8080") {
			t.Errorf("the sidecar is given %s (contract C11)", e)
		}
	}
	for _, want := range []string{"MINE=helper's", "K_REVISION=" + i.ID()[:strings.LastIndex(i.ID(), "-")]} {
		if !slices.Contains(helper.Env, want) {
			t.Errorf("the sidecar's environment lacks %q: %q", want, helper.Env)
		}
	}
	all := i.Containers()
	if len(all) != 2 || all[0].Name != "user-container" || all[1].Name != "helper" {
		t.Fatalf("containers are %+v", all)
	}
	for _, c := range all {
		if c.State != engine.ContainerRunning || !c.Ready || c.Restarts != 0 || c.Image != s.Image {
			t.Errorf("container %+v, want a running and ready one", c)
		}
	}
}

func sidecarThatEndsBeforeReady(t *testing.T, s *Suite) {
	i := s.Prepare(t, s.WithSidecar(nil, "exit", "3"), "silent")
	failure := startError(t, i, engine.ReasonExited)
	if failure.Container != "helper" || failure.Exit == nil || failure.Exit.Code != 3 || !slices.Equal(failure.LastLines, []string{"about to exit"}) {
		t.Errorf("failure %+v", failure)
	}
	if text := failure.Error(); !strings.HasPrefix(text, `the container "helper" exited with code 3 before the instance was ready`) {
		t.Errorf("the error is %q", text)
	}
	i = s.Prepare(t, s.WithSidecar(nil, "silent"), "exit", "4")
	if failure := startError(t, i, engine.ReasonExited); failure.Container != "user-container" || failure.Exit.Code != 4 {
		t.Errorf("failure %+v", failure)
	}
}

func sidecarsProbeIsWaitedFor(t *testing.T, s *Suite) {
	i := s.Prepare(t, func(spec *engine.Spec) {
		s.WithSidecar(func(c *engine.Container) {
			c.StartupProbe = &engine.Probe{HTTP: &engine.HTTPProbe{Port: helperPort, Path: "/status?code=503"}, Period: 10 * time.Millisecond}
		}, "listen", fmt.Sprint(":", helperPort))(spec)
		spec.StartupTimeout = 3 * time.Second
	}, "serve")
	failure := startError(t, i, engine.ReasonNotListening)
	if failure.Container != "helper" || !strings.Contains(failure.Error(), "503") {
		t.Errorf("failure %v", failure)
	}
}

func sidecarThatEndsIsStartedAgain(t *testing.T, s *Suite) {
	i := s.Start(t, s.WithSidecar(func(c *engine.Container) {
		c.StartupProbe = &engine.Probe{TCP: &engine.TCPProbe{Port: helperPort}}
	}, "listen", fmt.Sprint(":", helperPort)))
	for round := 1; round <= 2; round++ {
		// The answer is lost with the program, and so is the connection.
		Exec(t, i, "", "ask", "POST", fmt.Sprintf("http://localhost:%d/exit?code=5", helperPort))
		for _, want := range []bool{false, true} {
			awaitReadiness(t, i, want)
		}
		helper := i.Containers()[1]
		if helper.Restarts != round || helper.State != engine.ContainerRunning || helper.LastExit == nil || helper.LastExit.Code != 5 {
			t.Errorf("the sidecar is %+v after its end number %d", helper, round)
		}
		Get(t, i, fmt.Sprintf("/dial?address=localhost:%d", helperPort))
	}
	if own := i.Containers()[0]; own.Restarts != 0 || own.State != engine.ContainerRunning {
		t.Errorf("the other container is %+v", own)
	}
	said := logTexts(logLines(t, s, engine.LogQuery{Instance: i.ID(), Container: "helper"}))
	if !slices.Contains(said, `the container "helper" exited with code 5`) || !slices.Contains(said, `the container "helper" is started again in 1s`) {
		t.Errorf("the log says %q", said)
	}
}

func outOfMemoryOfASidecar(t *testing.T, s *Suite) {
	i := s.Start(t, s.WithSidecar(func(c *engine.Container) {
		c.Memory = 32 << 20
		c.StartupProbe = &engine.Probe{TCP: &engine.TCPProbe{Port: helperPort}}
		c.Env = []engine.Env{{Name: "PORT", Value: fmt.Sprint(helperPort)}}
	}, "parent"))
	Exec(t, i, "", "ask", "POST", fmt.Sprintf("http://localhost:%d/bloat", helperPort))
	select {
	case <-i.Exited():
	case <-time.After(time.Minute):
		t.Fatal("it goes on after its sidecar had no memory (contract C56)")
	}
	if exit := i.Exit(); !exit.OOM {
		t.Errorf("exit %+v, want one for lack of memory", exit)
	}
}

func stopLetsEveryContainerSayGoodbye(t *testing.T, s *Suite) {
	i := s.Start(t, s.WithSidecar(func(c *engine.Container) {
		c.StartupProbe = &engine.Probe{TCP: &engine.TCPProbe{Port: helperPort}}
		c.Env = []engine.Env{{Name: "PORT", Value: fmt.Sprint(helperPort)}}
	}, "graceful"), "graceful")
	i.Stop(time.Minute)
	for _, name := range []string{"user-container", "helper"} {
		if said := logTexts(logLines(t, s, engine.LogQuery{Instance: i.ID(), Container: name})); !slices.Equal(said, []string{"goodbye"}) {
			t.Errorf("%s said %q", name, said)
		}
	}
}

func logsAreOfEachContainer(t *testing.T, s *Suite) {
	i := s.Start(t, s.WithSidecar(nil, "silent"), "shout", "1")
	awaitLines(t, s, engine.LogQuery{Instance: i.ID()}, 2)
	i.Stop(0)
	for name, want := range map[string][]string{"user-container": {"line 0"}, "helper": {"doing nothing"}, "nobody": nil} {
		lines := logLines(t, s, engine.LogQuery{Instance: i.ID(), Container: name})
		if !slices.Equal(logTexts(lines), want) {
			t.Errorf("%s wrote %q, want %q", name, logTexts(lines), want)
		}
		for _, line := range lines {
			if line.Container != name || line.Instance != i.ID() {
				t.Errorf("line %+v is not of %s", line, name)
			}
		}
	}
	if all := logLines(t, s, engine.LogQuery{Instance: i.ID()}); len(all) != 2 {
		t.Errorf("all containers wrote %+v", all)
	}
}

// awaitLines returns when as many lines were written.
func awaitLines(t *testing.T, s *Suite, q engine.LogQuery, count int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	enough, seen := errors.New("enough"), 0
	q.Follow = true
	err := s.Engine.Logs(ctx, q, func(engine.LogLine) error {
		if seen++; seen == count {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) {
		t.Fatalf("%d of %d lines were written: %v", seen, count, err)
	}
}

func logTexts(lines []engine.LogLine) []string {
	var texts []string
	for _, line := range lines {
		texts = append(texts, line.Text)
	}
	return texts
}

func execRunsAsTheContainerDoes(t *testing.T, s *Suite) {
	for _, user := range []int64{0, 1000} {
		i := s.Start(t, func(spec *engine.Spec) {
			spec.Container.User = new(user)
			spec.Container.Env = []engine.Env{{Name: "MINE", Value: "yes"}}
			spec.Container.WorkingDir = "/work"
		})
		own := Inspect(t, i)
		_, text, _ := Exec(t, i, "", "look")
		var found Found
		if err := json.Unmarshal([]byte(text), &found); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		if found.UID != own.UID || found.GID != own.GID || !slices.Equal(found.Groups, own.Groups) || found.Dir != "/work" || found.Hostname != own.Hostname {
			t.Errorf("the command runs as %+v, the container as %+v", found, own)
		}
		if !slices.Equal(found.Env, own.Env) {
			t.Errorf("the command's environment is %q, the container's %q", found.Env, own.Env)
		}
		if found.PID == 1 || found.Cgroup != own.Cgroup {
			t.Errorf("the command is process %d in %q, the container's are in %q", found.PID, found.Cgroup, own.Cgroup)
		}
		for _, field := range []string{"NoNewPrivs", "Seccomp", "CapBnd", "CapEff", "CapPrm", "CapInh", "CapAmb"} {
			if got, want := statusField(found.Status, field), statusField(own.Status, field); got != want || want == "" {
				t.Errorf("user %d: %s of the command is %q, of the container %q", user, field, got, want)
			}
		}
	}
}

// statusField is a field of /proc/self/status.
func statusField(status, name string) string {
	for line := range strings.Lines(status) {
		if value, found := strings.CutPrefix(line, name+":"); found {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func execConnectsStreams(t *testing.T, s *Suite) {
	i := s.Start(t, nil)
	if code, out, err := Exec(t, i, "user-container", "say", "to you", "and to you", "42"); code != 42 || out != "to you\n" || err != "and to you\n" {
		t.Errorf("code %d, stdout %q, stderr %q", code, out, err)
	}
	if code, _, _ := Exec(t, i, "", "crash", "11"); code != 128+int(syscall.SIGSEGV) {
		t.Errorf("code %d after a signal, want %d", code, 128+syscall.SIGSEGV)
	}
	if code, out, _ := Exec(t, i, "", "cat"); code != 0 || out != "" {
		t.Errorf("code %d, stdout %q without stdin", code, out)
	}
	const size = 1 << 20
	var out bytes.Buffer
	code, err := i.Exec(t.Context(), engine.Command{
		Args: []string{"/bin/program", "cat"}, Stdin: io.LimitReader(endless{}, size), Stdout: &out,
	})
	if err != nil || code != 0 || out.Len() != size || strings.Trim(out.String(), "x") != "" {
		t.Errorf("code %d, error %v, %d bytes came back of %d", code, err, out.Len(), size)
	}
	// Whoever reads no more does not keep the command from its end.
	code, err = i.Exec(t.Context(), engine.Command{
		Args: []string{"/bin/program", "cat"}, Stdin: io.LimitReader(endless{}, size), Stdout: refusing{},
	})
	if !errors.Is(err, errRefused) {
		t.Errorf("code %d, error %v from a writer that fails", code, err)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for n := range p {
		p[n] = 'x'
	}
	return len(p), nil
}

var errRefused = errors.New("no more")

type refusing struct{}

func (refusing) Write([]byte) (int, error) { return 0, errRefused }

func execEndsWithItsContext(t *testing.T, s *Suite) {
	i := s.Start(t, nil)
	before := processes(t, i)
	ctx, cancel := context.WithCancel(t.Context())
	read, write := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := i.Exec(ctx, engine.Command{Args: []string{"/bin/program", "nest"}, Stdout: write})
		done <- err
	}()
	if line, err := bufio.NewReader(read).ReadString('\n'); err != nil || line != "doing nothing\n" {
		t.Fatalf("the command's child said %q: %v", line, err)
	}
	if now := processes(t, i); len(now) != len(before)+2 {
		t.Errorf("processes are %q, were %q", now, before)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Exec returned %v", err)
	}
	if now := processes(t, i); len(now) != len(before) {
		t.Errorf("processes are %q, were %q before the command", now, before)
	}
	Get(t, i, "/")
}

// processes lists the processes of the container that requests go to, without those that have ended: nobody may
// have waited for them.
func processes(t *testing.T, i engine.Instance) []string {
	t.Helper()
	var pids []string
	for line := range strings.Lines(Get(t, i, "/list?path=/proc")) {
		pid := strings.TrimSpace(line)
		if strings.Trim(pid, "0123456789") != "" {
			continue
		}
		status, stat := Request(t, i, http.MethodGet, "/read?path=/proc/"+pid+"/stat")
		if _, state, _ := strings.Cut(stat, ") "); status == http.StatusOK && !strings.HasPrefix(state, "Z") {
			pids = append(pids, pid)
		}
	}
	return pids
}

func execHasATerminal(t *testing.T, s *Suite) {
	i := s.Start(t, func(spec *engine.Spec) { spec.Container.User = new(int64(1000)) })
	sizes := make(chan engine.TerminalSize, 1)
	sizes <- engine.TerminalSize{Width: 80, Height: 24}
	out, toOut := io.Pipe()
	in, toIn := io.Pipe()
	done := make(chan error, 1)
	go func() {
		code, err := i.Exec(t.Context(), engine.Command{Args: []string{"/bin/program", "terminal"}, Stdin: in, Stdout: toOut, Terminal: sizes})
		if code != 0 {
			err = fmt.Errorf("it exited with code %d: %v", code, err)
		}
		toOut.Close()
		done <- err
	}()
	lines := bufio.NewReader(out)
	await := func(want string) {
		t.Helper()
		for seen := ""; seen != want; { // the size is set beside the command and the keys
			fmt.Fprint(toIn, "\n")
			line, err := lines.ReadString('\n')
			if err != nil {
				t.Fatalf("waiting for %q: %v", want, err)
			}
			seen = strings.TrimSpace(line)
		}
	}
	await("80x24")
	sizes <- engine.TerminalSize{Width: 132, Height: 50}
	await("132x50")
	close(sizes)
	go func() { _, _ = io.Copy(io.Discard, lines) }()
	fmt.Fprint(toIn, "\x04") // end of input
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func execThatCannotBe(t *testing.T, s *Suite) {
	i := s.Prepare(t, s.WithSidecar(nil, "silent"))
	exec := func(container string, args ...string) string {
		t.Helper()
		_, err := i.Exec(t.Context(), engine.Command{Container: container, Args: args})
		if err == nil {
			t.Fatalf("%q in %q ran", args, container)
		}
		return err.Error()
	}
	if said := exec("", "/bin/program", "look"); !strings.Contains(said, `container "user-container" does not run (waiting)`) {
		t.Errorf("before Start: %s", said)
	}
	if err := i.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if said := exec("nobody", "/bin/program"); !strings.Contains(said, `no container "nobody": it has user-container, helper`) {
		t.Errorf("another container: %s", said)
	}
	for _, name := range []string{"/bin/nothing", "nothing"} {
		if said := exec("helper", name); !strings.Contains(said, name) || !strings.Contains(strings.ToLower(said), "no such file") && !strings.Contains(said, "not found") {
			t.Errorf("a missing program: %s", said)
		}
	}
	if said := exec("", "/bin/plain"); !strings.Contains(strings.ToLower(said), "permission denied") && !strings.Contains(said, "not found") {
		t.Errorf("a file that is no program: %s", said)
	}
	if said := exec(""); !strings.Contains(said, "no command") {
		t.Errorf("nothing: %s", said)
	}
	i.Stop(0)
	if said := exec("", "/bin/program", "look"); !strings.Contains(said, "does not run") {
		t.Errorf("after Stop: %s", said)
	}
}

func execEndsWithTheInstance(t *testing.T, s *Suite) {
	i := s.Start(t, nil)
	read, write := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := i.Exec(t.Context(), engine.Command{Args: []string{"/bin/program", "silent"}, Stdout: write})
		done <- err
	}()
	if _, err := bufio.NewReader(read).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	i.Stop(0)
	if err := <-done; err == nil || !strings.Contains(err.Error(), "the container ended before the command did") {
		t.Errorf("Exec returned %v", err)
	}
}
