package serving_test

import (
	"strings"
	"testing"
	"time"

	"github.com/berth-run/berth/serving"
)

func TestAdmit_TakesTimeoutsUpToTheLongest(t *testing.T) {
	s := service(t, "")
	long := int64(3600)
	s.Spec.Template.Spec.TimeoutSeconds = &long
	if warnings, err := admission(t).Admit(t.Context(), serving.Change{New: s}); err != nil || len(warnings) != 0 {
		t.Errorf("got %v, %q", err, warnings)
	}
	spec := s.Spec.Template.Spec
	if *spec.TimeoutSeconds != 3600 || spec.ResponseStartTimeoutSeconds != nil || spec.IdleTimeoutSeconds != nil {
		t.Errorf("got %d, %v, %v; want 3600 and nothing that ends a request before", *spec.TimeoutSeconds, spec.ResponseStartTimeoutSeconds, spec.IdleTimeoutSeconds)
	}

	longer := settings()
	longer.MaxRevisionTimeout = 24 * time.Hour
	a, err := serving.NewAdmission(longer)
	if err != nil {
		t.Fatal(err)
	}
	day := int64(86400)
	s = service(t, "")
	s.Spec.Template.Spec.TimeoutSeconds, s.Spec.Template.Spec.ResponseStartTimeoutSeconds, s.Spec.Template.Spec.IdleTimeoutSeconds = &day, &day, &day
	if _, err := a.Admit(t.Context(), serving.Change{New: s}); err != nil {
		t.Error(err)
	}
}

func TestAdmit_RefusesTimeoutsOutOfBounds(t *testing.T) {
	for _, n := range []int64{-1, 3601} {
		s := service(t, "")
		spec := &s.Spec.Template.Spec
		spec.TimeoutSeconds, spec.ResponseStartTimeoutSeconds, spec.IdleTimeoutSeconds = &n, &n, &n
		causes := refusal(t, serving.Change{New: s}).Details.Causes
		fields := map[string]bool{}
		for _, cause := range causes {
			fields[cause.Field] = strings.Contains(cause.Message, "<= 3600")
		}
		for _, field := range []string{"timeoutSeconds", "responseStartTimeoutSeconds", "idleTimeoutSeconds"} {
			if !fields["spec.template.spec."+field] || len(causes) != 3 {
				t.Errorf("%d: causes %+v; want one for %s", n, causes, field)
			}
		}
	}
}

func TestAdmit_WarnsOfATimeoutThatAnotherOneEndsBefore(t *testing.T) {
	s := service(t, "")
	start, timeout := int64(20), int64(10)
	s.Spec.Template.Spec.TimeoutSeconds, s.Spec.Template.Spec.ResponseStartTimeoutSeconds = &timeout, &start
	warnings, err := admission(t).Admit(t.Context(), serving.Change{New: s})
	if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "responseStartTimeoutSeconds has no effect: it is 20, and timeoutSeconds, which is 10") {
		t.Errorf("got %v, %q", err, warnings)
	}
}

func TestAdmit_TakesOnlyTrueAndFalseForSessionAffinity(t *testing.T) {
	for value, want := range map[string]bool{"true": true, "false": true, "": false, "True": false, "yes": false} {
		s := service(t, "")
		s.Spec.Template.Annotations = map[string]string{serving.AnnotationSessionAffinity: value}
		if want {
			if _, err := admission(t).Admit(t.Context(), serving.Change{New: s}); err != nil {
				t.Errorf("%q: %v", value, err)
			}
			continue
		}
		causes := refusal(t, serving.Change{New: s}).Details.Causes
		const field = "spec.template.metadata.annotations[run.googleapis.com/sessionAffinity]"
		if len(causes) != 1 || causes[0].Field != field || !strings.Contains(causes[0].Message, `set it to "true" or "false"`) {
			t.Errorf("%q: causes %+v", value, causes)
		}
	}
}
