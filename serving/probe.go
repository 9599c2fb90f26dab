package serving

import (
	"fmt"
	"math"
	"net/url"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"knative.dev/pkg/apis"
)

// mostProbeGrace is the longest time that a container may be given to end before it is started again.
const mostProbeGrace = time.Hour

// IsChosen tells a readiness probe that the user wrote from the one that Knative's defaulting puts where there is none:
// whether the port takes connections. Of that it is enough that it passed once.
func IsChosen(readiness *Probe) bool {
	if readiness == nil {
		return false
	}
	byDefault := Probe{ProbeHandler: ProbeHandler{TCPSocket: &TCPSocketAction{}}, SuccessThreshold: 1}
	return !equality.Semantic.DeepEqual(*readiness, byDefault)
}

// invalidProbes refuses what Knative leaves to the Kubernetes below it to refuse. serves says whether the container is
// the one that requests go to, whose port probes ask that name none.
func invalidProbes(c Container, serves bool) (refused *apis.FieldError) {
	if p := c.ReadinessProbe; p != nil {
		refused = refused.Also(invalidHandler(p.ProbeHandler, serves).ViaField("readinessProbe"))
		if p.TerminationGracePeriodSeconds != nil {
			refused = refused.Also(refusal("a readiness probe ends nothing; remove it, or give it to the livenessProbe", "readinessProbe.terminationGracePeriodSeconds"))
		}
	}
	for name, p := range map[string]*Probe{"livenessProbe": c.LivenessProbe, "startupProbe": c.StartupProbe} {
		if p == nil {
			continue
		}
		invalid := invalidHandler(p.ProbeHandler, serves)
		for field, n := range map[string]int32{
			"initialDelaySeconds": p.InitialDelaySeconds, "periodSeconds": p.PeriodSeconds,
			"timeoutSeconds": p.TimeoutSeconds, "failureThreshold": p.FailureThreshold,
		} {
			if n < 0 {
				invalid = invalid.Also(apis.ErrOutOfBoundsValue(n, 0, math.MaxInt32, field))
			}
		}
		if p.SuccessThreshold != 0 && p.SuccessThreshold != 1 {
			invalid = invalid.Also(apis.ErrOutOfBoundsValue(p.SuccessThreshold, 1, 1, "successThreshold"))
		}
		if grace := p.TerminationGracePeriodSeconds; grace != nil && (*grace < 1 || *grace > int64(mostProbeGrace/time.Second)) {
			invalid = invalid.Also(apis.ErrOutOfBoundsValue(*grace, 1, int64(mostProbeGrace/time.Second), "terminationGracePeriodSeconds"))
		}
		refused = refused.Also(invalid.ViaField(name))
	}
	return refused
}

func invalidHandler(h ProbeHandler, serves bool) (refused *apis.FieldError) {
	if h.Exec != nil && len(h.Exec.Command) == 0 {
		refused = refused.Also(apis.ErrMissingField("exec.command"))
	}
	if h.GRPC != nil {
		refused = refused.Also(invalidProbePort(intstr.FromInt32(h.GRPC.Port), serves, "grpc.port"))
		if h.GRPC.Port == 0 && !serves {
			refused = refused.Also(apis.ErrInvalidValue(h.GRPC.Port, "grpc.port", "Probe port must be specified")) // as Knative says of the others
		}
	}
	if h.TCPSocket != nil {
		refused = refused.Also(invalidProbePort(h.TCPSocket.Port, serves, "tcpSocket.port"))
	}
	if h.HTTPGet != nil {
		refused = refused.Also(invalidProbePort(h.HTTPGet.Port, serves, "httpGet.port"))
		if _, err := url.Parse(h.HTTPGet.Path); err != nil {
			refused = refused.Also(apis.ErrInvalidValue(h.HTTPGet.Path, "httpGet.path", "it is not the path of a URL"))
		}
		if s := h.HTTPGet.Scheme; s != "" && s != URISchemeHTTP && s != URISchemeHTTPS {
			refused = refused.Also(apis.ErrInvalidValue(s, "httpGet.scheme", `give "HTTP" or "HTTPS"`))
		}
		for i, header := range h.HTTPGet.HTTPHeaders {
			for _, wrong := range validation.IsHTTPHeaderName(header.Name) {
				refused = refused.Also(apis.ErrInvalidValue(header.Name, "name", wrong).ViaFieldIndex("httpGet.httpHeaders", i))
			}
		}
	}
	return refused
}

// invalidProbePort refuses numbers that no port has, and for a container without a port of its own names too. That a
// name is the port's is Knative's to check.
func invalidProbePort(port intstr.IntOrString, serves bool, field string) *apis.FieldError {
	switch n := port.IntValue(); {
	case n < 0 || n > 65535:
		return apis.ErrOutOfBoundsValue(n, 1, 65535, field)
	case n == 0 && !serves && port.Type == intstr.String:
		return refusal(fmt.Sprintf("%q names no port of this container, which has none; give a number", port.String()), field)
	}
	return nil
}
