package reconcile

import (
	"runtime"
	"testing"
	"time"
	"weak"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/berth-run/berth/gateway"
	"github.com/berth-run/berth/serving"
)

func TestGatewayRevision_HasWhatTheTemplateSaysOfRequests(t *testing.T) {
	seconds := func(n int64) *int64 { return &n }
	revision := &serving.Revision{}
	revision.Namespace, revision.Name = "default", "hello-00001"
	revision.Annotations = map[string]string{serving.AnnotationSessionAffinity: "true"}
	revision.Labels = map[string]string{serving.LabelService: "hello", serving.LabelConfiguration: "hello"}
	revision.Spec.Containers = []serving.Container{{Ports: []serving.ContainerPort{{Name: "h2c"}}}}
	revision.Spec.ContainerConcurrency = seconds(7)
	revision.Spec.TimeoutSeconds = seconds(3600)
	revision.Spec.ResponseStartTimeoutSeconds = seconds(60)
	revision.Spec.IdleTimeoutSeconds = seconds(30)
	r := &Reconciler{Config: Config{MaxQueue: 9}}
	want := gateway.Revision{
		Namespace: "default", Service: "hello", Configuration: "hello", Name: "hello-00001",
		Concurrency: 7, Timeout: time.Hour, ResponseStart: time.Minute, Idle: 30 * time.Second,
		Affinity: true, HTTP2: true, MaxQueue: 9,
	}
	if diff := cmp.Diff(want, r.gatewayRevision(revision), cmpopts.IgnoreFields(gateway.Revision{}, "Wake", "Short", "FreezeFailed")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	revision.Annotations[serving.AnnotationSessionAffinity] = "false"
	if r.gatewayRevision(revision).Affinity {
		t.Error("it has affinity")
	}
}

func TestGatewayRevision_DoesNotKeepTheRevision(t *testing.T) {
	revision := &serving.Revision{}
	revision.Name = "hello-00001"
	revision.Spec.Containers = []serving.Container{{Image: "hello"}}
	kept := weak.Make(revision)
	of := (&Reconciler{}).gatewayRevision(revision)
	runtime.GC()
	if kept.Value() != nil {
		t.Error("it does: every revision that is served stays decoded in memory")
	}
	runtime.KeepAlive(of)
}

func TestServingPort_IsTheDefaultUnlessNumbered(t *testing.T) {
	for name, test := range map[string]struct {
		ports []serving.ContainerPort
		want  int
	}{
		"no port":     {nil, 8080},
		"a name only": {[]serving.ContainerPort{{Name: "h2c"}}, 8080},
		"a number":    {[]serving.ContainerPort{{ContainerPort: 3000}}, 3000},
		"both":        {[]serving.ContainerPort{{Name: "http1", ContainerPort: 3000}}, 3000},
	} {
		if got := servingPort(serving.Container{Ports: test.ports}); got != test.want {
			t.Errorf("%s: %d, want %d", name, got, test.want)
		}
	}
}
