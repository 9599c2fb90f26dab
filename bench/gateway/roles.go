package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"runtime/debug"
	"runtime/pprof"
	"strconv"
	"time"

	"github.com/coder/websocket"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/gateway"
)

const host = "hello.default.localhost"

// serve listens on a free port, prints the address, and serves until standard input ends. For each line of it the
// memory that the process does not need is given back, and a line is printed: what remains is in use.
func serve(run func(context.Context, net.Listener) error) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr())
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			debug.FreeOSMemory()
			fmt.Println("settled")
		}
		cancel()
	}()
	return run(ctx, listener)
}

// serveHandler serves HTTP/1.1, and HTTP/2 without TLS with prior knowledge.
func serveHandler(handler http.Handler) error {
	return serve(func(ctx context.Context, listener net.Listener) error {
		var protocols http.Protocols
		protocols.SetHTTP1(true)
		protocols.SetUnencryptedHTTP2(true)
		server := &http.Server{Handler: handler, Protocols: &protocols}
		go server.Serve(listener)
		<-ctx.Done()
		return server.Close()
	})
}

// hello is the tiny answer.
const hello = "Hello, World!\n"

// runInstance serves what the variants ask for.
func runInstance() error {
	bodies := make(map[string][]byte)
	for _, v := range variants {
		bodies[v.path] = text(v.body)
		if v.body == len(hello) {
			bodies[v.path] = []byte(hello)
		}
	}
	return serveHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == webSocketPath {
			echo(w, r)
			return
		}
		body, ok := bodies[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		if r.ContentLength > 0 {
			if n, err := io.Copy(io.Discard, r.Body); err != nil || n != r.ContentLength {
				http.Error(w, fmt.Sprintf("%d bytes arrived, not %d: %v", n, r.ContentLength, err), http.StatusBadRequest)
				return
			}
		}
		if len(body) > len(hello) { // net/http would send it in chunks
			w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		}
		w.Write(body)
	}))
}

const webSocketPath = "/websocket"

// echo sends the messages of a WebSocket back until it ends.
func echo(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return // it has answered
	}
	defer c.CloseNow()
	for {
		kind, message, err := c.Read(r.Context())
		if err == nil {
			err = c.Write(r.Context(), kind, message)
		}
		if err != nil {
			return
		}
	}
}

// runGateway serves one revision through Berth's gateway, with flags and the instance's address as arguments.
func runGateway(args []string) error {
	flags := flag.NewFlagSet("gateway", flag.ExitOnError)
	profile := flags.String("cpuprofile", "", "a file for a CPU profile")
	concurrency := flags.Int("concurrency", 80, "requests at the same time; 0 is any number")
	hosts := flags.Int("hosts", 0, "further hosts, each of another service")
	flags.Parse(args)
	instance := flags.Arg(0)
	if *profile != "" {
		file, err := os.Create(*profile)
		if err != nil {
			return err
		}
		if err := pprof.StartCPUProfile(file); err != nil {
			return err
		}
		defer file.Close()
		defer pprof.StopCPUProfile()
	}
	activator := gateway.NewActivator(gateway.Revision{
		Namespace: "default", Service: "hello", Configuration: "hello", Name: "hello-00001",
		Concurrency: *concurrency, Timeout: 300 * time.Second, MaxQueue: 10000,
	})
	activator.Add(&listening{address: instance, exited: make(chan struct{})})
	g := gateway.New(gateway.Config{Registerer: prometheus.NewRegistry()})
	route := &gateway.Route{Splits: []gateway.Split{{Percent: 100, Activator: activator}}}
	if err := g.SetHosts("default/hello", map[string]*gateway.Route{host: route}); err != nil {
		return err
	}
	for i := range *hosts {
		if err := g.SetHosts("default/"+strconv.Itoa(i), map[string]*gateway.Route{hostOf(i): route}); err != nil {
			return err
		}
	}
	return serve(g.Serve)
}

func runReverseProxy(instance string) error {
	return serveHandler(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: instance})
			r.Out.Host = r.In.Host
			r.SetXForwarded()
		},
		Transport: &http.Transport{MaxIdleConns: 0, MaxIdleConnsPerHost: 256, DisableCompression: true},
	})
}

// listening is an instance that runs already.
type listening struct {
	address string
	exited  chan struct{}
}

func (l *listening) ID() string                  { return "hello-00001-bench" }
func (l *listening) Start(context.Context) error { return nil }
func (l *listening) Stop(time.Duration)          {}
func (l *listening) Exited() <-chan struct{}     { return l.exited }
func (l *listening) Exit() engine.Exit           { return engine.Exit{} }
func (l *listening) Stages() []engine.Stage      { return nil }
func (l *listening) Dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", l.address)
}

func (*listening) Readiness() <-chan bool { return nil }

func (*listening) DialPort(context.Context, int) (net.Conn, error) { return nil, errors.ErrUnsupported }

func (*listening) Exec(context.Context, engine.Command) (int, error) { return 0, errors.ErrUnsupported }

func (*listening) Containers() []engine.ContainerStatus { return nil }

func (*listening) Freeze() error { return nil }

func (*listening) Thaw() error { return nil }

func (*listening) Frozen() bool { return false }

func (*listening) Reclaim() (int64, error) { return 0, errors.ErrUnsupported }

func (*listening) Usage() (engine.Usage, error) { return engine.Usage{}, errors.ErrUnsupported }
