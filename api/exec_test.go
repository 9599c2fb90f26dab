package api_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/moby/spdystream"
	"github.com/moby/spdystream/spdy"
	"k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-run/berth/api"
	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/serving"
)

// shell is an instance whose commands are functions.
type shell struct {
	engine.Instance
	exited chan struct{}

	mu       sync.Mutex
	commands []engine.Command
	begun    chan struct{} // receives when a command that goes on has begun
	ended    chan error    // receives why it has ended
}

func newShell() *shell {
	return &shell{exited: make(chan struct{}), begun: make(chan struct{}, 1), ended: make(chan error, maxStreams)}
}

func (s *shell) ID() string              { return "hello-00001-x7k2p" }
func (s *shell) Exited() <-chan struct{} { return s.exited }

func (s *shell) DialPort(ctx context.Context, port int) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
}

func (s *shell) Exec(ctx context.Context, c engine.Command) (int, error) {
	s.mu.Lock()
	s.commands = append(s.commands, c)
	s.mu.Unlock()
	switch c.Args[0] {
	case "cat":
		if _, err := io.Copy(c.Stdout, c.Stdin); err != nil {
			return 0, err
		}
	case "say":
		_, err := fmt.Fprintf(c.Stdout, "out %s %s\n", c.Container, strings.Join(c.Args[1:], "|"))
		if c.Stderr != nil {
			_, err2 := io.WriteString(c.Stderr, "err\n")
			err = errors.Join(err, err2)
		}
		return 0, err
	case "exit":
		return strconv.Atoi(c.Args[1])
	case "size":
		size := <-c.Terminal
		_, err := fmt.Fprintf(c.Stdout, "%d x %d\r\n", size.Width, size.Height)
		return 0, err
	case "hang", "drain":
		s.begun <- struct{}{}
		if c.Args[0] == "drain" {
			_, _ = io.Copy(io.Discard, c.Stdin)
		}
		<-ctx.Done()
		s.ended <- context.Cause(ctx)
		return 0, ctx.Err()
	default:
		return 0, fmt.Errorf("running %q: no such file", c.Args[0])
	}
	return 0, nil
}

const patience = 30 * time.Second

// awaitBegun waits until a command that goes on has begun.
func (s *shell) awaitBegun(t *testing.T) {
	t.Helper()
	select {
	case <-s.begun:
	case <-time.After(patience):
		t.Fatal("the command has not begun")
	}
}

// awaitEnd waits until the context of a command has ended.
func (s *shell) awaitEnd(t *testing.T) {
	t.Helper()
	select {
	case <-s.ended:
	case <-time.After(patience):
		t.Fatal("the command has not ended")
	}
}

// maxStreams is how many commands and port-forwards there may be at once.
const maxStreams = 3

// withPod is a server that has a pod of an instance.
func withPod(t testing.TB, instance engine.Instance, containers ...string) *server {
	t.Helper()
	s := prepare(t, func(c *api.Config) {
		c.MaxWatches = maxStreams
		c.Instance = func(id string) engine.Instance {
			if id == "hello-00001-x7k2p" {
				return instance
			}
			return nil
		}
	})
	s.EnableHTTP2 = true
	s.StartTLS()
	for name, id := range map[string]string{"hello": "hello-00001-x7k2p", "gone": "hello-00001-00000"} {
		pod := &serving.Pod{ObjectMeta: serving.ObjectMeta{
			Namespace: "default", Name: name, Annotations: map[string]string{serving.AnnotationInstance: id},
		}}
		for _, name := range containers {
			pod.Spec.Containers = append(pod.Spec.Containers, serving.Container{Name: name})
		}
		pod.Status.Phase = serving.PodRunning
		if _, err := s.store.Create(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func TestKubectl_RunsCommandsInAPod(t *testing.T) {
	// kubectl goes by WebSocket, and before 1.31 by SPDY: it still does when it is told so.
	for _, protocol := range []string{"true", "false"} {
		t.Run("KUBECTL_REMOTE_COMMAND_WEBSOCKETS="+protocol, func(t *testing.T) {
			t.Parallel()
			instance := newShell()
			s := withPod(t, instance, "user-container")
			kubectl := func(stdin string, args ...string) (string, string, int) {
				cmd := s.command(append([]string{"exec"}, args...)...)
				cmd.Env = append(cmd.Env, "KUBECTL_REMOTE_COMMAND_WEBSOCKETS="+protocol)
				cmd.Stdin = strings.NewReader(stdin)
				var out, errs strings.Builder
				cmd.Stdout, cmd.Stderr = &out, &errs
				err := cmd.Run()
				var exit *exec.ExitError
				if err != nil && !errors.As(err, &exit) {
					t.Fatal(err)
				}
				return out.String(), errs.String(), cmd.ProcessState.ExitCode()
			}
			if out, errs, code := kubectl("", "hello", "--", "say", "a b", "$c"); out != "out user-container a b|$c\n" || errs != "err\n" || code != 0 {
				t.Errorf("got %d %q %q", code, out, errs)
			}
			if out, errs, code := kubectl("", "hello", "--", "exit", "42"); out != "" || code != 42 {
				t.Errorf("got %d %q %q", code, out, errs)
			}
			if out, errs, code := kubectl("", "hello", "--", "nothing"); code != 1 || !strings.Contains(errs, `running "nothing": no such file`) {
				t.Errorf("got %d %q %q", code, out, errs)
			}
			big := strings.Repeat("0123456789abcde\n", 1<<17) // 2 MiB
			if out, errs, code := kubectl(big, "-i", "hello", "--", "cat"); out != big || code != 0 {
				t.Errorf("got %d, %d bytes, %q", code, len(out), errs)
			}
			for wrong, args := range map[string][]string{
				`pods "other" not found`:               {"other", "--", "say"},
				`the instance of pod "gone" has ended`: {"gone", "--", "say"},
				"container nobody":                     {"hello", "-c", "nobody", "--", "say"},
			} {
				if _, errs, code := kubectl("", args...); code != 1 || !strings.Contains(errs, wrong) {
					t.Errorf("%v: got %d %q, want %q", args, code, errs, wrong)
				}
			}
		})
	}
}

func TestKubectl_EndsACommandWithItsClient(t *testing.T) {
	for _, protocol := range []string{"true", "false"} {
		t.Run("KUBECTL_REMOTE_COMMAND_WEBSOCKETS="+protocol, func(t *testing.T) {
			t.Parallel()
			instance := newShell()
			s := withPod(t, instance, "user-container")
			// More than all buffers hold: the command reads nothing of it, and so nobody reads the connection.
			cmd := s.command("exec", "-i", "hello", "--", "hang")
			cmd.Env = append(cmd.Env, "KUBECTL_REMOTE_COMMAND_WEBSOCKETS="+protocol)
			cmd.Stdin = endless{}
			cmd.WaitDelay = time.Millisecond
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			instance.awaitBegun(t)
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			instance.awaitEnd(t)
		})
	}
}

// endless never ends.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func TestExec_RefusesWhatIsNoUpgrade(t *testing.T) {
	s := withPod(t, newShell(), "one", "two")
	const path = "/api/v1/namespaces/default/pods/hello"
	s.do("GET", path+"/exec?command=say&stdout=true&container=one", "").refused(t, 400, v1.StatusReasonBadRequest, "Upgrade request required")
	s.do("GET", path+"/exec?command=say&stdout=true", "").refused(t, 400, v1.StatusReasonBadRequest, "a container name must be specified for pod hello, choose one of: [one two]")
	s.do("GET", path+"/exec?stdout=true&container=one", "").refused(t, 400, v1.StatusReasonBadRequest, "you must specify a command")
	s.do("GET", path+"/exec?command=say&container=one", "").refused(t, 400, v1.StatusReasonBadRequest, "you must specify at least 1 of stdin, stdout, stderr")
	s.do("POST", path+"/exec?command=say&stdout=1&stderr=1&tty=1&container=one", "").refused(t, 400, v1.StatusReasonBadRequest, "tty and stderr cannot both be true")
	s.do("POST", path+"/portforward", "").refused(t, 400, v1.StatusReasonBadRequest, "Upgrade request required")
	s.do("POST", path+"/attach", "").refused(t, 405, v1.StatusReasonMethodNotAllowed, "pods cannot be attached to", "kubectl logs -f", "kubectl exec")
	s.do("PUT", path+"/exec", "").want(t, 405)
}

// dial opens a WebSocket as clients other than kubectl do.
func (s *server) dial(path string, header http.Header, protocols ...string) (*websocket.Conn, *http.Response, error) {
	if header == nil {
		header = http.Header{"Authorization": {"Bearer " + secretToken}}
	}
	client := s.Client()
	transport := client.Transport.(*http.Transport).Clone()
	transport.ForceAttemptHTTP2 = false
	transport.TLSClientConfig.NextProtos = []string{"http/1.1"}
	return websocket.Dial(s.t.Context(), s.URL+path, &websocket.DialOptions{
		HTTPClient: &http.Client{Transport: transport}, HTTPHeader: header, Subprotocols: protocols,
	})
}

const execCat = "/api/v1/namespaces/default/pods/hello/exec?command=cat&stdin=true&stdout=true"

func TestExec_WebSocketNeedsTheTokenAProtocolAndNoOtherOrigin(t *testing.T) {
	s := withPod(t, newShell(), "user-container")
	for name, test := range map[string]struct {
		header    http.Header
		protocols []string
		code      int
	}{
		"no token":         {http.Header{"Cookie": {"token=" + secretToken}}, []string{"v5.channel.k8s.io"}, 401},
		"token as a name":  {http.Header{"X": {"y"}}, []string{"base64url.bearer.authorization.k8s.io.czNjcmV0LXRva2Vu", "v5.channel.k8s.io"}, 401},
		"no protocol":      {nil, nil, 400},
		"unknown protocol": {nil, []string{"v1.channel.k8s.io"}, 400},
		"another origin":   {http.Header{"Authorization": {"Bearer " + secretToken}, "Origin": {"https://evil.example"}}, []string{"v5.channel.k8s.io"}, 403},
	} {
		conn, reply, err := s.dial(execCat, test.header, test.protocols...)
		if err == nil {
			conn.CloseNow()
		}
		if err == nil || reply.StatusCode != test.code {
			t.Errorf("%s: %v %v, want %d", name, err, reply, test.code)
		}
	}
}

func TestExec_WebSocketClosesInputAndTellsTheEnd(t *testing.T) {
	s := withPod(t, newShell(), "user-container")
	conn, _, err := s.dial(execCat, nil, "v5.channel.k8s.io")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	for _, message := range []string{"", "\x00hello", "\x00 world", "\x04{\"Width\":1,\"Height\":2}", "\xff\x00"} {
		if err := conn.Write(t.Context(), websocket.MessageBinary, []byte(message)); err != nil {
			t.Fatal(err)
		}
	}
	var out, status string
	for {
		_, message, err := conn.Read(t.Context())
		if websocket.CloseStatus(err) == websocket.StatusNormalClosure {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch message[0] {
		case 1:
			out += string(message[1:])
		case 3:
			status += string(message[1:])
		default:
			t.Errorf("got a message of channel %d", message[0])
		}
	}
	if out != "hello world" || !strings.Contains(status, `"status":"Success"`) {
		t.Errorf("got %q and %q", out, status)
	}
}

func TestExec_WebSocketRefusesWhatIsAgainstTheProtocol(t *testing.T) {
	for name, message := range map[string]string{
		"a message of the server's channel": "\x01x",
		"a size that is none":               "\x04{",
		"an endless size":                   "\x04{\"Width\":" + strings.Repeat(" ", 4096) + "1}",
		"a message that is too large":       "\x00" + strings.Repeat("x", 2<<20),
	} {
		t.Run(name, func(t *testing.T) {
			instance := newShell()
			s := withPod(t, instance, "user-container")
			conn, _, err := s.dial(strings.Replace(execCat, "cat", "drain", 1), nil, "v5.channel.k8s.io")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.CloseNow()
			instance.awaitBegun(t)
			_ = conn.Write(t.Context(), websocket.MessageBinary, []byte(message))
			_, _, err = conn.Read(t.Context())
			if status := websocket.CloseStatus(err); err == nil || status == websocket.StatusNormalClosure {
				t.Errorf("got %v", err)
			}
			instance.awaitEnd(t)
		})
	}
}

func TestExec_TerminalLearnsItsSize(t *testing.T) {
	s := withPod(t, newShell(), "user-container")
	conn, _, err := s.dial(strings.Replace(execCat, "cat", "size", 1)+"&tty=true", nil, "v4.channel.k8s.io")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	if err := conn.Write(t.Context(), websocket.MessageBinary, []byte("\x04{\"Width\":120,\"Height\":40}")); err != nil {
		t.Fatal(err)
	}
	if _, message, err := conn.Read(t.Context()); err != nil || string(message) != "\x01120 x 40\r\n" {
		t.Errorf("got %q %v", message, err)
	}
}

func TestExec_CommandsCountAsStreams(t *testing.T) {
	instance := newShell()
	s := withPod(t, instance, "user-container")
	hang := strings.Replace(execCat, "cat", "hang", 1)
	for range maxStreams {
		conn, _, err := s.dial(hang, nil, "v5.channel.k8s.io")
		if err != nil {
			t.Fatal(err)
		}
		instance.awaitBegun(t)
		defer conn.CloseNow()
	}
	conn, reply, err := s.dial(hang, nil, "v5.channel.k8s.io")
	if err == nil {
		conn.CloseNow()
	}
	if err == nil || reply.StatusCode != 429 {
		t.Errorf("got %v %v", reply, err)
	}
}

func TestKubectl_ForwardsPorts(t *testing.T) {
	for _, protocol := range []string{"true", "false"} {
		t.Run("KUBECTL_PORT_FORWARD_WEBSOCKETS="+protocol, func(t *testing.T) {
			t.Parallel()
			program := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				if err != nil {
					t.Error(err)
				}
				fmt.Fprintf(w, "%s %d", r.URL.Path, len(body))
			}))
			defer program.Close()
			_, port, err := net.SplitHostPort(program.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			instance := newShell()
			s := withPod(t, instance, "user-container")
			cmd := s.command("port-forward", "pod/hello", ":"+port)
			cmd.Env = append(cmd.Env, "KUBECTL_PORT_FORWARD_WEBSOCKETS="+protocol)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd.Stderr = t.Output()
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			}()
			line, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			address := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(line)
			if address == "" {
				t.Fatalf("kubectl prints %q", line)
			}
			client := &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			var requests sync.WaitGroup
			for i := range 10 {
				requests.Go(func() {
					path := fmt.Sprintf("/%d", i)
					reply, err := client.Post("http://"+address+path, "text/plain", strings.NewReader(strings.Repeat("x", 1<<18)))
					if err != nil {
						t.Error(err)
						return
					}
					defer reply.Body.Close()
					body, err := io.ReadAll(reply.Body)
					if err != nil || string(body) != path+" 262144" {
						t.Errorf("%s: %q %v", path, body, err)
					}
				})
			}
			requests.Wait()
			close(instance.exited) // kubectl ends with the instance
			_ = cmd.Wait()
		})
	}
}

// spdyCommand is a command whose client speaks SPDY frame by frame.
func (s *server) spdyCommand(command string) (net.Conn, *spdy.Framer) {
	s.t.Helper()
	config := s.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	config.NextProtos = []string{"http/1.1"}
	conn, err := tls.Dial("tcp", s.Listener.Addr().String(), config)
	if err != nil {
		s.t.Fatal(err)
	}
	path := strings.Replace(execCat, "cat", command, 1)
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: berth\r\nAuthorization: Bearer %s\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"+
		"X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n", path, secretToken)
	reader := bufio.NewReader(conn)
	reply, err := http.ReadResponse(reader, nil)
	if err != nil || reply.StatusCode != http.StatusSwitchingProtocols {
		s.t.Fatalf("got %v %v", reply, err)
	}
	framer, err := spdy.NewFramer(conn, reader)
	if err != nil {
		s.t.Fatal(err)
	}
	for i, kind := range []string{"error", "stdin", "stdout"} {
		if err := framer.WriteFrame(&spdy.SynStreamFrame{StreamId: spdy.StreamId(2*i + 1), Headers: http.Header{"Streamtype": {kind}}}); err != nil {
			s.t.Fatal(err)
		}
	}
	return conn, framer
}

func TestExec_LeavesNothingOfAClientThatWritesWhereNobodyReads(t *testing.T) {
	instance := newShell()
	s := withPod(t, instance, "user-container")
	conn, framer := s.spdyCommand("hang")
	instance.awaitBegun(t)
	for id := spdy.StreamId(1); id <= 5; id += 2 {
		for range 3 {
			if err := framer.WriteFrame(&spdy.DataFrame{StreamId: id, Data: []byte("x")}); err != nil {
				t.Fatal(err)
			}
		}
	}
	conn.Close()
	instance.awaitEnd(t)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		if !strings.Contains(string(stacks), "spdystream.(*Connection)") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("what served the client goes on:\n%s", stacks)
		}
	}
}

func TestPortForward_WhatIsSentOnRefusedStreamsHoldsUpNoOthers(t *testing.T) {
	s := withPod(t, newShell(), "user-container")
	web, _, err := s.dial("/api/v1/namespaces/default/pods/hello/portforward", nil, "SPDY/3.1+portforward.k8s.io")
	if err != nil {
		t.Fatal(err)
	}
	defer web.CloseNow()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn := websocket.NetConn(ctx, web, websocket.MessageBinary)
	framer, err := spdy.NewFramer(conn, conn)
	if err != nil {
		t.Fatal(err)
	}
	open := func(id spdy.StreamId, kind string) {
		t.Helper()
		if err := framer.WriteFrame(&spdy.SynStreamFrame{StreamId: id, Headers: http.Header{
			"Streamtype": {kind}, "Port": {"1"}, "Requestid": {"0"},
		}}); err != nil {
			t.Fatal(err)
		}
	}
	const wanted = 101
	for id := spdy.StreamId(1); id < wanted; id += 2 {
		open(id, "unknown")
		if err := framer.WriteFrame(&spdy.DataFrame{StreamId: id, Data: []byte("x")}); err != nil {
			t.Fatal(err)
		}
	}
	open(wanted, "error")
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			t.Fatalf("no answer to the stream that is wanted: %v", err)
		}
		if reply, ok := frame.(*spdy.SynReplyFrame); ok && reply.StreamId == wanted {
			return
		}
	}
}

func TestKubectl_SaysWhyAPortIsNotForwarded(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	s := withPod(t, newShell(), "user-container")
	cmd := s.command("port-forward", "pod/hello", ":"+port)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs strings.Builder
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(line))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.Copy(io.Discard, conn)
	_ = cmd.Wait()
	if !strings.Contains(errs.String(), "forwarding port "+port+" of pod hello: dial tcp 127.0.0.1:"+port+": connect: connection refused") {
		t.Errorf("kubectl says %q", errs.String())
	}
}

func TestExec_CommandsEndWithTheServer(t *testing.T) {
	instance := newShell()
	s := withPod(t, instance, "user-container")
	conn, _, err := s.dial(strings.Replace(execCat, "cat", "hang", 1), nil, "v5.channel.k8s.io")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	instance.awaitBegun(t)
	s.stop()
	instance.awaitEnd(t)
	if _, message, err := conn.Read(t.Context()); err != nil || !strings.Contains(string(message), `"status":"Failure"`) {
		t.Errorf("got %q %v", message, err)
	}
}

// dialSPDY opens a port-forward as clients before 1.31 do.
func (s *server) dialSPDY() net.Conn {
	s.t.Helper()
	settings := s.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	settings.NextProtos = []string{"http/1.1"}
	conn, err := tls.Dial("tcp", s.Listener.Addr().String(), settings)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	fmt.Fprintf(conn, "POST /api/v1/namespaces/default/pods/hello/portforward HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n"+
		"Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: portforward.k8s.io\r\n\r\n", secretToken)
	reply, err := http.ReadResponse(bufio.NewReaderSize(conn, 16), nil)
	if err != nil || reply.StatusCode != http.StatusSwitchingProtocols {
		s.t.Fatalf("upgrading: %v %v", reply, err)
	}
	return conn
}

func TestPortForward_BoundsConnections(t *testing.T) {
	const most = 256 // maxForwarded
	s := withPod(t, newShell(), "user-container")
	conn, err := spdystream.NewConnection(s.dialSPDY(), false)
	if err != nil {
		t.Fatal(err)
	}
	go conn.Serve(spdystream.NoOpStreamHandler)
	open := func(request int, kind, port string) error {
		t.Helper()
		stream, err := conn.CreateStream(http.Header{"streamType": {kind}, "port": {port}, "requestID": {strconv.Itoa(request)}}, nil, false)
		if err != nil {
			t.Fatal(err)
		}
		return stream.WaitTimeout(patience)
	}
	for _, wrong := range [][2]string{{"error", "0"}, {"error", "65536"}, {"error", "x"}, {"other", "80"}} {
		if err := open(1000, wrong[0], wrong[1]); !errors.Is(err, spdystream.ErrReset) {
			t.Errorf("a stream of kind %q and port %q: %v", wrong[0], wrong[1], err)
		}
	}
	for i := range most {
		if err := open(i, "error", "80"); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
	if err := open(most, "error", "80"); !errors.Is(err, spdystream.ErrReset) {
		t.Errorf("one connection more: %v", err)
	}
	if err := open(0, "error", "80"); !errors.Is(err, spdystream.ErrReset) {
		t.Errorf("a second stream of the same kind: %v", err)
	}
}

func TestPortForward_RefusesLargeFrames(t *testing.T) {
	s := withPod(t, newShell(), "user-container")
	conn := s.dialSPDY()
	if _, err := conn.Write([]byte{0, 0, 0, 1, 0, 0xff, 0xff, 0xff}); err != nil { // data of 16 MiB, announced
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection stays")
	}
}
