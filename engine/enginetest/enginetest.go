// Package enginetest is the suite that every engine passes: what engine.Engine promises, tried with real images
// and real programs. Start reading at [Run]; the program that instances run is in the folder program.
package enginetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1"

	"github.com/berth-run/berth/engine"
)

// port is where the suite's instances listen.
const port = 8080

// Suite is an engine with the images that its tests use.
type Suite struct {
	Engine   engine.Engine
	Registry *Registry
	Program  string // the program's bytes
	Image    string // with the program as its entrypoint; user 1000 is "runner", with group "staff"
}

// New prepares the suite for an engine, which stays the caller's to close.
func New(t testing.TB, e engine.Engine) *Suite {
	t.Helper()
	s := &Suite{Engine: e, Registry: NewRegistry(t), Program: Program(t)}
	s.Image = s.Registry.Push(t, "program", v1.Config{
		Entrypoint: []string{"/bin/program"}, Env: []string{"FROM_IMAGE=yes", "PORT=1"},
	}, []File{
		{Name: "bin/", Mode: 0o755},
		{Name: "bin/program", Mode: 0o755, Text: s.Program},
		{Name: "bin/script", Mode: 0o755, Text: "#!/bin/missing\n"},
		{Name: "bin/text", Mode: 0o755, Text: "just words\n"},
		{Name: "bin/plain", Mode: 0o644, Text: "just words\n"},
	}, []File{
		{Name: "etc/", Mode: 0o755},
		{Name: "etc/passwd", Mode: 0o644, Text: "root:x:0:0:root:/root:/bin/sh\nrunner:x:1000:1000::/home/runner:/bin/sh\n"},
		{Name: "etc/group", Mode: 0o644, Text: "root:x:0:\nrunner:x:1000:\nstaff:x:50:runner\n"},
	})
	return s
}

// Spec is a spec that runs the suite's program with arguments, changed by change, whose image is present.
func (s *Suite) Spec(t testing.TB, change func(*engine.Spec), args ...string) engine.Spec {
	t.Helper()
	name := strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))
	name = strings.Trim(name[max(0, len(name)-40):], "-")
	spec := engine.Spec{
		Namespace: "default", Service: name, Configuration: name, Revision: name + "-00001",
		StartupTimeout: 30 * time.Second,
		Container: engine.Container{
			Name: "user-container", Image: s.Image, Credentials: engine.Credentials{Insecure: true},
			Args: args, Port: port, CPU: 1000, Memory: 256 << 20,
		},
	}
	if change != nil {
		change(&spec)
	}
	if err := s.Engine.Pull(t.Context(), spec, nil); err != nil {
		t.Fatalf("pulling: %v", err)
	}
	return spec
}

// Prepare prepares an instance that is stopped with the test.
func (s *Suite) Prepare(t testing.TB, change func(*engine.Spec), args ...string) engine.Instance {
	t.Helper()
	i, err := s.Engine.Prepare(t.Context(), s.Spec(t, change, args...))
	if err != nil {
		t.Fatalf("preparing: %v", err)
	}
	t.Cleanup(func() { i.Stop(0) })
	return i
}

// Start starts an instance that is stopped with the test.
func (s *Suite) Start(t testing.TB, change func(*engine.Spec), args ...string) engine.Instance {
	t.Helper()
	i := s.Prepare(t, change, args...)
	if err := i.Start(t.Context()); err != nil {
		t.Fatalf("starting: %v", err)
	}
	return i
}

// Request sends a request to an instance and returns the status and the body.
func Request(t testing.TB, i engine.Instance, method, path string) (int, string) {
	t.Helper()
	status, body, err := Ask(t.Context(), i, method, path)
	if err != nil {
		t.Fatal(err)
	}
	return status, body
}

// Ask is [Request] for goroutines of a test, which must not end it.
func Ask(ctx context.Context, i engine.Instance, method, path string) (int, string, error) {
	client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return i.Dial(ctx) },
	}}
	request, err := http.NewRequestWithContext(ctx, method, "http://instance"+path, nil)
	if err != nil {
		return 0, "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, "", fmt.Errorf("%s %s: %w", method, path, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, "", fmt.Errorf("reading the answer to %s %s: %w", method, path, err)
	}
	return response.StatusCode, string(body), nil
}

// Get is the body of a GET request that must succeed.
func Get(t testing.TB, i engine.Instance, path string) string {
	t.Helper()
	status, body := Request(t, i, http.MethodGet, path)
	if status != http.StatusOK {
		t.Fatalf("GET %s: status %d: %s", path, status, body)
	}
	return body
}

// Found is what the suite's program found around it.
type Found struct {
	Env, Args     []string
	Hostname, Dir string
	UID, GID, PID int
	Groups        []int
	Stdin, Status string
	Cgroup        string
	StdinError    bool
}

// Inspect asks an instance what it finds around it.
func Inspect(t testing.TB, i engine.Instance) Found {
	t.Helper()
	var found Found
	if err := json.Unmarshal([]byte(Get(t, i, "/inspect")), &found); err != nil {
		t.Fatal(err)
	}
	return found
}

// Run runs the suite on an engine that newEngine makes for it.
func Run(t *testing.T, newEngine func(t *testing.T) engine.Engine) {
	s := New(t, newEngine(t))
	for name, test := range map[string]func(*testing.T, *Suite){
		"PreparedInstanceHasRunNothing":           preparedInstanceHasRunNothing,
		"StartReturnsWhenItTakesRequests":         startReturnsWhenItTakesRequests,
		"EnvironmentIsTheContracts":               environmentIsTheContracts,
		"RunsAsTheImagesUser":                     runsAsTheImagesUser,
		"ExitBeforeReadyIsReportedWithItsCode":    exitBeforeReadyIsReported,
		"CrashIsReportedWithItsSignal":            crashIsReported,
		"OutOfMemoryIsReported":                   outOfMemoryIsReported,
		"NotListeningNamesTheAddressesListenedOn": notListeningNamesTheAddresses,
		"OutOfMemoryOfAChildEndsTheInstance":      outOfMemoryOfAChild,
		"HTTPProbeMustPass":                       httpProbeMustPass,
		"ReadinessTurnsWithItsProbe":              readinessTurnsWithItsProbe,
		"ReadinessMustPassBeforeTheFirstRequest":  readinessProbeMustPassBeforeTheFirstRequest,
		"LivenessStartsTheContainerAgain":         livenessStartsTheContainerAgain,
		"StopDuringARestartLeavesNothing":         stopDuringARestartLeavesNothing,
		"GRPCProbeAsksTheHealthService":           grpcProbeAsksTheHealthService,
		"ProbesOfADrainingInstanceEnd":            probesOfADrainingInstanceEnd,
		"ExecProbeRunsInTheContainer":             execProbeRunsInTheContainer,
		"ExecProbeThatHangsIsEnded":               execProbeThatHangsIsEnded,
		"ProgramsThatCannotRunAreRefused":         programsThatCannotRunAreRefused,
		"InvalidUserIsRefused":                    invalidUserIsRefused,
		"ImageThatWasNotPulledIsRefused":          imageThatWasNotPulledIsRefused,
		"ExitWhileReadyIsSeen":                    exitWhileReadyIsSeen,
		"StopLetsItSayGoodbye":                    stopLetsItSayGoodbye,
		"StopEndsOneThatIgnoresSIGTERM":           stopEndsOneThatIgnoresSIGTERM,
		"StartEndsWithItsContext":                 startEndsWithItsContext,
		"LogsAreKeptAfterTheInstance":             logsAreKeptAfterTheInstance,
		"LogsFollow":                              logsFollow,
		"RootIsRefusedToWhoMustNotBe":             rootIsRefused,
		"RootThatIsReadOnlyTakesNoWrites":         rootThatIsReadOnly,
		"CapabilitiesAreDroppedAndAdded":          capabilitiesAreDropped,
		"GroupIsTheOneAskedFor":                   groupIsTheOneAskedFor,
		"SidecarsShareTheNetwork":                 sidecarsShareTheNetwork,
		"SidecarThatEndsBeforeReadyIsNamed":       sidecarThatEndsBeforeReady,
		"SidecarsProbeIsWaitedFor":                sidecarsProbeIsWaitedFor,
		"SidecarThatEndsIsStartedAgain":           sidecarThatEndsIsStartedAgain,
		"OutOfMemoryOfASidecarEndsTheInstance":    outOfMemoryOfASidecar,
		"StopLetsEveryContainerSayGoodbye":        stopLetsEveryContainerSayGoodbye,
		"LogsAreOfEachContainer":                  logsAreOfEachContainer,
		"ExecRunsAsTheContainerDoes":              execRunsAsTheContainerDoes,
		"ExecConnectsStreams":                     execConnectsStreams,
		"ExecEndsWithItsContext":                  execEndsWithItsContext,
		"ExecHasATerminal":                        execHasATerminal,
		"ExecThatCannotBeIsExplained":             execThatCannotBe,
		"ExecEndsWithTheInstance":                 execEndsWithTheInstance,
		"PortsOfLoopbackAreReached":               portsOfLoopbackAreReached,
		"PortsEndWithTheInstance":                 portsEndWithTheInstance,
		"TwentyInstancesStartAtOnce":              twentyInstancesStartAtOnce,
		"VolumeHasItsFiles":                       volumeHasItsFiles,
		"VolumeIsMountedInParts":                  volumeIsMountedInParts,
		"VolumesAreMountedInEachOther":            volumesAreMountedInEachOther,
		"EmptyVolumeIsWrittenToWithinItsLimit":    emptyVolumeIsWrittenTo,
		"ProgramIsInAVolume":                      programIsInAVolume,
		"VolumesThatCannotBeAreRefused":           volumesThatCannotBeAreRefused,
		"FrozenInstanceGetsNoCPU":                 frozenInstanceGetsNoCPU,
		"ConnectionsOutlastAFreeze":               connectionsOutlastAFreeze,
		"StopLetsAFrozenInstanceSayGoodbye":       stopLetsAFrozenInstanceSayGoodbye,
		"StopEndsAFrozenInstance":                 stopEndsAFrozenInstance,
		"OnlyReadyInstancesAreFrozen":             onlyReadyInstancesAreFrozen,
		"ExecRunsInAFrozenInstance":               execRunsInAFrozenInstance,
		"PortsOfAFrozenInstanceAreReached":        portsOfAFrozenInstanceAreReached,
		"FrozenInstanceIsNotProbed":               frozenInstanceIsNotProbed,
		"InstanceThatRunsNowAndThenIsProbed":      instanceThatRunsNowAndThenIsProbed,
		"SidecarOfAFrozenInstanceIsStartedAgain":  sidecarOfAFrozenInstanceIsStartedAgain,
		"LastOfFreezeAndThawWins":                 lastOfFreezeAndThawWins,
		"UsageIsWhatItUses":                       usageIsWhatItUses,
		"ReclaimingTakesNothingThatIsNeeded":      reclaimingTakesNothingThatIsNeeded,
		"OutOfMemoryEndsOneThatIsToBeFrozen":      outOfMemoryEndsOneThatIsToBeFrozen,
		"BoostEndsAfterTheStart":                  boostEndsAfterTheStart,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, s)
		})
	}
}

func preparedInstanceHasRunNothing(t *testing.T, s *Suite) {
	i := s.Prepare(t, nil, "exit", "3")
	select {
	case <-i.Exited():
		t.Fatalf("it ended before Start: %v", i.Exit())
	default:
	}
	i.Stop(time.Minute) // no grace for what has not started
	<-i.Exited()
	if lines := logLines(t, s, engine.LogQuery{Instance: i.ID()}); len(lines) > 0 {
		t.Errorf("it wrote %q before Start", lines)
	}
}

func startReturnsWhenItTakesRequests(t *testing.T, s *Suite) {
	i := s.Start(t, nil, "late", "100ms")
	if got := Get(t, i, "/"); got != "hello\n" {
		t.Errorf("got %q", got)
	}
	if len(i.Stages()) == 0 {
		t.Error("no stages are recorded")
	}
}

func environmentIsTheContracts(t *testing.T, s *Suite) {
	i := s.Start(t, func(spec *engine.Spec) {
		spec.Container.Env = []engine.Env{{Name: "MINE", Value: "a=b c"}, {Name: "K_SERVICE", Value: "stolen"}, {Name: "PORT", Value: "2"}}
		spec.Container.WorkingDir = "/made/for/me"
	}, "serve", "an argument")
	found := Inspect(t, i)
	name := strings.TrimSuffix(i.ID()[:strings.LastIndex(i.ID(), "-")], "-00001")
	for _, want := range []string{
		"FROM_IMAGE=yes", "MINE=a=b c", "PORT=8080", "K_SERVICE=" + name, "K_CONFIGURATION=" + name, "K_REVISION=" + name + "-00001", "HOME=/root",
	} {
		if !slices.Contains(found.Env, want) {
			t.Errorf("the environment lacks %q: %q", want, found.Env)
		}
	}
	variables := map[string]bool{}
	for _, e := range found.Env {
		variable, _, _ := strings.Cut(e, "=")
		if variables[variable] {
			t.Errorf("%s is set twice: %q", variable, found.Env)
		}
		variables[variable] = true
	}
	if want := []string{"/bin/program", "serve", "an argument"}; !slices.Equal(found.Args, want) {
		t.Errorf("arguments %q, want %q", found.Args, want)
	}
	if found.Dir != "/made/for/me" {
		t.Errorf("working directory %q", found.Dir)
	}
	if found.Stdin != "" || found.StdinError {
		t.Errorf("stdin gives %q, error %v; want its end (KS2)", found.Stdin, found.StdinError)
	}
	if !strings.Contains(found.Status, "NoNewPrivs:\t1") {
		t.Error("privileges can be gained (contract C69)")
	}
}

func runsAsTheImagesUser(t *testing.T, s *Suite) {
	image := func(user string) string {
		return s.Registry.Push(t, "user", v1.Config{Entrypoint: []string{"/bin/program"}, User: user},
			[]File{{Name: "bin/program", Mode: 0o755, Text: s.Program}},
			[]File{
				{Name: "etc/passwd", Mode: 0o644, Text: "root:x:0:0:root:/root:/bin/sh\nrunner:x:1000:1001::/home/runner:/bin/sh\n"},
				{Name: "etc/group", Mode: 0o644, Text: "root:x:0:\nstaff:x:50:runner\n"},
			})
	}
	for _, test := range []struct {
		user      string
		runAsUser *int64
		uid, gid  int
		groups    []int
		home      string
	}{
		{"runner", nil, 1000, 1001, []int{50}, "/home/runner"},
		{"4711", nil, 4711, 0, nil, "/home"},
		{"1000:50", nil, 1000, 50, nil, "/home/runner"},
		{"nobody-known", nil, 0, 0, nil, "/root"}, // contract C76
		{"runner", new(int64(65532)), 65532, 0, nil, "/home"},
	} {
		i := s.Start(t, func(spec *engine.Spec) {
			spec.Container.Image, spec.Container.User = image(test.user), test.runAsUser
		})
		found := Inspect(t, i)
		if found.UID != test.uid || found.GID != test.gid || !slices.Equal(found.Groups, test.groups) {
			t.Errorf("USER %q: runs as %d:%d %v, want %d:%d %v", test.user, found.UID, found.GID, found.Groups, test.uid, test.gid, test.groups)
		}
		if !slices.Contains(found.Env, "HOME="+test.home) {
			t.Errorf("USER %q: environment %q, want HOME=%s", test.user, found.Env, test.home)
		}
		if test.uid != 0 && !strings.Contains(found.Status, "CapEff:\t0000000000000000") {
			t.Errorf("USER %q has capabilities", test.user)
		}
		// What it writes to /dev/stdout by name is logged, whoever it is.
		if status, body := Request(t, i, http.MethodPost, "/write?path=/dev/stdout"); status != http.StatusOK {
			t.Errorf("USER %q cannot open /dev/stdout: %s", test.user, body)
		}
	}
}

// startError starts an instance that must fail, and returns why.
func startError(t *testing.T, i engine.Instance, reason string) *engine.StartError {
	t.Helper()
	return startFailure(t, i.Start(t.Context()), reason)
}

// startFailure is the failure that Start returned, which must be for a reason.
func startFailure(t *testing.T, err error, reason string) *engine.StartError {
	t.Helper()
	var failure *engine.StartError
	if !errors.As(err, &failure) {
		t.Fatalf("Start returned %v, want a *engine.StartError", err)
	}
	if failure.Reason != reason {
		t.Fatalf("Start failed for reason %q, want %q: %v", failure.Reason, reason, err)
	}
	return failure
}

func exitBeforeReadyIsReported(t *testing.T, s *Suite) {
	failure := startError(t, s.Prepare(t, nil, "exit", "7"), engine.ReasonExited)
	if failure.Exit == nil || failure.Exit.Code != 7 || failure.Exit.Signal != 0 {
		t.Errorf("exit %+v, want code 7", failure.Exit)
	}
	if !slices.Equal(failure.LastLines, []string{"about to exit"}) {
		t.Errorf("last lines %q", failure.LastLines)
	}
	if text := failure.Error(); !strings.Contains(text, "exited with code 7") || !strings.Contains(text, "about to exit") {
		t.Errorf("the error does not say what was seen: %s", text)
	}
}

func crashIsReported(t *testing.T, s *Suite) {
	failure := startError(t, s.Prepare(t, nil, "crash", "11"), engine.ReasonExited)
	if failure.Exit == nil || failure.Exit.Signal != syscall.SIGSEGV {
		t.Errorf("exit %+v, want SIGSEGV", failure.Exit)
	}
}

func outOfMemoryIsReported(t *testing.T, s *Suite) {
	i := s.Prepare(t, func(spec *engine.Spec) { spec.Container.Memory = 32 << 20 }, "bloat")
	failure := startError(t, i, engine.ReasonExited)
	if failure.Exit == nil || !failure.Exit.OOM || failure.Exit.Signal != syscall.SIGKILL {
		t.Errorf("exit %+v, want SIGKILL for lack of memory", failure.Exit)
	}
	if !strings.Contains(failure.Error(), "raise the memory limit") {
		t.Errorf("the error does not say what to do: %v", failure)
	}
}

func outOfMemoryOfAChild(t *testing.T, s *Suite) {
	i := s.Start(t, func(spec *engine.Spec) { spec.Container.Memory = 32 << 20 }, "parent")
	conn, err := i.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "POST /bloat HTTP/1.1\r\nHost: instance\r\nContent-Length: 0\r\n\r\n")
	select {
	case <-i.Exited():
	case <-time.After(time.Minute):
		t.Fatal("it goes on after the kernel has killed its child (contract C56)")
	}
	if exit := i.Exit(); !exit.OOM || exit.Signal != syscall.SIGKILL {
		t.Errorf("exit %+v, want SIGKILL for lack of memory", exit)
	}
}

func notListeningNamesTheAddresses(t *testing.T, s *Suite) {
	tries := []struct {
		args, want string
		err        error
	}{{args: "silent"}, {args: "listen 127.0.0.1:8080", want: "127.0.0.1:8080"}, {args: "listen :3000", want: "[::]:3000"}}
	var starts sync.WaitGroup // at once: each lasts as long as it may
	for n := range tries {
		i := s.Prepare(t, func(spec *engine.Spec) { spec.StartupTimeout = 2 * time.Second }, strings.Fields(tries[n].args)...)
		starts.Go(func() { tries[n].err = i.Start(t.Context()) })
	}
	starts.Wait()
	for _, try := range tries {
		failure := startFailure(t, try.err, engine.ReasonNotListening)
		if got := strings.Join(failure.Listened, " "); got != try.want {
			t.Errorf("%q: it listened on %q, want %q", try.args, got, try.want)
		}
		if !strings.Contains(failure.Error(), "port 8080") {
			t.Errorf("%q: the error does not name the port: %v", try.args, failure)
		}
	}
}

func httpProbeMustPass(t *testing.T, s *Suite) {
	probe := func(path string) func(*engine.Spec) {
		return func(spec *engine.Spec) {
			spec.Container.StartupProbe = &engine.Probe{
				HTTP:   &engine.HTTPProbe{Port: port, Path: path, Header: [][2]string{{"X-Probe", "yes"}}},
				Period: 20 * time.Millisecond, FailureThreshold: 100, SuccessThreshold: 2,
			}
		}
	}
	s.Start(t, probe("/status?code=204"), "serve")
	s.Start(t, probe("/status?code=302"), "serve")
	i := s.Prepare(t, func(spec *engine.Spec) {
		probe("/status?code=503")(spec)
		spec.Container.StartupProbe.FailureThreshold = 5
		spec.Container.StartupProbe.InitialDelay = 50 * time.Millisecond
	}, "serve")
	failure := startError(t, i, engine.ReasonNotListening)
	if failure.Err == nil || !strings.Contains(failure.Err.Error(), "503") {
		t.Errorf("the error does not say what the probe saw: %v", failure.Err)
	}
}

func programsThatCannotRunAreRefused(t *testing.T, s *Suite) {
	foreign := []byte(s.Program)
	foreign[18], foreign[19] = 183, 0 // e_machine: EM_AARCH64
	arm := s.Registry.Push(t, "arm", v1.Config{Entrypoint: []string{"/program"}}, []File{{Name: "program", Mode: 0o755, Text: string(foreign)}})
	for _, test := range []struct {
		command, reason, says string
		image                 string
	}{
		{command: "/bin/nothing", reason: engine.ReasonNotExecutable, says: "not in the image"},
		{command: "nothing", reason: engine.ReasonNotExecutable, says: "$PATH"},
		{command: "/bin", reason: engine.ReasonNotExecutable, says: "directory"},
		{command: "/bin/plain", reason: engine.ReasonNotExecutable, says: "chmod +x"},
		{command: "/bin/script", reason: engine.ReasonNotExecutable, says: "/bin/missing"},
		{command: "/bin/text", reason: engine.ReasonNotExecutable, says: "#!"},
		{image: arm, command: "/program", reason: engine.ReasonWrongPlatform, says: "exec format error"},
	} {
		spec := s.Spec(t, func(spec *engine.Spec) {
			spec.Container.Command = []string{test.command}
			if test.image != "" {
				spec.Container.Image = test.image
			}
		})
		i, err := s.Engine.Prepare(t.Context(), spec)
		if err == nil { // an engine may see it later
			defer i.Stop(0)
			err = i.Start(t.Context())
		}
		var failure *engine.StartError
		if !errors.As(err, &failure) || failure.Reason != test.reason || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v, want reason %s and %q", test.command, err, test.reason, test.says)
		}
	}
}

func invalidUserIsRefused(t *testing.T, s *Suite) {
	spec := s.Spec(t, func(spec *engine.Spec) { spec.Container.User = new(int64(-10)) }, "serve")
	i, err := s.Engine.Prepare(t.Context(), spec)
	if err == nil {
		defer i.Stop(0)
		err = i.Start(t.Context())
	}
	var failure *engine.StartError
	if !errors.As(err, &failure) || failure.Reason != engine.ReasonInvalidUser {
		t.Errorf("user -10 (KM17): %v", err)
	}
}

func imageThatWasNotPulledIsRefused(t *testing.T, s *Suite) {
	spec := s.Spec(t, nil, "serve")
	before, _, _ := strings.Cut(spec.Container.Image, "@")
	spec.Container.Image = before + "@sha256:" + strings.Repeat("0", 64)
	i, err := s.Engine.Prepare(t.Context(), spec)
	if err == nil {
		defer i.Stop(0)
		err = i.Start(t.Context())
	}
	var failure *engine.StartError
	if !errors.As(err, &failure) || failure.Reason != engine.ReasonImageNotPulled {
		t.Errorf("got %v", err)
	}
}

func exitWhileReadyIsSeen(t *testing.T, s *Suite) {
	i := s.Start(t, nil, "serve")
	conn, err := i.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "POST /exit?code=9 HTTP/1.1\r\nHost: instance\r\nContent-Length: 0\r\n\r\n")
	<-i.Exited()
	if exit := i.Exit(); exit.Code != 9 || !slices.Equal(exit.LastLines, []string{"asked to exit"}) {
		t.Errorf("exit %+v", exit)
	}
	if _, err := i.Dial(t.Context()); err == nil {
		t.Error("a connection can be made to an instance that has ended")
	}
}

func stopLetsItSayGoodbye(t *testing.T, s *Suite) {
	i := s.Start(t, nil, "graceful")
	i.Stop(time.Minute)
	if exit := i.Exit(); exit.Code != 0 || exit.Signal != 0 || !slices.Equal(exit.LastLines, []string{"goodbye"}) {
		t.Errorf("exit %+v, want code 0 after a goodbye", exit)
	}
}

func stopEndsOneThatIgnoresSIGTERM(t *testing.T, s *Suite) {
	i := s.Start(t, nil, "stubborn")
	var stops sync.WaitGroup
	for range 3 { // every call returns when it is gone
		stops.Go(func() {
			i.Stop(50 * time.Millisecond)
			select {
			case <-i.Exited():
			default:
				t.Error("Stop returned while it runs")
			}
		})
	}
	stops.Wait()
	if exit := i.Exit(); exit.Signal != syscall.SIGKILL || exit.OOM {
		t.Errorf("exit %+v, want SIGKILL", exit)
	}
}

func startEndsWithItsContext(t *testing.T, s *Suite) {
	i := s.Prepare(t, nil, "silent")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := i.Start(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Start returned %v, want its context's error", err)
	}
}

func logLines(t *testing.T, s *Suite, q engine.LogQuery) []engine.LogLine {
	t.Helper()
	var lines []engine.LogLine
	err := s.Engine.Logs(t.Context(), q, func(line engine.LogLine) error {
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatalf("reading logs: %v", err)
	}
	return lines
}

func logsAreKeptAfterTheInstance(t *testing.T, s *Suite) {
	const count = 1000
	spec := s.Spec(t, nil, "shout", fmt.Sprint(count))
	i, err := s.Engine.Prepare(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := i.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	i.Stop(0)
	query := engine.LogQuery{Namespace: spec.Namespace, Service: spec.Service, Revision: spec.Revision, Instance: i.ID()}
	lines := logLines(t, s, query)
	if len(lines) != count {
		t.Fatalf("%d lines are kept, want %d", len(lines), count)
	}
	for n, line := range lines {
		if line.Text != fmt.Sprintf("line %d", n) || line.Stream != "stdout" || line.Instance != i.ID() || line.Revision != spec.Revision {
			t.Fatalf("line %d is %+v", n, line)
		}
	}
	query.Tail = 3
	if tail := logLines(t, s, query); len(tail) != 3 || tail[0].Text != "line 997" {
		t.Errorf("the last three lines are %+v", tail)
	}
	query.Since = time.Now().Add(time.Hour)
	if late := logLines(t, s, query); len(late) != 0 {
		t.Errorf("lines of the future: %+v", late)
	}
}

func logsFollow(t *testing.T, s *Suite) {
	i := s.Start(t, nil, "graceful")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen := make(chan string, 10)
	done := make(chan error, 1)
	go func() {
		done <- s.Engine.Logs(ctx, engine.LogQuery{Instance: i.ID(), Follow: true}, func(line engine.LogLine) error {
			seen <- line.Text
			return nil
		})
	}()
	i.Stop(time.Minute)
	if text := <-seen; text != "goodbye" {
		t.Errorf("followed %q", text)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Logs returned %v", err)
	}
	over := make(chan struct{})
	close(over)
	var text []string
	err := s.Engine.Logs(t.Context(), engine.LogQuery{Instance: i.ID(), Follow: true, Done: over}, func(line engine.LogLine) error {
		text = append(text, line.Text)
		return nil
	})
	if err != nil || !slices.Contains(text, "goodbye") {
		t.Errorf("following what is over gave %q and error %v", text, err)
	}
}

func twentyInstancesStartAtOnce(t *testing.T, s *Suite) {
	const count = 20
	spec := s.Spec(t, nil, "serve")
	var group sync.WaitGroup
	var mu sync.Mutex
	ids := map[string]bool{}
	for range count {
		group.Go(func() {
			i, err := s.Engine.Prepare(t.Context(), spec)
			if err != nil {
				t.Error(err)
				return
			}
			defer i.Stop(0)
			if err := i.Start(t.Context()); err != nil {
				t.Error(err)
				return
			}
			host := Inspect(t, i).Hostname
			mu.Lock()
			defer mu.Unlock()
			ids[host] = true
		})
	}
	group.Wait()
	if len(ids) != count {
		t.Errorf("%d different instances answered, want %d", len(ids), count)
	}
}
