package node

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/berth-run/berth/engine"
)

// The standard health service, grpc.health.v1: its only method that is asked, and its messages' only fields.
const (
	grpcCheck        = "/grpc.health.v1.Health/Check"
	grpcServiceField = 1 // HealthCheckRequest.service, a string
	grpcStatusField  = 1 // HealthCheckResponse.status, an enum

	grpcPrefix = 5 // before a message: compressed or not, and its length in four bytes

	grpcOK            = 0
	grpcNotFound      = 5
	grpcUnimplemented = 12
)

// grpcStatuses are the values of HealthCheckResponse.status.
var grpcStatuses = [...]string{"UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"}

// tryGRPC asks the health service over a connection of its own.
func (p probed) tryGRPC(ctx context.Context, probe *engine.GRPCProbe) error {
	conn, err := p.connect(ctx, probe.Port)
	if err != nil {
		return err
	}
	defer conn.Close()
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{
		Protocols:              &protocols,
		DialContext:            func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		MaxResponseHeaderBytes: probeAnswer,
		DisableCompression:     true,
	}
	defer transport.CloseIdleConnections()
	status, err := checkGRPC(ctx, transport, probe)
	if err != nil {
		return fmt.Errorf("the gRPC health service on port %d: %w", probe.Port, err)
	}
	if status >= uint64(len(grpcStatuses)) {
		return fmt.Errorf("the gRPC health service on port %d answered status %d, which it does not define", probe.Port, status)
	}
	if name := grpcStatuses[status]; name != "SERVING" {
		return fmt.Errorf("the gRPC health service on port %d answered %s", probe.Port, name)
	}
	return nil
}

// checkGRPC calls the health service and returns the status it answers.
func checkGRPC(ctx context.Context, transport *http.Transport, probe *engine.GRPCProbe) (uint64, error) {
	message := protowire.AppendTag(nil, grpcServiceField, protowire.BytesType)
	message = protowire.AppendString(message, probe.Service)
	body := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message)))
	body = append(body, message...)
	target := fmt.Sprintf("http://localhost:%d%s", probe.Port, grpcCheck)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(body))
	if err != nil {
		return 0, fmt.Errorf("making the request: %w", err)
	}
	request.Header.Set("Content-Type", "application/grpc")
	request.Header.Set("Te", "trailers")
	request.Header.Set("User-Agent", probeUserAgent)
	response, err := transport.RoundTrip(request)
	if err != nil {
		return 0, fmt.Errorf("calling it: %w", err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, probeAnswer))
	if err != nil {
		return 0, fmt.Errorf("reading the answer: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("the call was answered with HTTP status %s", oneLine([]byte(response.Status)))
	}
	if err := grpcResult(response); err != nil {
		return 0, err
	}
	return parseHealth(answer)
}

// grpcResult tells how the call ended: by the trailer, or by the header when there is no message.
func grpcResult(response *http.Response) error {
	from := response.Trailer
	if response.Header.Get("Grpc-Status") != "" {
		from = response.Header
	}
	text := from.Get("Grpc-Status")
	code, err := strconv.Atoi(text)
	switch {
	case err != nil:
		return errors.New("the call was answered without a gRPC status: is it a gRPC server?")
	case code == grpcOK:
		return nil
	case code == grpcUnimplemented:
		return errors.New("the server does not implement it (grpc.health.v1.Health)")
	case code == grpcNotFound:
		return errors.New("the server does not know the service it was asked for")
	}
	message := from.Get("Grpc-Message")
	if plain, err := url.PathUnescape(message); err == nil { // as it is encoded on the way
		message = plain
	}
	return fmt.Errorf("the call ended with gRPC status %d: %s", code, oneLine([]byte(message)))
}

// parseHealth reads the status of a HealthCheckResponse with its prefix. A field that is not there is 0.
func parseHealth(answer []byte) (status uint64, err error) {
	if len(answer) < grpcPrefix || answer[0] != 0 || uint64(binary.BigEndian.Uint32(answer[1:])) != uint64(len(answer)-grpcPrefix) {
		return 0, errors.New("the answer is not one uncompressed gRPC message")
	}
	for rest := answer[grpcPrefix:]; len(rest) > 0; {
		number, kind, n := protowire.ConsumeTag(rest)
		if n < 0 {
			return 0, fmt.Errorf("decoding the answer: %w", protowire.ParseError(n))
		}
		rest = rest[n:]
		if number == grpcStatusField && kind == protowire.VarintType {
			status, n = protowire.ConsumeVarint(rest)
		} else {
			n = protowire.ConsumeFieldValue(number, kind, rest)
		}
		if n < 0 {
			return 0, fmt.Errorf("decoding the answer: %w", protowire.ParseError(n))
		}
		rest = rest[n:]
	}
	return status, nil
}
