package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/berth-run/berth/client"
)

// fieldFlag names the flag of deploy that a field of the service comes from, "" for none.
func (f *deployFlags) fieldFlag(field string) string {
	env := "set-env-vars"
	if f.setEnv == nil {
		env = "update-env-vars"
	}
	for _, known := range []struct{ part, flag string }{
		{".containers[0].image", "image"},
		{".containers[0].ports", "port"},
		{".containers[0].env", env},
		{".containers[0].resources.limits[cpu]", "cpu"},
		{".containers[0].resources.limits.cpu", "cpu"},
		{".containers[0].resources.limits[memory]", "memory"},
		{".containers[0].resources.limits.memory", "memory"},
		{"spec.template.spec.containerConcurrency", "concurrency"},
		{"spec.template.spec.timeoutSeconds", "timeout"},
		{"spec.template.spec.responseStartTimeoutSeconds", "timeout"},
		{"spec.template.metadata.labels", "labels"},
		{"metadata.labels", "labels"},
		{"spec.template.metadata.name", "revision-suffix"},
	} {
		if strings.Contains(field, known.part) {
			return known.flag
		}
	}
	return ""
}

// explain says of a change that the server refuses which flags it comes from. What comes from none stays as it is.
func (f *deployFlags) explain(err error) error {
	status, ok := errors.AsType[*client.StatusError](err)
	if !ok || status.Details == nil || len(status.Details.Causes) == 0 {
		return err
	}
	var lines []string
	for _, cause := range status.Details.Causes {
		flag := f.fieldFlag(cause.Field)
		if flag == "" {
			return err
		}
		message := cause.Message
		var least, given, most string
		if n, _ := fmt.Sscanf(message, "expected %s <= %s <= %s", &least, &given, &most); n == 3 {
			message = fmt.Sprintf("%s is not from %s to %s, which is what the server allows", given, least, most)
		}
		lines = append(lines, fmt.Sprintf("--%s: %s", flag, message))
	}
	return errors.New(strings.Join(lines, "\n"))
}
