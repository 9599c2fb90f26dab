package api_test

import (
	"strings"
	"testing"
)

func TestKubectl_ExplainsFields(t *testing.T) {
	s := newTLSServer(t)
	s.run("", []string{"explain", "ksvc"}, "KIND:       Service", "GROUP:      serving.knative.dev", "spec\t<ServiceSpec>")
	s.run("", []string{"explain", "ksvc.spec.template"}, "FIELD: template <RevisionTemplateSpec>", "metadata\t<ObjectMeta>", "spec\t<RevisionSpec>")
	s.run("", []string{"explain", "ksvc.spec.template.spec.containers"}, "FIELD: containers <[]Container>", "image\t<string>", "Container image name.", "resources\t<ResourceRequirements>")
	s.run("", []string{"explain", "ksvc.spec.template.spec.containers.resources.limits"}, "<map[string]Quantity>")
	s.run("", []string{"explain", "ksvc.spec.template.spec.containers.readinessProbe.httpGet.port"}, "FIELD: port <IntOrString>")
	s.run("", []string{"explain", "ksvc.spec.traffic.percent"}, "FIELD: percent <integer>")
	s.run("", []string{"explain", "ksvc.status.url"}, "FIELD: url <string>")
	s.run("", []string{"explain", "secret.data"}, "FIELD: data <map[string]string>")
	if out := s.run("", []string{"explain", "rev", "--recursive"}, "containerConcurrency\t<integer>"); !strings.Contains(out, "      secretKeyRef\t<SecretKeySelector>") {
		t.Errorf("no field of a field of a list in\n%s", out)
	}
}

func TestKubectl_SaysThatNothingChanged(t *testing.T) {
	s := newTLSServer(t)
	file := strings.Replace(helloYAML, "spec:\n  template", "spec:\n  traffic: [{percent: 100}]\n  template", 1)
	file += "        ports: [{containerPort: 8080}]\n"
	s.run(file, []string{"apply", "-f", "-"}, "created")
	s.run(file, []string{"apply", "-f", "-"}, "unchanged")
	s.run("", []string{"label", "ksvc", "hello", "team=a"}, "labeled")
	s.run(file, []string{"apply", "-f", "-"}, "unchanged")
	s.run("", []string{"patch", "ksvc", "hello", "--type=json", "-p", `[{"op":"add","path":"/spec/template/spec/containers/0/args","value":["x"]}]`}, "patched")
	s.run(file, []string{"apply", "-f", "-"}, "configured") // somebody else's argument goes
	s.run("", []string{"get", "ksvc", "hello", "-o", "jsonpath={.spec.template.spec.containers[0].args}|{.spec.template.spec.containers[0].name}"}, "|user-container")
	s.run(file, []string{"apply", "-f", "-"}, "unchanged")
	s.run(strings.Replace(file, "8080", "8081", 1), []string{"apply", "-f", "-"}, "configured")
}

func TestKubectl_AppliesOnTheServerSide(t *testing.T) {
	s := newTLSServer(t)
	s.run(helloYAML, []string{"apply", "-f", "-"}, "created") // then from client-side to server-side
	s.run(helloYAML, []string{"apply", "--server-side", "-f", "-"}, "serverside-applied")
	managers := s.run("", []string{"get", "ksvc", "hello", "-o", "jsonpath={.metadata.managedFields[*].manager}", "--show-managed-fields"}, "kubectl")
	if strings.Contains(managers, "client-side-apply") {
		t.Errorf("the managers are %q, want none of client-side apply", managers)
	}
	changed := strings.Replace(helloYAML, "/hello\n", "/other\n", 1)
	out, err := s.kubectl(changed, "apply", "--server-side", "--field-manager=other", "-f", "-")
	if err == nil || !strings.Contains(out, `conflict with "kubectl": .spec.template.spec.containers[name="user-container"].image`) || !strings.Contains(out, "--force-conflicts") {
		t.Errorf("got %v: %s", err, out)
	}
	s.run(changed, []string{"apply", "--server-side", "--field-manager=other", "--force-conflicts", "--dry-run=server", "-f", "-"}, "serverside-applied (server dry run)")
	if out := s.run(helloYAML, []string{"diff", "--server-side", "-f", "-"}); out != "" {
		t.Errorf("the server differs from what was applied: %s", out)
	}
	out, err = s.kubectl(changed, "diff", "-f", "-")
	if err == nil || !strings.Contains(out, "-      - image: registry.example/hello\n+      - image: registry.example/other") {
		t.Errorf("got %v: %s", err, out)
	}
	if out := s.run("", []string{"get", "ksvc", "hello", "-o", "yaml"}); strings.Contains(out, "managedFields") {
		t.Errorf("managed fields are shown unasked: %s", out)
	}
}

func TestKubectl_EditsReplacesAndSaysWhy(t *testing.T) {
	s := newTLSServer(t)
	s.run(helloYAML, []string{"create", "--dry-run=server", "-f", "-"}, "created (server dry run)")
	s.run(helloYAML, []string{"create", "-f", "-"}, "hello created")
	stored := s.run("", []string{"get", "ksvc", "hello", "-o", "yaml"})
	s.run(strings.Replace(stored, "timeoutSeconds: 300", "timeoutSeconds: 30", 1), []string{"replace", "-f", "-"}, "hello replaced")
	s.run("", []string{"annotate", "ksvc", "hello", "example.com/note=x"}, "annotated")
	for _, c := range []struct {
		stdin string
		args  []string
		want  string
	}{
		{strings.Replace(stored, "timeoutSeconds: 300", "timeoutSeconds: 31", 1), []string{"replace", "-f", "-"}, "the object has been modified; please apply your changes to the latest version and try again"},
		{"", []string{"patch", "ksvc", "hello", "--type=json", "-p", `[{"op":"test","path":"/spec/template/spec/timeoutSeconds","value":8}]`}, `The services "hello" is invalid: patch: testing value /spec/template/spec/timeoutSeconds failed`},
		{"", []string{"patch", "ksvc", "hello", "--type=merge", "-p", `{"spec":{"template":{"spec":{"containerConcurrency":-1}}}}`}, "validation failed: expected 0 <= -1 <= 1000: spec.template.spec.containerConcurrency"},
		{strings.Replace(helloYAML, "name: hello", "name: Hello", 1), []string{"create", "-f", "-"}, `The Service "Hello" is invalid: metadata.name: Invalid value: "Hello": a lowercase RFC 1123 subdomain`},
		{helloYAML, []string{"create", "-n", "nowhere", "-f", "-"}, `namespaces "nowhere" not found`},
		{"", []string{"get", "ksvc", "hello", "--token=wrong"}, "You must be logged in to the server"},
		{"", []string{"get", "ksvc", "--field-selector=spec.x=1"}, "field label not supported: spec.x"},
	} {
		out, err := s.kubectl(c.stdin, c.args...)
		if err == nil || !strings.Contains(out, c.want) {
			t.Errorf("kubectl %v: %v, want %q in\n%s", c.args, err, c.want, out)
		}
	}
}
