package cli

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"knative.dev/pkg/apis"

	"github.com/berth-run/berth/serving"
)

func conditions(list ...apis.Condition) apis.Conditions { return apis.Conditions(list) }

func TestDeployment_JudgesByConditionsOfWhatWasWritten(t *testing.T) {
	const unknown, yes, no = serving.ConditionUnknown, serving.ConditionTrue, serving.ConditionFalse
	ready := func(status apis.Condition) apis.Conditions {
		status.Type = serving.ServiceReady
		return conditions(status)
	}
	pulling := apis.Condition{Type: serving.RevisionResourcesAvailable, Status: unknown, Reason: "PullingImage", Message: "Pulling the image: 1.0 of 2.0 MiB"}
	for _, test := range []struct {
		name       string
		observed   int64
		latest     string
		conditions apis.Conditions
		revision   apis.Conditions
		want       stage
	}{
		{"an old success says nothing", 1, "r1", ready(apis.Condition{Status: yes}), nil,
			stage{step: "accepted", text: "Service hello: accepted"}},
		{"an old failure says nothing", 1, "r1", ready(apis.Condition{Status: no, Message: "old"}), nil,
			stage{step: "accepted", text: "Service hello: accepted"}},
		{"no revision yet", 2, "", nil, nil,
			stage{step: "creating", text: "Service hello: creating a revision"}},
		{"the last deploy's revision", 2, "r1", nil, conditions(pulling),
			stage{step: "creating", text: "Service hello: creating a revision"}},
		{"pulling", 2, "r2", nil, conditions(pulling),
			stage{step: "r2 ResourcesAvailable PullingImage", text: "Revision r2: pulling the image: 1.0 of 2.0 MiB"}},
		{"nothing said", 2, "r2", nil, nil,
			stage{step: "creating", text: "Service hello: creating a revision"}},
		{"the revision failed, the service has not said so yet", 2, "r2", nil,
			conditions(apis.Condition{Type: serving.RevisionReady, Status: no, Message: "the whole story"}),
			stage{step: "r2 failed", text: "Revision r2: failed"}},
		{"revision ready", 2, "r2", nil, conditions(apis.Condition{Type: serving.RevisionReady, Status: yes}),
			stage{step: "r2 ready", text: "Revision r2: ready"}},
		{"routing", 2, "r2", conditions(apis.Condition{Type: serving.ServiceConfigurationsReady, Status: yes}), nil,
			stage{step: "routing", text: "Service hello: routing traffic"}},
		{"routing goes on", 2, "r2", conditions(apis.Condition{Type: serving.ServiceConfigurationsReady, Status: yes},
			apis.Condition{Type: serving.ServiceRoutesReady, Status: unknown, Message: "Traffic is not yet migrated to the latest revision."}), nil,
			stage{step: "routing", text: "Service hello: routing traffic"}},
		{"ready", 2, "r2", ready(apis.Condition{Status: yes}), nil, stage{ready: true}},
		{"failed", 2, "r2", ready(apis.Condition{Status: no, Message: "why"}),
			conditions(apis.Condition{Type: serving.RevisionReady, Status: no, Message: "the whole story"}),
			stage{failure: "why\nRevision r2: the whole story"}},
		{"failed, said once", 2, "r2", ready(apis.Condition{Status: no, Message: "r2: the whole story"}),
			conditions(apis.Condition{Type: serving.RevisionReady, Status: no, Message: "the whole story"}),
			stage{failure: "r2: the whole story"}},
		{"failed without a message", 2, "r2", ready(apis.Condition{Status: no, Reason: "Because"}), nil,
			stage{failure: "Because"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := deployment{awaited: serving.ServiceReady, service: &serving.Service{}, revisions: map[string]*serving.Revision{}, generation: 2, before: "r1"}
			d.service.Name = "hello"
			d.service.Status.ObservedGeneration = test.observed
			d.service.Status.LatestCreatedRevisionName = test.latest
			d.service.Status.SetConditions(test.conditions)
			if test.latest != "" {
				revision := &serving.Revision{ObjectMeta: serving.ObjectMeta{Name: test.latest}}
				revision.Status.SetConditions(test.revision)
				d.revisions[test.latest] = revision
			}
			if diff := cmp.Diff(test.want, d.judge(), cmp.AllowUnexported(stage{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
