package serving

import (
	"strings"

	"knative.dev/serving/pkg/apis/serving/v1beta1"
)

// The serving.knative.dev/v1beta1 types under plain names.
type (
	DomainMapping       = v1beta1.DomainMapping
	DomainMappingStatus = v1beta1.DomainMappingStatus
)

// Condition types of a domain mapping, as Knative names them.
const (
	DomainMappingReady             = v1beta1.DomainMappingConditionReady
	DomainMappingClaimed           = v1beta1.DomainMappingConditionDomainClaimed
	DomainMappingReferenceResolved = v1beta1.DomainMappingConditionReferenceResolved
	DomainMappingIngressReady      = v1beta1.DomainMappingConditionIngressReady
)

// CertificateProvisioned is the condition that tells of the certificates of a route, or of a domain mapping.
const CertificateProvisioned = v1beta1.DomainMappingConditionCertificateProvisioned

// MessageTLSNotEnabled is the message of a condition about certificates where there are none.
const MessageTLSNotEnabled = v1beta1.ExternalDomainTLSNotEnabledMessage

// IsRouteHost tells whether a host has the form that [Host] gives the hosts of routes. Domain mappings leave these
// alone, whether there is such a route now or not.
func IsRouteHost(host, domain string) bool {
	label, ok := strings.CutSuffix(host, "."+domain)
	return ok && strings.Count(label, ".") == 1
}
