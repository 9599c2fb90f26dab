package gateway

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// answering is an instance's connection that reads each request with its body and answers with texts by its path; a path
// without text is answered with itself.
func answering(texts map[string]string) func(in *wire) {
	return func(in *wire) {
		for {
			h := in.head()
			in.body(h)
			path := strings.Fields(h.line)[1]
			text, ok := texts[path]
			if !ok {
				text = fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(path), path)
			}
			in.say(text)
			if strings.Contains(text, "\r\nConnection: close\r\n") || strings.HasPrefix(path, "/cut") {
				return
			}
		}
	}
}

func TestWire_AnHTTP10ClientGetsAChunkedResponseWithoutChunks(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		_, address := serve(Config{}, testRevision(), wireInstance(t, "a", answering(map[string]string{
			"/": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-End\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\nX-End: 1\r\n\r\n",
		})))
		for _, keep := range []string{"", "Connection: keep-alive\r\n"} {
			c := dialWire(t, address)
			c.say("GET / HTTP/1.0\r\nHost: hello.test\r\n" + keep + "\r\n")
			h := c.head()
			if h.value("Transfer-Encoding") != "" || strings.EqualFold(h.value("Connection"), "keep-alive") {
				t.Errorf("%q: got %v", keep, h)
			}
			if body := c.rest(); body != "hello" {
				t.Errorf("%q: got %q", keep, body)
			}
		}
	})
}

func TestWire_AnHTTP10ClientKeepsItsConnectionOnlyWhenItAsks(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		_, address := serve(Config{}, testRevision(), wireInstance(t, "a", answering(nil)))
		c := dialWire(t, address)
		for _, path := range []string{"/1", "/2"} {
			c.say("POST " + path + " HTTP/1.0\r\nHost: hello.test\r\nConnection: Keep-Alive\r\nContent-Length: 4\r\n\r\nbody")
			h := c.head()
			if body, _ := c.body(h); body != path || !strings.EqualFold(h.value("Connection"), "keep-alive") {
				t.Errorf("got %v with %q", h, body)
			}
		}
		c.say("GET /3 HTTP/1.0\r\nHost: hello.test\r\n\r\n")
		if h, body := c.response(); body != "/3" || strings.EqualFold(h.value("Connection"), "keep-alive") {
			t.Errorf("got %v with %q", h, body)
		}
		c.ends()
	})
}

func TestWire_AnHTTP10ClientGetsNoInterimResponse(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		_, address := serve(Config{}, testRevision(), wireInstance(t, "a", func(in *wire) {
			h := in.head()
			if h.value("Expect") != "" { // RFC 9110, 10.1.1: there is nothing like it in HTTP/1.0
				in.fail("it got Expect: %q", h.value("Expect"))
			}
			in.body(h)
			in.say("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
		}))
		c := dialWire(t, address)
		c.say("POST / HTTP/1.0\r\nHost: hello.test\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\nbody")
		if h, body := c.response(); body != "hi" || h.value("Link") != "" {
			t.Errorf("got %v with %q", h, body)
		}
		c.ends()
	})
}

func TestWire_AConnectionCarriesRequestsUntilEitherSideIsToClose(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		_, address := serve(Config{}, testRevision(), wireInstance(t, "a", answering(map[string]string{
			"/instance-closes": "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi",
		})))
		c := dialWire(t, address)
		for range 3 {
			c.say(request("GET /1"))
			c.expect(200, "/1")
			c.say(request("GET /instance-closes"))
			if h := c.expect(200, "hi"); h.value("Connection") != "" {
				t.Errorf("that the instance closes its connection was passed on: %v", h)
			}
		}
		c.say(request("GET /last", "Connection: close"))
		if h := c.expect(200, "/last"); !strings.EqualFold(h.value("Connection"), "close") {
			t.Errorf("the connection will be closed, and the response does not say so: %v", h)
		}
		c.ends()
	})
}

func TestWire_PipelinedRequestsAreAnsweredInOrder(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		finish := make(chan struct{})
		_, address := serve(Config{}, testRevision(), wireInstance(t, "a", func(in *wire) {
			for {
				h := in.head()
				body, _ := in.body(h)
				if strings.HasPrefix(h.line, "GET /slow ") {
					<-finish
				}
				text := strings.Fields(h.line)[1] + " " + body
				in.say(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text))
			}
		}))
		c := dialWire(t, address)
		c.say(request("GET /slow") +
			request("POST /length", "Content-Length: 5") + "GET /" +
			request("POST /chunks", "Transfer-Encoding: chunked") + "3\r\nGET\r\n2;a=b\r\n /\r\n0\r\n\r\n" +
			"GET / HTTP/1.1\r\nHost: nobody.test\r\n\r\n" +
			request("HEAD /head") +
			request("GET /last"))
		c.silent()
		close(finish)
		for _, want := range []string{"/slow ", "/length GET /", "/chunks GET /"} {
			c.expect(200, want)
		}
		if h, _ := c.response(); !strings.HasPrefix(h.line, "HTTP/1.1 404 ") {
			t.Errorf("for an unknown host got %v", h)
		}
		if h := c.head(); h.value("Content-Length") != "6" {
			t.Errorf("for HEAD got %v", h)
		}
		c.expect(200, "/last ")
	})
}

func TestWire_APipelinedRequestIsAnsweredAfterOneThatFailed(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		_, address := serve(Config{}, testRevision(), wireInstance(t, "a", answering(map[string]string{"/cut": "what?\r\n\r\n"})))
		c := dialWire(t, address)
		c.say(request("GET /cut") + request("GET /next"))
		c.expect(503, textBroken+"\n")
		c.expect(200, "/next")
	})
}

func TestWire_NothingFollowsAResponseThatWasCut(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		_, address := serve(Config{}, testRevision(), wireInstance(t, "a", answering(map[string]string{
			"/cut-length": "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
			"/cut-chunks": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
		})))
		for path, want := range map[string]string{"/cut-length": "half", "/cut-chunks": "4\r\nhalf\r\n"} {
			c := dialWire(t, address)
			c.say(request("GET "+path) + request("GET /next"))
			c.head()
			if got := c.rest(); got != want {
				t.Errorf("%s: got %q and the end, want %q", path, got, want)
			}
		}
	})
}

func TestWire_TrailersOfRequestsArrive(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		trailers := make(chan head, 1)
		_, address := serve(Config{}, testRevision(), wireInstance(t, "a", func(in *wire) {
			for {
				h := in.head()
				body, trailer := in.body(h)
				if body != "hello" {
					in.fail("body %q", body)
				}
				trailer.line = h.value("Trailer")
				trailers <- trailer
				in.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
			}
		}))
		c := dialWire(t, address)
		for _, announced := range []bool{true, false} {
			var lines []string
			if announced {
				lines = []string{"Trailer: X-Sum, X-Other"}
			}
			c.say(request("POST /", append(lines, "Transfer-Encoding: chunked")...) + "5\r\nhello\r\n0\r\nX-Sum: 42\r\nX-Other: \r\n\r\n")
			c.expect(200, "hi")
			got := <-trailers
			if announced && !cmp.Equal(got.values("X-Sum"), []string{"42"}) {
				t.Errorf("announced %t: the instance got the trailer %v", announced, got)
			}
			if announced && !strings.Contains(got.line, "X-Sum") {
				t.Errorf("the instance was told of the trailer %q", got.line)
			}
		}
	})
}

func TestWire_TrailersOfResponsesArrive(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		_, address := serve(Config{}, testRevision(), wireInstance(t, "a", answering(map[string]string{
			"/announced": "HTTP/1.1 200 OK\r\nTrailer: X-A, X-B\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-A: 1\r\nX-B: 2\r\nContent-Length: 7\r\nX-A: 3\r\n\r\n",
			"/surprise":  "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-A: 1\r\n\r\n",
			"/empty":     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-A: 1\r\n\r\n",
		})))
		c := dialWire(t, address)
		for path, want := range map[string][]string{"/announced": {"1", "3"}, "/surprise": {"1"}, "/empty": {"1"}} {
			c.say(request("GET " + path))
			h := c.head()
			body, trailer := c.body(h)
			if path != "/empty" && body != "hi" || !cmp.Equal(trailer.values("X-A"), want) || trailer.value("Content-Length") != "" {
				t.Errorf("%s: got %q with the trailer %v", path, body, trailer)
			}
		}
		c.say(request("GET /next"))
		c.expect(200, "/next")
	})
}

func TestWire_ResponsesEndWhereTheirFramingSays(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		texts := map[string]string{
			"/close":          "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nto the end",
			"/close-empty":    "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
			"/HTTP10":         "HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nold",
			"/both":           "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
			"/both-reversed":  "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 300\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
			"/chunks-empty":   "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
			"/chunks-odd":     "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n00A;name=\"v\"\r\n0123456789\r\n000b \r\n01234567890\r\n000\r\n\r\n",
			"/length-zero":    "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
			"/length-twice":   "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
			"/no-reason":      "HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nhi",
			"/lf":             "HTTP/1.1 200 OK\nContent-Length: 2\n\nhi",
			"/204":            "HTTP/1.1 204 No Content\r\n\r\n",
			"/204-length":     "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
			"/204-chunked":    "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
			"/304":            "HTTP/1.1 304 Not Modified\r\nEtag: \"x\"\r\n\r\n",
			"/304-length":     "HTTP/1.1 304 Not Modified\r\nContent-Length: 5000\r\n\r\n",
			"/304-chunked":    "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n",
			"/status-unknown": "HTTP/1.1 799 What\r\nContent-Length: 2\r\n\r\nhi",
		}
		_, address := serve(Config{}, testRevision(), wireInstance(t, "a", answering(texts)))
		want := map[string]string{
			"/close": "to the end", "/close-empty": "", "/HTTP10": "old", "/both": "hello", "/both-reversed": "hello", "/chunks-empty": "",
			"/chunks-odd": "012345678901234567890", "/length-zero": "", "/length-twice": "hi", "/no-reason": "hi", "/lf": "hi", "/status-unknown": "hi",
		}
		c := dialWire(t, address)
		for path, text := range texts {
			c.say(request("GET " + path))
			h := c.head()
			status := strings.Fields(text)[1]
			if strings.Fields(h.line)[1] != status {
				t.Fatalf("%s: got %q", path, h.line)
			}
			switch status {
			case "204":
				if h.value("Content-Length") != "" || h.value("Transfer-Encoding") != "" { // RFC 9110, 8.6; RFC 9112, 6.1
					t.Errorf("%s: got %v", path, h)
				}
			case "304":
				if h.value("Transfer-Encoding") != "" {
					t.Errorf("%s: got %v", path, h)
				}
			default:
				if body, _ := c.body(h); body != want[path] {
					t.Errorf("%s: got %q, want %q", path, body, want[path])
				}
				if h.value("Content-Length") != "" && h.value("Transfer-Encoding") != "" {
					t.Errorf("%s: the response can be read in two ways: %v", path, h)
				}
			}
			// What is left of a response would be taken for the beginning of the next one.
			c.say(request("GET /next"))
			c.expect(200, "/next")
		}
	})
}

func TestWire_BytesThatNobodyAskedForAreNoResponse(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		const hidden = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhidden"
		instance := wireInstance(t, "a", answering(map[string]string{
			"/204":   "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n" + hidden,
			"/304":   "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n" + hidden,
			"/head":  "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + hidden,
			"/twice": "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi" + hidden,
		}))
		_, address := serve(Config{}, testRevision(), instance)
		c := dialWire(t, address)
		for _, first := range []string{"GET /204", "GET /304", "HEAD /head"} {
			c.say(request(first))
			c.head()
			c.say(request("GET /next"))
			c.expect(200, "/next")
		}
		c.say(request("GET /twice"))
		c.expect(200, "hi")
		c.say(request("GET /next"))
		c.expect(200, "/next")
	})
}

func TestWire_AnswersToHEADHaveAHeadOnly(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		_, address := serve(Config{}, testRevision(), wireInstance(t, "a", answering(map[string]string{
			"/length": "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nX-Mine: 1\r\n\r\n",
			"/chunks": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Mine: 1\r\n\r\n",
			"/none":   "HTTP/1.1 200 OK\r\nX-Mine: 1\r\n\r\n",
			"/404":    "HTTP/1.1 404 Not Found\r\nX-Mine: 1\r\nContent-Length: 9\r\n\r\n",
		})))
		c := dialWire(t, address)
		for path, length := range map[string]string{"/length": "1000", "/chunks": "", "/none": "", "/404": "9"} {
			c.say(request("HEAD " + path))
			if h := c.head(); h.value("Content-Length") != length || h.value("X-Mine") != "1" {
				t.Errorf("%s: got %v", path, h)
			}
			c.say(request("GET /next"))
			c.expect(200, "/next")
		}
		c.say("HEAD / HTTP/1.1\r\nHost: nobody.test\r\nConnection: close\r\n\r\n")
		if h := c.head(); !strings.HasPrefix(h.line, "HTTP/1.1 404 ") {
			t.Errorf("got %v", h)
		}
		c.ends()
	})
}

func TestWire_EveryInterimResponseIsPassedOnInOrder(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		next := make(chan struct{})
		_, address := serve(Config{}, testRevision(), wireInstance(t, "a", func(in *wire) {
			in.head()
			in.say("HTTP/1.1 100 Continue\r\n\r\n") // to a request that did not ask
			in.say("HTTP/1.1 102 Processing\r\n\r\n")
			in.say("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nLink: </b>\r\n\r\n")
			<-next
			in.say("HTTP/1.1 103 Early Hints\r\nLink: </c>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
		}))
		c := dialWire(t, address)
		c.say(request("GET /"))
		var got []string
		for {
			h := c.head()
			got = append(got, strings.Fields(h.line)[1]+" "+h.value("Link"))
			if len(got) > 1 && strings.HasPrefix(got[len(got)-2], "102") {
				close(next) // the first 103 came before the instance went on
			}
			if strings.HasPrefix(h.line, "HTTP/1.1 200 ") {
				break
			}
			if h.value("Content-Length") != "" || h.value("Transfer-Encoding") != "" {
				t.Errorf("an interim response has a body: %v", h)
			}
		}
		if got[0] == "100 " { // both are right
			got = got[1:]
		}
		if diff := cmp.Diff([]string{"102 ", "103 </a> | </b>", "103 </c>", "200 "}, got); diff != "" {
			t.Errorf("responses (-want +got):\n%s", diff)
		}
		if body := c.bytes(2); body != "hi" {
			t.Errorf("got %q", body)
		}
	})
}

func TestWire_ABodyWaitsUntilTheInstanceWantsIt(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		_, address := serve(Config{}, testRevision(), wireInstance(t, "a", func(in *wire) {
			for {
				h := in.head()
				switch strings.Fields(h.line)[1] {
				case "/continue":
					if h.value("Expect") != "100-continue" {
						in.fail("the instance was not told that the client waits: %v", h)
					}
					in.silent()
					in.say("HTTP/1.1 100 Continue\r\n\r\n")
				case "/final":
					in.say("HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
					return
				case "/mute":
				}
				body, _ := in.body(h)
				in.say(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
			}
		}))
		for _, test := range []struct {
			path, framing, body string
		}{
			{"/continue", "Content-Length: 4", "body"},
			{"/continue", "Transfer-Encoding: chunked", "4\r\nbody\r\n0\r\n\r\n"},
			{"/mute", "Content-Length: 4", "body"}, // an instance that does not know of 100
		} {
			c := dialWire(t, address)
			for range 2 { // the connection can be used again
				c.say(request("POST "+test.path, "Expect: 100-Continue", test.framing))
				if h := c.head(); !strings.HasPrefix(h.line, "HTTP/1.1 100 ") {
					t.Fatalf("%v: got %v", test, h)
				}
				c.say(test.body)
				c.expect(200, "body")
				if test.path == "/mute" {
					break // it takes a second
				}
			}
		}
		c := dialWire(t, address)
		c.say(request("POST /final", "Expect: 100-continue", "Content-Length: 4"))
		c.expect(413, "no")
		// Whether the body follows is not known (RFC 9110, 10.1.1): the next request would be in doubt.
		c.ends()
	})
}

func TestWire_AClientThatExpectsContinueMaySendAtOnce(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		_, address := serve(Config{}, testRevision(), wireInstance(t, "a", answering(nil)))
		c := dialWire(t, address)
		c.say(request("POST /first", "Expect: 100-continue", "Content-Length: 4") + "body" + request("GET /second"))
		h := c.head()
		if strings.HasPrefix(h.line, "HTTP/1.1 100 ") { // allowed, not needed
			h = c.head()
		}
		if body, _ := c.body(h); body != "/first" {
			t.Errorf("got %v with %q", h, body)
		}
		c.expect(200, "/second")
	})
}

func TestWire_TargetsArriveByteForByte(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		_, address := serve(Config{}, testRevision(), wireInstance(t, "a", answering(nil)))
		c := dialWire(t, address)
		for _, target := range []string{
			"/", "//", "/%41%2f%2F", "/a//b/../c/./", "/a;b=c,d", "/?", "/a?b?c", "/a?q=%20+&&;&=&x[]=1", "/%E4%BD%A0", "/\xe4\xbd\xa0",
			"/a\"<>{}|^`b", "/a?q=\"<>{}|^`%zz", "/'()*!$&@:", "/~a", "/_ah/health", "/healthz", "/eventlog", "/" + strings.Repeat("a", 5000),
			"*",
		} {
			method := "GET "
			if target == "*" {
				method = "OPTIONS "
			}
			c.say(request(method + target))
			c.expect(200, target)
		}
		for target, want := range map[string]string{
			"http://hello.test": "/", "http://hello.test/": "/", "http://hello.test?q=1": "/?q=1", "HTTP://HELLO.test/a%2Fb?c": "/a%2Fb?c",
			"http://hello.test/a\"b//c": "/a\"b//c",
		} {
			c.say("GET " + target + " HTTP/1.1\r\nHost: hello.test\r\n\r\n")
			c.expect(200, want)
		}
	})
}

func TestWire_AnAbsoluteTargetSaysTheHost(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		_, address := serve(Config{}, testRevision(), wireInstance(t, "a", echoHead))
		c := dialWire(t, address)
		c.say("GET http://hello.test/a HTTP/1.1\r\nHost: hello.test\r\n\r\n")
		_, got := c.response()
		if !strings.HasPrefix(got, "GET /a HTTP/1.1\nHost: hello.test\n") {
			t.Errorf("the instance got %q", got)
		}
	})
}

func TestWire_HeadersOfRequestsArriveUnchanged(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		_, address := serve(Config{}, testRevision(), wireInstance(t, "a", echoHead))
		c := dialWire(t, address)
		fields := []string{
			"x-lower: 1", "X-Empty:", "X-Repeated: b", "X-Other: 2", "x-repeated:", "X-REPEATED: a", "X-Commas: a, b,,c",
			"X-Tab: a\tb", "X-Inner:  a  b  ", "X-High: \xe9\xff\x80", "X-Long: " + strings.Repeat("long ", 8000) + "end", "Cookie: a=1; b=2", "Cookie: c=3",
			"!#$%&'*+-.^_`|~: token", "X_Underscore: 1", "User-Agent: mine", "Authorization: Bearer x", "Range: bytes=0-1", "If-Match: \"a\"",
			"Accept-Encoding: br", "Priority: u=1", "Origin: http://a", "X-Colon: a:b: c",
		}
		c.say(request("GET /", append(fields, "Connection: keep-alive, X-Gone , x-gone-too", "Connection: Close-Not", "Close-Not: 1",
			"X-Gone: 1", "X-Gone-Too: 2", "Keep-Alive: timeout=5", "Proxy-Connection: keep-alive", "Proxy-Authorization: Basic x", "TE: gzip", "Trailer: X-A")...))
		_, got := c.response()
		want := []string{"host: hello.test"}
		for _, f := range fields {
			name, value, _ := strings.Cut(f, ":")
			want = append(want, strings.ToLower(name)+": "+strings.Trim(value, " \t"))
		}
		compareFields(t, want, strings.Split(strings.TrimSuffix(got, "\n"), "\n")[1:])
	})
}

func TestWire_HeadersOfResponsesArriveUnchanged(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		fields := []string{
			"Date: Tue, 15 Nov 1994 08:12:31 GMT", "server: mine/1", "Set-Cookie: a=1; Path=/", "X-Between: 1", "set-cookie: b=2", "Set-Cookie: a=3", "X-Empty:",
			"X-High: \xe9\xff\x80", "X-Long: " + strings.Repeat("long ", 20000) + "end", "Cache-Control: public", "Vary: a", "Vary: b",
			"Content-Type: x", "WWW-Authenticate: Basic realm=\"a\"", "Location: /\"odd\"", "X-Tab: a\tb", "ETag: \"x\"", "Alt-Svc: h3=\":1\"",
			"Content-Encoding: gzip", "Via: 1.1 x", "Content-Length: 2",
		}
		_, address := serve(Config{}, testRevision(), wireInstance(t, "a", answering(map[string]string{
			"/": "HTTP/1.1 200 OK\r\n" + strings.Join(fields, "\r\n") + "\r\nConnection: X-Gone, keep-alive\r\nX-Gone: 1\r\nKeep-Alive: timeout=5\r\n" +
				"Proxy-Connection: keep-alive\r\nUpgrade: h2c\r\n\r\nhi",
		})))
		c := dialWire(t, address)
		c.say(request("GET /"))
		h := c.expect(200, "hi")
		var want, got []string
		for _, f := range fields {
			name, value, _ := strings.Cut(f, ":")
			want = append(want, strings.ToLower(name)+": "+strings.Trim(value, " \t"))
		}
		for _, f := range h.fields {
			got = append(got, f[0]+": "+f[1])
		}
		compareFields(t, want, got)
	})
}

// compareFields compares fields but for the case of their names, which does not matter, and the order of those whose names
// differ, which does not either (RFC 9110, 5.3).
func compareFields(t *testing.T, want, got []string) {
	t.Helper()
	for i, f := range got {
		name, value, _ := strings.Cut(f, ":")
		got[i] = strings.ToLower(name) + ":" + value
	}
	byName := func(a, b string) int {
		nameA, _, _ := strings.Cut(a, ":")
		nameB, _, _ := strings.Cut(b, ":")
		return strings.Compare(nameA, nameB)
	}
	slices.SortStableFunc(want, byName)
	slices.SortStableFunc(got, byName)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("header (-want +got):\n%s", diff)
	}
}

func TestWire_AResponseIsNotGivenFieldsThatTheInstanceDidNotSend(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		_, address := serve(Config{}, testRevision(), wireInstance(t, "a", answering(map[string]string{"/": "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"})))
		c := dialWire(t, address)
		c.say(request("GET /"))
		if h := c.expect(200, "hi"); len(h.fields) != 1 {
			t.Errorf("got %v", h.fields)
		}
	})
}

func TestWire_BodiesOfRequestsArriveInTheirFraming(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		type seen struct{ length, chunked, body string }
		requests := make(chan seen, 1)
		_, address := serve(Config{}, testRevision(), wireInstance(t, "a", func(in *wire) {
			for {
				h := in.head()
				body, _ := in.body(h)
				requests <- seen{h.value("Content-Length"), h.value("Transfer-Encoding"), body}
				in.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
			}
		}))
		c := dialWire(t, address)
		long := strings.Repeat("0123456789abcdef", 1<<14)
		for _, test := range []struct {
			text string
			want seen
		}{
			{request("POST /", "Content-Length: 5") + "hello", seen{"5", "", "hello"}},
			{request("POST /", "Content-Length: 0"), seen{"0", "", ""}},
			{request("POST /"), seen{"0", "", ""}},
			{request("GET /"), seen{"", "", ""}},
			{request("DELETE /", "Content-Length: 5") + "hello", seen{"5", "", "hello"}},
			{request("GET /", "Transfer-Encoding: chunked") + "5\r\nhello\r\n0\r\n\r\n", seen{"", "chunked", "hello"}},
			{request("POST /", "Transfer-Encoding: Chunked") + "00A;x=y\r\n0123456789\r\n0\r\n\r\n", seen{"", "chunked", "0123456789"}},
			{request("POST /", "Transfer-Encoding: chunked") + "0\r\n\r\n", seen{"", "chunked", ""}},
			{request("POST /", fmt.Sprintf("Content-Length: %d", len(long))) + long, seen{fmt.Sprint(len(long)), "", long}},
			{request("POST /", "Transfer-Encoding: chunked") + fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(long), long), seen{"", "chunked", long}},
		} {
			c.say(test.text)
			c.expect(200, "hi")
			if got := <-requests; got != test.want {
				t.Errorf("%.120q: the instance got %.200q, want %.200q", test.text, fmt.Sprint(got), fmt.Sprint(test.want))
			}
		}
	})
}

func TestWire_ARequestThatComesInPiecesIsOne(t *testing.T) {
	onEveryFront(t, func(t *testing.T, serve serveFunc) {
		_, address := serve(Config{}, testRevision(), wireInstance(t, "a", func(in *wire) {
			for {
				h := in.head()
				body, _ := in.body(h)
				text := strings.ToUpper(strings.Fields(h.line)[1] + h.value("X-Last") + body)
				for _, b := range fmt.Sprintf("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(text), text) {
					in.say(string(b))
				}
			}
		}))
		c := dialWire(t, address)
		if err := c.Conn.(*net.TCPConn).SetNoDelay(true); err != nil {
			t.Fatal(err)
		}
		text := request("POST /path", "X-Last: value", "Transfer-Encoding: chunked") + "4\r\nbody\r\n0\r\n\r\n"
		for _, b := range text + request("GET /next", "X-Last: more") {
			c.say(string(b))
		}
		c.expect(200, "/PATHVALUEBODY")
		c.expect(200, "/NEXTMORE")
	})
}
