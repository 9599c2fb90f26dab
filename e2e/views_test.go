package e2e

import (
	"bufio"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/berth-run/berth/server"
)

// needKubectl skips a test where kubectl is missing.
func needKubectl(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("kubectl"); err != nil {
		t.Skip("kubectl is not installed: it is what this test runs")
	}
}

// refusedKubectl runs kubectl, which must fail, and returns what it said.
func (p *platform) refusedKubectl(args ...string) string {
	p.t.Helper()
	output, err := p.kubectlCommand("", args...).CombinedOutput()
	if err == nil {
		p.t.Errorf("kubectl %s succeeded:\n%s", strings.Join(args, " "), output)
	}
	return string(output)
}

func TestKubectl_ReadsPodsLogsAndEvents(t *testing.T) {
	t.Parallel()
	needKubectl(t)
	p := start(t, func(c *server.Config) { c.Scaling.StableWindow = 20 * time.Second })
	s := p.deploy(service("hello", program(t, "inspect")))
	url := s.Status.URL.String()
	instance := p.inspect(url).Hostname
	var pod string
	p.await("the pod of the instance", func() error {
		pod = strings.TrimSpace(p.kubectl("", "get", "pods", "-l", "serving.knative.dev/service=hello", "-o", "name"))
		suffix := strings.TrimPrefix(instance, "hello-00001")
		return errorUnless(pod == "pod/hello-00001-deployment"+suffix, "instance %s has pods %q", instance, pod)
	})
	contains(t, "kubectl get pods", p.kubectl("", "get", "pods", "-o", "wide"), []string{"NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE", "1/1", "Running", "10."})
	contains(t, "kubectl get all", p.kubectl("", "get", "all"), []string{
		pod, "service/hello ", "service.serving.knative.dev/hello ", "revision.serving.knative.dev/hello-00001 ", "route.serving.knative.dev/hello ",
	})
	contains(t, "kubectl get services", p.kubectl("", "get", "services", "-A"), []string{"berth-system", "gateway", "LoadBalancer", "127.0.0.1", "80:", "ExternalName", "hello.default.localhost"})
	contains(t, "kubectl describe pod", p.kubectl("", "describe", pod), []string{"Controlled By:", "Revision/hello-00001", "user-container:", "State:", "Running", "Ready:", "True"})

	contains(t, "kubectl logs", p.kubectl("", "logs", pod), []string{"inspect: listening"})
	contains(t, "kubectl logs by label", p.kubectl("", "logs", "-l", "serving.knative.dev/service=hello", "--prefix", "--timestamps"), []string{"[" + pod + "/user-container] 20"})
	contains(t, "kubectl logs of another container", p.refusedKubectl("logs", pod, "-c", "side"), []string{"container side is not valid for pod"})
	contains(t, "kubectl logs --previous", p.refusedKubectl("logs", pod, "--previous"), []string{`previous terminated container "user-container" in pod`})

	follow := p.kubectlCommand("", "logs", "--follow", "--tail=1", pod)
	output, err := follow.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(output)
	next := func(want string) {
		t.Helper()
		for lines.Scan() {
			if strings.Contains(lines.Text(), want) {
				return
			}
		}
		t.Fatalf("kubectl logs --follow ended before %q: %v", want, lines.Err())
	}
	next("inspect: listening")
	p.try(url, "/log", "n", "2", "size", "7")
	next("1 xxxxxxx")

	// Deleting the pod ends its instance, and the log that is followed; the next request gets another.
	contains(t, "kubectl delete pod", p.kubectl("", "delete", pod), []string{`deleted`})
	next("inspect: got SIGTERM")
	for lines.Scan() { // its last words
	}
	if err := follow.Wait(); err != nil {
		t.Errorf("kubectl logs --follow ended with: %v", err)
	}
	if next := p.inspect(url).Hostname; next == instance {
		t.Errorf("instance %s still answers", next)
	}

	p.await("events", func() error {
		told := p.kubectl("", "get", "events")
		for _, want := range []string{
			`Created Configuration "hello"`, `Created Route "hello"`, `Created Revision "hello-00001"`, "ImagePulled", "InstanceStarted",
			"Requests go to hello-00001 (100%)", "its pod was deleted", "service/hello",
		} {
			if !strings.Contains(told, want) {
				return fmt.Errorf("no %q in\n%s", want, told)
			}
		}
		return nil
	})
	contains(t, "kubectl events", p.kubectl("", "events", "--for", "service.serving.knative.dev/hello"), []string{"InstanceStarted"})
	described := p.kubectl("", "describe", "ksvc", "hello")
	contains(t, "kubectl describe ksvc", described[strings.Index(described, "Events:"):], []string{"InstanceStarted", "x2 over", "TrafficChanged"})

	contains(t, "kubectl run", p.refusedKubectl("run", "x", "--image=example.com/x"), []string{"pods are made by the platform"})
	contains(t, "kubectl delete namespace", p.refusedKubectl("delete", "namespace", "berth-system"), []string{"may not be deleted"})
	p.kubectl("", "delete", "ksvc", "hello")
	p.await("the pods to go", func() error {
		left := p.kubectl("", "get", "pods,services", "-o", "name")
		return errorUnless(left == "", "there are %q", left)
	})
}
