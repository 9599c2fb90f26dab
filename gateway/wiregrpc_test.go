package gateway

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/berth-run/berth/engine"
)

// grpcService is an instance's gRPC service: one function for each kind of call. Its messages are strings.
type grpcService struct {
	unary  func(ctx context.Context, in string) (string, error)
	stream func(stream grpc.ServerStream) error // client-, server- and bidirectional streams
}

// grpcInstance starts an instance with a real gRPC server.
func grpcInstance(t *testing.T, service grpcService) *fakeInstance {
	t.Helper()
	desc := grpc.ServiceDesc{
		ServiceName: "test.Service", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{
			MethodName: "Unary",
			Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				var in wrapperspb.StringValue
				if err := decode(&in); err != nil {
					return nil, err
				}
				out, err := service.unary(ctx, in.Value)
				if err != nil {
					return nil, err
				}
				return wrapperspb.String(out), nil
			},
		}},
		Streams: []grpc.StreamDesc{{
			StreamName: "Stream", ClientStreams: true, ServerStreams: true,
			Handler: func(_ any, stream grpc.ServerStream) error { return service.stream(stream) },
		}},
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	instance := newFakeInstance("a", listener.Addr().String())
	server := grpc.NewServer()
	server.RegisterService(&desc, nil)
	var serving sync.WaitGroup
	serving.Go(func() { server.Serve(notingListener{listener, instance}) })
	t.Cleanup(func() {
		server.Stop()
		serving.Wait()
	})
	return instance
}

// notingListener notes the connections of an instance, which its end breaks.
type notingListener struct {
	net.Listener
	instance *fakeInstance
}

func (l notingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.instance.accepted(c)
	}
	return c, err
}

// throughGRPC connects a real gRPC client through a gateway to an instance of a revision that says it speaks HTTP/2, and of one that
// does not: gRPC needs no setting (contract C13).
func throughGRPC(t *testing.T, service grpcService, test func(t *testing.T, a *Activator, instance *fakeInstance, client *grpc.ClientConn)) {
	t.Parallel()
	for name, http2 := range map[string]bool{"HTTP/1 revision": false, "h2c revision": true} {
		t.Run(name, func(t *testing.T) {
			revision := testRevision()
			revision.HTTP2 = http2
			a := NewActivator(revision)
			instance := grpcInstance(t, service)
			a.Add(instance)
			_, address := startGateway(t, Config{}, a)
			client, err := grpc.NewClient("passthrough:///"+address, grpc.WithAuthority("hello.test"), grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { client.Close() })
			test(t, a, instance, client)
			waitForLoad(t, a, 0, 0)
		})
	}
}

func callUnary(ctx context.Context, client *grpc.ClientConn, in string, options ...grpc.CallOption) (string, error) {
	var out wrapperspb.StringValue
	err := client.Invoke(ctx, "/test.Service/Unary", wrapperspb.String(in), &out, options...)
	return out.Value, err
}

func openStream(t *testing.T, ctx context.Context, client *grpc.ClientConn) grpc.ClientStream {
	t.Helper()
	stream, err := client.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/test.Service/Stream")
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// receive reads one message of either side's stream.
func receive(stream interface{ RecvMsg(any) error }) (string, error) {
	var m wrapperspb.StringValue
	err := stream.RecvMsg(&m)
	return m.Value, err
}

func TestWire_GRPCUnaryCallsCarryMetadataAndTrailers(t *testing.T) {
	throughGRPC(t, grpcService{unary: func(ctx context.Context, in string) (string, error) {
		asked, _ := metadata.FromIncomingContext(ctx)
		grpc.SetHeader(ctx, metadata.Pairs("x-header", strings.Join(asked["x-asked"], ","), "x-bytes-bin", "\x00\xff"))
		grpc.SetTrailer(ctx, metadata.Pairs("x-trailer", "1", "x-trailer", "2", "x-bytes-bin", "\xfe"))
		return strings.ToUpper(in), nil
	}}, func(t *testing.T, a *Activator, _ *fakeInstance, client *grpc.ClientConn) {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "x-asked", "a", "x-asked", "b")
		for _, message := range []string{"", "hello", strings.Repeat("long", 50_000)} {
			var header, trailer metadata.MD
			got, err := callUnary(ctx, client, message, grpc.Header(&header), grpc.Trailer(&trailer), grpc.UseCompressor(gzip.Name))
			if err != nil || got != strings.ToUpper(message) {
				t.Fatalf("got %d bytes, %v", len(got), err)
			}
			if fmt.Sprint(header["x-header"], trailer["x-trailer"]) != "[a,b] [1 2]" || header["x-bytes-bin"][0] != "\x00\xff" || trailer["x-bytes-bin"][0] != "\xfe" {
				t.Errorf("header %v, trailer %v", header, trailer)
			}
		}
		if requests := a.Load().Requests; requests != 3 {
			t.Errorf("%d requests, want each call to be one", requests)
		}
	})
}

func TestWire_GRPCCallsShareOneConnectionToAnInstance(t *testing.T) {
	throughGRPC(t, grpcService{unary: func(_ context.Context, in string) (string, error) { return in, nil }},
		func(t *testing.T, _ *Activator, instance *fakeInstance, client *grpc.ClientConn) {
			if _, err := callUnary(t.Context(), client, "first"); err != nil {
				t.Fatal(err)
			}
			var calls sync.WaitGroup
			for i := range 50 {
				calls.Go(func() {
					if got, err := callUnary(t.Context(), client, fmt.Sprint(i)); err != nil || got != fmt.Sprint(i) {
						t.Errorf("call %d: got %q, %v", i, got, err)
					}
				})
			}
			calls.Wait()
			if dials := instance.dials.Load(); dials != 1 {
				t.Errorf("%d connections", dials)
			}
		})
}

func TestWire_GRPCStatusesArrive(t *testing.T) {
	throughGRPC(t, grpcService{
		unary: func(context.Context, string) (string, error) {
			return "", status.Error(codes.FailedPrecondition, "no: 100% ünfit\n")
		},
		stream: func(stream grpc.ServerStream) error {
			if in, err := receive(stream); err != nil || in == "at once" {
				return status.Error(codes.PermissionDenied, "at once")
			}
			stream.SendMsg(wrapperspb.String("one"))
			stream.SetTrailer(metadata.Pairs("x-trailer", "1"))
			return status.Error(codes.Aborted, "later")
		},
	}, func(t *testing.T, _ *Activator, _ *fakeInstance, client *grpc.ClientConn) {
		_, err := callUnary(t.Context(), client, "")
		if status.Code(err) != codes.FailedPrecondition || status.Convert(err).Message() != "no: 100% ünfit\n" {
			t.Errorf("unary: got %v", err)
		}

		stream := openStream(t, t.Context(), client)
		stream.SendMsg(wrapperspb.String("at once"))
		if _, err := receive(stream); status.Code(err) != codes.PermissionDenied {
			t.Errorf("a stream refused at once: got %v", err)
		}

		stream = openStream(t, t.Context(), client)
		stream.SendMsg(wrapperspb.String("later"))
		if got, err := receive(stream); got != "one" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
		if _, err := receive(stream); status.Code(err) != codes.Aborted || fmt.Sprint(stream.Trailer()["x-trailer"]) != "[1]" {
			t.Errorf("a stream that failed later: got %v, trailer %v", err, stream.Trailer())
		}
	})
}

func TestWire_GRPCClientStreamsAreAnsweredAtTheirEnd(t *testing.T) {
	throughGRPC(t, grpcService{stream: func(stream grpc.ServerStream) error {
		total := 0
		for {
			in, err := receive(stream)
			if err == io.EOF {
				return stream.SendMsg(wrapperspb.String(fmt.Sprint(total)))
			}
			if err != nil {
				return err
			}
			total += len(in)
		}
	}}, func(t *testing.T, _ *Activator, _ *fakeInstance, client *grpc.ClientConn) {
		stream := openStream(t, t.Context(), client)
		for range 100 {
			if err := stream.SendMsg(wrapperspb.String(strings.Repeat("x", 10_000))); err != nil {
				t.Fatal(err)
			}
		}
		stream.CloseSend()
		if got, err := receive(stream); got != "1000000" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
		if _, err := receive(stream); err != io.EOF {
			t.Errorf("at the end: %v", err)
		}
	})
}

func TestWire_GRPCServerStreamsArriveMessageByMessage(t *testing.T) {
	seen := make(chan struct{})
	throughGRPC(t, grpcService{stream: func(stream grpc.ServerStream) error {
		if _, err := receive(stream); err != nil {
			return err
		}
		for i := range 10 {
			if err := stream.SendMsg(wrapperspb.String(fmt.Sprint(i))); err != nil {
				return err
			}
			<-seen
		}
		return nil
	}}, func(t *testing.T, _ *Activator, _ *fakeInstance, client *grpc.ClientConn) {
		stream := openStream(t, t.Context(), client)
		stream.SendMsg(wrapperspb.String("go"))
		stream.CloseSend()
		for i := range 10 {
			if got, err := receive(stream); got != fmt.Sprint(i) || err != nil {
				t.Fatalf("message %d: got %q, %v", i, got, err)
			}
			seen <- struct{}{}
		}
		if _, err := receive(stream); err != io.EOF {
			t.Errorf("at the end: %v", err)
		}
	})
}

func TestWire_GRPCStreamsGoBothWaysAtOnce(t *testing.T) {
	throughGRPC(t, grpcService{stream: func(stream grpc.ServerStream) error {
		for {
			in, err := receive(stream)
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			stream.SendMsg(wrapperspb.String(strings.ToUpper(in)))
		}
	}}, func(t *testing.T, a *Activator, _ *fakeInstance, client *grpc.ClientConn) {
		stream := openStream(t, t.Context(), client)
		for i := range 20 {
			word := fmt.Sprintf("word%d", i)
			stream.SendMsg(wrapperspb.String(word))
			if got, err := receive(stream); got != strings.ToUpper(word) || err != nil {
				t.Fatalf("got %q, %v", got, err)
			}
		}
		waitForLoad(t, a, 1, 0)
		stream.CloseSend()
		if _, err := receive(stream); err != io.EOF {
			t.Errorf("at the end: %v", err)
		}
	})
}

func TestWire_GRPCDeadlinesHoldAtTheInstance(t *testing.T) {
	deadlines, ended := make(chan time.Duration, 1), make(chan error, 2)
	throughGRPC(t, grpcService{unary: func(ctx context.Context, in string) (string, error) {
		if in == "report" {
			at, _ := ctx.Deadline()
			deadlines <- time.Until(at)
			return "", nil
		}
		<-ctx.Done()
		ended <- ctx.Err()
		return "", ctx.Err()
	}}, func(t *testing.T, _ *Activator, _ *fakeInstance, client *grpc.ClientConn) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := callUnary(ctx, client, "report"); err != nil {
			t.Fatal(err)
		}
		if left := <-deadlines; left <= 0 || left > time.Minute {
			t.Errorf("the instance has %s left of a minute", left)
		}
		ctx, cancel = context.WithTimeout(t.Context(), 500*time.Millisecond) // the call must arrive within it
		defer cancel()
		if _, err := callUnary(ctx, client, "wait"); status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("got %v", err)
		}
		select {
		case <-ended:
		case <-time.After(wirePatience):
			t.Error("the instance works on")
		}
	})
}

func TestWire_AGRPCCallThatIsCancelledEndsAtTheInstance(t *testing.T) {
	began, ended := make(chan struct{}), make(chan error, 1)
	throughGRPC(t, grpcService{stream: func(stream grpc.ServerStream) error {
		receive(stream)
		stream.SendMsg(wrapperspb.String("began"))
		began <- struct{}{}
		<-stream.Context().Done()
		ended <- stream.Context().Err()
		return stream.Context().Err()
	}}, func(t *testing.T, _ *Activator, _ *fakeInstance, client *grpc.ClientConn) {
		ctx, cancel := context.WithCancel(t.Context())
		stream := openStream(t, ctx, client)
		stream.SendMsg(wrapperspb.String("go"))
		<-began
		cancel()
		if err := <-ended; err != context.Canceled {
			t.Errorf("at the instance it ended with %v", err)
		}
	})
}

func TestWire_AGRPCStreamOfAnInstanceThatDiesIsNotTakenForWhole(t *testing.T) {
	throughGRPC(t, grpcService{stream: func(stream grpc.ServerStream) error {
		stream.SendMsg(wrapperspb.String("began"))
		<-stream.Context().Done()
		return nil
	}}, func(t *testing.T, _ *Activator, instance *fakeInstance, client *grpc.ClientConn) {
		stream := openStream(t, t.Context(), client)
		stream.SendMsg(wrapperspb.String("go"))
		if got, err := receive(stream); got != "began" || err != nil {
			t.Fatalf("got %q, %v", got, err)
		}
		instance.kill(engine.Exit{Signal: 9})
		if _, err := receive(stream); err == nil || err == io.EOF {
			t.Errorf("the end of a stream that was cut is %v", err)
		}
	})
}

func TestWire_AGRPCCallThatTheGatewayRefusesFails(t *testing.T) {
	throughGRPC(t, grpcService{}, func(t *testing.T, a *Activator, instance *fakeInstance, client *grpc.ClientConn) {
		<-a.Remove(instance)
		a.Close(fmt.Errorf("the revision was deleted"))
		if _, err := callUnary(t.Context(), client, ""); status.Code(err) != codes.Unimplemented { // gRPC's word for 404
			t.Errorf("got %v", err)
		}
	})
}
