package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"sigs.k8s.io/yaml"

	"github.com/berth-run/berth/server"
	"github.com/berth-run/berth/serving"
)

// TestKubectl_Scripts runs the scripts in testdata/kubectl with the real kubectl against one platform. Each has a
// namespace of its own, $NAMESPACE, and $IMAGE: the test program toolbox. Besides testscript's commands there are
//
//	kubectl ARGS             runs kubectl; with ! it must fail
//	until REGEXP ARGS        runs kubectl until its output matches
//	serves SERVICE REGEXP    requests / of a service, whose answer must match
//	forward TARGET PORT REGEXP   requests / through kubectl port-forward
func TestKubectl_Scripts(t *testing.T) {
	t.Parallel()
	needKubectl(t)
	p := start(t, func(c *server.Config) { c.Scaling.StableWindow = 60 * time.Second }) // pods stay while a script looks at them
	image := program(t, "toolbox")
	testscript.Run(t, testscript.Params{
		Dir: "testdata/kubectl", RequireUniqueNames: true,
		Setup: func(env *testscript.Env) error {
			namespace := strings.Trim(regexp.MustCompile(`[^a-z]+`).ReplaceAllString(filepath.Base(env.WorkDir), "-"), "-")
			if _, err := p.Namespaces().Create(t.Context(), &serving.Namespace{ObjectMeta: serving.ObjectMeta{Name: namespace}}); err != nil {
				return err
			}
			kubeconfig, err := withNamespace(p.addresses.Kubeconfig, namespace)
			if err != nil {
				return err
			}
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("KUBECONFIG", filepath.Join(env.WorkDir, "kubeconfig"))
			env.Setenv("NAMESPACE", namespace)
			env.Setenv("IMAGE", image)
			return os.WriteFile(env.Getenv("KUBECONFIG"), kubeconfig, 0o600)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"kubectl": kubectlCommand, "until": untilCommand, "serves": p.servesCommand, "forward": forwardCommand,
			"expand": expandCommand, "envfile": envfileCommand,
		},
	})
}

// withNamespace is a kubeconfig whose context has a namespace.
func withNamespace(kubeconfig, namespace string) ([]byte, error) {
	text, err := os.ReadFile(kubeconfig)
	if err != nil {
		return nil, err
	}
	var config map[string]any
	if err := yaml.Unmarshal(text, &config); err != nil {
		return nil, err
	}
	for _, c := range config["contexts"].([]any) {
		c.(map[string]any)["context"].(map[string]any)["namespace"] = namespace
	}
	return yaml.Marshal(config)
}

func kubectlCommand(ts *testscript.TestScript, neg bool, args []string) {
	err := ts.Exec("kubectl", args...)
	switch {
	case neg && err == nil:
		ts.Fatalf("kubectl %s succeeded", strings.Join(args, " "))
	case !neg:
		ts.Check(err)
	}
}

// envfileCommand sets a variable to what a file of the same name holds: envfile FILE.
func envfileCommand(ts *testscript.TestScript, _ bool, args []string) {
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile(args[0])))
}

// expandCommand replaces variables in files: expand FILE...
func expandCommand(ts *testscript.TestScript, _ bool, args []string) {
	for _, file := range args {
		text := os.Expand(ts.ReadFile(file), ts.Getenv)
		ts.Check(os.WriteFile(ts.MkAbs(file), []byte(text), 0o600))
	}
}

func untilCommand(ts *testscript.TestScript, _ bool, args []string) {
	want := regexp.MustCompile("(?m)" + args[0])
	for deadline := time.Now().Add(patience); ; {
		err := ts.Exec("kubectl", args[1:]...)
		if output := ts.ReadFile("stdout"); want.MatchString(output) {
			return
		} else if time.Now().After(deadline) {
			ts.Fatalf("kubectl %s does not print %q: %s%v", strings.Join(args[1:], " "), args[0], output, err)
		}
	}
}

// servesCommand requests the root of a service of the script's namespace.
func (p *platform) servesCommand(ts *testscript.TestScript, _ bool, args []string) {
	s, err := p.Services(ts.Getenv("NAMESPACE")).Get(p.t.Context(), args[0])
	ts.Check(err)
	a, err := p.tryGet(s.Status.URL.String())
	ts.Check(err)
	if !regexp.MustCompile(args[1]).MatchString(a.body) {
		ts.Fatalf("service %s answers %d %q", args[0], a.status, a.body)
	}
}

// forwardCommand requests the root of what kubectl port-forward leads to.
func forwardCommand(ts *testscript.TestScript, _ bool, args []string) {
	command := exec.Command("kubectl", "port-forward", args[0], ":"+args[1])
	command.Env = append(os.Environ(), "KUBECONFIG="+ts.Getenv("KUBECONFIG"), "HOME="+ts.Getenv("HOME"))
	output, err := command.StdoutPipe()
	ts.Check(err)
	var errs strings.Builder
	command.Stderr = &errs
	ts.Check(command.Start())
	line, err := bufio.NewReader(output).ReadString('\n')
	address := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(line)
	body := ""
	if err == nil {
		body, err = fetch("http://" + address)
	}
	_ = command.Process.Kill()
	_ = command.Wait()
	if err != nil || !regexp.MustCompile(args[2]).MatchString(body) {
		ts.Fatalf("through kubectl port-forward %s %s: %q: %v\n%s%s", args[0], args[1], body, err, line, errs.String())
	}
}

func fetch(url string) (string, error) {
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	reply, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer reply.Body.Close()
	body, err := io.ReadAll(reply.Body)
	if err == nil && reply.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d", reply.StatusCode)
	}
	return string(body), err
}
