package server

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/mail"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/berth-run/berth/certificate"
)

// TLS is how clients reach services with https. The zero value is not at all.
type TLS struct {
	Address      string   `flag:"gateway-tls-address" help:"address that requests to services arrive at over TLS (default: none; port 0 takes a free one)"`
	Certificates []string `flag:"tls-cert" help:"files with certificates and their chains (PEM), or directories of NAME.crt and NAME.key; read again when they change"`
	Keys         []string `flag:"tls-key" help:"files with the private keys of --tls-cert, in the same order; a directory has its own"`
	Redirect     bool     `flag:"https-redirect" help:"redirect (302) requests without TLS to hosts that have a certificate; the annotation networking.knative.dev/http-protocol, enabled or redirected, decides for one service or domain mapping"`

	ACME          bool   `flag:"acme" help:"order certificates for hosts of services that --tls-cert has none for; by this you agree to the authority's terms. It must reach port 80 or 443 of each host here"`
	ACMEEmail     string `flag:"acme-email" help:"address that the authority writes to about certificates"`
	ACMEDirectory string `flag:"acme-directory" help:"URL of the authority's ACME directory"`
	ACMECA        string `flag:"acme-ca" help:"file with the certificates (PEM) that sign the authority's own, for a private one"`
	// ACMERenewCheck is how often it is looked which certificates are to be renewed.
	ACMERenewCheck time.Duration
}

// check calls wrong for each setting that cannot be worked with.
func (t TLS) check(wrong func(flag string, value any, want string)) {
	if t.Address == "" {
		for flag, given := range map[string]bool{
			"tls-cert": len(t.Certificates) > 0, "tls-key": len(t.Keys) > 0, "https-redirect": t.Redirect, "acme": t.ACME,
		} {
			if given {
				wrong(flag, "without --gateway-tls-address", "name the address that TLS is spoken at, such as 0.0.0.0:443")
			}
		}
	} else if !t.ACME && len(t.Certificates) == 0 {
		wrong("gateway-tls-address", strconv.Quote(t.Address), "it needs certificates: name them with --tls-cert and --tls-key, or order them with --acme")
	}
	if _, err := certificate.Files(t.Certificates, t.Keys); err != nil {
		wrong("tls-cert", "and --tls-key", err.Error())
	}
	if !t.ACME {
		for flag, value := range map[string]string{"acme-email": t.ACMEEmail, "acme-ca": t.ACMECA} {
			if value != "" {
				wrong(flag, strconv.Quote(value), "it has no effect without --acme")
			}
		}
		return
	}
	if u, err := url.Parse(t.ACMEDirectory); err != nil || u.Scheme != "https" || u.Host == "" {
		wrong("acme-directory", strconv.Quote(t.ACMEDirectory), "it must be an https URL, such as "+certificate.LetsEncrypt)
	}
	if t.ACMEEmail != "" {
		if a, err := mail.ParseAddress(t.ACMEEmail); err != nil || a.Address != t.ACMEEmail {
			wrong("acme-email", strconv.Quote(t.ACMEEmail), "it must be an e-mail address, such as ops@example.com")
		}
	}
	if _, err := t.roots(); err != nil {
		wrong("acme-ca", strconv.Quote(t.ACMECA), err.Error())
	}
}

// roots are what the authority's own certificate is checked with; nil is what the system trusts.
func (t TLS) roots() (*x509.CertPool, error) {
	if t.ACMECA == "" {
		return nil, nil
	}
	data, err := os.ReadFile(t.ACMECA)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(data) {
		return nil, errors.New("it has no certificate in PEM form")
	}
	return roots, nil
}

// openTLS listens for clients that speak TLS, and reads the certificates to show them; nothing when there are none.
func (s *server) openTLS() (err error) {
	t := s.config.TLS
	if t.Address == "" {
		return nil
	}
	if s.tlsListener, err = listen("gateway's TLS", "--gateway-tls-address", t.Address); err != nil {
		return err
	}
	s.addresses.GatewayTLS = s.tlsListener.Addr().String()
	config := certificate.Config{Logger: s.logger, Changed: func(owner string) { s.reconciler.CertificateChanged(owner) }}
	if config.Files, err = certificate.Files(t.Certificates, t.Keys); err != nil {
		return err
	}
	if t.ACME {
		config.ACME = &certificate.ACME{
			Directory: t.ACMEDirectory, Email: t.ACMEEmail, Dir: s.path("certificates"),
			HTTPAddress: s.addresses.Gateway, TLSAddress: s.addresses.GatewayTLS, RenewCheck: t.ACMERenewCheck,
		}
		if config.ACME.Roots, err = t.roots(); err != nil {
			return fmt.Errorf("reading --acme-ca: %w", err)
		}
	}
	if s.certificates, err = certificate.Open(config); err != nil {
		return err
	}
	if !t.ACME && !s.certificates.Status("name.default."+s.config.Domain).Serves() {
		s.logger.Warn("no certificate has the hosts of services: they are reached without TLS, but for hosts that are mapped and have one; "+
			"a wildcard stands for one label",
			"hosts", "NAME.NAMESPACE."+s.config.Domain, "for example", "*.default."+s.config.Domain)
	}
	return nil
}

// challenge is what the gateway asks about requests of certificate authorities; nil when none is asked for anything.
func (s *server) challenge() func(host, token string) (string, bool) {
	if !s.config.TLS.ACME {
		return nil
	}
	return s.certificates.Challenge
}

// url is the public URL of a host name on the gateway: with https where there is a certificate.
func (s *server) url(host string) string {
	if s.certificates != nil && s.certificates.Status(host).Serves() {
		return "https://" + host + unlessPort(s.addresses.GatewayTLS, "443")
	}
	return "http://" + host + unlessPort(s.addresses.Gateway, "80")
}

// unlessPort is the port of an address with its colon, or nothing when it is the usual one.
func unlessPort(address, usual string) string {
	_, port, err := net.SplitHostPort(address)
	if err != nil || port == usual {
		return ""
	}
	return ":" + port
}

// tlsPort is the port that TLS is spoken at.
func (s *server) tlsPort() uint16 {
	port, _ := strconv.ParseUint(strings.TrimPrefix(unlessPort(s.addresses.GatewayTLS, ""), ":"), 10, 16) // none when there is none
	return uint16(port)
}
