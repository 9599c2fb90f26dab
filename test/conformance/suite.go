package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// suite is one package of conformance tests.
type suite struct {
	program string // what its compiled tests are called
	path    string
	tests   int // how many there are in the version that go.mod names
}

const servingTests = "knative.dev/serving/test/"

var suites = []suite{
	{program: "v1.test", path: servingTests + "conformance/api/v1", tests: 28},
	{program: "v1beta1.test", path: servingTests + "conformance/api/v1beta1", tests: 1},
	{program: "runtime.test", path: servingTests + "conformance/runtime", tests: 22},
}

// build compiles the suites and the images' programs into a folder, for -skip-build and -run to use again.
func build(ctx context.Context, dir string) error {
	tests := []string{"test", "-c", "-tags", "e2e", "-trimpath", "-o", dir + "/"}
	for _, s := range suites {
		tests = append(tests, s.path)
	}
	if err := goTool(ctx, tests...); err != nil {
		return err
	}
	programs := []string{"build", "-trimpath", "-ldflags", "-s -w", "-o", programFolder(dir) + "/"}
	for _, i := range images {
		programs = append(programs, servingTests+"test_images/"+i)
	}
	if err := os.MkdirAll(programFolder(dir), 0o755); err != nil {
		return err
	}
	return goTool(ctx, programs...)
}

// goTool runs the Go command in this module's folder, which is where go.mod names the suite's version.
func goTool(ctx context.Context, args ...string) error {
	command := exec.CommandContext(ctx, "go", append([]string{args[0], "-C", "test/conformance"}, args[1:]...)...)
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("running go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// runSuites runs every suite once, one after the other, and counts tests and subtests.
func runSuites(ctx context.Context, o options, round int, kubeconfig, registry string) (total tally, subtests int, err error) {
	for _, s := range suites {
		names, err := s.list(ctx, o)
		if err != nil {
			return total, subtests, err
		}
		if len(names) == 0 {
			continue // -run wants none of these
		}
		r := newReport(names, o.verbose)
		if err := s.run(ctx, o, round, kubeconfig, registry, r); err != nil {
			return total, subtests, err
		}
		total.add(r.finish(ctx.Err() != nil))
		subtests += r.subtests
		if ctx.Err() != nil {
			return total, subtests, context.Cause(ctx)
		}
	}
	return total, subtests, nil
}

// list names the tests that are to run.
func (s suite) list(ctx context.Context, o options) ([]string, error) {
	pattern, _, _ := strings.Cut(o.run, "/") // what follows chooses subtests, which only a run knows
	if pattern == "" {
		pattern = "."
	}
	out, err := exec.CommandContext(ctx, filepath.Join(o.cache, s.program), "-test.list", pattern).Output()
	if err != nil {
		return nil, fmt.Errorf("listing the tests of %s: %w", s.path, err)
	}
	names := strings.Fields(string(out))
	if o.run == "" && len(names) != s.tests {
		return nil, fmt.Errorf("%s has %d tests, not %d: was the version in go.mod changed?", s.path, len(names), s.tests)
	}
	return names, nil
}

// run runs the tests and reports them as they end. That tests fail is no error: the report has them.
func (s suite) run(ctx context.Context, o options, round int, kubeconfig, registry string, r *report) error {
	log, err := os.Create(filepath.Join(o.cache, fmt.Sprintf("%s.%d.log", strings.TrimSuffix(s.program, ".test"), round)))
	if err != nil {
		return err
	}
	defer log.Close()
	command := exec.CommandContext(ctx, "go", "tool", "test2json", "-t", filepath.Join(o.cache, s.program),
		"-test.v=test2json", "-test.timeout", "30m", "-test.parallel", strconv.Itoa(o.parallel), "-test.run", o.run,
		"-kubeconfig", kubeconfig, "-dockerrepo", registry+"/"+repository, "-enable-alpha", "-enable-beta")
	command.Dir = o.cache
	command.Env = append(os.Environ(),
		"SYSTEM_NAMESPACE="+systemNamespace, "GATEWAY_NAMESPACE_OVERRIDE="+systemNamespace, "GATEWAY_OVERRIDE="+gatewayService)
	command.Stderr = log
	detach(command)
	pipe, err := command.StdoutPipe()
	if err != nil {
		return err
	}
	if err := command.Start(); err != nil {
		return fmt.Errorf("running the tests of %s: %w", s.path, err)
	}
	err = read(io.Reader(pipe), log, r)
	ended := command.Wait()
	if exit := new(exec.ExitError); ended != nil && !errors.As(ended, &exit) && ctx.Err() == nil {
		err = errors.Join(err, fmt.Errorf("running the tests of %s: %w", s.path, ended))
	}
	return err
}

// read hands the events of go tool test2json to a report, and the output to a log.
func read(from io.Reader, log io.Writer, r *report) error {
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("reading the suite's output %q: %w", lines.Text(), err)
		}
		if _, err := io.WriteString(log, e.Output); err != nil {
			return err
		}
		r.take(e)
	}
	return lines.Err()
}

// detach gives a command a process group of its own, so that Ctrl-C reaches this program alone, which then ends what
// it has started in order; and it lets nothing outlive this program.
func detach(command *exec.Cmd) {
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	command.Cancel = func() error { return syscall.Kill(-command.Process.Pid, syscall.SIGKILL) }
}
