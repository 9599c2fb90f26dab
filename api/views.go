package api

import (
	"fmt"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/berth-run/berth/serving"
)

// podColumns are kubectl's columns of pods.
func podColumns() []column {
	return []column{
		{"Ready", "string", func(o serving.Object) any { return podReady(o.(*serving.Pod)) }},
		{"Status", "string", func(o serving.Object) any { return podReason(o.(*serving.Pod)) }},
		{"Restarts", "string", func(o serving.Object) any { return podRestarts(o.(*serving.Pod)) }},
	}
}

func podWideColumns() []column {
	orNone := func(s string) any {
		if s == "" {
			return "<none>"
		}
		return s
	}
	return []column{
		{"IP", "string", func(o serving.Object) any { return orNone(o.(*serving.Pod).Status.PodIP) }},
		{"Node", "string", func(o serving.Object) any { return orNone(o.(*serving.Pod).Spec.NodeName) }},
	}
}

// podReady counts the ready containers: "1/2".
func podReady(p *serving.Pod) string {
	ready := 0
	for _, c := range p.Status.ContainerStatuses {
		if c.Ready {
			ready++
		}
	}
	return fmt.Sprintf("%d/%d", ready, len(p.Spec.Containers))
}

// podReason says in one word how a pod is: that it goes, what is the matter with one of its containers, or its phase.
func podReason(p *serving.Pod) string {
	if p.DeletionTimestamp != nil {
		return "Terminating"
	}
	for _, c := range p.Status.ContainerStatuses {
		switch waiting, ended := c.State.Waiting, c.State.Terminated; {
		case waiting != nil && waiting.Reason != "":
			return waiting.Reason
		case ended != nil && ended.Reason != "":
			return ended.Reason
		case ended != nil:
			return "ExitCode:" + strconv.Itoa(int(ended.ExitCode))
		}
	}
	if p.Status.Reason != "" {
		return p.Status.Reason
	}
	return string(p.Status.Phase)
}

// podRestarts counts how often containers were started again, and says when one was last.
func podRestarts(p *serving.Pod) string {
	var restarts int32
	var last serving.Time
	for _, c := range p.Status.ContainerStatuses {
		restarts += c.RestartCount
		if ended := c.LastTerminationState.Terminated; ended != nil && last.Before(&ended.FinishedAt) {
			last = ended.FinishedAt
		}
	}
	if restarts == 0 || last.IsZero() {
		return strconv.Itoa(int(restarts))
	}
	return fmt.Sprintf("%d (%s ago)", restarts, since(last))
}

// eventColumns are kubectl's columns of events.
func eventColumns() []column {
	return []column{
		{"Last Seen", "string", func(o serving.Object) any { return since(o.(*serving.Event).LastTimestamp) }},
		{"Type", "string", func(o serving.Object) any { return o.(*serving.Event).Type }},
		{"Reason", "string", func(o serving.Object) any { return o.(*serving.Event).Reason }},
		{"Object", "string", func(o serving.Object) any {
			about := o.(*serving.Event).InvolvedObject
			return strings.ToLower(about.Kind) + "/" + about.Name
		}},
		{"Message", "string", func(o serving.Object) any { return strings.TrimSpace(o.(*serving.Event).Message) }},
	}
}

func eventWideColumns() []column {
	return []column{
		{"Subobject", "string", func(o serving.Object) any { return o.(*serving.Event).InvolvedObject.FieldPath }},
		{"Source", "string", func(o serving.Object) any { return o.(*serving.Event).Source.Component }},
		{"First Seen", "string", func(o serving.Object) any { return since(o.(*serving.Event).FirstTimestamp) }},
		{"Count", "integer", func(o serving.Object) any { return o.(*serving.Event).Count }},
	}
}

// coreServiceColumns are kubectl's columns of services.
func coreServiceColumns() []column {
	return []column{
		{"Type", "string", func(o serving.Object) any { return string(o.(*serving.CoreService).Spec.Type) }},
		{"Cluster-IP", "string", func(o serving.Object) any {
			if ip := o.(*serving.CoreService).Spec.ClusterIP; ip != "" {
				return ip
			}
			return "<none>"
		}},
		{"External-IP", "string", func(o serving.Object) any { return externalAddress(o.(*serving.CoreService)) }},
		{"Port(s)", "string", func(o serving.Object) any { return portList(o.(*serving.CoreService)) }},
	}
}

func coreServiceWideColumns() []column {
	return []column{{"Selector", "string", func(o serving.Object) any {
		if selector := o.(*serving.CoreService).Spec.Selector; len(selector) > 0 {
			return labels.FormatLabels(selector)
		}
		return "<none>"
	}}}
}

// externalAddress is where a service is reached from outside.
func externalAddress(s *serving.CoreService) string {
	var addresses []string
	for _, in := range s.Status.LoadBalancer.Ingress {
		addresses = append(addresses, in.IP+in.Hostname)
	}
	if s.Spec.ExternalName != "" {
		addresses = append(addresses, s.Spec.ExternalName)
	}
	if len(addresses) == 0 {
		return "<none>"
	}
	return strings.Join(addresses, ",")
}

// portList is a service's ports as kubectl prints them: "80:31380/TCP".
func portList(s *serving.CoreService) string {
	var ports []string
	for _, p := range s.Spec.Ports {
		port := strconv.Itoa(int(p.Port))
		if p.NodePort != 0 {
			port += ":" + strconv.Itoa(int(p.NodePort))
		}
		ports = append(ports, port+"/"+string(p.Protocol))
	}
	if len(ports) == 0 {
		return "<none>"
	}
	return strings.Join(ports, ",")
}
