package api_test

import (
	"bufio"
	"encoding/base64"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/berth-run/berth/api"
)

// certificate is the server's certificate as a kubeconfig holds it.
func (s *server) certificate() string {
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	return base64.StdEncoding.EncodeToString(block)
}

// kubectl runs the real program against the server.
func (s *server) kubectl(stdin string, args ...string) (string, error) {
	s.t.Helper()
	cmd := s.command(args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	s.t.Logf("kubectl %s\n%s", strings.Join(args, " "), out)
	return string(out), err
}

// command is kubectl with a kubeconfig for the server.
func (s *server) command(args ...string) *exec.Cmd {
	s.t.Helper()
	program, err := exec.LookPath("kubectl")
	if err != nil {
		s.t.Skip("kubectl is not installed")
	}
	home := s.t.TempDir()
	config := filepath.Join(home, "kubeconfig")
	text := "apiVersion: v1\nkind: Config\ncurrent-context: berth\n" +
		"clusters: [{name: berth, cluster: {server: \"" + s.URL + "\", certificate-authority-data: " + s.certificate() + "}}]\n" +
		"users: [{name: admin, user: {token: " + secretToken + "}}]\n" +
		"contexts: [{name: berth, context: {cluster: berth, user: admin}}]\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.CommandContext(s.t.Context(), program, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+config, "HOME="+home)
	return cmd
}

// run is kubectl that must succeed and print all parts.
func (s *server) run(stdin string, args []string, parts ...string) string {
	s.t.Helper()
	out, err := s.kubectl(stdin, args...)
	if err != nil {
		s.t.Fatalf("kubectl %v: %v\n%s", args, err, out)
	}
	for _, part := range parts {
		if !strings.Contains(out, part) {
			s.t.Errorf("kubectl %v printed no %q:\n%s", args, part, out)
		}
	}
	return out
}

const helloYAML = `apiVersion: serving.knative.dev/v1
kind: Service
metadata:
  name: hello
spec:
  template:
    spec:
      containers:
      - image: registry.example/hello
`

func TestKubectl_AppliesGetsPatchesAndDeletesAService(t *testing.T) {
	s := newTLSServer(t)
	s.run("", []string{"version"}, "Server Version: v1.")
	s.run("", []string{"api-resources"}, "ksvc", "serving.knative.dev/v1")
	s.run(helloYAML, []string{"apply", "-f", "-"}, "service.serving.knative.dev/hello created")
	s.run(helloYAML, []string{"apply", "-f", "-"}, "service.serving.knative.dev/hello unchanged")
	s.run("", []string{"get", "ksvc", "hello", "-o", "jsonpath={.metadata.generation}"}, "1")
	s.run(strings.Replace(helloYAML, "/hello\n", "/hello:2\n", 1), []string{"apply", "--validate=false", "-f", "-"}, "configured")
	s.run("", []string{"get", "ksvc"}, "NAME", "URL", "LATESTCREATED", "LATESTREADY", "READY", "REASON", "hello")
	s.run("", []string{"get", "ksvc", "hello", "-o", "jsonpath={.spec.template.spec.containers[0].image} {.metadata.generation}"}, "registry.example/hello:2 2")
	s.run("", []string{"get", "ksvc", "-A"}, "NAMESPACE", "default", "hello")
	s.run("", []string{"label", "ksvc", "hello", "team=a"}, "labeled")
	s.run("", []string{"get", "ksvc", "-l", "team=a"}, "hello")
	s.run("", []string{"patch", "ksvc", "hello", "--type=json", "-p", `[{"op":"replace","path":"/spec/template/spec/containers/0/image","value":"registry.example/hello:3"}]`}, "patched")
	s.run("", []string{"describe", "ksvc", "hello"}, "registry.example/hello:3")
	s.run("", []string{"delete", "ksvc", "hello", "--timeout=20s"}, `service.serving.knative.dev "hello" deleted`)
	if out, err := s.kubectl("", "get", "ksvc", "hello"); err == nil || !strings.Contains(out, "NotFound") {
		t.Errorf("got %v, want NotFound: %s", err, out)
	}
}

func TestKubectl_ShowsWhyAServiceIsRefused(t *testing.T) {
	s := newTLSServer(t)
	out, err := s.kubectl(strings.Replace(helloYAML, "image:", "imagee:", 1), "apply", "-f", "-")
	if err == nil || !strings.Contains(out, `unknown field "spec.template.spec.containers[0].imagee"`) {
		t.Errorf("got %v: %s", err, out)
	}
}

func TestKubectl_SaysWhichKindsThereAreNot(t *testing.T) {
	s := newTLSServer(t)
	out, err := s.kubectl("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\nspec: {}\n", "apply", "-f", "-")
	if err == nil || !strings.Contains(out, `no matches for kind "Deployment" in version "apps/v1"`) {
		t.Errorf("got %v: %s", err, out)
	}
	if got := s.do("GET", "/openapi/v2", "").want(t, 200).body; !strings.Contains(got, `"swagger":"2.0"`) {
		t.Errorf("got %s", got)
	}
}

func TestKubectl_TellsWhoTheUserIsAndWhatIsAllowed(t *testing.T) {
	s := newTLSServer(t, func(c *api.Config) { c.User = "anna" })
	s.run("", []string{"auth", "whoami"}, "anna", "system:authenticated")
	s.run("", []string{"auth", "can-i", "delete", "ksvc"}, "yes")
	s.run("", []string{"auth", "can-i", "--list"}, "*.*", "[*]")
}

func TestKubectl_SaysWhatToDoInsteadOfWhatThereIsNot(t *testing.T) {
	s := newTLSServer(t)
	s.run(helloYAML, []string{"apply", "-f", "-"}, "created")
	s.stores(pod("hello-x", "Running", "user-container"))
	for _, c := range []struct{ command, want string }{
		{"scale ksvc/hello --replicas=3", "autoscaling.knative.dev/min-scale"},
		{"debug hello-x --image=busybox --profile=general", "kubectl exec"},
	} {
		out, err := s.kubectl("", strings.Fields(c.command)...)
		if err == nil || !strings.Contains(out, c.want) || strings.Contains(out, "panic") {
			t.Errorf("kubectl %s does not name %q: %v\n%s", c.command, c.want, err, out)
		}
	}
	if got := s.do("GET", "/nothing", "").want(t, 404).body; !strings.Contains(got, `"details":{}`) {
		t.Errorf("kubectl debug crashes on a status without details: %s", got)
	}
}

// A user who names revisions moves traffic with kubectl apply, which sends the template as it is in the file: without
// the defaults that the server filled in.
func TestKubectl_AppliesTrafficToRevisionsThatUsersNamed(t *testing.T) {
	s := newTLSServer(t)
	file := strings.Replace(helloYAML, "  template:\n", "  template:\n    metadata: {name: hello-v1}\n", 1)
	s.run(file, []string{"apply", "-f", "-"}, "created")
	traffic := "  traffic: [{latestRevision: true, percent: 40}, {revisionName: hello-v1, percent: 60}]\n"
	s.run(file+traffic, []string{"apply", "-f", "-"}, "configured")
	s.run("", []string{"get", "ksvc", "hello", "-o", "jsonpath={.spec.traffic[*].percent} {.spec.template.spec.timeoutSeconds}"}, "40 60 300")
	out, err := s.kubectl(strings.Replace(file, "registry.example/hello", "registry.example/other", 1), "apply", "-f", "-")
	if err == nil || !strings.Contains(out, "without a name change") || !strings.Contains(out, `+: "registry.example/other"`) {
		t.Errorf("the image of a named revision was changed: %v\n%s", err, out)
	}
	if strings.Contains(out, "timeoutSeconds") || strings.Contains(out, "TimeoutSeconds") || strings.Contains(out, "user-container") {
		t.Errorf("defaults are told as changes:\n%s", out)
	}
}

func TestKubectl_KeepsSecretsAndConfigMaps(t *testing.T) {
	s := newTLSServer(t)
	s.run("", []string{"create", "secret", "generic", "db", "--from-literal=password=x"}, "secret/db created")
	s.run("", []string{"create", "configmap", "settings", "--from-literal=a=b"}, "configmap/settings created")
	secret := "apiVersion: v1\nkind: Secret\nmetadata: {name: db2}\nstringData: {password: one}\n"
	s.run(secret, []string{"apply", "-f", "-"}, "created")
	s.run(strings.Replace(secret, "one", "two", 1), []string{"apply", "-f", "-"}, "configured")
	s.run("", []string{"get", "secret", "db2", "-o", "jsonpath={.data.password}"}, "dHdv")
	s.run("", []string{"get", "secrets,cm"}, "secret/db2", "Opaque", "configmap/settings")
	s.run("", []string{"create", "namespace", "team"}, "created")
	s.run("", []string{"delete", "namespace", "team", "--timeout=20s"}, "deleted")
}

func TestKubectl_KeepsDomainMappingsAndClaims(t *testing.T) {
	s := newTLSServer(t)
	s.run("", []string{"api-resources"}, "serving.knative.dev/v1beta1", "dm", "networking.internal.knative.dev/v1alpha1", "cdc")
	mapping := "apiVersion: serving.knative.dev/v1beta1\nkind: DomainMapping\nmetadata: {name: shop.example.org}\n" +
		"spec: {ref: {name: hello, kind: Service, apiVersion: serving.knative.dev/v1}}\n"
	claim := "---\napiVersion: networking.internal.knative.dev/v1alpha1\nkind: ClusterDomainClaim\nmetadata: {name: shop.example.org}\nspec: {namespace: default}\n"
	s.run(mapping+claim, []string{"apply", "-f", "-"},
		"domainmapping.serving.knative.dev/shop.example.org created", "clusterdomainclaim.networking.internal.knative.dev/shop.example.org created")
	s.run("", []string{"get", "dm"}, "NAME", "URL", "READY", "REASON", "shop.example.org")
	s.run("", []string{"get", "cdc"}, "NAME", "AGE", "shop.example.org")
	s.run("", []string{"get", "serving"}, "domainmapping.serving.knative.dev/shop.example.org")
	s.run("", []string{"patch", "dm", "shop.example.org", "--type=merge", "-p", `{"spec":{"ref":{"name":"other"}}}`}, "patched")
	s.run("", []string{"get", "dm", "-o", "jsonpath={.items[0].spec.ref.name} {.items[0].metadata.generation}"}, "other 2")
	s.run("", []string{"delete", "dm,cdc", "shop.example.org", "--timeout=20s"}, "deleted")
	out, err := s.kubectl(strings.Replace(mapping, "shop.example.org", "localhost", 1), "apply", "-f", "-")
	if err == nil || !strings.Contains(out, "should be a domain with at least two segments separated by dots: metadata.name") {
		t.Errorf("got %v: %s", err, out)
	}
}

func TestKubectl_WaitsForAConditionByWatching(t *testing.T) {
	s := newTLSServer(t)
	s.created(services, hello("hello"))
	go func() {
		status := `{"status":{"conditions":[{"type":"Ready","status":"True"}]}}`
		s.do("PATCH", services+"/hello/status", status, "Content-Type", "application/merge-patch+json")
	}()
	s.run("", []string{"wait", "--for=condition=Ready", "ksvc/hello", "--timeout=20s"}, "condition met")
}

func TestKubectl_PrintsChangesAsTheyHappen(t *testing.T) {
	s := newTLSServer(t)
	s.created(services, hello("one"))
	cmd := s.command("get", "ksvc", "--watch", "--output-watch-events")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	want := func(words ...string) {
		t.Helper()
		if !lines.Scan() {
			t.Fatalf("kubectl ended: %v", lines.Err())
		}
		if got := strings.Fields(lines.Text()); len(got) < len(words) || !slices.Equal(got[:len(words)], words) {
			t.Fatalf("got %q, want it to begin with %q", got, words)
		}
	}
	want("EVENT", "NAME", "URL", "LATESTCREATED", "LATESTREADY", "READY", "REASON")
	want("ADDED", "one")
	s.created(services, hello("two"))
	want("ADDED", "two")
	s.do("DELETE", services+"/one", "").want(t, 200)
	want("DELETED", "one")
}
