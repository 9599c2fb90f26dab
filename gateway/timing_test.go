package gateway

import (
	"encoding/json"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/berth-run/berth/engine"
)

// startedInstance is an instance that tells of its start.
type startedInstance struct {
	*fakeInstance
	stages []engine.Stage
}

func (i *startedInstance) Stages() []engine.Stage { return i.stages }

// serverTiming is the syntax of a Server-Timing value with durations (W3C, Server Timing, 2).
var serverTiming = regexp.MustCompile(`^([a-z]+;dur=[0-9]+(\.[0-9]+)?)(, [a-z]+;dur=[0-9]+(\.[0-9]+)?)*$`)

// stagesOf are the names in a Server-Timing value.
func stagesOf(t *testing.T, value string) []string {
	t.Helper()
	if !serverTiming.MatchString(value) {
		t.Fatalf("Server-Timing is %q", value)
	}
	var names []string
	for metric := range strings.SplitSeq(value, ", ") {
		name, _, _ := strings.Cut(metric, ";")
		names = append(names, name)
	}
	return names
}

func TestGateway_TellsTheStagesOfAColdStart(t *testing.T) {
	for name, c := range map[string]struct {
		http2Client, http2Instance bool
		want                       []string
	}{
		"on a loop":             {false, false, []string{"wake", "release", "listen", "claim", "connect", "answer"}},
		"by net/http":           {true, false, []string{"wake", "release", "listen", "claim", "connect", "answer"}},
		"to an HTTP/2 instance": {false, true, []string{"wake", "release", "listen", "claim", "answer"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			revision := testRevision()
			revision.HTTP2 = c.http2Instance
			woken := make(chan struct{}, 1)
			revision.Wake = func() { woken <- struct{}{} }
			a := NewActivator(revision)
			var out lockedBuffer
			registry := prometheus.NewRegistry()
			go func() {
				<-woken
				// Prepared long before, and then started for the request.
				begun := time.Now()
				instance := &startedInstance{serveInstance(t, "hello-00001-a", func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Server-Timing", "db;dur=1")
				}), []engine.Stage{
					{Name: "create", Begun: begun.Add(-time.Hour), Took: time.Minute},
					{Name: "release", Begun: begun, Took: time.Microsecond},
					{Name: "listen", Begun: begun.Add(time.Microsecond), Took: time.Microsecond},
				}}
				a.Add(instance)
			}()
			var response, warm *http.Response
			var took time.Duration
			t.Run("serve", func(t *testing.T) { // its end is the end of Serve, which writes the last lines
				_, address := startGateway(t, Config{AccessLog: &out, Registerer: registry, ServerTiming: true}, a)
				client := http.DefaultClient
				if c.http2Client {
					client = http2Client(t)
				}
				begun := time.Now()
				response, _ = fetchBy(t, client, newRequest(t, "GET", address, "/", ""))
				took = time.Since(begun)
				warm, _ = fetchBy(t, client, newRequest(t, "GET", address, "/", ""))
				waitForLoad(t, a, 0, 0)
			})
			values := response.Header["Server-Timing"]
			if len(values) != 2 || !slices.Contains(values, "db;dur=1") {
				t.Fatalf("Server-Timing is %q, want the instance's and the gateway's", values)
			}
			values = slices.DeleteFunc(values, func(value string) bool { return value == "db;dur=1" })
			if diff := cmp.Diff(c.want, stagesOf(t, values[0])); diff != "" {
				t.Errorf("stages (-want +got):\n%s", diff)
			}

			if values := warm.Header["Server-Timing"]; len(values) != 1 {
				t.Errorf("Server-Timing of a request that did not wait is %q", values)
			}
			lines := strings.Split(strings.TrimSpace(out.text()), "\n")
			if len(lines) != 2 {
				t.Fatalf("the access log is %q, want two lines", lines)
			}
			var cold struct {
				Stages   map[string]float64 `json:"stages_ms"`
				Duration float64            `json:"duration_ms"`
			}
			if err := json.Unmarshal([]byte(lines[0]), &cold); err != nil {
				t.Fatalf("%q: %v", lines[0], err)
			}
			sum := 0.0
			for _, stage := range c.want {
				if _, ok := cold.Stages[stage]; !ok {
					t.Errorf("the access log has no stage %q: %s", stage, lines[0])
				}
				sum += cold.Stages[stage]
			}
			if len(cold.Stages) != len(c.want) || sum <= 0 || sum > took.Seconds()*1000 {
				t.Errorf("stages of %f ms in all, want %d of no more than %s: %s", sum, len(c.want), took, lines[0])
			}
			if strings.Contains(lines[1], "stages_ms") {
				t.Errorf("the access log has stages of a request that did not wait: %s", lines[1])
			}
			counted := gather(t, registry)
			for _, stage := range c.want {
				if n := counted["berth_request_wait_seconds "+stage]; n != 1 {
					t.Errorf("stage %q was counted %v times: %v", stage, n, counted)
				}
			}
		})
	}
}

func TestGateway_TellsOfAThaw(t *testing.T) {
	for name, client := range map[string]*http.Client{"on a loop": http.DefaultClient, "by net/http": http2Client(t)} {
		t.Run(name, func(t *testing.T) {
			revision := throttled()
			revision.IdleDelay = time.Millisecond
			a := NewActivator(revision)
			instance := serveInstance(t, "a", func(http.ResponseWriter, *http.Request) {})
			a.Add(instance)
			_, address := startGateway(t, Config{ServerTiming: true}, a)
			for range 2 {
				awaitFrozen(t, instance)
				response, _ := fetchBy(t, client, newRequest(t, "GET", address, "/", ""))
				want := []string{"wake", "thaw", "claim", "connect", "answer"}
				if diff := cmp.Diff(want, stagesOf(t, response.Header.Get("Server-Timing"))); diff != "" {
					t.Errorf("stages (-want +got):\n%s", diff)
				}
			}
		})
	}
}

func TestGateway_SaysNothingOfStagesUnlessAsked(t *testing.T) {
	revision := testRevision()
	woken := make(chan struct{}, 1)
	revision.Wake = func() { woken <- struct{}{} }
	a := NewActivator(revision)
	_, address := startGateway(t, Config{}, a)
	go func() {
		<-woken
		a.Add(serveInstance(t, "a", func(http.ResponseWriter, *http.Request) {}))
	}()
	response, _ := fetch(t, newRequest(t, "GET", address, "/", ""))
	if values := response.Header["Server-Timing"]; values != nil {
		t.Errorf("Server-Timing is %q", values)
	}
}

func TestGateway_TellsTheStagesOfAnUpgrade(t *testing.T) {
	revision := testRevision()
	woken := make(chan struct{}, 1)
	revision.Wake = func() { woken <- struct{}{} }
	a := NewActivator(revision)
	_, address := startGateway(t, Config{ServerTiming: true}, a)
	go func() {
		<-woken
		a.Add(serveInstance(t, "a", func(w http.ResponseWriter, r *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		}))
	}()
	got := exchangeRaw(t, address, "GET / HTTP/1.1\r\nHost: hello.test\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	_, value, _ := strings.Cut(got, "Server-Timing: ")
	value, _, _ = strings.Cut(value, "\r\n")
	if diff := cmp.Diff([]string{"queue", "connect", "answer"}, stagesOf(t, value)); diff != "" {
		t.Errorf("stages of %q (-want +got):\n%s", got, diff)
	}
}

func TestTiming(t *testing.T) {
	arrived := time.Now()
	at := func(ms int) time.Time { return arrived.Add(time.Duration(ms) * time.Millisecond) }
	stage := func(name string, from, to int) engine.Stage {
		return engine.Stage{Name: name, Begun: at(from), Took: at(to).Sub(at(from))}
	}
	for name, c := range map[string]struct {
		started []engine.Stage
		want    string
	}{
		"nothing is known":             {[]engine.Stage{{Name: "listen", Took: time.Second}}, "queue;dur=100.000"},
		"it had started before":        {[]engine.Stage{stage("release", -9, -8), stage("listen", -8, -1)}, "queue;dur=100.000"},
		"prepared before":              {[]engine.Stage{stage("create", -9, -8), stage("release", 10, 20), stage("listen", 20, 90)}, "wake;dur=10.000, release;dur=10.000, listen;dur=70.000, claim;dur=10.000"},
		"prepared for it":              {[]engine.Stage{stage("create", 5, 10), stage("release", 20, 30), stage("listen", 30, 99)}, "wake;dur=15.000, create;dur=5.000, release;dur=10.000, listen;dur=69.000, claim;dur=1.000"},
		"in the middle of a start":     {[]engine.Stage{stage("release", -9, -8), stage("listen", -8, 60)}, "listen;dur=60.000, claim;dur=40.000"},
		"steps of containers together": {[]engine.Stage{stage("rootfs", 0, 40), stage("create", 20, 60)}, "rootfs;dur=40.000, create;dur=20.000, claim;dur=40.000"},
		"a step that is not over":      {[]engine.Stage{stage("thaw", 50, 150)}, "queue;dur=100.000"},
	} {
		got := string(newTiming(arrived, at(100), c.started).appendServerTiming(nil))
		if got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}

	var none *timing
	none.lapNow(stageAnswer)
	again := newTiming(arrived, at(10), nil)
	again.lap(stageConnect, at(20))
	again.lap(stageQueue, at(40)) // it could not be reached, and waited again
	again.lap(stageConnect, at(45))
	again.lap(stageAnswer, at(44)) // clocks are read on several threads
	if got, want := string(again.appendJSON(nil)), `{"queue":30.000,"connect":15.000,"answer":0.000}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
