package gateway

import (
	"bytes"
	"io"
	"net"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// BenchmarkLoop is one request after the other on a kept connection, through a loop to a warm instance: with the
// metrics on, and with or without the access log. What is allocated is the gateway's: client and instance allocate nothing.
func BenchmarkLoop(b *testing.B) {
	const get = "GET /path?query HTTP/1.1\r\nHost: hello.test\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n"
	const post = "POST /path HTTP/1.1\r\nHost: hello.test\r\nContent-Length: 5\r\n\r\nhello"
	const chunks = "POST /path HTTP/1.1\r\nHost: hello.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
	const plain = "HTTP/1.1 200 OK\r\nDate: Sun, 22 Nov 2026 02:00:00 GMT\r\nContent-Length: 5\r\n\r\nhello"
	const chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
	for _, c := range []struct {
		name, request, end, response string
		log                          io.Writer
	}{
		{"get", get, "\r\n\r\n", plain, nil},
		{"get with access log", get, "\r\n\r\n", plain, io.Discard},
		{"get, response in chunks", get, "\r\n\r\n", chunked, nil},
		{"post", post, "hello", plain, nil},
		{"post in chunks", chunks, "0\r\n\r\n", plain, nil},
	} {
		b.Run(c.name, func(b *testing.B) {
			a := NewActivator(testRevision())
			a.Add(rawInstance(b, "a", func(conn net.Conn) {
				buffer, response := make([]byte, 4096), []byte(c.response)
				for n := 0; ; {
					got, err := conn.Read(buffer[n:])
					if err != nil {
						return
					}
					if n += got; bytes.HasSuffix(buffer[:n], []byte(c.end)) {
						n = 0
						conn.Write(response)
					}
				}
			}))
			_, address := startGateway(b, Config{Registerer: prometheus.NewRegistry(), AccessLog: c.log}, a)
			client, err := net.Dial("tcp", address)
			if err != nil {
				b.Fatal(err)
			}
			defer client.Close()
			request, buffer := []byte(c.request), make([]byte, 4096)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := client.Write(request); err != nil {
					b.Fatal(err)
				}
				for n := 0; !bytes.HasSuffix(buffer[:n], []byte(c.response[len(c.response)-5:])); {
					got, err := client.Read(buffer[n:])
					if err != nil {
						b.Fatal(err)
					}
					n += got
				}
			}
		})
	}
}
