package serving

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"k8s.io/api/core/v1"
	"knative.dev/pkg/apis"
)

// What Kubernetes' pods check of volumes, and Knative leaves to them.
const (
	// LeastTokenSeconds and MostTokenSeconds bound the life that is asked of a service account's token.
	LeastTokenSeconds = 600
	MostTokenSeconds  = 1 << 32

	mostFileMode = 0o777

	// What bounds the work of making an instance.
	mostVolumes = 128
	mostMounts  = 256 // of a container
	longestName = 255 // in bytes, as of all files
	longestPath = 1024
)

// DownwardFields are the fields of a pod that a volume can have as files. labels and annotations are all of them, and
// with a key in brackets the one of that key.
var DownwardFields = []string{"metadata.name", "metadata.namespace", "metadata.labels", "metadata.annotations"}

// DownwardResources are the resources of a container that a volume can have as files.
var DownwardResources = []string{"limits.cpu", "limits.memory", "requests.cpu", "requests.memory"}

var fieldKey = regexp.MustCompile(`^(metadata\.(?:labels|annotations))\['([^']+)'\]$`)

// DownwardField takes a field's path apart: "metadata.labels['app']" is metadata.labels and app.
func DownwardField(fieldPath string) (field, key string) {
	if m := fieldKey.FindStringSubmatch(fieldPath); m != nil {
		return m[1], m[2]
	}
	return fieldPath, ""
}

// unsupportedVolume refuses what no pod of Kubernetes would start with. Volumes that Berth does not have, Knative
// refuses by its settings.
func unsupportedVolume(v Volume) (refused *apis.FieldError) {
	if s := v.Secret; s != nil {
		if s.SecretName == "" {
			refused = refused.Also(apis.ErrMissingField("secretName").ViaField("secret"))
		}
		refused = refused.Also(unsupportedMode(s.DefaultMode, "defaultMode").Also(unsupportedItems(s.Items)).ViaField("secret"))
	}
	if c := v.ConfigMap; c != nil {
		if c.Name == "" {
			refused = refused.Also(apis.ErrMissingField("name").ViaField("configMap"))
		}
		refused = refused.Also(unsupportedMode(c.DefaultMode, "defaultMode").Also(unsupportedItems(c.Items)).ViaField("configMap"))
	}
	if p := v.Projected; p != nil {
		refused = refused.Also(unsupportedMode(p.DefaultMode, "defaultMode").ViaField("projected"))
		for i, source := range p.Sources {
			refused = refused.Also(unsupportedProjection(source).ViaFieldIndex("sources", i).ViaField("projected"))
		}
	}
	return refused
}

func unsupportedProjection(source VolumeProjection) (refused *apis.FieldError) {
	if source.Secret != nil {
		refused = refused.Also(unsupportedItems(source.Secret.Items).ViaField("secret"))
	}
	if source.ConfigMap != nil {
		refused = refused.Also(unsupportedItems(source.ConfigMap.Items).ViaField("configMap"))
	}
	if t := source.ServiceAccountToken; t != nil {
		refused = refused.Also(unsupportedPath(t.Path).ViaField("serviceAccountToken"))
		if s := t.ExpirationSeconds; s != nil && (*s < LeastTokenSeconds || *s > MostTokenSeconds) {
			refused = refused.Also(apis.ErrOutOfBoundsValue(*s, LeastTokenSeconds, int64(MostTokenSeconds), "serviceAccountToken.expirationSeconds"))
		}
	}
	if d := source.DownwardAPI; d != nil {
		for i, item := range d.Items {
			refused = refused.Also(unsupportedDownward(item).ViaFieldIndex("items", i).ViaField("downwardAPI"))
		}
	}
	return refused
}

func unsupportedDownward(item DownwardAPIVolumeFile) (refused *apis.FieldError) {
	refused = unsupportedPath(item.Path).Also(unsupportedMode(item.Mode, "mode"))
	if ref := item.FieldRef; ref != nil {
		field, _ := DownwardField(ref.FieldPath)
		if !slices.Contains(DownwardFields, field) {
			refused = refused.Also(refusal(fmt.Sprintf("a file cannot have the field %q; it can have %s, also with ['KEY'] after labels or annotations",
				ref.FieldPath, strings.Join(DownwardFields, ", ")), "fieldRef.fieldPath"))
		}
	}
	if ref := item.ResourceFieldRef; ref != nil {
		if !slices.Contains(DownwardResources, ref.Resource) {
			refused = refused.Also(refusal(fmt.Sprintf("a file cannot have the resource %q; it can have %s", ref.Resource, strings.Join(DownwardResources, ", ")),
				"resourceFieldRef.resource"))
		}
		if ref.ContainerName == "" {
			refused = refused.Also(apis.ErrMissingField("resourceFieldRef.containerName"))
		}
	}
	return refused
}

func unsupportedItems(items []KeyToPath) (refused *apis.FieldError) {
	for i, item := range items {
		refused = refused.Also(unsupportedPath(item.Path).Also(unsupportedMode(item.Mode, "mode")).ViaFieldIndex("items", i))
	}
	return refused
}

// unsupportedPath refuses paths of files that are not in their volume. Knative refuses those that are empty.
func unsupportedPath(name string) *apis.FieldError {
	if name == "" || isInside(name) && !strings.HasPrefix(path.Clean(name), "..") && path.Clean(name) != "." {
		return nil
	}
	return refusal(fmt.Sprintf("%.300q is not the path of a file in the volume: give a relative one that has no \"..\", does not begin with two dots, "+
		"and is not longer than %d bytes, or %d a name", name, longestPath, longestName), "path")
}

// isInside reports whether a path does not lead out of where it begins, and can be one.
func isInside(name string) bool {
	return !path.IsAbs(name) && len(name) <= longestPath && !strings.Contains(name, "\x00") &&
		!slices.ContainsFunc(strings.Split(name, "/"), func(part string) bool { return part == ".." || len(part) > longestName })
}

func unsupportedMode(mode *int32, field string) *apis.FieldError {
	if mode == nil || *mode >= 0 && *mode <= mostFileMode {
		return nil
	}
	return refusal(fmt.Sprintf("%d is not the mode of a file: give 0 to 0777, or in JSON, which has no octal numbers, 0 to %d", *mode, mostFileMode), field)
}

func unsupportedMount(m VolumeMount) (refused *apis.FieldError) {
	for _, kernels := range []string{"/proc", "/sys"} {
		if at := path.Clean(m.MountPath); at == kernels || strings.HasPrefix(at, kernels+"/") {
			refused = refused.Also(refusal(fmt.Sprintf("nothing can be mounted at %q: %s is the kernel's", at, kernels), "mountPath"))
		}
	}
	if !isInside(m.SubPath) {
		refused = refused.Also(refusal(fmt.Sprintf("%.300q is not a path in the volume: give a relative one without \"..\", not longer than %d bytes, or %d a name",
			m.SubPath, longestPath, longestName), "subPath"))
	}
	if len(m.MountPath) > longestPath || strings.Contains(m.MountPath, "\x00") {
		refused = refused.Also(refusal(fmt.Sprintf("%.300q is not a path of at most %d bytes", m.MountPath, longestPath), "mountPath"))
	}
	return refused
}

// FileMode is the mode of a file of a volume: its own, else the volume's, else that every user may read it.
func FileMode(own, volumes *int32) uint32 {
	for _, mode := range []*int32{own, volumes} {
		if mode != nil {
			return uint32(*mode)
		}
	}
	return uint32(v1.ConfigMapVolumeSourceDefaultMode)
}
