package reconcile

import (
	"strings"
	"testing"

	"github.com/berth-run/berth/serving"
)

func TestService_SaysWhatItsLatestRevisionWaitsForAndWhyItFailed(t *testing.T) {
	for _, failed := range []bool{false, true} {
		revision := &serving.Revision{ObjectMeta: serving.ObjectMeta{Name: "hello-00002"}}
		revision.Status.InitializeConditions()
		const text = "Waiting for the container to listen on port 8080; it is 90% there"
		if failed {
			revision.Status.MarkContainerHealthyFalse("Starting", text)
		} else {
			revision.Status.MarkContainerHealthyUnknown("Starting", text)
		}
		configuration, service := &serving.Configuration{}, &serving.Service{}
		configuration.Status.InitializeConditions()
		configuration.Status.SetLatestCreatedRevisionName(revision.Name)
		markLatestCreated(configuration, revision)
		service.Status.InitializeConditions()
		markConfiguration(service, configuration)
		ready := service.Status.GetCondition(serving.ServiceReady)
		if ready.IsFalse() != failed || ready.Reason == "" ||
			!strings.Contains(ready.Message, `Revision "hello-00002"`) || !strings.Contains(ready.Message, text) {
			t.Errorf("failed %v: the service says %v", failed, ready)
		}
	}
}
