package e2e

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/berth-run/berth/internal/testimage"
	"github.com/berth-run/berth/server"
	"github.com/berth-run/berth/serving"
)

// mistake is a deploy that cannot succeed, and what its error says.
type mistake struct {
	name  string // of the service
	flags []string
	says  []string
}

// containerFailed is how Cloud Run begins to say that a container is unusable (contract 1.2, E1).
const containerFailed = "Container failed to start. Failed to start and then listen on the port defined by the PORT environment variable."

func TestDeploy_TellsWhatIsWrongWithTheImage(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	open := testimage.Serve(t, testimage.Options{})
	closed := testimage.Serve(t, testimage.Options{Username: "anna", Password: "secret"})
	hello := images.Go(t, "examples/hello")
	private := closed.Push(t, hello, "hello:1")
	p.secret("wrong", private, "anna", "guess")
	steady := p.deploy(service("steady", open.Push(t, hello, "hello:1")))

	p.refused([]mistake{
		{"missing-tag", image(open.Host + "/hello:2"), []string{"hello:2", "does not exist", "check the name and the tag"}},
		{"missing-image", image(open.Host + "/nobody:1"), []string{"nobody:1", "does not exist"}},
		{"registry-down", image(unused(t) + "/hello:1"), []string{"connection refused", "check the name, that the registry runs"}},
		{"no-credentials", image(private), []string{"needs credentials", "image pull secret"}},
		{"arm-image", image(open.Push(t, forARM(t, hello), "arm:1")), []string{containerFailed, "linux/arm64 only", "build it for linux/amd64"}},
		{"arm-index", image(open.PushIndex(t, index(t, forARM(t, hello)), "arm:index")), []string{containerFailed, "linux/arm64 only", "build it for linux/amd64"}},
		{"arm-program", image(open.Push(t, withARMProgram(t, hello), "arm:program")), []string{containerFailed, "exec format error", "build the image for linux/amd64"}},
	})

	s := service("wrong-credentials", private)
	s.Spec.Template.Spec.ImagePullSecrets = []serving.LocalObjectReference{{Name: "wrong"}}
	p.applied(s, "may not be read with the given credentials", "check the user name, the password")
	s = service("no-secret", private)
	s.Spec.Template.Spec.ImagePullSecrets = []serving.LocalObjectReference{{Name: "none"}}
	p.applied(s, "image pull secret", `"none"`)

	if a := p.get(steady.Status.URL.String()); a.status != 200 {
		t.Errorf("after all that another service answers %d %q", a.status, a.body)
	}
}

func TestDeploy_TellsWhatIsWrongWithTheContainer(t *testing.T) {
	t.Parallel()
	p := start(t, nil) // its startup timeout is longer than the tests wait: what fails here fails early
	steady := p.deploy(service("steady", program(t, "hello")))
	exit, bloat := image(program(t, "exit")), image(program(t, "bloat"))
	p.refused([]mistake{
		{"exits", append(exit, "--set-env-vars", "CODE=3"), []string{"exited with code 3 before it listened on port 8080", "exit: about to exit"}},
		{"exits-cleanly", exit, []string{"exited with code 0 before it listened on port 8080"}},
		{"loopback", image(program(t, "loopback")), []string{containerFailed, "listens on port 8080 of 127.0.0.1 only", "listen on 0.0.0.0"}},
		{"no-command", append(exit, "--command", "no-such-program"), []string{containerFailed, `"no-such-program" is not in the image`, "$PATH"}},
		{"no-path", append(exit, "--command", "/no/such/program"), []string{containerFailed, `"/no/such/program" is not in the image`}},
		{"memory-hog", append(bloat, "--set-env-vars", "MB=200", "--memory", "64Mi"), []string{"used more memory than its limit", "raise the memory limit", "bloat: taking 200 MiB"}},
	})
	if a := p.get(steady.Status.URL.String()); a.status != 200 {
		t.Errorf("after all that another service answers %d %q", a.status, a.body)
	}
}

func TestDeploy_TellsWhatAProgramThatIsNotReadyListensOn(t *testing.T) {
	t.Parallel()
	p := start(t, func(c *server.Config) { c.StartupTimeout = 4e9 })
	const tooLong = "is not ready and cannot serve traffic. The user provided container failed to start and listen on port defined by PORT=8080 environment variable within the allocated timeout."
	p.refused([]mistake{
		{"silent", image(program(t, "silent")), []string{"Revision silent-00001 " + tooLong, "did not listen on port 8080 within 4", "silent: running, not listening"}},
		// While it is waited for, the deploy says so already.
		{"other-port", image(program(t, "otherport")), []string{"Revision other-port-00001 " + tooLong,
			"waiting for the container to listen on port 8080; it listens on [::]:3000\n", "it listens on [::]:3000 instead", "or set the service's port"}},
	})
	p.mustBerth("deploy", "other-port", "--port", "3000")
	s, err := p.Services("default").Get(t.Context(), "other-port")
	if err != nil {
		t.Fatal(err)
	}
	if a := p.get(s.Status.URL.String()); a.status != 200 || a.body != "otherport\n" {
		t.Errorf("with the right port: %d %q", a.status, a.body)
	}
}

func TestInput_IsRefusedWithWhatIsWrong(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	steady := p.deploy(service("steady", program(t, "hello")))
	container := "{image: 127.0.0.1:1/none:none"
	spec := func(rest string) string { return "spec: {template: {spec: {" + rest + "}}}" }
	for file, says := range map[string][]string{
		"metadata: {name: x\nspec: {":                                                                                                       {"invalid YAML", "line"},
		"metadata: {name: x}\nspec: {tamplate: {}}":                                                                                         {`unknown field "spec.tamplate"`},
		"metadata: {name: x}\n" + spec("containers: "+container+"}"):                                                                        {"containers"},
		"metadata: {name: x}\n" + spec("timeoutSeconds: soon"):                                                                              {"timeoutSeconds"},
		"metadata: {name: Under_score}\n" + spec("containers: ["+container+"}]"):                                                            {"Under_score", "metadata.name"},
		"metadata: {name: " + strings.Repeat("long", 20) + "}\n" + spec("containers: ["+container+"}]"):                                     {"metadata.name", "63"},
		"metadata: {name: x}\n" + spec("containers: ["+container+", resources: {limits: {memory: much}}}]"):                                 {"memory", "quantit"},
		"metadata: {name: x}\n" + spec("containers: []"):                                                                                    {"missing field(s)", "spec.template.spec.containers"},
		"metadata: {name: x}\n" + spec("containers: [{}]"):                                                                                  {"missing field(s)", "image"},
		"metadata: {name: x}\n" + spec("timeoutSeconds: 4000, containers: ["+container+"}]"):                                                {"4000", "3600", "timeoutSeconds"},
		"metadata: {name: x}\n" + spec("containers: ["+container+"}, {name: side, image: other}]"):                                          {"missing field(s)", "spec.template.spec.containers[*].ports"},
		"metadata: {name: x}\n" + spec("containers: ["+container+", readinessProbe: {exec: {command: [true]}}}]"):                           {"exec"},
		"metadata: {name: x}\n" + spec("containers: ["+container+", livenessProbe: {tcpSocket: {port: 70000}}}]"):                           {"70000", "65535", "livenessProbe.tcpSocket.port"},
		"metadata: {name: x}\nspec: {template: {spec: {containers: [" + container + "}]}}, traffic: [{latestRevision: true, percent: 99}]}": {"99", "100", "spec.traffic"},
		"metadata: {name: x}\n" + spec("containers: ["+container+", env: [{name: PORT, value: '1'}]}]"):                                     {"PORT", "env[0].name"},
	} {
		path := filepath.Join(t.TempDir(), "service.yaml")
		if err := os.WriteFile(path, []byte("apiVersion: serving.knative.dev/v1\nkind: Service\n"+file), 0o600); err != nil {
			t.Fatal(err)
		}
		p.refuses(1, says, "apply", "-f", path)
	}
	for _, bad := range []struct {
		flags string
		says  []string
	}{
		{"--cpu x", []string{"--cpu", `"x"`, "500m"}},
		{"--cpu -1", []string{"--cpu", `"-1"`}},
		{"--memory much", []string{"--memory", `"much"`, "512Mi"}},
		{"--memory 512", []string{"--memory", `"512"`, "512Mi"}},
		{"--port 99999", []string{"--port", `"99999"`, "1 to 65535"}},
		{"--timeout -1", []string{"--timeout", `"-1"`}},
		{"--concurrency many", []string{"--concurrency", `"many"`}},
		{"--min-instances -1", []string{"--min-instances", `"-1"`}},
		{"--set-env-vars foo", []string{"--set-env-vars", `"foo"`, "="}},
		{"--min-instances 3 --max-instances 2", []string{"--min-instances 3", "--max-instances 2"}},
		{"--no-such-flag", []string{"--no-such-flag"}},
	} {
		p.refuses(2, bad.says, append([]string{"deploy", "steady"}, strings.Fields(bad.flags)...)...)
	}
	p.refuses(2, []string{"Under_score"}, "deploy", "Under_score", "--image", "127.0.0.1:1/none:none")
	for command, says := range map[string][]string{
		"deploy other --image UPPER/case":                              {"UPPER/case"},
		"deploy steady --timeout 4000":                                 {"4000", "3600"},
		"services update-traffic steady --to-revisions none-00007=100": {"none-00007"},
		"services update-traffic nobody --to-latest":                   {"nobody", "not found"},
		"services describe nobody":                                     {"nobody", "not found"},
		"services delete nobody -q":                                    {"nobody", "not found"},
		"logs nobody":                                                  {"nobody", "not found"},
		"deploy lost --image docker-archive:/no/such/file.tar":         {"/no/such/file.tar"},
		"deploy lost --source /no/such/folder":                         {"/no/such/folder"},
		"apply -f /no/such/file.yaml":                                  {"/no/such/file.yaml"},
	} {
		p.refuses(1, says, strings.Fields(command)...)
	}
	// A revision that does not exist is seen by the route, and named in the Ready condition.
	s := service("astray", steady.Spec.Template.Spec.Containers[0].Image)
	hundred, no := int64(100), false
	s.Spec.Traffic = []serving.TrafficTarget{{RevisionName: "astray-none", Percent: &hundred, LatestRevision: &no}}
	if message := p.failed(p.apply(s)); !strings.Contains(message, "astray-none") || !strings.Contains(message, "traffic") {
		t.Errorf("traffic to an unknown revision: %q", message)
	}
	if a := p.get(steady.Status.URL.String()); a.status != 200 {
		t.Errorf("after all that a service answers %d %q", a.status, a.body)
	}
}

// image is the flag for an image.
func image(reference string) []string { return []string{"--image", reference} }

// refused deploys all at the same time and sees to it that each says what is wrong, on standard error and in the
// service's Ready condition.
func (p *platform) refused(mistakes []mistake) {
	p.t.Helper()
	p.t.Run("deploys", func(t *testing.T) {
		for _, m := range mistakes {
			t.Run(m.name, func(t *testing.T) {
				t.Parallel()
				q := *p
				q.t = t
				_, stderr, code := q.berth(append([]string{"deploy", m.name}, m.flags...)...)
				if code != 1 {
					t.Errorf("exit code %d", code)
				}
				contains(t, "berth deploy", stderr, m.says)
				s, err := q.Services("default").Get(t.Context(), m.name)
				if err != nil {
					t.Fatal(err)
				}
				ready := s.Status.GetCondition(serving.ServiceReady)
				if !ready.IsFalse() {
					t.Errorf("Ready is %v", ready)
				}
				for _, says := range m.says {
					// What is told on the way is not told at the end.
					if !strings.HasPrefix(says, "waiting") {
						contains(t, "the Ready condition", ready.GetMessage(), []string{says})
					}
				}
			})
		}
	})
}

// applied writes a service that cannot become ready and checks what its condition says.
func (p *platform) applied(s *serving.Service, says ...string) {
	p.t.Helper()
	contains(p.t, "the Ready condition of "+s.Name, p.failed(p.apply(s)), says)
}

// refuses runs a command that must fail.
func (p *platform) refuses(exit int, says []string, args ...string) {
	p.t.Helper()
	command := "berth " + strings.Join(args, " ")
	_, stderr, code := p.berth(args...)
	if code != exit {
		p.t.Errorf("%s: exit code %d, want %d", command, code, exit)
	}
	contains(p.t, command, stderr, says)
}

func contains(t *testing.T, who, text string, parts []string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%s does not say %q:\n%s", who, part, text)
		}
	}
}

// secret stores credentials for an image's registry.
func (p *platform) secret(name, image, username, password string) {
	p.t.Helper()
	host, _, _ := strings.Cut(image, "/")
	secret := &serving.Secret{ObjectMeta: serving.ObjectMeta{Namespace: "default", Name: name}}
	secret.Type = "kubernetes.io/dockerconfigjson"
	secret.Data = map[string][]byte{".dockerconfigjson": dockerConfig(host, username, password)}
	if _, err := p.Secrets("default").Create(p.t.Context(), secret); err != nil {
		p.t.Fatal(err)
	}
}

// unused is an address on which nothing listens.
func unused(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// forARM is an image that says it is for another machine.
func forARM(t *testing.T, image v1.Image) v1.Image {
	t.Helper()
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.Architecture = "arm64"
	changed, err := mutate.ConfigFile(image, config)
	if err != nil {
		t.Fatal(err)
	}
	return changed
}

// index lists an image for linux/arm64 only.
func index(t *testing.T, image v1.Image) v1.ImageIndex {
	t.Helper()
	return mutate.AppendManifests(empty.Index, mutate.IndexAddendum{
		Add: image, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}},
	})
}

// withARMProgram is an image for this machine whose program is not.
func withARMProgram(t *testing.T, image v1.Image) v1.Image {
	t.Helper()
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	name := strings.TrimPrefix(append(config.Config.Entrypoint, config.Config.Cmd...)[0], "/")
	content := mutate.Extract(image)
	defer content.Close()
	files := tar.NewReader(content)
	for {
		header, err := files.Next()
		if err != nil {
			t.Fatalf("looking for %s in the image: %v", name, err)
		}
		if strings.TrimPrefix(header.Name, "/") != name {
			continue
		}
		program, err := io.ReadAll(files)
		if err != nil {
			t.Fatal(err)
		}
		const machine = 18 // offset of e_machine
		binary.LittleEndian.PutUint16(program[machine:], uint16(elf.EM_AARCH64))
		return withFiles(t, image, file{*header, program})
	}
}

// file is an entry of a layer.
type file struct {
	header  tar.Header
	content []byte
}

// withFiles adds a layer to an image.
func withFiles(t *testing.T, image v1.Image, files ...file) v1.Image {
	t.Helper()
	var buffer bytes.Buffer
	w := tar.NewWriter(&buffer)
	for _, f := range files {
		f.header.Size = int64(len(f.content))
		if err := w.WriteHeader(&f.header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(buffer.Bytes())), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	changed, err := mutate.AppendLayers(image, layer)
	if err != nil {
		t.Fatal(err)
	}
	return changed
}

// dockerConfig is Docker's config.json with the credentials of one registry.
func dockerConfig(host, username, password string) []byte {
	return fmt.Appendf(nil, `{"auths":{%q:{"username":%q,"password":%q}}}`, host, username, password)
}
