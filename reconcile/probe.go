package reconcile

import (
	"time"

	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/serving"
)

// What a startup probe does where it does not say it: Kubernetes' and Cloud Run's (contract 1.3).
const (
	startupPeriod   = 10 * time.Second
	startupFailures = 3
)

// setProbes gives a container its probes. Its Port is set; it is 0 for a sidecar.
//
// A readiness probe without a period (Knative's own) is tried often before the start, and each ten seconds after it.
// The one that Knative puts where the user wrote none, whether the port takes connections, is the engine's own check
// before the start, and costs nothing afterwards.
func setProbes(c *engine.Container, user serving.Container) {
	if p := user.StartupProbe; p != nil {
		c.StartupProbe = probe(p, c.Port)
		if c.StartupProbe.Period == 0 {
			c.StartupProbe.Period = startupPeriod
		}
		if c.StartupProbe.FailureThreshold == 0 {
			c.StartupProbe.FailureThreshold = startupFailures
		}
	}
	if p := user.ReadinessProbe; serving.IsChosen(p) {
		c.ReadinessProbe = probe(p, c.Port)
	}
	if p := user.LivenessProbe; p != nil {
		c.LivenessProbe = probe(p, c.Port)
		if grace := p.TerminationGracePeriodSeconds; grace != nil {
			c.TerminationGrace = time.Duration(*grace) * time.Second
		}
	}
}

// probe is a probe as an engine tries it. Port 0, and a name, which can only be the port's own, are the container's port.
func probe(p *serving.Probe, port int) *engine.Probe {
	number := func(declared intstr.IntOrString) int {
		if n := declared.IntValue(); n != 0 {
			return n
		}
		return port
	}
	tried := &engine.Probe{
		InitialDelay:     time.Duration(p.InitialDelaySeconds) * time.Second,
		Period:           time.Duration(p.PeriodSeconds) * time.Second,
		Timeout:          time.Duration(p.TimeoutSeconds) * time.Second,
		FailureThreshold: int(p.FailureThreshold),
		SuccessThreshold: int(p.SuccessThreshold),
	}
	switch {
	case p.HTTPGet != nil:
		h := p.HTTPGet
		tried.HTTP = &engine.HTTPProbe{Port: number(h.Port), Path: h.Path, Host: h.Host, TLS: h.Scheme == serving.URISchemeHTTPS}
		for _, header := range h.HTTPHeaders {
			tried.HTTP.Header = append(tried.HTTP.Header, [2]string{header.Name, header.Value})
		}
	case p.GRPC != nil:
		tried.GRPC = &engine.GRPCProbe{Port: number(intstr.FromInt32(p.GRPC.Port))}
		if p.GRPC.Service != nil {
			tried.GRPC.Service = *p.GRPC.Service
		}
	case p.Exec != nil:
		tried.Exec = &engine.ExecProbe{Command: p.Exec.Command}
	case p.TCPSocket != nil:
		tried.TCP = &engine.TCPProbe{Port: number(p.TCPSocket.Port)}
	default:
		tried.TCP = &engine.TCPProbe{Port: port}
	}
	return tried
}
