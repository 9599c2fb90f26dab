package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// startServer serves HTTP/1.1, and HTTP/2 with prior knowledge, and returns its address.
func startServer(t *testing.T, handler http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetHTTP1(true)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

func TestClients_SendWhatTheVariantSaysAndCountEachAnswer(t *testing.T) {
	for i := range variants {
		v := &variants[i]
		t.Run(v.name, func(t *testing.T) {
			var requests atomic.Int64
			var wrong atomic.Pointer[string]
			address := startServer(t, func(w http.ResponseWriter, r *http.Request) {
				n, err := io.Copy(io.Discard, r.Body)
				if got := fmt.Sprint(r.Host, r.URL.Path, n, err, r.ProtoMajor == 2, r.Close); got != fmt.Sprint(host, v.path, int64(v.upload), error(nil), v.http2, v.fresh) {
					wrong.Store(&got)
				}
				requests.Add(1)
				w.Header().Set("Content-Length", strconv.Itoa(v.body))
				w.Write(text(v.body))
			})
			c, err := connect(&path{address: address}, v, 20)
			if err != nil {
				t.Fatal(err)
			}
			defer c.close()
			answers := 0
			for range 2 {
				latencies, err := c.run(30 * time.Millisecond)
				if err != nil {
					t.Fatal(err)
				}
				answers += len(latencies)
			}
			if got := wrong.Load(); got != nil {
				t.Errorf("the server got %s", *got)
			}
			if n := requests.Load(); int64(answers) != n || n < 40 {
				t.Errorf("%d answers counted, the server gave %d, want the same and at least 40", answers, n)
			}
		})
	}
}

func TestClients_RefuseWrongAnswers(t *testing.T) {
	answers := map[string]http.HandlerFunc{
		"status":  func(w http.ResponseWriter, _ *http.Request) { http.Error(w, hello[:13], http.StatusBadGateway) },
		"longer":  func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, hello+"!") },
		"shorter": func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, hello[1:]) },
		"incomplete": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "14")
			io.WriteString(w, "Hello")
		},
	}
	for name, handler := range answers {
		for i := range variants {
			v := &variants[i]
			if v.body != len(hello) || v.upload > 0 {
				continue
			}
			t.Run(name+"/"+v.name, func(t *testing.T) {
				c, err := connect(&path{address: startServer(t, handler)}, v, 1)
				if err != nil {
					t.Fatal(err)
				}
				defer c.close()
				if _, err := c.run(0); err == nil {
					t.Error("no error")
				}
			})
		}
	}
}

func TestParseHead_FindsTheLengthWhereverItStands(t *testing.T) {
	for _, test := range []struct {
		data       string
		head, body int
		wrong      bool
	}{
		{data: "HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\nHello", head: 39, body: 14},
		{data: "HTTP/1.1 200 OK\r\ncontent-type: text\r\ncontent-length: 0\r\ndate: now\r\n\r\n", head: 69, body: 0},
		{data: "HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r"},
		{data: ""},
		{data: "HTTP/1.1 200 OK\r\nContent-Length: 1x\r\n\r\n", wrong: true},
		{data: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", wrong: true},
		{data: "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 14\r\n\r\n", wrong: true},
	} {
		head, body, err := parseHead([]byte(test.data))
		if head != test.head || body != test.body && err == nil || (err != nil) != test.wrong {
			t.Errorf("parseHead(%q) is %d, %d, %v; want %d, %d, an error: %v", test.data, head, body, err, test.head, test.body, test.wrong)
		}
	}
}

func TestHolder_CountsTheConnectionsThatAnswer(t *testing.T) {
	var lose atomic.Bool
	address := startServer(t, func(w http.ResponseWriter, r *http.Request) {
		if lose.Load() && strings.HasSuffix(r.URL.Path, "7") {
			panic(http.ErrAbortHandler)
		}
		io.WriteString(w, r.URL.Path)
	})
	h, err := newHolder(address, 200)
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	ask := func() int {
		answered, err := h.ask(
			func(number int) []byte { return fmt.Appendf(nil, "GET /%d HTTP/1.1\r\nHost: h\r\n\r\n", number) },
			func(number int, got []byte) (bool, error) {
				head, body, err := parseHead(got)
				if head == 0 || err != nil || len(got) < head+body {
					return false, err
				}
				if string(got[head:]) != fmt.Sprintf("/%d", number) {
					return false, fmt.Errorf("connection %d got %q", number, got)
				}
				return true, nil
			})
		if err != nil {
			t.Fatal(err)
		}
		return answered
	}
	if n := ask(); n != 200 {
		t.Errorf("%d of 200 connections answered", n)
	}
	lose.Store(true)
	if n := ask(); n != 180 {
		t.Errorf("%d connections answered, want the 180 that were not lost", n)
	}
}

func TestChooseParts_NamesWhatIsNotThere(t *testing.T) {
	if parts, err := chooseParts("1k,idle"); err != nil || len(parts) != 2 {
		t.Errorf("got %v, %v", parts, err)
	}
	if _, err := chooseParts("1k,2k"); err == nil || !strings.Contains(err.Error(), `"2k"`) {
		t.Errorf("got error %v, want one that names 2k", err)
	}
}
