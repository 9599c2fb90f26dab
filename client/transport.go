package client

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"
)

// Times after which a server is taken for gone.
const (
	dialTimeout = 10 * time.Second // for a connection, and again for TLS on it
	silence     = 15 * time.Second // without a byte, then it is asked whether it is there
	pingTimeout = 15 * time.Second // for that answer
)

// transport is the connections to one server. Watches and logs last for long and may be silent, so that a machine
// that vanished is noticed by asking only: with a ping over HTTP/2, with TCP's keep-alive over HTTP/1.
//
// There is no proxy: which one to use is said by the environment, and that is not this package's to read.
type transport struct{ *http.Transport }

func newTransport(config *tls.Config) transport {
	const probes = 3
	dialer := &net.Dialer{
		Timeout:         dialTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: silence, Interval: pingTimeout / probes, Count: probes},
	}
	return transport{&http.Transport{
		DialContext:           dialer.DialContext,
		TLSClientConfig:       config,
		TLSHandshakeTimeout:   dialTimeout,
		ForceAttemptHTTP2:     true,
		HTTP2:                 &http.HTTP2Config{SendPingTimeout: silence, PingTimeout: pingTimeout},
		MaxIdleConnsPerHost:   8,
		IdleConnTimeout:       90 * time.Second,
		ExpectContinueTimeout: time.Second,
	}}
}

// RoundTrip implements http.RoundTripper. Of a certificate that is not accepted it says what to do.
func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	reply, err := t.Transport.RoundTrip(r)
	if err == nil || !isCertificate(err) {
		return reply, err
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return nil, fmt.Errorf("%w; use a name that the certificate is for in the server's URL", err)
	}
	return nil, fmt.Errorf("%w; give --kubeconfig a copy of the server's kubeconfig, which has its certificate", err)
}

func isCertificate(err error) bool {
	_, ok := errors.AsType[*tls.CertificateVerificationError](err)
	return ok
}
