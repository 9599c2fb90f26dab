package server

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"slices"
	"time"
)

// The API speaks TLS: kubectl and client-go send a kubeconfig's token over https only, and the token is worth it.
// The certificate is the server's own, made once; clients find it in the kubeconfig and trust nothing else.
const (
	certificateLife = 10 * 365 * 24 * time.Hour
	certificateRest = 30 * 24 * time.Hour // a certificate with less left to live is replaced
)

// ensureCertificate reads the API's certificate, or makes one for the names that address can be reached by. It
// returns the certificate and, as PEM, what clients trust.
func ensureCertificate(path, address string) (tls.Certificate, []byte, error) {
	names := certificateNames(address)
	data, err := os.ReadFile(path)
	if err == nil {
		if certificate, err := tls.X509KeyPair(data, data); err == nil && covers(certificate.Leaf, names, time.Now()) {
			return certificate, publicPart(certificate), nil
		}
		// Expired, damaged, or for other addresses: clients read the new one from the kubeconfig.
	} else if !errors.Is(err, os.ErrNotExist) {
		return tls.Certificate{}, nil, fmt.Errorf("reading the API's certificate: %w", err)
	}
	data, err = newCertificate(names, time.Now())
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("making the API's certificate: %w", err)
	}
	if err := writeFile(path, string(data)); err != nil {
		return tls.Certificate{}, nil, err
	}
	certificate, err := tls.X509KeyPair(data, data)
	return certificate, publicPart(certificate), err
}

// certificateNames are the hosts a client may call the API by.
func certificateNames(address string) []string {
	names := []string{"localhost", "127.0.0.1", "::1"}
	if host, _, err := net.SplitHostPort(address); err == nil && host != "" && !net.ParseIP(host).IsUnspecified() && !slices.Contains(names, host) {
		names = append(names, host)
	}
	if host, _, err := net.SplitHostPort(address); err == nil && net.ParseIP(host).IsUnspecified() {
		// Every address of the machine: clients elsewhere call it by one of them.
		addresses, _ := net.InterfaceAddrs() // without them, clients there name the machine
		for _, a := range addresses {
			if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() && !slices.Contains(names, n.IP.String()) {
				names = append(names, n.IP.String())
			}
		}
	}
	if host, err := os.Hostname(); err == nil && host != "" && !slices.Contains(names, host) {
		names = append(names, host)
	}
	return names
}

func covers(leaf *x509.Certificate, names []string, now time.Time) bool {
	if now.Before(leaf.NotBefore) || now.Add(certificateRest).After(leaf.NotAfter) {
		return false
	}
	for _, name := range names {
		if leaf.VerifyHostname(name) != nil {
			return false
		}
	}
	return true
}

// newCertificate makes a key and a self-signed certificate, as PEM in one piece.
func newCertificate(names []string, now time.Time) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "berth"},
		NotBefore:    now.Add(-time.Hour), NotAfter: now.Add(certificateLife),
		IsCA: true, BasicConstraintsValid: true, // a client's trust store asks for an authority
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	leaf, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})...), nil
}

func publicPart(certificate tls.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Certificate[0]})
}
