package reconcile

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/identity"
	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
	"github.com/berth-run/berth/store/bolt"
)

// shelf is a reconciler that reads volumes, with a ConfigMap, a Secret and two service accounts.
func shelf(t *testing.T) *Reconciler {
	t.Helper()
	dir := t.TempDir()
	objects, err := bolt.Open(filepath.Join(dir, "objects.db"), bolt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { objects.Close() })
	issuer, err := identity.Open(filepath.Join(dir, "identity.pem"), "https://berth.example")
	if err != nil {
		t.Fatal(err)
	}
	meta := func(name string) serving.ObjectMeta { return serving.ObjectMeta{Namespace: "default", Name: name} }
	for _, o := range []serving.Object{
		&serving.Namespace{ObjectMeta: serving.ObjectMeta{Name: "default"}},
		&serving.ConfigMap{ObjectMeta: meta("conf"), Data: map[string]string{"a": "conf a", "b": "conf b"}, BinaryData: map[string][]byte{"bin": {0xff, 0}}},
		&serving.Secret{ObjectMeta: meta("keys"), Data: map[string][]byte{"a": []byte("secret a"), "c": []byte("secret c")}},
		&serving.ServiceAccount{ObjectMeta: meta("default")},
		&serving.ServiceAccount{ObjectMeta: meta("cart")},
	} {
		if _, err := objects.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	return &Reconciler{Config: Config{Store: objects, Identity: issuer}}
}

// mounting is a revision with one volume, as YAML, that is mounted.
func mounting(t *testing.T, volume string) *serving.Revision {
	t.Helper()
	text := `
metadata: {namespace: default, name: hello-00001, uid: u-1, labels: {app: mine, tier: front, serving.knative.dev/routingState: active}, annotations: {note: "a \"b\""}}
spec:
  serviceAccountName: cart
  containers:
  - {name: main, image: x, volumeMounts: [{name: v, mountPath: /v, subPath: a, readOnly: true}], resources: {limits: {cpu: 1500m, memory: 64Mi}, requests: {cpu: 200m}}}
  volumes: [{name: v, ` + volume + `}]`
	revision := new(serving.Revision)
	if err := yaml.UnmarshalStrict([]byte(text), revision); err != nil {
		t.Fatal(err)
	}
	return revision
}

// content is an instance's files as "path mode data".
func content(t *testing.T, volume engine.Volume) []string {
	t.Helper()
	files, err := volume.Files("hello-00001-x7k2p")(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, f := range files {
		lines = append(lines, fmt.Sprintf("%s %04o %s", f.Path, f.Mode, f.Data))
	}
	return lines
}

func TestVolumes_HaveTheFilesThatTheirSourcesHave(t *testing.T) {
	r := shelf(t)
	for volume, want := range map[string][]string{
		"configMap: {name: conf}":                                                                                      {"a 0644 conf a", "b 0644 conf b", "bin 0644 \xff\x00"},
		"configMap: {name: conf, defaultMode: 0444}":                                                                   {"a 0444 conf a", "b 0444 conf b", "bin 0444 \xff\x00"},
		"secret: {secretName: keys, items: [{key: c, path: ./deep//c}]}":                                               {"deep/c 0644 secret c"},
		"secret: {secretName: keys, items: [{key: a, path: x, mode: 0400}]}":                                           {"x 0400 secret a"},
		"configMap: {name: none, optional: true}":                                                                      nil,
		"secret: {secretName: none, optional: true}":                                                                   nil,
		"configMap: {name: conf, optional: true, items: [{key: none, path: nn}, {key: a, path: x}]}":                   {"x 0644 conf a"},
		"projected: {sources: [{configMap: {name: conf}}, {secret: {name: keys}}]}":                                    {"a 0644 secret a", "b 0644 conf b", "bin 0644 \xff\x00", "c 0644 secret c"},
		"projected: {sources: [{secret: {name: keys}}, {configMap: {name: conf, items: [{key: b, path: a}]}}]}":        {"a 0644 conf b", "c 0644 secret c"},
		"projected: {defaultMode: 0400, sources: [{configMap: {name: none, optional: true}}, {secret: {name: keys}}]}": {"a 0400 secret a", "c 0400 secret c"},
		"projected: {}": nil,
		"projected: {sources: [{downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}, {path: ns, fieldRef: {fieldPath: metadata.namespace}}]}}]}": {
			"name 0644 hello-00001-deployment-x7k2p", "ns 0644 default",
		},
		"projected: {sources: [{downwardAPI: {items: [{path: all, fieldRef: {fieldPath: metadata.annotations}}, {path: one, mode: 0600, fieldRef: {fieldPath: 'metadata.labels[''tier'']'}}]}}]}": {
			`all 0644 note="a \"b\""`, "one 0600 front",
		},
		"projected: {sources: [{downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}]}": {
			"labels 0644 app=\"hello-00001\"\nserving.knative.dev/revision=\"hello-00001\"\nserving.knative.dev/revisionUID=\"u-1\"\ntier=\"front\"",
		},
		"projected: {sources: [{downwardAPI: {items: [{path: cpu, resourceFieldRef: {containerName: main, resource: limits.cpu}}, {path: m, resourceFieldRef: {containerName: main, resource: requests.cpu, divisor: 1m}}]}}]}": {
			"cpu 0644 2", "m 0644 200",
		},
		"projected: {sources: [{downwardAPI: {items: [{path: memory, resourceFieldRef: {containerName: main, resource: requests.memory, divisor: 1Mi}}]}}]}": {"memory 0644 64"},
	} {
		volumes, err := r.volumes(t.Context(), mounting(t, volume))
		if err != nil || len(volumes) != 1 || volumes[0].Name != "v" || volumes[0].Files == nil {
			t.Errorf("%s: %+v, %v", volume, volumes, err)
			continue
		}
		if diff := cmp.Diff(want, content(t, volumes[0])); diff != "" {
			t.Errorf("%s (-want +got):\n%s", volume, diff)
		}
	}
}

func TestVolumes_EmptyOnesHaveTheirLimit(t *testing.T) {
	r := shelf(t)
	for volume, want := range map[string]int64{"emptyDir: {}": 0, "emptyDir: {medium: Memory, sizeLimit: 100M}": 100_000_000} {
		volumes, err := r.volumes(t.Context(), mounting(t, volume))
		if err != nil || len(volumes) != 1 || volumes[0].Files != nil || volumes[0].SizeLimit != want {
			t.Errorf("%s: %+v, %v", volume, volumes, err)
		}
	}
	want := []engine.Mount{{Volume: "v", Path: "/v", SubPath: "a", ReadOnly: true}}
	if diff := cmp.Diff(want, mounts(mounting(t, "emptyDir: {}").Spec.Containers[0])); diff != "" {
		t.Error(diff)
	}
}

func TestVolumes_SayWhatIsMissing(t *testing.T) {
	r := shelf(t)
	for volume, says := range map[string]string{
		"configMap: {name: none}":                                                   `reading volume "v": configmap "none" in namespace "default"`,
		"secret: {secretName: none}":                                                `reading volume "v": secret "none" in namespace "default"`,
		"secret: {secretName: keys, items: [{key: none, path: nn}]}":                `secret "keys" in namespace "default" has no key "none"`,
		"projected: {sources: [{secret: {name: keys}}, {configMap: {name: none}}]}": `configmap "none"`,
		"hostPath: {path: /etc}":                                                    `volume "v": only emptyDir`,
		"projected: {sources: [{downwardAPI: {items: [{path: x, resourceFieldRef: {containerName: side, resource: limits.cpu}}]}}]}": `no container "side"`,
	} {
		_, err := r.volumes(t.Context(), mounting(t, volume))
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", volume, err, says)
		} else if strings.Contains(err.Error(), "secret c") {
			t.Errorf("%s: the error repeats a secret: %v", volume, err)
		}
	}
	revision := mounting(t, "projected: {sources: [{serviceAccountToken: {path: token}}]}")
	revision.Spec.ServiceAccountName = "nobody"
	if _, err := r.volumes(t.Context(), revision); err == nil || !strings.Contains(err.Error(), `serviceaccount "nobody" not found`) {
		t.Errorf("a token of an account that is not there: %v", err)
	}
}

func TestVolumes_ReadWhatIsThereNow(t *testing.T) {
	r := shelf(t)
	volumes, err := r.volumes(t.Context(), mounting(t, "configMap: {name: conf}"))
	if err != nil {
		t.Fatal(err)
	}
	read := volumes[0].Files("hello-00001-x7k2p")
	changed := &serving.ConfigMap{ObjectMeta: serving.ObjectMeta{Namespace: "default", Name: "conf"}, Data: map[string]string{"new": "entry"}}
	if _, err := r.Store.Update(t.Context(), changed, store.Spec); err != nil {
		t.Fatal(err)
	}
	files, err := read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]engine.File{{Path: "new", Mode: 0o644, Data: []byte("entry")}}, files); diff != "" {
		t.Error(diff)
	}
}

// tokenClaims reads a token without checking it, which package identity's tests do.
func tokenClaims(t *testing.T, files []engine.File) (string, jwt.Claims, map[string]any) {
	t.Helper()
	var claims jwt.Claims
	var all map[string]any
	token, err := jwt.ParseSigned(string(files[0].Data), []jose.SignatureAlgorithm{jose.RS256})
	if err == nil {
		err = token.UnsafeClaimsWithoutVerification(&claims, &all)
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(files[0].Data), claims, all["kubernetes.io"].(map[string]any)
}

func TestVolumes_TokenIsTheInstancesOwnAndRenewedInTime(t *testing.T) {
	r := shelf(t)
	for volume, life := range map[string]time.Duration{
		"projected: {sources: [{serviceAccountToken: {path: token, audience: vault}}]}":                             time.Hour,
		"projected: {sources: [{serviceAccountToken: {path: token, audience: vault, expirationSeconds: 600}}]}":     10 * time.Minute,
		"projected: {sources: [{serviceAccountToken: {path: token, audience: vault, expirationSeconds: 1000000}}]}": 1_000_000 * time.Second,
	} {
		volumes, err := r.volumes(t.Context(), mounting(t, volume))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Test(t, func(t *testing.T) {
			read, others := volumes[0].Files("hello-00001-x7k2p"), volumes[0].Files("hello-00001-other")
			first := must(t, read)
			text, claims, own := tokenClaims(t, first)
			if got := claims.Expiry.Time().Sub(time.Now()); got > life || got < life-time.Second || claims.Audience[0] != "vault" || claims.Subject != "system:serviceaccount:default:cart" {
				t.Errorf("%s: claims %+v", volume, claims)
			}
			if pod := own["pod"].(map[string]any)["name"]; pod != "hello-00001-deployment-x7k2p" {
				t.Errorf("the token is of pod %q", pod)
			}
			if other, _, _ := tokenClaims(t, must(t, others)); other == text {
				t.Error("two instances have the same token")
			}
			renewal := min(life*4/5, 24*time.Hour)
			time.Sleep(renewal - time.Second)
			if again, _, _ := tokenClaims(t, must(t, read)); again != text {
				t.Errorf("%s: it is renewed before %s", volume, renewal)
			}
			time.Sleep(time.Second)
			if again, _, _ := tokenClaims(t, must(t, read)); again == text {
				t.Errorf("%s: it is not renewed after %s", volume, renewal)
			}
		})
	}
}

func must(t *testing.T, read func(context.Context) ([]engine.File, error)) []engine.File {
	t.Helper()
	files, err := read(t.Context())
	if err != nil || len(files) != 1 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	return files
}

// declareWith stores a service as the API would, with a changed template.
func (h *house) declareWith(name string, change func(*serving.PodSpec)) {
	h.t.Helper()
	s := &serving.Service{ObjectMeta: serving.ObjectMeta{Namespace: "default", Name: name}}
	s.Spec.Template.Spec.Containers = []serving.Container{{Image: "registry/hello"}}
	change(&s.Spec.Template.Spec.PodSpec)
	h.write(s)
}

func TestVolumes_MissingOnesAreInTheConditionsUntilTheyAppear(t *testing.T) {
	t.Parallel()
	h := newHouse(t, t.TempDir())
	h.declareWith("hello", func(pod *serving.PodSpec) {
		pod.ServiceAccountName = "cart"
	})
	message := func(s *serving.Service) string { return s.Status.GetCondition(serving.ServiceReady).GetMessage() }
	create := func(o serving.Object) {
		if _, err := h.store.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	h.settle("hello", func(s *serving.Service) bool {
		return s.IsFailed() && strings.Contains(message(s), `serviceaccount "cart" not found`)
	})
	h.declareWith("other", func(pod *serving.PodSpec) {
		volume := serving.Volume{Name: "v"}
		volume.Secret = &serving.SecretVolumeSource{SecretName: "keys"}
		pod.Volumes = []serving.Volume{volume}
		pod.Containers[0].VolumeMounts = []serving.VolumeMount{{Name: "v", MountPath: "/v"}}
	})
	h.settle("other", func(s *serving.Service) bool {
		return s.IsFailed() && strings.Contains(message(s), `reading volume "v": secret "keys"`)
	})
	create(&serving.ServiceAccount{ObjectMeta: serving.ObjectMeta{Namespace: "default", Name: "cart"}})
	create(&serving.Secret{ObjectMeta: serving.ObjectMeta{Namespace: "default", Name: "keys"}})
	h.settle("hello", ready)
	h.settle("other", ready)
}

func TestAccount_EveryNamespaceKeepsItsOwn(t *testing.T) {
	h := newHouse(t, t.TempDir())
	w, err := h.store.Watch(t.Context(), serving.KindServiceAccount, "later", "")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	if _, err := h.store.Create(t.Context(), &serving.Namespace{ObjectMeta: serving.ObjectMeta{Name: "later"}}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if e := <-w.Events(); e.Type != store.Added || e.Object.GetName() != "default" {
			t.Fatalf("got %s of %q", e.Type, e.Object.GetName())
		}
		if _, err := h.store.Delete(t.Context(), serving.KindServiceAccount, "later", "default", serving.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if e := <-w.Events(); e.Type != store.Deleted {
			t.Fatalf("got %s", e.Type)
		}
	}
	if _, err := h.store.Get(t.Context(), serving.KindServiceAccount, "default", "default"); err != nil {
		t.Error(err)
	}
}
