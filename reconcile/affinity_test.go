package reconcile

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/berth-run/berth/serving"
)

func TestTraffic_SessionAffinityIsAboveTheSplit(t *testing.T) {
	h := newHouse(t, t.TempDir())
	deploy := func(revision string, traffic ...serving.TrafficTarget) {
		s := &serving.Service{ObjectMeta: serving.ObjectMeta{Namespace: "default", Name: "hello"}}
		s.Spec.Template.Name = revision
		s.Spec.Template.Annotations = map[string]string{serving.AnnotationSessionAffinity: "true"}
		s.Spec.Template.Spec.Containers = []serving.Container{{Image: "registry/hello"}}
		s.Spec.Traffic = traffic
		h.write(s)
		h.settle("hello", func(s *serving.Service) bool {
			return s.IsReady() && s.Status.LatestReadyRevisionName == revision
		})
	}
	ask := func(cookie *http.Cookie) *http.Response {
		request := httptest.NewRequest(http.MethodGet, "http://hello.default.example.com/", nil)
		if cookie != nil {
			request.AddCookie(cookie)
		}
		recorder := httptest.NewRecorder()
		h.gateway.ServeHTTP(recorder, request)
		if recorder.Code != http.StatusOK {
			t.Fatalf("got %d %q", recorder.Code, recorder.Body)
		}
		return recorder.Result()
	}
	deploy("hello-one")
	cookies := ask(nil).Cookies()
	if len(cookies) != 1 {
		t.Fatalf("the answer set %v", cookies)
	}

	percent := func(n int64) *int64 { return &n }
	deploy("hello-two", serving.TrafficTarget{RevisionName: "hello-one", Percent: percent(1)}, serving.TrafficTarget{RevisionName: "hello-two", Percent: percent(99)})
	for range 20 {
		if set := ask(cookies[0]).Cookies(); len(set) != 0 {
			t.Fatalf("the client was taken elsewhere: %v", set)
		}
	}
	deploy("hello-three")
	if set := ask(cookies[0]).Cookies(); len(set) != 1 || set[0].Value == cookies[0].Value {
		t.Errorf("its revision has no traffic any more, and the answer set %v", set)
	}
}
