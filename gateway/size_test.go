package gateway

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestGateway_RefusesRequestsThatAreTooLarge(t *testing.T) {
	reached := make(chan struct{}, 10)
	a, address := throughConfig(t, Config{MaxTargetBytes: 20, MaxHeaderFields: 5, MaxBodyBytes: 10}, testRevision(),
		func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			reached <- struct{}{}
		})
	const host = "Host: hello.test\r\n"
	for name, c := range map[string]struct {
		text   string
		status string
		says   string
	}{
		"target":               {"GET /" + strings.Repeat("x", 20) + " HTTP/1.1\r\n" + host + "\r\n", "414", "longer than 20 bytes"},
		"target with query":    {"GET /?" + strings.Repeat("x", 19) + " HTTP/1.1\r\n" + host + "\r\n", "414", "longer than 20 bytes"},
		"longest target":       {"GET /" + strings.Repeat("x", 19) + " HTTP/1.1\r\n" + host + "\r\n", "200", ""},
		"fields":               {"GET / HTTP/1.1\r\n" + host + fields(6) + "\r\n", "431", "more than 5 header fields"},
		"fields of one name":   {"GET / HTTP/1.1\r\n" + host + strings.Repeat("A: b\r\n", 6) + "\r\n", "431", "more than 5 header fields"},
		"most fields":          {"GET / HTTP/1.1\r\n" + host + fields(4) + "Connection: close\r\n\r\n", "200", ""},
		"body":                 {"POST / HTTP/1.1\r\n" + host + "Content-Length: 11\r\n\r\n12345678901", "413", "larger than 10 bytes"},
		"longest body":         {"POST / HTTP/1.1\r\n" + host + "Content-Length: 10\r\n\r\n1234567890", "200", ""},
		"chunked body":         {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n6\r\n123456\r\n5\r\n12345\r\n0\r\n\r\n", "413", "larger than 10 bytes"},
		"longest chunked body": {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n6\r\n123456\r\n4\r\n1234\r\n0\r\n\r\n", "200", ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := exchangeRaw(t, address, c.text+"GET / HTTP/1.1\r\nHost: hello.test\r\nConnection: close\r\n\r\n")
			if status := strings.SplitN(got+"   ", " ", 3)[1]; status != c.status || !strings.Contains(got, c.says) {
				t.Errorf("got %.300q, want %s", got, c.status)
			}
			for range strings.Count(got, " 200 OK") {
				<-reached
			}
			waitForLoad(t, a, 0, 0)
		})
	}
}

func fields(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "X-%d: y\r\n", i)
	}
	return b.String()
}

func TestGateway_NeverGivesTheInstancePartOfABodyForAWholeOne(t *testing.T) {
	for name, set := range map[string]func(*Revision){
		"HTTP/1.1": func(*Revision) {},
		"HTTP/2":   func(r *Revision) { r.HTTP2 = true },
	} {
		t.Run(name, func(t *testing.T) {
			revision := testRevision()
			set(&revision)
			began, saw := make(chan struct{}), make(chan error, 1)
			a, address := throughConfig(t, Config{MaxBodyBytes: 100_000}, revision, func(w http.ResponseWriter, r *http.Request) {
				close(began)
				_, err := io.Copy(io.Discard, r.Body)
				saw <- err
			})
			r := newRequest(t, "POST", address, "/", "x")
			reader, writer := io.Pipe()
			go func() {
				io.WriteString(writer, strings.Repeat("x", 50_000))
				<-began
				io.WriteString(writer, strings.Repeat("x", 50_001))
				writer.Close()
			}()
			r.Body = reader
			r.ContentLength = -1
			response, body := fetch(t, r)
			if response.StatusCode != http.StatusRequestEntityTooLarge || !strings.Contains(body, "larger than 100000 bytes") {
				t.Errorf("got %d %q", response.StatusCode, body)
			}
			if err := <-saw; err == nil {
				t.Error("the instance read the body to its end")
			}
			waitForLoad(t, a, 0, 0)
		})
	}
}

// throughConfig is through with a gateway that is set up as config says.
func throughConfig(t testing.TB, config Config, revision Revision, handler http.HandlerFunc) (*Activator, string) {
	t.Helper()
	a := NewActivator(revision)
	a.Add(serveInstance(t, "hello-00001-a", handler))
	_, address := startGateway(t, config, a)
	return a, address
}
