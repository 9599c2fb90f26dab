package api

import (
	"net/http"

	"k8s.io/apimachinery/pkg/apis/meta/v1"
)

// instead answers what kubectl has a command for and Berth something better: why, and what to do instead.
func instead(why string) handler {
	return func(http.ResponseWriter, *http.Request) (any, error) {
		return nil, failure(http.StatusMethodNotAllowed, v1.StatusReasonMethodNotAllowed, why)
	}
}

// What is refused so.
const (
	noAttach = "pods cannot be attached to: a container's input is closed and its output goes to its log; " +
		"follow that with kubectl logs -f, or run a command with kubectl exec"
	noDebug = "containers cannot be added to a pod: run a command in those that it has with kubectl exec, " +
		"or declare a sidecar in the service's template"
	noScale = "requests decide how many instances there are: bound their number with the annotations " +
		"autoscaling.knative.dev/min-scale and autoscaling.knative.dev/max-scale in the spec.template.metadata of the service"
)
