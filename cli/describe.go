package cli

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"knative.dev/pkg/apis"

	"github.com/berth-run/berth/serving"
)

// describeService shows one service to a person; revisions are its own.
func describeService(out io.Writer, service *serving.Service, revisions []*serving.Revision) error {
	t := newTable(out, "Service:", service.Name)
	t.row("Namespace:", service.Namespace)
	if service.Status.URL != nil {
		t.row("URL:", service.Status.URL.String())
	}
	t.row("Age:", age(service.CreationTimestamp.Time))
	ready, reason := readiness(service.Status.GetCondition(serving.ServiceReady))
	if service.Status.ObservedGeneration < service.Generation {
		ready, reason = "Unknown", "the newest change has not been looked at yet"
	}
	t.row("Ready:", strings.TrimSpace(ready+" "+reason))
	t.row("Latest created revision:", dash(service.Status.LatestCreatedRevisionName))
	t.row("Latest ready revision:", dash(service.Status.LatestReadyRevisionName))
	if err := t.end(); err != nil {
		return err
	}
	fmt.Fprintln(out, "\nTraffic:")
	if err := describeTraffic(out, service); err != nil {
		return err
	}
	for _, revision := range revisions {
		gets := slices.ContainsFunc(service.Status.Traffic, func(target serving.TrafficTarget) bool { return target.RevisionName == revision.Name })
		if stuck := stuck(revision); stuck != nil && gets {
			fmt.Fprintf(out, "\nRevision %s starts no instance any more (%s): %s\n", revision.Name, stuck.Reason, stuck.Message)
		}
		if active := revision.Status.GetCondition(serving.RevisionActive); gets && active.IsUnknown() && active.Reason == serving.ReasonWaitingForMemory {
			fmt.Fprintf(out, "\nRevision %s (%s): %s\n", revision.Name, active.Reason, active.Message)
		}
	}
	fmt.Fprintln(out, "\nTemplate of its revisions:")
	if err := describeSpec(out, service.Spec.Template.Annotations, &service.Spec.Template.Spec); err != nil {
		return err
	}
	return describeConditions(out, service.Status.Conditions)
}

// describeRevision shows one revision to a person.
func describeRevision(out io.Writer, revision *serving.Revision) error {
	t := newTable(out, "Revision:", revision.Name)
	t.row("Namespace:", revision.Namespace)
	t.row("Service:", dash(revision.Labels[serving.LabelService]))
	t.row("Age:", age(revision.CreationTimestamp.Time))
	ready, reason := readiness(revision.Status.GetCondition(serving.RevisionReady))
	t.row("Ready:", strings.TrimSpace(ready+" "+reason))
	for _, status := range revision.Status.ContainerStatuses {
		if status.ImageDigest != "" {
			t.row("Image digest:", status.ImageDigest)
		}
	}
	if err := t.end(); err != nil {
		return err
	}
	fmt.Fprintln(out, "\nIt runs:")
	if err := describeSpec(out, revision.Annotations, &revision.Spec); err != nil {
		return err
	}
	return describeConditions(out, revision.Status.Conditions)
}

// describeTraffic shows how traffic is divided now, or will be when nothing is known yet.
func describeTraffic(out io.Writer, service *serving.Service) error {
	targets := service.Status.Traffic
	if len(targets) == 0 {
		targets = service.Spec.Traffic
	}
	t := newTable(out, "  PERCENT", "REVISION", "TAG", "URL")
	for _, target := range targets {
		var percent int64
		if target.Percent != nil {
			percent = *target.Percent
		}
		revision := target.RevisionName
		if target.LatestRevision != nil && *target.LatestRevision {
			revision = strings.TrimSpace("latest " + revision)
		}
		url := ""
		if target.URL != nil {
			url = target.URL.String()
		}
		t.row(fmt.Sprintf("  %d%%", percent), revision, dash(target.Tag), dash(url))
	}
	return t.end()
}

func describeSpec(out io.Writer, annotations map[string]string, spec *serving.RevisionSpec) error {
	if len(spec.Containers) == 0 {
		return nil
	}
	container := ingressContainer(spec.Containers)
	image := container.Image
	if named := annotations[annotationUserImage]; named != "" {
		image = fmt.Sprintf("%s (%s)", named, image)
	}
	t := newTable(out, "  Image:", image)
	if len(container.Command) > 0 {
		t.row("  Command:", fmt.Sprintf("%q", container.Command))
	}
	if len(container.Args) > 0 {
		t.row("  Args:", fmt.Sprintf("%q", container.Args))
	}
	for _, port := range container.Ports {
		t.row("  Port:", strings.TrimSpace(fmt.Sprintf("%d %s", cmp.Or(port.ContainerPort, serving.DefaultUserPort), port.Name)))
	}
	for _, variable := range container.Env {
		value := variable.Value
		if variable.ValueFrom != nil {
			value = "(from a secret or config map)"
		}
		t.row("  Env "+variable.Name+":", value)
	}
	limits := container.Resources.Limits
	for _, name := range []string{"cpu", "memory"} {
		for key, quantity := range limits {
			if string(key) == name {
				t.row("  Limit of "+name+":", quantity.String())
			}
		}
	}
	if spec.ContainerConcurrency != nil {
		concurrency := fmt.Sprint(*spec.ContainerConcurrency)
		if *spec.ContainerConcurrency == 0 {
			concurrency = "no limit"
		}
		t.row("  Concurrency:", concurrency)
	}
	if spec.TimeoutSeconds != nil {
		t.row("  Timeout:", fmt.Sprintf("%ds", *spec.TimeoutSeconds))
	}
	for _, scale := range []struct{ title, key string }{
		{"  Min instances:", serving.AnnotationMinScale}, {"  Max instances:", serving.AnnotationMaxScale},
	} {
		value := annotations[scale.key]
		if scale.key == serving.AnnotationMaxScale && value == "0" {
			value = "no limit"
		}
		if value != "" {
			t.row(scale.title, value)
		}
	}
	if scaling := describeScaling(annotations); scaling != "" {
		t.row("  Scaling:", scaling)
	}
	if serving.Enabled(annotations, serving.AnnotationSessionAffinity, false) {
		t.row("  Session affinity:", "by a cookie")
	}
	for _, choice := range []struct{ title, key, yes, no string }{
		{"  CPU between requests:", serving.AnnotationThrottling, "withheld", "given"},
		{"  CPU boost at start:", serving.AnnotationBoost, "yes", "no"},
	} {
		switch {
		case serving.Enabled(annotations, choice.key, false):
			t.row(choice.title, choice.yes)
		case !serving.Enabled(annotations, choice.key, true):
			t.row(choice.title, choice.no)
		}
	}
	return t.end()
}

// describeScaling lists the annotations about scaling, but for those that have rows of their own.
func describeScaling(annotations map[string]string) string {
	var all []string
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		name, scales := strings.CutPrefix(key, "autoscaling.knative.dev/")
		if !scales {
			name, scales = strings.CutPrefix(key, "run.googleapis.com/")
			scales = scales && strings.HasPrefix(name, "scaling-")
		}
		if scales && key != serving.AnnotationMinScale && key != serving.AnnotationMaxScale {
			all = append(all, name+"="+annotations[key])
		}
	}
	return strings.Join(all, ", ")
}

// describeConditions shows conditions, and in full what those that are not True say.
func describeConditions(out io.Writer, conditions []apis.Condition) error {
	if len(conditions) == 0 {
		return nil
	}
	fmt.Fprintln(out, "\nConditions:")
	t := newTable(out, "  TYPE", "STATUS", "AGE", "REASON")
	for _, condition := range conditions {
		t.row("  "+string(condition.Type), string(condition.Status), age(condition.LastTransitionTime.Inner.Time), dash(condition.Reason))
	}
	if err := t.end(); err != nil {
		return err
	}
	var told []string
	for _, condition := range conditions {
		if condition.IsTrue() || condition.Message == "" || slices.Contains(told, condition.Message) {
			continue
		}
		told = append(told, condition.Message)
		fmt.Fprintf(out, "\n%s: %s\n", condition.Type, condition.Message)
	}
	return nil
}

// reasonNoTraffic is why a revision that nobody asks for has no instance, which is as it should be.
const reasonNoTraffic = "NoTraffic"

// stuck is the condition that says why a revision that was ready once starts no instance any more; nil when it does.
func stuck(revision *serving.Revision) *apis.Condition {
	active := revision.Status.GetCondition(serving.RevisionActive)
	if !revision.Status.GetCondition(serving.RevisionReady).IsTrue() || !active.IsFalse() || active.Reason == reasonNoTraffic {
		return nil
	}
	return active
}

// readiness is a Ready condition as two cells of a table.
func readiness(ready *apis.Condition) (status, reason string) {
	if ready == nil {
		return "Unknown", ""
	}
	if ready.IsTrue() {
		return "True", ""
	}
	return string(ready.Status), ready.Reason
}
