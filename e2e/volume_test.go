package e2e

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/go-cmp/cmp"

	"github.com/berth-run/berth/client"
	"github.com/berth-run/berth/serving"
)

// volumes is a service with every kind of volume.
const volumes = `apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {greeting: hello, other: thing}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {key: s3cret, greeting: hush}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: cart}
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: volumes}
spec:
  template:
    metadata:
      annotations: {autoscaling.knative.dev/min-scale: "1"}
      labels: {tier: front}
    spec:
      serviceAccountName: cart
      containers:
      - image: IMAGE
        securityContext: {runAsUser: 65532}
        volumeMounts:
        - {name: conf, mountPath: /etc/conf, readOnly: true}
        - {name: conf, mountPath: /fixed/greeting, subPath: greeting, readOnly: true}
        - {name: keys, mountPath: /keys}
        - {name: all, mountPath: /all}
        - {name: scratch, mountPath: /scratch}
        - {name: none, mountPath: /none}
      volumes:
      - {name: conf, configMap: {name: conf}}
      - {name: keys, secret: {secretName: keys, items: [{key: key, path: deep/key, mode: 0444}, {key: key, path: roots, mode: 0400}]}}
      - name: all
        projected:
          defaultMode: 0444
          sources:
          - configMap: {name: conf}
          - secret: {name: keys, items: [{key: greeting, path: greeting}]}
          - secret: {name: never, optional: true}
          - serviceAccountToken: {path: token, audience: vault, expirationSeconds: 1200}
          - downwardAPI: {items: [{path: pod, fieldRef: {fieldPath: metadata.name}}, {path: tier, fieldRef: {fieldPath: "metadata.labels['tier']"}}]}
      - {name: scratch, emptyDir: {sizeLimit: 4Mi}}
      - {name: none, secret: {secretName: never, optional: true}}
`

// attempted is what the test program found when it tried something.
type attempted struct {
	OK     bool
	Error  string
	Values []string
}

func (p *platform) attempt(url string) (a attempted) {
	p.t.Helper()
	got := p.get(url)
	if err := json.Unmarshal([]byte(got.body), &a); err != nil || got.status != 200 {
		p.t.Fatalf("GET %s: %d %q", url, got.status, got.body)
	}
	return a
}

func TestVolume_AllKinds(t *testing.T) {
	t.Parallel()
	p := start(t, nil)
	p.kubectl(strings.ReplaceAll(volumes, "IMAGE", program(t, "inspect")), "apply", "-f", "-")
	p.kubectl("", "wait", "--for=condition=Ready", "ksvc/volumes", "--timeout=60s")
	s, err := p.Services("default").Get(t.Context(), "volumes")
	if err != nil {
		t.Fatal(err)
	}
	url := s.Status.URL.String()
	read := func(path string) string {
		t.Helper()
		a := p.attempt(url + "/file?path=" + path)
		if !a.OK {
			t.Fatalf("reading %s: %s", path, a.Error)
		}
		return strings.Join(a.Values, " ")
	}
	for path, want := range map[string]string{
		"/etc/conf/greeting": "hello", "/etc/conf/other": "thing", "/fixed/greeting": "hello", "/keys/deep/key": "s3cret",
		"/all/greeting": "hush", "/all/other": "thing", "/all/tier": "front", "/scratch": "",
	} {
		if got := read(path); got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
	for path, want := range map[string][]string{
		"/etc/conf/greeting": {"-rw-r--r--", "0"}, "/keys/deep/key": {"-r--r--r--", "0"}, "/keys/roots": {"-r--------", "0"},
		"/all/token": {"-r--r--r--", "0"}, "/scratch": {"drwxrwxrwx", "0"},
	} {
		if diff := cmp.Diff(want, p.attempt(url+"/stat?path="+path).Values); diff != "" {
			t.Errorf("%s (-want +got):\n%s", path, diff)
		}
	}
	for path, says := range map[string]string{
		"/file?path=/keys/roots": "permission denied", "/write?path=/etc/conf/new": "read-only", "/write?path=/all/token": "denied",
		"/write?path=/scratch/small&size=1000": "",
	} {
		if a := p.attempt(url + path); !strings.Contains(a.Error, says) || a.OK != (says == "") {
			t.Errorf("%s: %+v, want %q", path, a, says)
		}
	}
	if a := p.attempt(url + "/write?path=/scratch/large&size=5000000"); a.OK || !strings.Contains(a.Error, "no space left") {
		t.Errorf("a volume of 4 MiB takes 5 MB: %+v", a)
	}
	if got := read("/none"); strings.Contains(got, "key") {
		t.Errorf("the volume of a secret that is not there has %q", got)
	}
	var pods []string
	p.await("the instance's pod", func() error {
		pods, err = p.pods("volumes")
		return errors.Join(err, errorUnless(cmp.Equal(pods, []string{read("/all/pod")}), "pods %q, the instance says %q", pods, read("/all/pod")))
	})
	p.checkToken(read("/all/token"), pods)

	// A change reaches the instance that runs.
	conf, err := p.ConfigMaps("default").Get(t.Context(), "conf")
	if err != nil {
		t.Fatal(err)
	}
	conf = conf.DeepCopy()
	conf.Data = map[string]string{"greeting": "good morning", "new": "entry"}
	if _, err := p.ConfigMaps("default").Update(t.Context(), conf); err != nil {
		t.Fatal(err)
	}
	p.await("the change to reach the instance", func() error {
		got := read("/etc/conf/greeting")
		return errorUnless(got == "good morning", "it reads %q", got)
	})
	if a := p.attempt(url + "/file?path=/etc/conf/other"); a.OK {
		t.Error("a file whose key is gone is still there")
	}
	if got := read("/etc/conf/new") + " " + read("/all/new") + " " + read("/fixed/greeting"); got != "entry entry hello" {
		t.Errorf("after the change there are %q", got)
	}
	if now, err := p.pods("volumes"); err != nil || !cmp.Equal(now, pods) {
		t.Errorf("pods %q, %v, were %q", now, err, pods)
	}
}

// pods names the pods of a service.
func (p *platform) pods(service string) (names []string, err error) {
	all, _, err := p.Objects(serving.KindPod, "default").List(p.t.Context(), client.Selector{Labels: map[string]string{serving.LabelService: service}})
	for _, pod := range all {
		names = append(names, pod.GetName())
	}
	return names, err
}

// checkToken checks a token as a stranger would, by what the issuer publishes.
func (p *platform) checkToken(text string, pods []string) {
	p.t.Helper()
	fetch := func(url string, into any) {
		request, err := http.NewRequestWithContext(p.t.Context(), http.MethodGet, url, nil)
		if err != nil {
			p.t.Fatal(err)
		}
		reply, err := p.Transport().RoundTrip(request) // without the API's token
		if err != nil {
			p.t.Fatal(err)
		}
		defer reply.Body.Close()
		if err := json.NewDecoder(reply.Body).Decode(into); err != nil || reply.StatusCode != http.StatusOK {
			p.t.Fatalf("GET %s: %s, %v", url, reply.Status, err)
		}
	}
	var discovery struct {
		Issuer string
		Keys   string `json:"jwks_uri"`
	}
	fetch(p.Server()+"/.well-known/openid-configuration", &discovery)
	var keys jose.JSONWebKeySet
	fetch(discovery.Keys, &keys)
	token, err := jwt.ParseSigned(text, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		p.t.Fatalf("%q is no token: %v", text, err)
	}
	var claims struct {
		jwt.Claims
		Kubernetes struct {
			Namespace string `json:"namespace"`
			Pod       struct {
				Name string `json:"name"`
			} `json:"pod"`
			ServiceAccount struct {
				Name string `json:"name"`
				UID  string `json:"uid"`
			} `json:"serviceaccount"`
		} `json:"kubernetes.io"`
	}
	if err := token.Claims(keys, &claims); err != nil {
		p.t.Fatalf("checking the token: %v", err)
	}
	expected := jwt.Expected{Issuer: p.Server(), Subject: "system:serviceaccount:default:cart", AnyAudience: jwt.Audience{"vault"}, Time: time.Now()}
	if err := claims.Validate(expected); err != nil {
		p.t.Error(err)
	}
	expected.Time = time.Now().Add(1200*time.Second + 2*jwt.DefaultLeeway)
	if err := claims.Validate(expected); !errors.Is(err, jwt.ErrExpired) {
		p.t.Errorf("after 20 minutes: %v", err)
	}
	account, err := p.Objects(serving.KindServiceAccount, "default").Get(p.t.Context(), "cart")
	if err != nil {
		p.t.Fatal(err)
	}
	if k := claims.Kubernetes; k.Namespace != "default" || k.ServiceAccount.Name != "cart" || k.ServiceAccount.UID != string(account.GetUID()) || !cmp.Equal(pods, []string{k.Pod.Name}) {
		p.t.Errorf("claims %+v", k)
	}
}
