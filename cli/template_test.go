package cli

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-run/berth/serving"
)

func text(s string) *string { return &s }

// existing is a service as the server returns it after a first deploy.
func existing() *serving.Service {
	s := &serving.Service{ObjectMeta: serving.ObjectMeta{Name: "hello", ResourceVersion: "7", Generation: 3}}
	s.Spec.Template.Spec.Containers = []serving.Container{{
		Image: "old", Args: []string{"-v"}, Ports: []serving.ContainerPort{{ContainerPort: 9000}},
		Env: []serving.EnvVar{{Name: "A", Value: "1"}, {Name: "S", ValueFrom: &serving.EnvVarSource{}}},
	}}
	s.Spec.Template.Name = "hello-old"
	s.Status.LatestReadyRevisionName = "hello-00003"
	return s
}

func TestChange_LeavesWhatNoFlagNames(t *testing.T) {
	got, want := existing(), existing()
	ch := change{image: text("new")}
	if err := ch.apply(got); err != nil {
		t.Fatal(err)
	}
	want.Spec.Template.Spec.Containers[0].Image = "new"
	want.Spec.Template.Name = "" // a name is that of one revision
	nonce := got.Spec.Template.Labels[labelNonce]
	if len(nonce) != 10 {
		t.Errorf("nonce %q", nonce)
	}
	want.Spec.Template.Labels = map[string]string{labelNonce: nonce}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestChange_Container(t *testing.T) {
	s := existing()
	yes := true
	ch := change{
		port: text("default"), http2: &yes, command: []string{"/bin/x"}, args: []string{},
		env: []pair{{"B", "2"}}, envClear: true, cpu: "500m", memory: "1Gi",
		concurrency: text("5"), timeout: text("5m"), minScale: text("1"), maxScale: text("4"), insecureRegistry: &yes, affinity: &yes,
	}
	if err := ch.apply(s); err != nil {
		t.Fatal(err)
	}
	c := s.Spec.Template.Spec.Containers[0]
	if diff := cmp.Diff([]serving.ContainerPort{{Name: "h2c", ContainerPort: 8080}}, c.Ports); diff != "" {
		t.Errorf("ports (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]serving.EnvVar{{Name: "S", ValueFrom: &serving.EnvVarSource{}}, {Name: "B", Value: "2"}}, c.Env); diff != "" {
		t.Errorf("env (-want +got):\n%s", diff)
	}
	if len(c.Command) != 1 || c.Args != nil || c.Resources.Limits.Cpu().MilliValue() != 500 || c.Resources.Limits.Memory().Value() != 1<<30 {
		t.Errorf("container %+v", c)
	}
	spec, annotations := s.Spec.Template.Spec, s.Spec.Template.Annotations
	if *spec.ContainerConcurrency != 5 || *spec.TimeoutSeconds != 300 {
		t.Errorf("concurrency %d, timeout %d", *spec.ContainerConcurrency, *spec.TimeoutSeconds)
	}
	want := map[string]string{serving.AnnotationMinScale: "1", serving.AnnotationMaxScale: "4", serving.AnnotationInsecureRegistry: "true", serving.AnnotationSessionAffinity: "true"}
	if diff := cmp.Diff(want, annotations); diff != "" {
		t.Errorf("annotations (-want +got):\n%s", diff)
	}
}

func TestChange_NoTrafficPinsWhatIsReadyNow(t *testing.T) {
	s := existing()
	ch := change{image: text("new"), noTraffic: true, tag: "next", number: 4}
	if err := ch.apply(s); err != nil {
		t.Fatal(err)
	}
	name := s.Spec.Template.Name
	if name != "hello-00004" {
		t.Errorf("revision name %q", name)
	}
	if got, want := printTraffic(readTraffic(s.Spec.Traffic)), "hello-00003=100 #next="+name; got != want {
		t.Errorf("traffic %q, want %q", got, want)
	}
}

func TestChange_RefusesWhatMakesNoSense(t *testing.T) {
	for _, test := range []struct {
		change change
		says   string
	}{
		{change{port: text("http")}, `--port "http" is not a port`},
		{change{port: text("70000")}, `--port "70000"`},
		{change{cpu: "lots"}, `--cpu "lots" is not an amount`},
		{change{memory: "512"}, `--memory "512" is 512 bytes`},
		{change{memory: "-1Gi"}, `--memory "-1Gi"`},
		{change{concurrency: text("-1")}, `--concurrency "-1"`},
		{change{timeout: text("1.5")}, `--timeout "1.5" is not a time in whole seconds`},
		{change{timeout: text("0")}, `--timeout "0"`},
		{change{minScale: text("one")}, `--min-instances "one"`},
		{change{maxScale: text("-2")}, `--max-instances "-2"`},
		{change{minScale: text("3"), maxScale: text("2")}, "--min-instances 3 is more than --max-instances 2"},
		{change{revisionSuffix: "a_b"}, `--revision-suffix: "hello-a_b"`},
		{change{revisionSuffix: strings.Repeat("a", 58)}, "at most 63 characters"},
		{change{tag: "Next"}, `--tag: "Next" cannot be a tag`},
		{change{tag: strings.Repeat("a", 58)}, "which has 64 characters and may have 63"},
		{change{envRemove: []string{"NOPE"}}, `--remove-env-vars: the service has no environment variable "NOPE"; it has: A, S`},
		{change{env: []pair{{"S", "x"}}}, "S has its value from a secret"},
	} {
		if err := test.change.apply(existing()); err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("error %v, want %q in it", err, test.says)
		}
	}
}

func TestChange_ScaleIsHeldAgainstWhatIsThereFromBefore(t *testing.T) {
	s := existing()
	if err := (&change{minScale: text("3")}).apply(s); err != nil {
		t.Fatal(err)
	}
	err := (&change{maxScale: text("2")}).apply(s.DeepCopy())
	if err == nil || !strings.Contains(err.Error(), "the service has --min-instances 3 from before: give both") {
		t.Errorf("error %v", err)
	}
	if err := (&change{maxScale: text("0")}).apply(s); err != nil {
		t.Errorf("0 is no limit: %v", err)
	}
	if err := (&change{maxScale: text("2"), minScale: text("default")}).apply(s); err != nil {
		t.Error(err)
	}
}

func TestNumbered_FitsADNSLabelWhereItCan(t *testing.T) {
	for length, want := range map[int]string{5: "-00007", 57: "-00007", 58: "-7", 61: "-7"} {
		service := strings.Repeat("a", length)
		if got := numbered(service, 7); got != service+want || !isName(got) {
			t.Errorf("%d characters: %q", length, got)
		}
	}
}
