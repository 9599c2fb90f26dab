package reconcile

import (
	"fmt"
	"strings"

	"knative.dev/networking/pkg/apis/networking"
	"knative.dev/pkg/apis"

	"github.com/berth-run/berth/certificate"
	"github.com/berth-run/berth/gateway"
	"github.com/berth-run/berth/serving"
)

// lead publishes where the hosts of an owner lead, and sees to it that they have certificates. The annotations are
// those of the route or domain mapping.
func (r *Reconciler) lead(owner string, hosts map[string]*gateway.Route, annotations map[string]string) error {
	r.redirect(hosts, annotations)
	if err := r.Gateway.SetHosts(owner, hosts); err != nil || r.Certificates == nil {
		return err
	}
	var wanted []string
	if !strings.EqualFold(networking.GetDisableExternalDomainTLS(annotations), "true") {
		for host, route := range hosts {
			if route.Unready == "" { // what never was ready is not worth an order
				wanted = append(wanted, host)
			}
		}
	}
	r.Certificates.Want(owner, wanted)
	if r.redirect(hosts, annotations) { // certificates of before the server's start are there now
		return r.Gateway.SetHosts(owner, hosts)
	}
	return nil
}

// redirect has requests without TLS redirected, where that is wanted and there is a certificate. It tells whether that
// changed anything.
func (r *Reconciler) redirect(hosts map[string]*gateway.Route, annotations map[string]string) (changed bool) {
	if r.Certificates == nil || !r.redirects(annotations) {
		return false
	}
	for host, route := range hosts {
		var port uint16
		if r.Certificates.Status(host).Serves() {
			port = r.TLSPort
		}
		changed = changed || route.Redirect != port
		route.Redirect = port
	}
	return changed
}

// redirects tells whether requests without TLS are to be redirected, as Knative's annotation or else the server has it.
func (r *Reconciler) redirects(annotations map[string]string) bool {
	switch strings.ToLower(networking.GetHTTPProtocol(annotations)) {
	case serving.HTTPRedirected:
		return true
	case serving.HTTPEnabled:
		return false
	}
	return r.Redirect
}

// CertificateChanged tells that it stands otherwise with a certificate of one who publishes hosts; the certificates'
// store calls it.
func (r *Reconciler) CertificateChanged(owner string) {
	if host, mapped := strings.CutPrefix(owner, mappingOwner); mapped {
		r.queue.add(domainKey(host))
		return
	}
	namespace, name, _ := strings.Cut(owner, "/")
	r.queue.add(key{serving.KindRoute.String(), namespace, name})
}

// markCertificates tells how it stands with the certificates of hosts, in Knative's words: of the one with which it
// stands worst. While one is ordered, its host is reached without TLS, unless that is to be redirected.
func (r *Reconciler) markCertificates(conditions apis.ConditionManager, annotations map[string]string, hosts ...string) {
	const condition = serving.CertificateProvisioned
	if r.Certificates == nil {
		conditions.MarkTrueWithReason(condition, "TLSNotEnabled", serving.MessageTLSNotEnabled)
		return
	}
	worst, status := "", certificate.Status{State: certificate.Issued}
	for _, host := range hosts {
		if s := r.Certificates.Status(host); worst == "" || rank(s) < rank(status) {
			worst, status = host, s
		}
	}
	why := ""
	if status.Err != nil {
		why = fmt.Sprintf(": %v", status.Err)
	}
	switch downgraded := !r.redirects(annotations); {
	case status.Serves():
		conditions.MarkTrue(condition)
	case status.State == certificate.Missing:
		conditions.MarkTrueWithReason(condition, "TLSNotEnabled", "the server has no certificate for "+worst)
	case downgraded:
		conditions.MarkTrueWithReason(condition, "HTTPDowngrade", fmt.Sprintf("Certificate %s is not ready downgrade HTTP%s", worst, why))
	case status.State == certificate.Failed:
		conditions.MarkFalse(condition, "CertificateProvisionFailed", "Certificate %s failed to be provisioned%s; it will be tried again", worst, why)
	default:
		conditions.MarkUnknown(condition, "CertificateNotReady", "Certificate %s is not ready.", worst)
	}
}

// rank orders what is to be told first.
func rank(s certificate.Status) int {
	switch s.State {
	case certificate.Failed:
		return 0
	case certificate.Ordered:
		return 1
	case certificate.Missing:
		return 2
	}
	return 3
}
