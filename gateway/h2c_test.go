package gateway

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// frames is a client of HTTP/2 that reads and writes frames.
type frames struct {
	*http2.Framer
	conn    net.Conn
	encoder *hpack.Encoder
	block   bytes.Buffer
}

func newFrames(c net.Conn, reader io.Reader) *frames {
	f := &frames{Framer: http2.NewFramer(c, reader), conn: c}
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	f.encoder = hpack.NewEncoder(&f.block)
	return f
}

// get begins a GET request.
func (f *frames) get(t testing.TB, stream uint32, path string) {
	t.Helper()
	f.block.Reset()
	for _, field := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "hello.test"}, {":path", path}, {"x-kept", "in the table"}} {
		f.encoder.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]})
	}
	if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: f.block.Bytes(), EndStream: true, EndHeaders: true}); err != nil {
		t.Fatal(err)
	}
}

// response reads frames until a stream has ended.
func (f *frames) response(t testing.TB, stream uint32) (status, body string) {
	t.Helper()
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatalf("reading the response of stream %d: %v", stream, err)
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			if frame.StreamID == stream {
				status = frame.PseudoValue("status")
			}
		case *http2.DataFrame:
			if frame.StreamID == stream {
				body += string(frame.Data())
			}
		case *http2.RSTStreamFrame:
			t.Fatalf("stream %d was reset: %v", frame.StreamID, frame.ErrCode)
		case *http2.GoAwayFrame:
			t.Fatalf("the connection was ended: %v %s", frame.ErrCode, frame.DebugData())
		}
		if head := frame.Header(); head.StreamID == stream && head.Flags.Has(http2.FlagDataEndStream) && (head.Type == http2.FrameData || head.Type == http2.FrameHeaders) {
			return status, body
		}
	}
}

// setting is one setting as HTTP2-Settings has it.
func setting(id http2.SettingID, value uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(nil, uint16(id)), value)
}

// upgradeRaw sends a request that asks for HTTP/2 and reads the head of the answer.
func upgradeRaw(t testing.TB, address, request string, settings ...[]byte) (net.Conn, *bufio.Reader, *http.Response) {
	t.Helper()
	c := dialRaw(t, address)
	fmt.Fprintf(c, "%sHost: hello.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: %s\r\n\r\n",
		request, base64.RawURLEncoding.EncodeToString(bytes.Join(settings, nil)))
	reader := bufio.NewReader(c)
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c, reader, response
}

func TestGateway_ChangesToHTTP2WhenARequestAsksForIt(t *testing.T) {
	got := make(chan *http.Request, 4)
	a, address := through(t, testRevision(), func(w http.ResponseWriter, r *http.Request) {
		got <- r
		io.WriteString(w, "hello "+r.URL.RequestURI())
	})
	c, reader, response := upgradeRaw(t, address, "GET /first?a=b HTTP/1.1\r\nX-Long: "+strings.Repeat("x", 40_000)+"\r\nCookie: a=b\r\n")
	if response.StatusCode != http.StatusSwitchingProtocols || response.Header.Get("Upgrade") != "h2c" || response.Header.Get("Connection") != "Upgrade" {
		t.Fatalf("got %d %v", response.StatusCode, response.Header)
	}
	io.WriteString(c, http2.ClientPreface)
	f := newFrames(c, reader)
	f.WriteSettings()
	if status, body := f.response(t, 1); status != "200" || body != "hello /first?a=b" {
		t.Errorf("the request that asked got %s %q", status, body)
	}
	r := <-got
	var fields []string
	for key := range r.Header {
		fields = append(fields, key)
	}
	if r.Host != "hello.test" || len(r.Header.Get("X-Long")) != 40_000 || r.Header.Get("Cookie") != "a=b" || r.Header.Get("Http2-Settings") != "" || r.Header.Get("Upgrade") != "" {
		t.Errorf("the instance got host %q and %v", r.Host, fields)
	}
	for stream := uint32(3); stream <= 7; stream += 2 { // the client's table is used from the second one on
		f.get(t, stream, fmt.Sprint("/", stream))
		if status, body := f.response(t, stream); status != "200" || body != fmt.Sprint("hello /", stream) {
			t.Errorf("stream %d got %s %q", stream, status, body)
		}
		if r := <-got; r.Header.Get("X-Kept") != "in the table" {
			t.Errorf("stream %d: the instance got %v", stream, r.Header)
		}
	}
	waitForLoad(t, a, 0, 0)
}

func TestGateway_TakesTheSettingsOfTheRequestThatAskedForHTTP2(t *testing.T) {
	_, address := through(t, testRevision(), func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") })
	c, reader, response := upgradeRaw(t, address, "GET / HTTP/1.1\r\n", setting(http2.SettingInitialWindowSize, 2))
	if response.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("got %d", response.StatusCode)
	}
	f := newFrames(c, reader)
	io.WriteString(c, http2.ClientPreface)
	f.WriteSettings() // says nothing of the window
	acknowledged, first := 0, ""
	for first == "" {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if frame.IsAck() {
				acknowledged++
			}
		case *http2.DataFrame:
			first = string(frame.Data())
		}
	}
	if first != "he" {
		t.Errorf("the first data are %q, and the window was 2", first)
	}
	f.WriteWindowUpdate(1, 100)
	if _, rest := f.response(t, 1); first+rest != "hello" {
		t.Errorf("got %q and %q", first, rest)
	}
	f.get(t, 3, "/")
	f.WriteWindowUpdate(3, 100)
	if _, body := f.response(t, 3); body != "hello" || acknowledged != 1 {
		t.Errorf("got %q; %d acknowledgements of one frame of settings", body, acknowledged)
	}
}

func TestMergeSettings_KeepsTheLastOfEach(t *testing.T) {
	join := func(settings ...[]byte) []byte { return bytes.Join(settings, nil) }
	first := join(setting(3, 1), setting(4, 2), setting(3, 3), setting(6, 4))
	second := join(setting(4, 5), setting(5, 6))
	want := join(setting(4, 5), setting(5, 6), setting(6, 4), setting(3, 3))
	if diff := cmp.Diff(want, mergeSettings(first, second)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := mergeSettings(nil, nil); len(got) != 0 {
		t.Errorf("of none: %v", got)
	}
}

func TestGateway_TakesAnUpgradeWhoseClientDoesNotWait(t *testing.T) {
	_, address := through(t, testRevision(), func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.URL.Path) })
	c := dialRaw(t, address)
	var out bytes.Buffer
	out.WriteString("GET /first HTTP/1.1\r\nHost: hello.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: \r\n\r\n" + http2.ClientPreface)
	writer := http2.NewFramer(&out, nil)
	writer.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 0})
	writer.WritePing(false, [8]byte{1})
	c.Write(out.Bytes())
	reader := bufio.NewReader(c)
	if response, err := http.ReadResponse(reader, nil); err != nil || response.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("got %+v, %v", response, err)
	}
	f := newFrames(c, reader)
	if status, body := f.response(t, 1); status != "200" || body != "/first" {
		t.Errorf("got %s %q", status, body)
	}
}

func TestGateway_AnswersOverHTTP1WhatAsksForHTTP2InAWayThatItMustNot(t *testing.T) {
	_, address := through(t, testRevision(), func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Http2-Settings") != "" || r.Header.Get("Upgrade") != "" {
			t.Errorf("the instance got %v", r.Header)
		}
		io.Copy(io.Discard, r.Body)
	})
	const rest = "Host: hello.test\r\n"
	for name, text := range map[string]string{
		"no settings":         "GET / HTTP/1.1\r\n" + rest + "Connection: Upgrade, close\r\nUpgrade: h2c\r\n\r\n",
		"settings not listed": "GET / HTTP/1.1\r\n" + rest + "Connection: Upgrade, close\r\nUpgrade: h2c\r\nHTTP2-Settings: \r\n\r\n",
		"upgrade not listed":  "GET / HTTP/1.1\r\n" + rest + "Connection: HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: \r\n\r\n",
		"settings twice":      "GET / HTTP/1.1\r\n" + rest + "Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: \r\nHTTP2-Settings: \r\n\r\n",
		"half a setting":      "GET / HTTP/1.1\r\n" + rest + "Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAAA\r\n\r\n",
		"not base64":          "GET / HTTP/1.1\r\n" + rest + "Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: ####\r\n\r\n",
		"many settings":       "GET / HTTP/1.1\r\n" + rest + "Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: " + strings.Repeat("AAMAAABk", 101) + "\r\n\r\n",
		"a body":              "POST / HTTP/1.1\r\n" + rest + "Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: \r\nContent-Length: 1\r\n\r\nx",
		"h2":                  "GET / HTTP/1.1\r\n" + rest + "Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2\r\nHTTP2-Settings: \r\n\r\n",
		"HTTP/1.0":            "GET / HTTP/1.0\r\n" + rest + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: \r\n\r\n",
	} {
		if got := exchangeRaw(t, address, text); !strings.Contains(got, " 200 OK\r\n") || strings.Contains(got, " 101 ") {
			t.Errorf("%s: got %.300q", name, got)
		}
	}
}

func TestGateway_EndsAConnectionThatChangedToHTTP2AndDoesNotSpeakIt(t *testing.T) {
	a, address := through(t, testRevision(), func(w http.ResponseWriter, r *http.Request) {})
	for name, text := range map[string]string{
		"HTTP/1.1":      "GET /second HTTP/1.1\r\nHost: hello.test\r\n\r\n" + strings.Repeat("x", 100),
		"no settings":   http2.ClientPreface + "\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678", // a ping
		"half settings": http2.ClientPreface + "\x00\x00\x01\x04\x00\x00\x00\x00\x00x",
		"long settings": http2.ClientPreface + "\xff\xff\xfc\x04\x00\x00\x00\x00\x00",
	} {
		c, reader, response := upgradeRaw(t, address, "GET / HTTP/1.1\r\n")
		if response.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("%s: got %d", name, response.StatusCode)
		}
		io.WriteString(c, text)
		rest, err := io.ReadAll(reader)
		if e, ok := err.(net.Error); ok && e.Timeout() || bytes.Contains(rest, []byte("HTTP/1.1 200")) {
			t.Errorf("%s: got %q, %v", name, rest, err)
		}
	}
	waitForLoad(t, a, 0, 0)
}

func TestServe_LetsStreamsOfAnUpgradedConnectionEnd(t *testing.T) {
	started, finish := make(chan struct{}), make(chan struct{})
	a := NewActivator(testRevision())
	a.Add(serveInstance(t, "a", func(w http.ResponseWriter, r *http.Request) {
		close(started)
		<-finish
		io.WriteString(w, "done")
	}))
	g := New(Config{})
	if err := g.SetHosts("default/hello", map[string]*Route{"hello.test": toActivator(a)}); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- g.Serve(ctx, listener) }()

	c, reader, _ := upgradeRaw(t, listener.Addr().String(), "GET / HTTP/1.1\r\n")
	io.WriteString(c, http2.ClientPreface)
	f := newFrames(c, reader)
	f.WriteSettings()
	<-started
	cancel()
	told := false
	for !told { // the server says that it ends, then the request does
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		_, told = frame.(*http2.GoAwayFrame)
	}
	close(finish)
	body := ""
	for !strings.HasSuffix(body, "done") {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatalf("after %q: %v", body, err)
		}
		if data, ok := frame.(*http2.DataFrame); ok {
			body += string(data.Data())
		}
	}
	c.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if n := g.clients.count(); n != 0 {
		t.Errorf("%d connections are counted still", n)
	}
}

func TestGateway_SpeaksHTTP2WithCurlThatAsksForIt(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("there is no curl")
	}
	_, address := through(t, testRevision(), func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %q\n", r.Method, r.URL.Path, body)
	})
	run := func(args ...string) string {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		args = append([]string{"-sS", "--http2", "-H", "Host: hello.test", "-w", "%{http_version}\n"}, args...)
		out, err := exec.CommandContext(ctx, curl, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("curl: %v\n%s", err, out)
		}
		return string(out)
	}
	// The second URL is asked for on the same connection.
	if diff := cmp.Diff("GET /a \"\"\n2\nGET /b \"\"\n2\n", run("http://"+address+"/a", "http://"+address+"/b")); diff != "" {
		t.Errorf("two requests (-want +got):\n%s", diff)
	}
	if got := run("-d", "text", "http://"+address+"/post"); got != "POST /post \"text\"\n1.1\n" {
		t.Errorf("a request with a body: %q", got)
	}
}
