package serving_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-run/berth/serving"
)

func TestCopyStatus_CopiesTheStatusOnly(t *testing.T) {
	from := read[serving.Service](t, "metadata: {name: from}\nstatus: {url: 'http://hello.example', latestReadyRevisionName: hello-00002}")
	to := read[serving.Service](t, "metadata: {name: to}\nstatus: {address: {url: 'http://old.example'}, latestReadyRevisionName: hello-00001}")
	want := from.DeepCopy()
	want.Name = "to"
	if !serving.CopyStatus(to, from) {
		t.Error("a service has no status")
	}
	if diff := cmp.Diff(want, to); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestCopyStatus_KnowsTheKindsThatHaveOne(t *testing.T) {
	without := map[string]bool{
		serving.KindSecret.Name: true, serving.KindConfigMap.Name: true, serving.KindEvent.Name: true,
		serving.KindClusterDomainClaim.Name: true, serving.KindServiceAccount.Name: true,
	}
	for _, kind := range serving.Kinds {
		if has := serving.CopyStatus(kind.New(), kind.New()); has == without[kind.Name] {
			t.Errorf("%s has a status: %t", kind.Name, has)
		}
	}
}
