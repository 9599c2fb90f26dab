package cli

import (
	"cmp"
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-run/berth/serving"
)

// Annotations and labels that other clients of Knative know too.
const (
	// labelNonce makes a template differ from the one before, so that each deploy is a revision of its own and
	// a tag such as :latest is looked up again.
	labelNonce = "client.knative.dev/nonce"
	// annotationUserImage keeps the image as the user named it, where the template names its digest.
	annotationUserImage = "client.knative.dev/user-image"
)

// leastMemory is less than anything needs: below it a unit was forgotten.
const leastMemory = 1 << 20

// change is what the flags of a deploy say about a service. Nil fields, and nil lists, leave things as they are.
type change struct {
	image            *string
	insecureRegistry *bool

	port    *string // number or "default"
	http2   *bool
	command []string
	args    []string

	env       []pair // set or replaced
	envClear  bool   // first remove every variable with a literal value
	envRemove []string

	cpu, memory string // "" leaves it
	concurrency *string
	timeout     *string
	minScale    *string
	maxScale    *string
	affinity    *bool
	throttling  *bool
	boost       *bool
	labels      []pair

	revisionSuffix string
	tag            string
	noTraffic      bool
	// number is that of the new revision where it must be named: a tag needs its name, and the server's own choice may
	// be taken. 0 leaves it to the server, and is 1 with a tag.
	number int64
}

// apply changes a service as the flags say. The service is a new one when it has no resourceVersion.
func (ch *change) apply(service *serving.Service) error {
	isNew := service.ResourceVersion == ""
	template := &service.Spec.Template
	if len(template.Spec.Containers) == 0 {
		template.Spec.Containers = []serving.Container{{}}
	}
	container := ingressContainer(template.Spec.Containers)

	ch.applyImage(template, container)
	if err := ch.applyContainer(container); err != nil {
		return err
	}
	if err := ch.applyLimits(template, container); err != nil {
		return err
	}
	if err := ch.checkScale(template); err != nil {
		return err
	}
	ch.applyAffinity(template)
	ch.applyCPU(template)
	for _, label := range ch.labels {
		setLabel(&service.ObjectMeta, label.key, label.value)
		setLabel(&template.ObjectMeta, label.key, label.value)
	}
	if err := ch.nameRevision(service); err != nil {
		return err
	}
	return ch.applyTraffic(service, isNew)
}

// ingressContainer is the container that takes requests: the one with a port, else the first.
func ingressContainer(containers []serving.Container) *serving.Container {
	for i := range containers {
		if len(containers[i].Ports) > 0 {
			return &containers[i]
		}
	}
	return &containers[0]
}

func (ch *change) applyImage(template *serving.RevisionTemplateSpec, container *serving.Container) {
	if ch.image != nil {
		container.Image = *ch.image
		delete(template.Annotations, annotationUserImage)
	}
	if ch.insecureRegistry != nil {
		if *ch.insecureRegistry {
			setAnnotation(&template.ObjectMeta, serving.AnnotationInsecureRegistry, "true")
		} else {
			delete(template.Annotations, serving.AnnotationInsecureRegistry)
		}
	}
}

func (ch *change) applyAffinity(template *serving.RevisionTemplateSpec) {
	switch {
	case ch.affinity == nil:
	case *ch.affinity:
		setAnnotation(&template.ObjectMeta, serving.AnnotationSessionAffinity, "true")
	default:
		delete(template.Annotations, serving.AnnotationSessionAffinity)
	}
}

// applyCPU says when instances have the CPU. "false" is not the same as nothing: the server may have another default.
func (ch *change) applyCPU(template *serving.RevisionTemplateSpec) {
	for annotation, value := range map[string]*bool{serving.AnnotationThrottling: ch.throttling, serving.AnnotationBoost: ch.boost} {
		if value != nil {
			setAnnotation(&template.ObjectMeta, annotation, strconv.FormatBool(*value))
		}
	}
}

func (ch *change) applyContainer(container *serving.Container) error {
	if ch.port != nil || ch.http2 != nil {
		if err := ch.applyPort(container); err != nil {
			return err
		}
	}
	if ch.command != nil {
		container.Command = emptyIsNil(ch.command)
	}
	if ch.args != nil {
		container.Args = emptyIsNil(ch.args)
	}
	return ch.applyEnv(container)
}

func (ch *change) applyPort(container *serving.Container) error {
	port := serving.ContainerPort{}
	if len(container.Ports) > 0 {
		port = container.Ports[0]
	}
	if ch.port != nil {
		port.ContainerPort = 0
		if *ch.port != "default" {
			n, err := strconv.ParseInt(*ch.port, 10, 32)
			if err != nil || n < 1 || n > 65535 {
				return usagef("--port %q is not a port: give a number from 1 to 65535, or default", *ch.port)
			}
			port.ContainerPort = int32(n)
		}
	}
	if ch.http2 != nil {
		port.Name = ""
		if *ch.http2 {
			port.Name = "h2c"
		}
	}
	if port.ContainerPort == 0 {
		if port.Name == "" {
			container.Ports = nil
			return nil
		}
		port.ContainerPort = serving.DefaultUserPort
	}
	container.Ports = []serving.ContainerPort{port}
	return nil
}

// applyEnv changes variables with literal values; those taken from secrets and config maps stay what they are.
func (ch *change) applyEnv(container *serving.Container) error {
	if ch.envClear {
		container.Env = slices.DeleteFunc(container.Env, func(v serving.EnvVar) bool { return v.ValueFrom == nil })
	}
	for _, name := range ch.envRemove {
		before := len(container.Env)
		container.Env = slices.DeleteFunc(container.Env, func(v serving.EnvVar) bool { return v.Name == name })
		if len(container.Env) == before {
			return fmt.Errorf("--remove-env-vars: the service has no environment variable %q; it has: %s", name, variableNames(container.Env))
		}
	}
	for _, p := range ch.env {
		i := slices.IndexFunc(container.Env, func(v serving.EnvVar) bool { return v.Name == p.key })
		switch {
		case i < 0:
			container.Env = append(container.Env, serving.EnvVar{Name: p.key, Value: p.value})
		case container.Env[i].ValueFrom != nil:
			return fmt.Errorf("environment variable %s has its value from a secret or config map; remove it first with "+
				"--remove-env-vars %s to give it a literal one", p.key, p.key)
		default:
			container.Env[i].Value = p.value
		}
	}
	if len(container.Env) == 0 {
		container.Env = nil
	}
	return nil
}

func variableNames(variables []serving.EnvVar) string {
	var names []string
	for _, variable := range variables {
		names = append(names, variable.Name)
	}
	return cmp.Or(strings.Join(names, ", "), "none")
}

func (ch *change) applyLimits(template *serving.RevisionTemplateSpec, container *serving.Container) error {
	for _, limit := range []struct {
		flag, value, example string
	}{
		{"cpu", ch.cpu, "1, 0.5 or 500m"},
		{"memory", ch.memory, "512Mi or 1Gi"},
	} {
		if limit.value == "" {
			continue
		}
		quantity, err := resource.ParseQuantity(limit.value)
		if err != nil || quantity.Sign() <= 0 {
			return usagef("--%s %q is not an amount: give one such as %s", limit.flag, limit.value, limit.example)
		}
		if limit.flag == "memory" && quantity.Value() < leastMemory {
			return usagef("--memory %q is %d bytes, which nothing runs in: give it a unit, as in 512Mi", limit.value, quantity.Value())
		}
		if container.Resources.Limits == nil {
			container.Resources.Limits = serving.ResourceList{}
		}
		if limit.flag == "cpu" {
			container.Resources.Limits[serving.ResourceCPU] = quantity
		} else {
			container.Resources.Limits[serving.ResourceMemory] = quantity
		}
	}
	if ch.concurrency != nil {
		template.Spec.ContainerConcurrency = nil
		if *ch.concurrency != "default" {
			n, err := strconv.ParseInt(*ch.concurrency, 10, 64)
			if err != nil || n < 0 {
				return usagef("--concurrency %q is not a number of requests: give 0 (no limit) or more, or default", *ch.concurrency)
			}
			template.Spec.ContainerConcurrency = &n
		}
	}
	if ch.timeout != nil {
		d, err := parseDuration(*ch.timeout)
		seconds := int64(d.Seconds())
		if err != nil || float64(seconds) != d.Seconds() || seconds < 1 {
			return usagef("--timeout %q is not a time in whole seconds: give one such as 300, 300s or 5m", *ch.timeout)
		}
		template.Spec.TimeoutSeconds = &seconds
	}
	if err := applyScale(template, "min-instances", serving.AnnotationMinScale, ch.minScale); err != nil {
		return err
	}
	return applyScale(template, "max-instances", serving.AnnotationMaxScale, ch.maxScale)
}

func applyScale(template *serving.RevisionTemplateSpec, flag, annotation string, value *string) error {
	if value == nil {
		return nil
	}
	// The same setting under the name that Cloud Run writes.
	delete(template.Annotations, strings.Replace(strings.Replace(annotation, "min-scale", "minScale", 1), "max-scale", "maxScale", 1))
	if *value == "default" {
		delete(template.Annotations, annotation)
		return nil
	}
	n, err := strconv.ParseInt(*value, 10, 32)
	if err != nil || n < 0 {
		return usagef("--%s %q is not a number of instances: give 0 or more, or default", flag, *value)
	}
	setAnnotation(&template.ObjectMeta, annotation, strconv.FormatInt(n, 10))
	return nil
}

// checkScale refuses a least number of instances above the most, of which one may be from an earlier deploy.
func (ch *change) checkScale(template *serving.RevisionTemplateSpec) error {
	if ch.minScale == nil && ch.maxScale == nil {
		return nil
	}
	least, most := template.Annotations[serving.AnnotationMinScale], template.Annotations[serving.AnnotationMaxScale]
	// What cannot be read is not these flags' doing: the server names it.
	low, _ := strconv.Atoi(least)
	high, _ := strconv.Atoi(most)
	if high == 0 || low <= high { // 0 is no limit
		return nil
	}
	note := ""
	switch {
	case ch.minScale == nil:
		note = "; the service has --min-instances " + least + " from before: give both"
	case ch.maxScale == nil:
		note = "; the service has --max-instances " + most + " from before: give both"
	}
	return usagef("--min-instances %s is more than --max-instances %s%s", least, most, note)
}

// nameRevision makes the template a new one: under a name where one is needed, else by a nonce. A name that the
// template has from before is that of a revision there is.
func (ch *change) nameRevision(service *serving.Service) error {
	template := &service.Spec.Template
	template.Name = ""
	delete(template.Labels, labelNonce)
	if ch.tag != "" {
		if err := checkTag("tag", ch.tag, service.Name); err != nil {
			return err
		}
	}
	switch {
	case ch.revisionSuffix != "":
		template.Name = service.Name + "-" + ch.revisionSuffix
		return checkSuffix(ch.revisionSuffix, service.Name)
	case ch.tag != "" || ch.number != 0:
		template.Name = numbered(service.Name, cmp.Or(ch.number, 1))
		if !isName(template.Name) {
			return usagef("the name of service %q leaves no room for that of its revision %q: give a --revision-suffix", service.Name, template.Name)
		}
	default:
		setLabel(&template.ObjectMeta, labelNonce, nonce(10))
	}
	return nil
}

// nonce is a random lower-case word.
func nonce(length int) string { return strings.ToLower(rand.Text()[:length]) }

// applyTraffic keeps traffic where it is when the flags say so, and gives the new revision its tag.
func (ch *change) applyTraffic(service *serving.Service, isNew bool) error {
	if !ch.noTraffic && ch.tag == "" {
		return nil
	}
	plan := readTraffic(service.Spec.Traffic)
	if ch.noTraffic {
		ready := service.Status.LatestReadyRevisionName
		switch {
		case isNew:
			return usagef("--no-traffic: service %s does not exist yet, so there is no other revision to keep the traffic on", service.Name)
		case ready == "":
			return fmt.Errorf("--no-traffic: service %s has no ready revision to keep the traffic on", service.Name)
		}
		plan.pin(ready)
	}
	if ch.tag != "" {
		plan.setTag(ch.tag, service.Spec.Template.Name)
	}
	service.Spec.Traffic = plan.targets()
	return nil
}

func setLabel(meta *serving.ObjectMeta, key, value string) {
	meta.Labels = maps.Clone(meta.Labels)
	if meta.Labels == nil {
		meta.Labels = map[string]string{}
	}
	meta.Labels[key] = value
}

func setAnnotation(meta *serving.ObjectMeta, key, value string) {
	meta.Annotations = maps.Clone(meta.Annotations)
	if meta.Annotations == nil {
		meta.Annotations = map[string]string{}
	}
	meta.Annotations[key] = value
}

func emptyIsNil(list []string) []string {
	if len(list) == 0 {
		return nil
	}
	return list
}
