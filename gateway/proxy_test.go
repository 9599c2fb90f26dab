package gateway

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/textproto"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-run/berth/engine"
)

// through starts a gateway in front of one instance that runs handler.
func through(t testing.TB, revision Revision, handler http.HandlerFunc) (*Activator, string) {
	t.Helper()
	a := NewActivator(revision)
	a.Add(serveInstance(t, "hello-00001-a", handler))
	_, address := startGateway(t, Config{}, a)
	return a, address
}

// throughRaw starts a gateway in front of one instance that hands each connection to serve.
func throughRaw(t testing.TB, revision Revision, serve func(net.Conn)) (*fakeInstance, *Activator, string) {
	t.Helper()
	a := NewActivator(revision)
	instance := rawInstance(t, "hello-00001-a", serve)
	a.Add(instance)
	_, address := startGateway(t, Config{}, a)
	return instance, a, address
}

// rawResponse is an instance that answers each request with text, and closes when text asks for it.
func rawResponse(text string) func(net.Conn) {
	return func(c net.Conn) {
		reader := bufio.NewReader(c)
		for {
			r, err := http.ReadRequest(reader)
			if err != nil {
				return
			}
			io.Copy(io.Discard, r.Body)
			io.WriteString(c, text)
			if strings.Contains(text, "Connection: close") || !strings.Contains(text, "\r\nContent-Length:") {
				return
			}
		}
	}
}

// exchangeRaw sends bytes to the gateway and returns all that comes back until it closes.
func exchangeRaw(t *testing.T, address, text string) string {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(c)
	if err != nil && !errors.Is(err, net.ErrClosed) && len(answer) == 0 {
		t.Fatalf("reading the answer: %v", err)
	}
	return string(answer)
}

// http2Client speaks HTTP/2 without TLS.
func http2Client(t testing.TB) *http.Client {
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: &protocols}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func TestProxy_SetsTheHeadersOfTheContract(t *testing.T) {
	t.Parallel()
	for name, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			revision := testRevision()
			revision.HTTP2 = http2
			got := make(chan *http.Request, 1)
			_, address := through(t, revision, func(w http.ResponseWriter, r *http.Request) { got <- r.Clone(r.Context()) })
			r := newRequest(t, "GET", address, "/", "")
			r.Header = http.Header{
				"X-Forwarded-For": {"6.6.6.6"}, "X-Forwarded-Proto": {"https"}, "Forwarded": {"for=6.6.6.6"},
				"Connection": {"X-Hop, keep-alive"}, "X-Hop": {"1"}, "Keep-Alive": {"timeout=1"}, "Proxy-Authorization": {"secret"},
				"X-Mine": {"one", "two"}, "User-Agent": {""},
			}
			fetch(t, r)
			in := <-got
			if http2 != (in.ProtoMajor == 2) {
				t.Errorf("the instance was asked over %s", in.Proto)
			}
			if in.Host != "hello.test" {
				t.Errorf("Host is %q", in.Host)
			}
			trace := in.Header.Get("Traceparent")
			cloud := in.Header.Get("X-Cloud-Trace-Context")
			if !regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-00$`).MatchString(trace) ||
				!regexp.MustCompile(`^[0-9a-f]{32}/[0-9]+;o=0$`).MatchString(cloud) || trace[3:35] != cloud[:32] {
				t.Errorf("traceparent %q, X-Cloud-Trace-Context %q", trace, cloud)
			}
			in.Header.Del("Traceparent")
			in.Header.Del("X-Cloud-Trace-Context")
			in.Header.Del("Accept-Encoding") // the client of the test sends it
			want := http.Header{
				"X-Forwarded-For": {"127.0.0.1"}, "X-Forwarded-Proto": {"http"}, "Forwarded": {"for=127.0.0.1;proto=http"},
				"X-Mine": {"one", "two"},
			}
			if diff := cmp.Diff(want, in.Header); diff != "" {
				t.Errorf("header (-want +got):\n%s", diff)
			}
		})
	}
}

func TestProxy_KeepsWhatTrustedProxiesSay(t *testing.T) {
	t.Parallel()
	a := NewActivator(testRevision())
	got := make(chan http.Header, 1)
	a.Add(serveInstance(t, "a", func(w http.ResponseWriter, r *http.Request) { got <- r.Header.Clone() }))
	_, address := startGateway(t, Config{TrustForwarded: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}, a)
	r := newRequest(t, "GET", address, "/", "")
	r.Header = http.Header{"X-Forwarded-For": {"1.2.3.4"}, "X-Forwarded-Proto": {"https"}, "Forwarded": {"for=1.2.3.4"},
		"Traceparent": {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}, "Tracestate": {"a=b"}}
	fetch(t, r)
	h := <-got
	for key, want := range map[string]string{
		"X-Forwarded-For": "1.2.3.4, 127.0.0.1", "X-Forwarded-Proto": "https",
		"Forwarded":             "for=1.2.3.4, for=127.0.0.1;proto=http",
		"Traceparent":           "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		"X-Cloud-Trace-Context": "0af7651916cd43dd8448eb211c80319c/13235353014750950193;o=1",
		"Tracestate":            "a=b",
	} {
		if got := strings.Join(h[key], " | "); got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
}

func TestTraceOf_ReadsEitherHeader(t *testing.T) {
	for _, test := range []struct {
		header http.Header
		want   string // "" is a new one
	}{
		{http.Header{"Traceparent": {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}}, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
		{http.Header{"X-Cloud-Trace-Context": {"0AF7651916cd43dd8448eb211c80319c/255;o=1"}}, "00-0af7651916cd43dd8448eb211c80319c-00000000000000ff-01"},
		{http.Header{"Traceparent": {"00-00000000000000000000000000000000-b7ad6b7169203331-01"}}, ""},
		{http.Header{"Traceparent": {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"}}, ""},
		{http.Header{"Traceparent": {"a", "b"}}, ""},
		{http.Header{"X-Cloud-Trace-Context": {"x\r\ny"}}, ""},
	} {
		trace := traceOf(test.header)
		got := string(trace.appendTraceparent(nil))
		if test.want != "" && got != test.want || test.want == "" && (!trace.made || !new(traceContext).parse(got)) {
			t.Errorf("traceOf(%v) = %q, want %q", test.header, got, test.want)
		}
	}
}

func TestProxy_RemovesHopByHopFieldsOfTheResponseAndInventsNone(t *testing.T) {
	t.Parallel()
	_, _, address := throughRaw(t, testRevision(), rawResponse("HTTP/1.1 200 OK\r\nConnection: X-Hop\r\nX-Hop: 1\r\n"+
		"Keep-Alive: timeout=5\r\nserver: mine\r\nContent-Length: 2\r\nSet-Cookie: a=1\r\nset-cookie: b=2\r\n\r\nhi"))
	response, body := fetch(t, newRequest(t, "GET", address, "/", ""))
	want := http.Header{"Server": {"mine"}, "Content-Length": {"2"}, "Set-Cookie": {"a=1", "b=2"}}
	if diff := cmp.Diff(want, response.Header); diff != "" || body != "hi" {
		t.Errorf("body %q, header (-want +got):\n%s", body, diff)
	}
}

func TestProxy_MakesCookiesPrivateWhenAsked(t *testing.T) {
	t.Parallel()
	a := NewActivator(testRevision())
	a.Add(rawInstance(t, "a", rawResponse("HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nCache-Control: public\r\nContent-Length: 0\r\n\r\n")))
	_, address := startGateway(t, Config{PrivateCookies: true}, a)
	if response, _ := fetch(t, newRequest(t, "GET", address, "/", "")); response.Header.Get("Cache-Control") != "private" {
		t.Errorf("Cache-Control is %q", response.Header.Get("Cache-Control"))
	}
}

func TestProxy_StreamsBothWaysAtOnce(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		instance bool
		client   bool
	}{"HTTP/1.1 to HTTP/1.1": {false, false}, "HTTP/2 to HTTP/1.1": {false, true}, "HTTP/1.1 to HTTP/2": {true, false}, "HTTP/2 to HTTP/2": {true, true}} {
		t.Run(name, func(t *testing.T) {
			revision := testRevision()
			revision.HTTP2 = test.instance
			a, address := through(t, revision, func(w http.ResponseWriter, r *http.Request) {
				http.NewResponseController(w).EnableFullDuplex()
				w.WriteHeader(200)
				http.NewResponseController(w).Flush()
				buffer := make([]byte, 100)
				for {
					n, err := r.Body.Read(buffer)
					w.Write(bytes.ToUpper(buffer[:n]))
					http.NewResponseController(w).Flush()
					if err != nil {
						return
					}
				}
			})
			client := http.DefaultClient
			if test.client {
				client = http2Client(t)
			}
			reader, writer := io.Pipe()
			r := newRequest(t, "POST", address, "/", "")
			r.Body, r.ContentLength = reader, -1
			response, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			for i := range 3 {
				word := fmt.Sprintf("word%d", i)
				io.WriteString(writer, word)
				got := make([]byte, len(word))
				if _, err := io.ReadFull(response.Body, got); err != nil || string(got) != strings.ToUpper(word) {
					t.Fatalf("got %q, %v", got, err)
				}
			}
			writer.Close()
			if rest, err := io.ReadAll(response.Body); err != nil || len(rest) > 0 {
				t.Errorf("the end is %q, %v", rest, err)
			}
			waitForLoad(t, a, 0, 0)
		})
	}
}

func TestProxy_PassesOnPartsOfAResponseAsTheyCome(t *testing.T) {
	t.Parallel()
	for name, parts := range map[string][2]string{
		"with a length":    {"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst", "later"},
		"within one chunk": {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\nfirst", "later\r\n0\r\n\r\n"},
		"to the end":       {"HTTP/1.1 200 OK\r\n\r\nfirst", "later"},
	} {
		t.Run(name, func(t *testing.T) {
			seen := make(chan struct{})
			_, _, address := throughRaw(t, testRevision(), func(c net.Conn) {
				http.ReadRequest(bufio.NewReader(c))
				io.WriteString(c, parts[0])
				<-seen
				io.WriteString(c, parts[1])
			})
			response, err := http.DefaultClient.Do(newRequest(t, "GET", address, "/", ""))
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			first := make([]byte, 5)
			_, err = io.ReadFull(response.Body, first)
			close(seen)
			rest, restErr := io.ReadAll(response.Body)
			if string(first) != "first" || err != nil || string(rest) != "later" || restErr != nil {
				t.Errorf("got %q, %v, then %q, %v", first, err, rest, restErr)
			}
		})
	}
}

func TestProxy_CarriesLargeBodiesBothWays(t *testing.T) {
	t.Parallel()
	_, address := through(t, testRevision(), func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		io.Copy(w, r.Body)
	})
	body := strings.Repeat("0123456789abcdef", 1<<17) // 2 MiB
	for _, known := range []bool{true, false} {
		r := newRequest(t, "POST", address, "/", body)
		if !known {
			r.ContentLength = -1
		}
		if _, got := fetch(t, r); got != body {
			t.Errorf("known length %t: got %d bytes, want %d the same", known, len(got), len(body))
		}
	}
}

func TestProxy_CarriesTrailersBothWays(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		instance bool
		client   bool
	}{"HTTP/1.1 to HTTP/1.1": {false, false}, "HTTP/2 to HTTP/1.1": {false, true}, "HTTP/1.1 to HTTP/2": {true, false}, "HTTP/2 to HTTP/2": {true, true}} {
		t.Run(name, func(t *testing.T) {
			revision := testRevision()
			revision.HTTP2 = test.instance
			_, address := through(t, revision, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Trailer", "X-Announced")
				io.Copy(w, r.Body)
				w.Header().Set("X-Announced", r.Trailer.Get("X-Sum"))
				w.Header().Set(http.TrailerPrefix+"X-Surprise", "2")
			})
			client := http.DefaultClient
			if test.client {
				client = http2Client(t)
			}
			r := newRequest(t, "POST", address, "/", "body")
			r.ContentLength = -1
			r.Trailer = http.Header{"X-Sum": {"42"}}
			response, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			io.Copy(io.Discard, response.Body)
			want := http.Header{"X-Announced": {"42"}, "X-Surprise": {"2"}}
			if diff := cmp.Diff(want, response.Trailer); diff != "" {
				t.Errorf("trailer (-want +got):\n%s", diff)
			}
		})
	}
}

func TestProxy_CarriesGRPCOverHTTP2EvenToHTTP1Revisions(t *testing.T) {
	t.Parallel()
	_, address := through(t, testRevision(), func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 || r.Header.Get("Te") != "trailers" {
			t.Errorf("the instance was asked over %s with TE %q", r.Proto, r.Header.Get("Te"))
		}
		w.Header().Set("Content-Type", "application/grpc")
		io.Copy(w, r.Body)
		w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
	})
	r := newRequest(t, "POST", address, "/hello.Greeter/Greet", "\x00\x00\x00\x00\x00")
	r.Header = http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}}
	response, err := http2Client(t).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || len(body) != 5 || response.Trailer.Get("Grpc-Status") != "0" {
		t.Errorf("got %q, %v, trailer %v", body, err, response.Trailer)
	}
}

func TestProxy_PassesOnInterimResponses(t *testing.T) {
	t.Parallel()
	for name, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			revision := testRevision()
			revision.HTTP2 = http2
			_, address := through(t, revision, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Link", "</a.css>")
				w.WriteHeader(http.StatusEarlyHints)
				w.Header().Del("Link")
				io.WriteString(w, "hi")
			})
			var hints textproto.MIMEHeader
			r := newRequest(t, "GET", address, "/", "")
			r = r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
				Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
					if code == http.StatusEarlyHints {
						hints = header
					}
					return nil
				},
			}))
			response, body := fetch(t, r)
			if hints.Get("Link") != "</a.css>" || response.Header.Get("Link") != "" || body != "hi" {
				t.Errorf("hints %v, header %v, body %q", hints, response.Header, body)
			}
		})
	}
}

func TestProxy_LetsTheInstanceDecideOnExpectedContinue(t *testing.T) {
	t.Parallel()
	a, address := through(t, testRevision(), func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/refuse" {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			return
		}
		io.Copy(w, r.Body)
	})
	head := func(path string) string {
		return "POST " + path + " HTTP/1.1\r\nHost: hello.test\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
	}
	// A client that never sends its body gets the refusal, and no 100.
	if got := exchangeRaw(t, address, head("/refuse")); !strings.HasPrefix(got, "HTTP/1.1 413 ") {
		t.Errorf("got %q", got)
	}
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, head("/take"))
	reader := bufio.NewReader(c)
	if line, err := reader.ReadString('\n'); line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("got %q, %v", line, err)
	}
	reader.ReadString('\n')
	io.WriteString(c, "body")
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	if body, _ := io.ReadAll(response.Body); string(body) != "body" {
		t.Errorf("got %q", body)
	}
	waitForLoad(t, a, 0, 0)
}

func TestProxy_PassesOnAResponseThatComesBeforeTheBody(t *testing.T) {
	t.Parallel()
	for name, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			revision := testRevision()
			revision.HTTP2 = http2
			a, address := through(t, revision, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", "2")
				w.WriteHeader(http.StatusForbidden)
				io.WriteString(w, "no")
			})
			c, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			io.WriteString(c, "POST / HTTP/1.1\r\nHost: hello.test\r\nContent-Length: 1000000\r\n\r\npart")
			response, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(response.Body)
			if response.StatusCode != http.StatusForbidden || string(body) != "no" || err != nil {
				t.Errorf("got %d %q, %v", response.StatusCode, body, err)
			}
			waitForLoad(t, a, 0, 0) // although the client never sends the rest
		})
	}
}

func TestProxy_EndsTheInstancesRequestWhenTheClientIsGone(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		instance bool
		client   bool
	}{"HTTP/1.1 to HTTP/1.1": {false, false}, "HTTP/2 to HTTP/1.1": {false, true}, "HTTP/1.1 to HTTP/2": {true, false}, "HTTP/2 to HTTP/2": {true, true}} {
		t.Run(name, func(t *testing.T) {
			revision := testRevision()
			revision.HTTP2 = test.instance
			started, ended := make(chan struct{}), make(chan struct{})
			a, address := through(t, revision, func(w http.ResponseWriter, r *http.Request) {
				close(started)
				<-r.Context().Done()
				close(ended)
			})
			client := http.DefaultClient
			if test.client {
				client = http2Client(t)
			}
			r := newRequest(t, "GET", address, "/", "")
			ctx, cancel := context.WithCancel(r.Context())
			go func() { <-started; cancel() }()
			if _, err := client.Do(r.WithContext(ctx)); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
			<-ended
			waitForLoad(t, a, 0, 0)
		})
	}
}

func TestProxy_NeverGivesAnInstanceHalfABodyAsAWholeOne(t *testing.T) {
	t.Parallel()
	began, got := make(chan struct{}), make(chan error, 1)
	a, address := through(t, testRevision(), func(w http.ResponseWriter, r *http.Request) {
		began <- struct{}{}
		_, err := io.Copy(io.Discard, r.Body)
		got <- err
	})
	for name, text := range map[string]string{
		"length": "POST / HTTP/1.1\r\nHost: hello.test\r\nContent-Length: 10\r\n\r\nhalf",
		"chunks": "POST / HTTP/1.1\r\nHost: hello.test\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
	} {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, text)
		<-began // a client that leaves before is none of the instance's
		c.Close()
		if err := <-got; err == nil {
			t.Errorf("%s: the instance read half a body without an error", name)
		}
		waitForLoad(t, a, 0, 0)
	}
}

func TestProxy_TunnelsAfterAnUpgrade(t *testing.T) {
	t.Parallel()
	_, a, address := throughRaw(t, testRevision(), func(c net.Conn) {
		reader := bufio.NewReader(c)
		r, err := http.ReadRequest(reader)
		if err != nil {
			return
		}
		if r.Header.Get("Upgrade") != "websocket" || r.Header.Get("Connection") != "Upgrade" || r.Header.Get("Sec-Websocket-Key") != "k" {
			io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
			return
		}
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: a\r\n\r\nfirst\n")
		for {
			line, err := reader.ReadString('\n')
			if err != nil {
				return
			}
			io.WriteString(c, strings.ToUpper(line))
		}
	})
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "GET /chat HTTP/1.1\r\nHost: hello.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\nearly\n")
	reader := bufio.NewReader(c)
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode != 101 || response.Header.Get("Upgrade") != "websocket" || response.Header.Get("Sec-Websocket-Accept") != "a" {
		t.Fatalf("got %d %v", response.StatusCode, response.Header)
	}
	for _, want := range []string{"first\n", "EARLY\n"} {
		if line, err := reader.ReadString('\n'); line != want {
			t.Fatalf("got %q, %v; want %q", line, err, want)
		}
	}
	waitForLoad(t, a, 1, 0) // the tunnel holds its slot
	io.WriteString(c, "more\n")
	if line, _ := reader.ReadString('\n'); line != "MORE\n" {
		t.Errorf("got %q", line)
	}
	c.Close()
	waitForLoad(t, a, 0, 0)
}

func TestProxy_DoesNotPassOnAnUpgradeToHTTP2(t *testing.T) {
	t.Parallel()
	_, address := through(t, testRevision(), func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%q %q %q", r.Header["Upgrade"], r.Header["Connection"], r.Header["Http2-Settings"])
	})
	r := newRequest(t, "POST", address, "/", "a body") // without one the gateway itself changes to HTTP/2
	r.Header = http.Header{"Connection": {"Upgrade, HTTP2-Settings"}, "Upgrade": {"h2c"}, "Http2-Settings": {"AAMAAABkAAQAAP__"}}
	if _, body := fetch(t, r); body != "[] [] []" {
		t.Errorf("the instance got %s", body)
	}
}

func TestProxy_AnswersHEADWithoutBody(t *testing.T) {
	t.Parallel()
	_, address := through(t, testRevision(), func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Content-Length", "1000") })
	for range 2 { // the second over the kept connection
		response, body := fetch(t, newRequest(t, "HEAD", address, "/", ""))
		if response.ContentLength != 1000 || body != "" {
			t.Errorf("got length %d, body %q", response.ContentLength, body)
		}
	}
}

func TestProxy_AnswersMalformedResponsesWith503(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"not HTTP":              "hello\r\n\r\n",
		"HTTP/2":                "HTTP/2 200 OK\r\n\r\n",
		"status":                "HTTP/1.1 2x0 OK\r\n\r\n",
		"space before colon":    "HTTP/1.1 200 OK\r\nA : b\r\nContent-Length: 0\r\n\r\n",
		"folded line":           "HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n",
		"zero byte":             "HTTP/1.1 200 OK\r\nA: b\x00\r\nContent-Length: 0\r\n\r\n",
		"carriage return":       "HTTP/1.1 200 OK\r\nA: b\rSet-Cookie: x\r\nContent-Length: 0\r\n\r\n",
		"two lengths":           "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
		"signed length":         "HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\na",
		"unknown coding":        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
		"upgrade nobody wanted": "HTTP/1.1 101 Switching Protocols\r\n\r\n",
		"nothing":               "",
		"half a head":           "HTTP/1.1 200 OK\r\nA: ",
		"endless head":          "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("a", maxResponseHead+1) + "\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			_, a, address := throughRaw(t, testRevision(), func(c net.Conn) {
				http.ReadRequest(bufio.NewReader(c))
				io.WriteString(c, text)
			})
			response, body := fetch(t, newRequest(t, "GET", address, "/", ""))
			if response.StatusCode != http.StatusServiceUnavailable || body != textBroken+"\n" || response.Header.Get("A") != "" {
				t.Errorf("got %d %q", response.StatusCode, body)
			}
			waitForLoad(t, a, 0, 0)
		})
	}
}

func TestProxy_ShowsTheClientThatAResponseIsTruncated(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"length":    "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
		"chunks":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
		"bad chunk": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n\r\n",
	} {
		for client, c := range map[string]*http.Client{"HTTP/1.1": http.DefaultClient, "HTTP/2": http2Client(t)} {
			t.Run(name+" to "+client, func(t *testing.T) {
				_, a, address := throughRaw(t, testRevision(), func(c net.Conn) {
					http.ReadRequest(bufio.NewReader(c))
					io.WriteString(c, text)
				})
				response, err := c.Do(newRequest(t, "GET", address, "/", ""))
				if err != nil {
					t.Fatal(err)
				}
				defer response.Body.Close()
				if body, err := io.ReadAll(response.Body); err == nil {
					t.Errorf("got %q without an error", body)
				}
				waitForLoad(t, a, 0, 0)
			})
		}
	}
}

func TestProxy_TellsTheOwnerOfATruncatedResponse(t *testing.T) {
	t.Parallel()
	for name, client := range map[string]*http.Client{"HTTP/1.1": http.DefaultClient, "HTTP/2": http2Client(t)} {
		t.Run(name, func(t *testing.T) {
			a := NewActivator(testRevision())
			a.Add(rawInstance(t, "hello-00001-a", func(c net.Conn) {
				http.ReadRequest(bufio.NewReader(c))
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
			}))
			lines := make(chan string, 10)
			_, address := startGateway(t, Config{Logger: slog.New(slog.NewTextHandler(lineWriter(lines), nil))}, a)
			response, err := client.Do(newRequest(t, "GET", address, "/", ""))
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, response.Body)
			response.Body.Close()
			for _, want := range []string{"level=WARN", `msg="Truncated response body"`, "service=hello", "revision=hello-00001", "instance=hello-00001-a"} {
				line := <-lines
				if !strings.Contains(line, want) {
					t.Errorf("the log says %q, want %q in it", line, want)
				}
				lines <- line
			}
		})
	}
}

// lineWriter passes on each write.
type lineWriter chan string

func (w lineWriter) Write(p []byte) (int, error) {
	w <- string(p)
	return len(p), nil
}

func TestProxy_NeverSendsARequestTwiceThatIsNotIdempotent(t *testing.T) {
	t.Parallel()
	var requests atomic.Int64
	_, _, address := throughRaw(t, testRevision(), func(c net.Conn) {
		reader := bufio.NewReader(c)
		for i := 0; ; i++ {
			if _, err := http.ReadRequest(reader); err != nil {
				return
			}
			requests.Add(1)
			if i == 1 {
				return // takes the second request of a connection, and goes without an answer
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	want := []int{200, 503, 200, 503}
	for i, status := range want {
		if response, _ := fetch(t, newRequest(t, "POST", address, "/", "")); response.StatusCode != status {
			t.Errorf("request %d got %d, want %d", i, response.StatusCode, status)
		}
	}
	if requests.Load() != int64(len(want)) {
		t.Errorf("%d requests reached the instance, want %d", requests.Load(), len(want))
	}
}

func TestProxy_DoesNotUseAConnectionThatTheInstanceHasClosed(t *testing.T) {
	t.Parallel()
	closed := make(chan struct{}, 100)
	instance, _, address := throughRaw(t, testRevision(), func(c net.Conn) {
		http.ReadRequest(bufio.NewReader(c))
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") // says nothing of closing
		c.(*net.TCPConn).CloseWrite()
		closed <- struct{}{}
	})
	for i := range 20 {
		if response, body := fetch(t, newRequest(t, "POST", address, "/", "x")); response.StatusCode != 200 {
			t.Fatalf("request %d got %d %q", i, response.StatusCode, body)
		}
		<-closed
	}
	if instance.dials.Load() != 20 {
		t.Errorf("%d connections, want 20", instance.dials.Load())
	}
}

func TestProxy_KeepsConnections(t *testing.T) {
	t.Parallel()
	a := NewActivator(testRevision())
	instance := serveInstance(t, "a", func(w http.ResponseWriter, r *http.Request) {
		io.Copy(w, r.Body)
	})
	a.Add(instance)
	_, address := startGateway(t, Config{}, a)
	for i := range 20 {
		fetch(t, newRequest(t, "POST", address, "/", strings.Repeat("x", i*1000)))
	}
	if instance.dials.Load() != 1 {
		t.Errorf("%d connections for 20 requests one after another", instance.dials.Load())
	}
}

func TestProxy_GoesToAnotherInstanceWhenOneCannotBeReached(t *testing.T) {
	t.Parallel()
	for name, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			revision := testRevision()
			revision.HTTP2 = http2
			a := NewActivator(revision)
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			listener.Close() // refuses from now on
			for i := range 10 {
				refusing := newFakeInstance(fmt.Sprint("refusing", i), listener.Addr().String())
				if i%2 == 0 {
					close(refusing.exited)
				}
				a.Add(refusing)
			}
			_, address := startGateway(t, Config{}, a)
			a.Add(serveInstance(t, "ready", func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }))
			for range 20 {
				if response, body := fetch(t, newRequest(t, "POST", address, "/", "hi")); response.StatusCode != 200 || body != "hi" {
					t.Fatalf("got %d %q", response.StatusCode, body)
				}
			}
			waitForLoad(t, a, 0, 0)
		})
	}
}

func TestProxy_SaysThatAnInstanceDied(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		exit   engine.Exit
		status int
		text   string
	}{
		"out of memory": {engine.Exit{Signal: 9, OOM: true}, 500, textMemory},
		"crashed":       {engine.Exit{Code: 1}, 503, textBroken},
	} {
		for protocol, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
			t.Run(name+" "+protocol, func(t *testing.T) {
				revision := testRevision()
				revision.HTTP2 = http2
				a := NewActivator(revision)
				var instance *fakeInstance
				instance = serveInstance(t, "a", func(w http.ResponseWriter, r *http.Request) {
					go instance.kill(test.exit)
					<-r.Context().Done()
				})
				a.Add(instance)
				_, address := startGateway(t, Config{}, a)
				response, body := fetch(t, newRequest(t, "GET", address, "/", ""))
				if response.StatusCode != test.status || body != test.text+"\n" {
					t.Errorf("got %d %q, want %d %q", response.StatusCode, body, test.status, test.text)
				}
			})
		}
	}
}

// dyingInstance closes its connections and takes no more; that it has ended is known long after.
type dyingInstance struct{ *fakeInstance }

func (d dyingInstance) Dial(ctx context.Context) (net.Conn, error) {
	if d.dials.Load() > 0 {
		time.AfterFunc(2*exitWait, func() { d.kill(engine.Exit{Signal: 9, OOM: true}) })
		return nil, errors.New("connection refused")
	}
	return d.fakeInstance.Dial(ctx)
}

func TestProxy_WaitsForTheNewsOfAnInstanceThatIsDying(t *testing.T) {
	t.Parallel()
	a := NewActivator(testRevision())
	a.Add(dyingInstance{rawInstance(t, "a", func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
			t.Error(err)
		}
	})})
	_, address := startGateway(t, Config{}, a)
	response, body := fetch(t, newRequest(t, "GET", address, "/", ""))
	if response.StatusCode != 500 || body != textMemory+"\n" {
		t.Errorf("got %d %q, want 500 %q", response.StatusCode, body, textMemory)
	}
}

// brokenConn is a connection that breaks when a request's body is written.
type brokenConn struct {
	*net.TCPConn
	writes int
}

func (c *brokenConn) Write(p []byte) (int, error) {
	c.writes++
	if c.writes > 1 {
		c.TCPConn.CloseRead()
		return 0, syscall.ECONNRESET
	}
	return c.TCPConn.Write(p)
}

func TestProxy_AnswersAClientWhoseBodyWasReadAndNotSentHoweverLongItTakes(t *testing.T) {
	t.Parallel()
	a := NewActivator(testRevision())
	broken := rawInstance(t, "broken", func(c net.Conn) { io.Copy(io.Discard, c) })
	broken.wrap = func(c *net.TCPConn) net.Conn {
		broken.address = "127.0.0.1:0" // the next connection is refused
		time.AfterFunc(uploadLinger+200*time.Millisecond, func() { broken.kill(engine.Exit{Signal: 9, OOM: true}) })
		return &brokenConn{TCPConn: c}
	}
	a.Add(broken)
	_, address := startGateway(t, Config{}, a)
	response, body := fetch(t, newRequest(t, "POST", address, "/", "body"))
	if response.StatusCode != 500 || body != textMemory+"\n" {
		t.Errorf("got %d %q", response.StatusCode, body)
	}
}

func TestProxy_AnInstanceThatBreaksAConnectionOffAndLivesHasNotRunOutOfMemory(t *testing.T) {
	t.Parallel()
	instance := rawInstance(t, "a", func(c net.Conn) {
		// The connection that only asks whether it lives brings no request.
		_, _ = http.ReadRequest(bufio.NewReader(c))
	})
	a := NewActivator(testRevision())
	a.Add(instance)
	_, address := startGateway(t, Config{}, a)
	response, body := fetch(t, newRequest(t, "GET", address, "/", ""))
	if response.StatusCode != 503 || body != textBroken+"\n" {
		t.Errorf("got %d %q, want 503 %q", response.StatusCode, body, textBroken)
	}
	if dials := instance.dials.Load(); dials != 2 {
		t.Errorf("%d connections, want one for the request and one to see that it lives", dials)
	}
}

func TestProxy_TellsGRPCFromWhatOnlyBeginsLikeIt(t *testing.T) {
	t.Parallel()
	for contentType, want := range map[string]bool{
		"application/grpc":               true,
		"application/grpc+proto":         true,
		"application/grpc;charset=utf-8": true,
		"application/grpc-web":           false,
		"application/grpc-web+proto":     false,
		"application/grpc-web-text":      false,
		"application/grpcx":              false,
		"application/json":               false,
		"text/plain, application/grpc":   false,
	} {
		r := &http.Request{ProtoMajor: 2, Header: http.Header{"Content-Type": {contentType}}}
		if got := isGRPC(r); got != want {
			t.Errorf("%q over HTTP/2: got %v, want %v", contentType, got, want)
		}
		r.ProtoMajor = 1
		if isGRPC(r) {
			t.Errorf("%q over HTTP/1.1 is taken for gRPC", contentType)
		}
	}
}

// closesReused is an instance that answers the first request of each connection, and closes it when it has read the
// second. It counts the requests that it has read.
func closesReused(requests *atomic.Int64) func(net.Conn) {
	return func(c net.Conn) {
		reader := bufio.NewReader(c)
		for i := range 2 {
			r, err := http.ReadRequest(reader)
			if err != nil {
				return
			}
			io.Copy(io.Discard, r.Body)
			requests.Add(1)
			if i == 0 {
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
			}
		}
	}
}

func TestProxy_NeverRepeatsARequestThatAnInstanceHasRead(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ method, body string }{
		{"GET", ""}, {"HEAD", ""}, {"OPTIONS", ""}, {"DELETE", ""}, {"POST", ""}, {"PUT", "body"}, {"GET", "body"},
	} {
		t.Run(test.method+" "+test.body, func(t *testing.T) {
			var requests atomic.Int64
			_, a, address := throughRaw(t, testRevision(), closesReused(&requests))
			fetch(t, newRequest(t, "GET", address, "/", ""))
			waitForLoad(t, a, 0, 0)
			response, _ := fetch(t, newRequest(t, test.method, address, "/", test.body))
			if response.StatusCode != 503 || requests.Load() != 2 {
				t.Errorf("got %d and the instance %d requests, want 503 and 2", response.StatusCode, requests.Load())
			}
			waitForLoad(t, a, 0, 0)
		})
	}
}

func TestProxy_DoesNotRepeatARequestThatEndedTheInstance(t *testing.T) {
	t.Parallel()
	a := NewActivator(testRevision())
	one := idleInstance("one")
	var others atomic.Int64
	other := serveInstance(t, "other", func(http.ResponseWriter, *http.Request) { others.Add(1) })
	raw := rawInstance(t, "one", func(c net.Conn) {
		reader := bufio.NewReader(c)
		for i := 0; ; i++ {
			if _, err := http.ReadRequest(reader); err != nil {
				return
			}
			if i > 0 {
				a.Add(other)
				one.kill(engine.Exit{Signal: 9, OOM: true})
				return
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
		}
	})
	one.address = raw.address
	a.Add(one)
	_, address := startGateway(t, Config{}, a)
	fetch(t, newRequest(t, "GET", address, "/", ""))
	waitForLoad(t, a, 0, 0)
	response, body := fetch(t, newRequest(t, "GET", address, "/", ""))
	if response.StatusCode != 500 || body != textMemory+"\n" || others.Load() != 0 {
		t.Errorf("got %d %q, and the other instance %d requests; want 500 and none", response.StatusCode, body, others.Load())
	}
}
