package serving

import (
	"knative.dev/networking/pkg/apis/networking"
	"knative.dev/networking/pkg/apis/networking/v1alpha1"
)

// NetworkingGroup is the API group of the claims of hosts.
const NetworkingGroup = networking.GroupName

// ClusterDomainClaim gives the host that it is named after to the domain mappings of one namespace.
type ClusterDomainClaim = v1alpha1.ClusterDomainClaim
