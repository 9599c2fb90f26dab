package gateway

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// contractTests says, for each clause of Cloud Run's contract that is about requests, which tests hold the gateway to it. What is
// deliberately otherwise is in DESIGN.md, and is what the test shows.
var contractTests = map[string]string{
	"C12": "TestServeTLS_SpeaksWhatTheClientOffers",
	"C13": "TestContract_C13_AnInstanceIsAskedOverTheProtocolOfItsRevision",
	"C16": "TestGateway_Answers504WhenNoResponseBeginsInTime TestGateway_CountsTheWaitForAnInstanceIntoTheTimeout",
	"C17": "TestProxy_MakesCookiesPrivateWhenAsked",
	"C18": "TestProxy_AnswersMalformedResponsesWith503 TestWire_HeadersOfRequestsArriveUnchanged",
	"C19": "TestContract_C19_TraceAndConnectAreNotDelivered",
	"C20": "TestWire_TargetsArriveByteForByte",
	"C21": "TestWire_TargetsArriveByteForByte",
	"C22": "TestContract_C22_NothingIsPushed",
	"C23": "TestWire_AClientThatLeavesEndsTheInstancesWork TestWire_AnHTTP2ClientThatLeavesIsNoticedInEveryState",
	"C24": "TestWire_WebSocketsCarryMessagesOfAnyKindAndSize",
	"C25": "TestRedirect_NamesTheSameURLWithHTTPS",
	"C31": "TestProxy_SetsTheHeadersOfTheContract TestProxy_KeepsWhatTrustedProxiesSay",
	"C32": "TestProxy_SetsTheHeadersOfTheContract",
	"C33": "TestProxy_SetsTheHeadersOfTheContract",
	"C34": "TestProxy_SetsTheHeadersOfTheContract TestTraceOf_ReadsEitherHeader",
	"C35": "TestProxy_SetsTheHeadersOfTheContract TestTraceOf_ReadsEitherHeader",
	"C36": "TestProxy_SetsTheHeadersOfTheContract",
	"C37": "TestContract_C37_CredentialsAreTheServicesOwn",
	"C38": "TestContract_C37_CredentialsAreTheServicesOwn",
	"C48": "TestGateway_AnswersAsCloudRunDoesAfterTheQueueWait",
	"C53": "TestActivator_DrainsAnInstanceThatIsRemoved TestScaleIn_WaitsForRequestsInFlight",
	"E6":  "TestContract_E6_ARequestForNoServiceIsNotLogged",
	"E7":  "TestContract_C37_CredentialsAreTheServicesOwn",
	"E8":  "TestContract_C37_CredentialsAreTheServicesOwn",
	"E9":  "TestGateway_Answers429WhenTheQueueIsFull TestGateway_AnswersAsCloudRunDoesAfterTheQueueWait",
	"E10": "TestGateway_AnswersAsCloudRunDoesAfterTheQueueWait",
	"E11": "TestGateway_TellsWaitingClientsWhyTheInstanceDidNotStart",
	"E12": "TestProxy_SaysThatAnInstanceDied TestInstance_OutOfMemoryWithARequestInFlight",
	"E13": "TestProxy_AnswersMalformedResponsesWith503 TestProxy_SaysThatAnInstanceDied",
	"E14": "TestGateway_Answers429WhenTheQueueIsFull",
	"E15": "TestGateway_Answers504WhenNoResponseBeginsInTime",
	"E16": "TestProbes_LivenessStartsTheContainerAgainInItsInstance",
	"E17": "TestProxy_TellsTheOwnerOfATruncatedResponse",
}

func TestContract_EveryClauseHasTestsThatExist(t *testing.T) {
	exists := make(map[string]bool)
	for _, pattern := range []string{"*_test.go", "../*/*_test.go", "../*/*/*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, found := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllSubmatch(text, -1) {
				exists[string(found[1])] = true
			}
		}
	}
	for clause, tests := range contractTests {
		for test := range strings.FieldsSeq(tests) {
			if !exists[test] {
				t.Errorf("%s: there is no %s", clause, test)
			}
		}
	}
}

func TestContract_C13_AnInstanceIsAskedOverTheProtocolOfItsRevision(t *testing.T) {
	betweenProtocols(t, func(t *testing.T, revision Revision, client *http.Client) {
		_, address := through(t, revision, func(w http.ResponseWriter, r *http.Request) { w.Header().Set("X-Proto", r.Proto) })
		for contentType, want := range map[string]string{"text/plain": "HTTP/1.1", "application/grpc": "HTTP/1.1", "application/grpc-web": "HTTP/1.1"} {
			r := newRequest(t, "POST", address, "/", "body")
			r.Header.Set("Content-Type", contentType)
			response, _ := fetchBy(t, client, r)
			if revision.HTTP2 || contentType == "application/grpc" && response.ProtoMajor == 2 { // gRPC is never carried over HTTP/1.1
				want = "HTTP/2.0"
			}
			if got := response.Header.Get("X-Proto"); got != want {
				t.Errorf("a request of %s over %s came over %s, want %s", contentType, response.Proto, got, want)
			}
		}
	})
}

func TestContract_C19_TraceAndConnectAreNotDelivered(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		a, address := serve(Config{}, testRevision(), wireInstance(t, "a", answering(nil)))
		for _, line := range []string{"TRACE / HTTP/1.1", "CONNECT hello.test:80 HTTP/1.1", "CONNECT / HTTP/1.1"} {
			c := dialWire(t, address)
			c.say(line + "\r\nHost: hello.test\r\nConnection: close\r\n\r\n")
			h, _ := c.response()
			if status := strings.Fields(h.line)[1]; status != "405" && (status != "400" || !strings.HasPrefix(line, "CONNECT /")) {
				t.Errorf("%s: got %v", line, h)
			}
			if strings.HasPrefix(h.line, "HTTP/1.1 405 ") && h.value("Allow") == "" { // RFC 9110, 15.5.6
				t.Errorf("%s: what is allowed is not said: %v", line, h)
			}
		}
		if n := a.Load().Requests; n != 0 {
			t.Errorf("%d requests came to the revision", n)
		}
	})
}

func TestContract_C22_NothingIsPushed(t *testing.T) {
	t.Parallel()
	revision := testRevision()
	revision.HTTP2 = true
	pushed := make(chan error, 1)
	_, address := through(t, revision, func(w http.ResponseWriter, r *http.Request) {
		pushed <- w.(http.Pusher).Push("/style.css", nil)
	})
	client := http2Client(t)
	defer client.CloseIdleConnections()
	fetchBy(t, client, newRequest(t, "GET", address, "/", ""))
	if err := <-pushed; !errors.Is(err, http.ErrNotSupported) {
		t.Errorf("an instance that pushes is told %v", err)
	}
}

func TestContract_C37_CredentialsAreTheServicesOwn(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		_, address := serve(Config{}, testRevision(), wireInstance(t, "a", echoHead))
		c := dialWire(t, address)
		fields := []string{"Authorization: Bearer a.b.signature", "X-Serverless-Authorization: Bearer c.d.signature"}
		for _, sent := range [][]string{nil, fields[:1], fields, {"Authorization: nonsense", "Authorization: twice"}} {
			c.say(request("GET /", sent...))
			h, got := c.response()
			want := strings.Join(slices.Concat([]string{"GET / HTTP/1.1", "Host: hello.test"}, sent, []string{""}), "\n")
			if !strings.HasPrefix(h.line, "HTTP/1.1 200 ") || len(got) != len(want) {
				t.Errorf("got %v with %q, want %q", h, got, want)
			}
			for _, field := range sent {
				if !strings.Contains(got, field+"\n") {
					t.Errorf("%q did not come unchanged: %q", field, got)
				}
			}
		}
	})
}

func TestContract_E6_ARequestForNoServiceIsNotLogged(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		var out lockedBuffer
		a, address := serve(Config{AccessLog: &out}, testRevision(), wireInstance(t, "a", answering(nil)))
		c := dialWire(t, address)
		c.say("GET /nobody HTTP/1.1\r\nHost: nobody.test\r\n\r\n")
		if h, body := c.response(); !strings.HasPrefix(h.line, "HTTP/1.1 404 ") || !strings.Contains(body, `"nobody.test"`) {
			t.Errorf("got %v with %q", h, body)
		}
		c.say(request("GET /somebody"))
		c.expect(200, "/somebody")
		waitForLoad(t, a, 0, 0)
		for end := time.Now().Add(wirePatience); !strings.Contains(out.text(), "/somebody"); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the request to the service was not logged")
			}
		}
		if strings.Contains(out.text(), "nobody.test") {
			t.Errorf("the log has %s", out.text())
		}
	})
}
