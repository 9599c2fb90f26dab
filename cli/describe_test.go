package cli

import (
	"regexp"
	"strings"
	"testing"

	"knative.dev/pkg/apis"

	"github.com/berth-run/berth/serving"
)

// revisionWith is a ready revision that is asked for, with an Active condition.
func revisionWith(active apis.Condition) *serving.Revision {
	revision := &serving.Revision{ObjectMeta: serving.ObjectMeta{Name: "hello-00001"}}
	active.Type = serving.RevisionActive
	revision.Status.SetConditions(conditions(apis.Condition{Type: serving.RevisionReady, Status: serving.ConditionTrue}, active))
	return revision
}

func TestDescribeService_TellsWhyAReadyRevisionStartsNoInstanceAnyMore(t *testing.T) {
	service := &serving.Service{ObjectMeta: serving.ObjectMeta{Name: "hello"}}
	describe := func(active apis.Condition) string {
		t.Helper()
		var out strings.Builder
		if err := describeService(&out, service, []*serving.Revision{revisionWith(active)}); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	broken := apis.Condition{Status: serving.ConditionFalse, Reason: "ExitCode3", Message: "exited with code 3\nno database"}
	const says = "Revision hello-00001 starts no instance any more (ExitCode3): exited with code 3\nno database\n"
	if got := describe(broken); strings.Contains(got, says) {
		t.Errorf("a revision without traffic is nobody's problem:\n%s", got)
	}
	service.Status.Traffic = []serving.TrafficTarget{{RevisionName: "hello-00001"}}
	if got := describe(broken); !strings.Contains(got, says) {
		t.Errorf("got:\n%s\nwant in it:\n%s", got, says)
	}
	for _, fine := range []apis.Condition{{Status: serving.ConditionTrue}, {Status: serving.ConditionFalse, Reason: reasonNoTraffic, Message: "x"}} {
		if got := describe(fine); strings.Contains(got, "any more") {
			t.Errorf("%v:\n%s", fine, got)
		}
	}
}

func TestDescribeService_TellsThatRequestsWaitForMemory(t *testing.T) {
	service := &serving.Service{ObjectMeta: serving.ObjectMeta{Name: "hello"}}
	service.Status.Traffic = []serving.TrafficTarget{{RevisionName: "hello-00001"}}
	short := revisionWith(apis.Condition{Status: serving.ConditionUnknown, Reason: serving.ReasonWaitingForMemory, Message: "Requests wait."})
	var out strings.Builder
	if err := describeService(&out, service, []*serving.Revision{short}); err != nil {
		t.Fatal(err)
	}
	if want := "\nRevision hello-00001 (WaitingForMemory): Requests wait.\n"; !strings.Contains(out.String(), want) {
		t.Errorf("got:\n%s\nwant in it:\n%s", out.String(), want)
	}
}

func TestDescribeService_ShowsHowItsInstancesScaleAndGetTheCPU(t *testing.T) {
	for _, c := range []struct {
		annotations map[string]string
		want, not   []string
	}{
		{
			map[string]string{
				"autoscaling.knative.dev/window": "30s", "autoscaling.knative.dev/min-scale": "2", "run.googleapis.com/scaling-cpu-target": "0.6",
				"run.googleapis.com/client-name": "gcloud", serving.AnnotationThrottling: "true", serving.AnnotationBoost: "false",
			},
			[]string{"Scaling: +window=30s, scaling-cpu-target=0.6\n", "Min instances: +2\n", "CPU between requests: +withheld\n", "CPU boost at start: +no\n"},
			[]string{"gcloud"},
		},
		{map[string]string{serving.AnnotationThrottling: "FALSE"}, []string{"CPU between requests: +given\n"}, []string{"boost", "Scaling"}},
		{nil, nil, []string{"CPU", "Scaling"}},
	} {
		service := existing()
		service.Spec.Template.Annotations = c.annotations
		var out strings.Builder
		if err := describeService(&out, service, nil); err != nil {
			t.Fatal(err)
		}
		for _, want := range c.want {
			if !regexp.MustCompile(want).MatchString(out.String()) {
				t.Errorf("%v: got:\n%s\nwant in it %q", c.annotations, out.String(), want)
			}
		}
		for _, not := range c.not {
			if strings.Contains(out.String(), not) {
				t.Errorf("%v: got:\n%s\nwant no %q in it", c.annotations, out.String(), not)
			}
		}
	}
}

func TestDescribeService_MaxInstancesOfZeroIsNoLimit(t *testing.T) {
	service := existing()
	if err := (&change{maxScale: text("0")}).apply(service); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := describeService(&out, service, nil); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "Max instances:   no limit") {
		t.Errorf("got:\n%s", out.String())
	}
}
