package serving

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"strconv"
	"strings"
	"time"

	"k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"knative.dev/pkg/apis"
	"knative.dev/serving/pkg/apis/autoscaling"
	"knative.dev/serving/pkg/apis/config"
)

// Settings are the platform's defaults and bounds for what users declare. The zero value is Knative's own.
// [NewAdmission] says which one is wrong.
type Settings struct {
	// RevisionTimeout is the timeoutSeconds of revisions that set none, in whole seconds; 0 is 300 s.
	RevisionTimeout time.Duration
	// MaxRevisionTimeout is the longest timeoutSeconds, in whole seconds; 0 is 600 s.
	MaxRevisionTimeout time.Duration
	// ContainerConcurrency is set on revisions that set none; 0 is unlimited.
	ContainerConcurrency int64
	// Scaling, when set, says what of a revision's annotations about scaling cannot be used.
	Scaling func(annotations map[string]string, containerConcurrency int64) error
	// CPU and Memory are the limits of containers that set none, as quantities ("1", "512Mi"); "" sets none.
	CPU, Memory string
}

// Change is a write that a user asks for.
type Change struct {
	New Object
	// Old is the stored object, nil on creation. It is only read.
	Old Object
	// Status says that only the status is written: spec and metadata of New are Old's.
	Status bool
	// User is written to the creator and lastModifier annotations of serving objects.
	User string
}

// Admission decides what may be stored. It may be used concurrently.
type Admission struct {
	config  *config.Config // never changed: Knative only reads it
	scaling func(annotations map[string]string, containerConcurrency int64) error
}

// NewAdmission returns the admission by these settings, or an error that names the setting that is wrong.
func NewAdmission(s Settings) (*Admission, error) {
	conf, err := s.config()
	if err != nil {
		return nil, err
	}
	return &Admission{config: conf, scaling: s.Scaling}, nil
}

// Admit fills the defaults of change.New in place and says whether it may be stored. The errors of serving
// objects have Knative's text ("validation failed: …") and code 400, as its webhook answers; those of core
// objects and of metadata have Kubernetes' (422 Invalid). Each is a *errors.StatusError with a cause per field.
// Warnings are for the user to read; the write goes on.
func (a *Admission) Admit(ctx context.Context, change Change) (warnings []string, err error) {
	kind := KindOf(change.New)
	if !change.Status {
		if list := metadataErrors(kind, change); len(list) > 0 {
			return nil, invalid(kind, change.New, list)
		}
	}
	object, ok := change.New.(admissible)
	if !ok {
		return nil, admitCore(kind, change)
	}
	ctx = config.ToContext(ctx, a.config)
	ctx = apis.WithUserInfo(ctx, &v1.UserInfo{Username: change.User})
	switch {
	case change.Old == nil:
		ctx = apis.WithinCreate(ctx)
	case change.Status:
		ctx = apis.WithinSubResourceUpdate(ctx, change.Old, "status")
	default:
		keepUserAnnotations(change.New, change.Old)
		if kind.Name == KindRevision.Name {
			warnings = keepPlatformLabels(change.New, change.Old)
		}
		ctx = apis.WithinUpdate(ctx, change.Old)
	}
	var refused *apis.FieldError
	if !change.Status {
		completeNamedTemplate(ctx, change)
		object.SetDefaults(ctx)
		if err := asStored(kind, change.New); err != nil {
			return nil, err
		}
		refused = unsupported(change.New).Also(a.invalidTimeouts(change.New))
		warnings = append(warnings, withoutEffect(change.New)...)
	}
	result := object.Validate(ctx)
	for _, w := range result.Filter(apis.WarningLevel).WrappedErrors() {
		// Knative's advice to set a security context does not apply: every instance has these restrictions.
		if !strings.HasPrefix(w.Message, "Kubernetes default value is insecure") {
			warnings = append(warnings, w.Error())
		}
	}
	for _, e := range result.Filter(apis.ErrorLevel).WrappedErrors() {
		if !reservesPort(e) {
			refused = refused.Also(e)
		}
	}
	if !change.Status {
		if refused == nil {
			refused = a.invalidScaling(change.New)
		} else {
			refused = refused.Also(metricWithoutClass(change.New))
		}
	}
	if refused != nil {
		return warnings, validationFailed(kind, change.New, refused)
	}
	return warnings, nil
}

// completeNamedTemplate fills the defaults of a template that keeps its revision's name. Knative leaves them out, lest
// they be a change that the name forbids, and then refuses what kubectl apply sends: the template as its user wrote it,
// without the defaults that were filled in at first.
func completeNamedTemplate(ctx context.Context, change Change) {
	template, before := templateOf(change.New), templateOf(change.Old)
	if template == nil || before == nil || template.Name == "" || template.Name != before.Name ||
		equality.Semantic.DeepEqual(template, before) {
		return
	}
	template.SetDefaults(ctx)
}

// invalidTimeouts holds the timeouts that Knative does not look at to the bounds of the one that it does.
func (a *Admission) invalidTimeouts(o Object) (refused *apis.FieldError) {
	template := templateOf(o)
	if template == nil {
		return nil
	}
	most := a.config.Defaults.MaxRevisionTimeoutSeconds
	for _, timeout := range []struct {
		field string
		value *int64
	}{
		{"responseStartTimeoutSeconds", template.Spec.ResponseStartTimeoutSeconds},
		{"idleTimeoutSeconds", template.Spec.IdleTimeoutSeconds},
	} {
		if n := timeout.value; n != nil && (*n < 0 || *n > most) {
			refused = refused.Also(apis.ErrOutOfBoundsValue(*n, 0, most, timeout.field).ViaField("spec", "template", "spec"))
		}
	}
	return refused
}

// invalidScaling refuses annotations about scaling that Knative takes and that nothing here can scale by.
func (a *Admission) invalidScaling(o Object) *apis.FieldError {
	template := templateOf(o)
	if template == nil || a.scaling == nil {
		return nil
	}
	if err := a.scaling(template.Annotations, template.Spec.GetContainerConcurrency()); err != nil {
		return refusal(strings.ReplaceAll(err.Error(), "\n", "; "), "spec.template.metadata.annotations")
	}
	return nil
}

// metricWithoutClass says what the metrics cpu and memory need, which Knative's own refusal does not.
func metricWithoutClass(o Object) *apis.FieldError {
	template := templateOf(o)
	if template == nil {
		return nil
	}
	key, metric, _ := autoscaling.MetricAnnotation.Get(template.Annotations)
	_, class, _ := autoscaling.ClassAnnotation.Get(template.Annotations)
	if class == autoscaling.HPA || metric != autoscaling.CPU && metric != autoscaling.Memory {
		return nil
	}
	return refusal(fmt.Sprintf("annotation %s is %q, which needs the annotation %s: %s", key, metric, autoscaling.ClassAnnotationKey, autoscaling.HPA),
		"spec.template.metadata.annotations")
}

// templateOf is the template of what has one.
func templateOf(o Object) *RevisionTemplateSpec {
	switch o := o.(type) {
	case *Service:
		return &o.Spec.Template
	case *Configuration:
		return &o.Spec.Template
	}
	return nil
}

// reservesPort recognizes the refusal of a port that Knative's proxy beside the container listens on. Berth has no
// such proxy, and Cloud Run takes these ports.
func reservesPort(e *apis.FieldError) bool {
	return strings.HasSuffix(e.Message, "is a reserved port")
}

// asStored brings an object into the form it has after it was written and read again, where an empty map is none:
// defaulting makes such maps, and a revision's template must compare equal to the stored one.
func asStored(kind Kind, o Object) error {
	encoded, err := json.Marshal(o)
	if err != nil {
		return fmt.Errorf("encoding %s %q: %w", kind.Singular, o.GetName(), err)
	}
	stored := kind.New()
	if err := json.Unmarshal(encoded, stored); err != nil {
		return fmt.Errorf("decoding %s %q: %w", kind.Singular, o.GetName(), err)
	}
	reflect.ValueOf(o).Elem().Set(reflect.ValueOf(stored).Elem())
	return nil
}

// admissible is what Knative's objects can do.
type admissible interface {
	apis.Defaultable
	apis.Validatable
}

// config is the settings as Knative's defaulting and validation read them.
func (s Settings) config() (*config.Config, error) {
	defaults := map[string]string{
		"container-concurrency": strconv.FormatInt(s.ContainerConcurrency, 10),
		// Else Knative would set it to the default of timeoutSeconds on revisions that have a longer one, and end their
		// requests before.
		"revision-response-start-timeout-seconds": "0",
	}
	for key, d := range map[string]time.Duration{
		"revision-timeout-seconds":     s.RevisionTimeout,
		"max-revision-timeout-seconds": s.MaxRevisionTimeout,
	} {
		if d%time.Second != 0 {
			return nil, fmt.Errorf("%s is %s: give whole seconds", key, d)
		}
		if d != 0 {
			defaults[key] = strconv.FormatInt(int64(d/time.Second), 10)
		}
	}
	for key, quantity := range map[string]string{"revision-cpu-limit": s.CPU, "revision-memory-limit": s.Memory} {
		if quantity != "" {
			defaults[key] = quantity
		}
	}
	d, err := config.NewDefaultsConfigFromMap(defaults)
	if err != nil {
		return nil, err
	}
	if cpu := d.RevisionCPULimit; cpu != nil && cpu.Sign() <= 0 {
		return nil, fmt.Errorf("revision-cpu-limit is %s: give more than 0", cpu)
	}
	if memory := d.RevisionMemoryLimit; memory != nil && memory.Value() < leastMemory {
		return nil, fmt.Errorf("revision-memory-limit is %s: give %dMi or more", memory, leastMemory>>20)
	}
	f, err := config.NewFeaturesConfigFromMap(map[string]string{
		"multi-container-probing": string(config.Enabled), // sidecars may have probes, as on Cloud Run
	})
	if err != nil {
		return nil, err
	}
	// Knative completes what is missing while it validates. That would be a race between requests: it is done here.
	return config.FromContextOrDefaults(config.ToContext(context.Background(), &config.Config{Defaults: d, Features: f})), nil
}

// metadataErrors checks names, labels, annotations, finalizers and owners as Kubernetes does for every kind.
func metadataErrors(kind Kind, change Change) field.ErrorList {
	path := field.NewPath("metadata")
	if change.Old != nil {
		return validation.ValidateObjectMetaAccessorUpdate(change.New, change.Old, path)
	}
	name := validation.NameIsDNSSubdomain
	if kind.Name == KindNamespace.Name {
		name = validation.ValidateNamespaceName
	}
	// With generateName the store chooses the name; a placeholder keeps Kubernetes from asking for one here.
	object := change.New
	if object.GetName() == "" && object.GetGenerateName() != "" {
		object = object.DeepCopyObject().(Object)
		object.SetName(strings.TrimRight(object.GetGenerateName(), "-.") + "x")
	}
	return validation.ValidateObjectMetaAccessor(object, kind.Namespaced, name, path)
}

// keepUserAnnotations lets a user write an object without repeating who made it.
func keepUserAnnotations(to, from Object) {
	for _, key := range []string{AnnotationCreator, AnnotationLastModifier} {
		value, had := from.GetAnnotations()[key]
		if _, has := to.GetAnnotations()[key]; had && !has {
			annotations := to.GetAnnotations()
			if annotations == nil {
				annotations = map[string]string{}
			}
			annotations[key] = value
			to.SetAnnotations(annotations)
		}
	}
}

// keepPlatformLabels gives a revision the labels that tie it to its owners: the platform finds it by them. Other
// labels are the user's.
func keepPlatformLabels(to, from Object) (warnings []string) {
	labels := maps.Clone(to.GetLabels())
	if labels == nil {
		labels = map[string]string{}
	}
	maps.DeleteFunc(labels, func(key, _ string) bool { return strings.HasPrefix(key, Group+"/") })
	for key, value := range from.GetLabels() {
		if strings.HasPrefix(key, Group+"/") {
			labels[key] = value
		}
	}
	if !maps.Equal(labels, to.GetLabels()) {
		warnings = append(warnings, "metadata.labels: those of "+Group+" are the platform's and stay as they are")
	}
	to.SetLabels(labels)
	return warnings
}

// validationFailed is a refusal in the words of Knative's webhook, with one cause per field.
func validationFailed(kind Kind, o Object, fe *apis.FieldError) error {
	status := errors.NewBadRequest("validation failed: " + fe.Error())
	status.ErrStatus.Details = details(kind, o)
	for _, e := range fe.WrappedErrors() {
		for _, path := range e.Paths {
			message := e.Message
			if e.Details != "" {
				message += "\n" + e.Details
			}
			status.ErrStatus.Details.Causes = append(status.ErrStatus.Details.Causes,
				StatusCause{Type: CauseFieldValueInvalid, Message: message, Field: path})
		}
	}
	return status
}

func invalid(kind Kind, o Object, list field.ErrorList) error {
	return errors.NewInvalid(kind.GroupVersion().WithKind(kind.Name).GroupKind(), o.GetName(), list)
}

func details(kind Kind, o Object) *StatusDetails {
	return &StatusDetails{Group: kind.Group, Kind: kind.Name, Name: o.GetName()}
}
