package e2e

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/berth-run/berth/cli"
	"github.com/berth-run/berth/serving"
)

func TestCommands_FromDeployToDelete(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	if out := p.mustBerth("services", "list"); strings.Contains(out, "hello") {
		t.Errorf("a new server has services:\n%s", out)
	}
	reference := program(t, "inspect")
	out := p.mustBerth("deploy", "hello", "--image", reference, "--set-env-vars", "COLOR=blue")
	contains(t, "berth deploy", out, []string{"Service hello revision hello-00001 is deployed and serves 100 percent of traffic.", "Service URL: http://hello.default.localhost:"})
	contains(t, "berth services list", p.mustBerth("services", "list"), []string{"hello", "http://hello.default.localhost:", "True"})
	contains(t, "berth revisions list", p.mustBerth("revisions", "list"), []string{"hello-00001"})

	var s serving.Service
	if err := yaml.UnmarshalStrict([]byte(p.mustBerth("services", "describe", "hello", "-o", "yaml")), &s); err != nil {
		t.Fatal(err)
	}
	if c := s.Spec.Template.Spec.Containers[0]; c.Image != reference || len(c.Env) != 1 || c.Env[0].Value != "blue" {
		t.Errorf("described container: %+v", c)
	}
	url := s.Status.URL.String()
	instance := p.inspect(url).Hostname
	contains(t, "berth instances list", p.mustBerth("instances", "list"), []string{instance, "hello-00001", "ready"})

	follow := p.follow("logs", "hello", "--follow")
	follow.await("inspect: listening")
	p.try(url, "/log", "n", "3", "size", "5")
	follow.await("2 xxxxx")
	follow.end()

	p.awaitZero("hello")
	log := p.mustBerth("logs", "hello")
	contains(t, "the log after the instance has gone", log, []string{instance + " 0 xxxxx", "2 xxxxx", "inspect: got SIGTERM"})
	if last := p.mustBerth("logs", "hello", "--tail", "1"); strings.Count(last, "\n") != 1 || !strings.HasSuffix(log, last) {
		t.Errorf("the last line is %q", last)
	}

	// What a deploy does not mention stays.
	p.mustBerth("deploy", "hello", "--memory", "128Mi")
	v := p.inspect(url)
	check(t, "a second deploy", "COLOR", v.Env["COLOR"], "blue")
	check(t, "a second deploy", "K_REVISION", v.Env["K_REVISION"], "hello-00002")
	p.refuses(2, []string{"110", "100"}, "services", "update-traffic", "hello", "--to-revisions", "hello-00001=50,hello-00002=60")
	p.mustBerth("services", "update-traffic", "hello", "--to-revisions", "hello-00001=100")
	check(t, "update-traffic", "K_REVISION", p.inspect(url).Env["K_REVISION"], "hello-00001")

	p.mustBerth("services", "delete", "hello", "--quiet")
	if a := p.get(url); a.status != 404 {
		t.Errorf("the deleted service answers %d", a.status)
	}
	p.refuses(1, []string{`"hello" not found`}, "services", "describe", "hello")
}

// following is a command that runs until it is interrupted.
type following struct {
	p      *platform
	output lockedBuffer
	cancel context.CancelFunc
	code   chan int
}

// follow runs a command of the command line beside the test.
func (p *platform) follow(args ...string) *following {
	p.t.Helper()
	ctx, cancel := context.WithCancel(p.t.Context())
	f := &following{p: p, cancel: cancel, code: make(chan int, 1)}
	go func() {
		f.code <- cli.Main(ctx, append(args, "--kubeconfig", p.addresses.Kubeconfig), strings.NewReader(""), &f.output, &f.output)
	}()
	return f
}

// await waits until the command has printed a text.
func (f *following) await(text string) {
	f.p.t.Helper()
	f.p.await("the command to print "+text, func() error {
		return errorUnless(strings.Contains(f.output.String(), text), "it printed %q", f.output.String())
	})
}

// end interrupts the command.
func (f *following) end() {
	f.p.t.Helper()
	f.cancel()
	if code := <-f.code; code != 0 {
		f.p.t.Errorf("interrupted, the command exits with code %d: %s", code, f.output.String())
	}
}

func TestKubectl_WorksWithTheWrittenKubeconfig(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("kubectl"); err != nil {
		t.Skip("kubectl is not installed: it is what this test runs")
	}
	p := start(t, nil)
	manifest := "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: hello}\nspec: {template: {spec: {containers: [{image: '" + program(t, "hello") + "'}]}}}\n"
	contains(t, "kubectl apply", p.kubectl(manifest, "apply", "-f", "-"), []string{"service.serving.knative.dev/hello created"})
	contains(t, "kubectl wait", p.kubectl("", "wait", "--for=condition=Ready", "ksvc/hello", "--timeout=60s"), []string{"condition met"})
	p.kubectl(manifest, "apply", "-f", "-") // the same again changes nothing
	check(t, "kubectl apply again", "generation", p.kubectl("", "get", "ksvc", "hello", "-o", "jsonpath={.metadata.generation}"), "1")
	contains(t, "kubectl get", p.kubectl("", "get", "ksvc"), []string{"NAME", "LATESTREADY", "hello-00001", "http://hello.default.localhost:"})
	var s serving.Service
	if err := yaml.UnmarshalStrict([]byte(p.kubectl("", "get", "ksvc", "hello", "-o", "yaml")), &s); err != nil {
		t.Fatal(err)
	}
	if a := p.get(s.Status.URL.String()); a.status != 200 {
		t.Errorf("the applied service answers %d %q", a.status, a.body)
	}

	watch := p.kubectlCommand("", "get", "ksvc", "--watch", "--output-watch-events", "--no-headers")
	output, err := watch.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := watch.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = watch.Process.Kill()
		_ = watch.Wait()
	})
	lines := bufio.NewScanner(output)
	next := func(event string) {
		t.Helper()
		for lines.Scan() {
			if fields := strings.Fields(lines.Text()); len(fields) > 1 && fields[0] == event && fields[1] == "hello" {
				return
			}
		}
		t.Fatalf("kubectl get --watch ended before %s: %v", event, lines.Err())
	}
	next("ADDED")
	contains(t, "kubectl delete", p.kubectl("", "delete", "ksvc", "hello"), []string{`"hello" deleted`})
	next("DELETED")
	if a := p.get(s.Status.URL.String()); a.status != 404 {
		t.Errorf("the deleted service answers %d", a.status)
	}
}

// kubectl runs kubectl, which must succeed.
func (p *platform) kubectl(stdin string, args ...string) string {
	p.t.Helper()
	output, err := p.kubectlCommand(stdin, args...).CombinedOutput()
	if err != nil {
		p.t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, output)
	}
	return string(output)
}

func (p *platform) kubectlCommand(stdin string, args ...string) *exec.Cmd {
	command := exec.CommandContext(p.t.Context(), "kubectl", args...)
	command.Env = append(os.Environ(), "KUBECONFIG="+p.addresses.Kubeconfig, "HOME="+p.t.TempDir())
	command.Stdin = strings.NewReader(stdin)
	return command
}
