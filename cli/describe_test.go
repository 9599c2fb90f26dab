package cli

import (
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
