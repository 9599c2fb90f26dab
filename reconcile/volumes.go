package reconcile

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"knative.dev/pkg/kmeta"

	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/identity"
	"github.com/berth-run/berth/serving"
)

// renewal is the age at which a token is made anew at the latest; one that lives shorter is at four fifths of its life.
const renewal = 24 * time.Hour

// mounts are where a container sees the revision's volumes.
func mounts(c serving.Container) []engine.Mount {
	var all []engine.Mount
	for _, m := range c.VolumeMounts {
		all = append(all, engine.Mount{Volume: m.Name, Path: m.MountPath, SubPath: m.SubPath, ReadOnly: m.ReadOnly})
	}
	return all
}

// volumes are a revision's volumes. Each is read once, so that what is missing is told before an instance is made.
func (r *Reconciler) volumes(ctx context.Context, revision *serving.Revision) ([]engine.Volume, error) {
	var all []engine.Volume
	for _, declared := range revision.Spec.Volumes {
		volume := engine.Volume{Name: declared.Name}
		if dir := declared.EmptyDir; dir != nil {
			if dir.SizeLimit != nil {
				volume.SizeLimit = dir.SizeLimit.Value()
			}
			all = append(all, volume)
			continue
		}
		f := filling{
			reconciler: r, namespace: revision.Namespace, revision: revision.Name, account: revision.Spec.ServiceAccountName,
			labels: podLabels(revision), annotations: revision.Annotations, containers: revision.Spec.Containers,
		}
		f.sources, f.mode = sources(declared)
		if f.sources == nil {
			return nil, fmt.Errorf("volume %q: only emptyDir, configMap, secret and projected volumes can be made", declared.Name)
		}
		if _, err := f.files(ctx); err != nil {
			return nil, fmt.Errorf("reading volume %q: %w", declared.Name, err)
		}
		volume.Files = func(instance string) func(context.Context) ([]engine.File, error) {
			own := f
			own.instance, own.tokens = instance, map[int]identity.Token{}
			return own.files
		}
		all = append(all, volume)
	}
	return all, nil
}

// sources are what a volume's files come from, later ones over earlier ones, and the mode of those that name none.
func sources(v serving.Volume) ([]serving.VolumeProjection, *int32) {
	switch {
	case v.Projected != nil:
		return append([]serving.VolumeProjection{}, v.Projected.Sources...), v.Projected.DefaultMode
	case v.ConfigMap != nil:
		return []serving.VolumeProjection{{ConfigMap: &serving.ConfigMapProjection{
			LocalObjectReference: v.ConfigMap.LocalObjectReference, Items: v.ConfigMap.Items, Optional: v.ConfigMap.Optional,
		}}}, v.ConfigMap.DefaultMode
	case v.Secret != nil:
		return []serving.VolumeProjection{{Secret: &serving.SecretProjection{
			LocalObjectReference: serving.LocalObjectReference{Name: v.Secret.SecretName}, Items: v.Secret.Items, Optional: v.Secret.Optional,
		}}}, v.Secret.DefaultMode
	}
	return nil, nil
}

// filling is what fills one volume of a revision, and, with an instance, that of the instance.
type filling struct {
	reconciler  *Reconciler
	sources     []serving.VolumeProjection
	mode        *int32
	namespace   string
	revision    string
	account     string
	labels      map[string]string
	annotations map[string]string
	containers  []serving.Container
	instance    string
	tokens      map[int]identity.Token // by index in sources
}

// files reads all sources as they are now.
func (f *filling) files(ctx context.Context) ([]engine.File, error) {
	merged := map[string]engine.File{}
	put := func(name string, mode *int32, data []byte) {
		name = path.Clean(name)
		merged[name] = engine.File{Path: name, Mode: serving.FileMode(mode, f.mode), Data: data}
	}
	for i, source := range f.sources {
		var err error
		switch {
		case source.ConfigMap != nil:
			c := source.ConfigMap
			err = f.entries(ctx, serving.KindConfigMap, c.Name, c.Items, c.Optional, put)
		case source.Secret != nil:
			s := source.Secret
			err = f.entries(ctx, serving.KindSecret, s.Name, s.Items, s.Optional, put)
		case source.ServiceAccountToken != nil:
			var token string
			if token, err = f.token(ctx, i, source.ServiceAccountToken); err == nil {
				put(source.ServiceAccountToken.Path, nil, []byte(token))
			}
		case source.DownwardAPI != nil:
			for _, item := range source.DownwardAPI.Items {
				var value string
				if value, err = f.downward(item); err != nil {
					break
				}
				put(item.Path, item.Mode, []byte(value))
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return slices.SortedFunc(maps.Values(merged), func(a, b engine.File) int { return strings.Compare(a.Path, b.Path) }), nil
}

// entries puts the entries of a ConfigMap or Secret: all by their keys, or the items by their paths.
func (f *filling) entries(ctx context.Context, kind serving.Kind, name string, items []serving.KeyToPath, optional *bool, put func(string, *int32, []byte)) error {
	data, err := f.reconciler.data(ctx, kind, f.namespace, name, optional)
	if err != nil {
		return err
	}
	if len(items) == 0 {
		for key, value := range data {
			put(key, nil, []byte(value))
		}
		return nil
	}
	for _, item := range items {
		value, ok := data[item.Key]
		switch {
		case ok:
			put(item.Path, item.Mode, []byte(value))
		case optional == nil || !*optional:
			return fmt.Errorf("%s %q in namespace %q has no key %q", kind.Singular, name, f.namespace, item.Key)
		}
	}
	return nil
}

// token is a token of the revision's service account, made anew in time. Without an instance it is only seen to that
// there is an account.
func (f *filling) token(ctx context.Context, source int, t *serving.ServiceAccountTokenProjection) (string, error) {
	held, now := f.tokens[source], time.Now()
	if life := held.Expires.Sub(held.Issued); held.Text != "" && now.Sub(held.Issued) < min(life*4/5, renewal) {
		return held.Text, nil
	}
	account, err := f.reconciler.account(ctx, f.namespace, f.account)
	if err != nil || f.instance == "" {
		return "", err
	}
	life, audiences := identity.DefaultLife, []string(nil)
	if t.ExpirationSeconds != nil {
		life = time.Duration(min(*t.ExpirationSeconds, int64(identity.MostLife/time.Second))) * time.Second
	}
	if t.Audience != "" {
		audiences = []string{t.Audience}
	}
	subject := identity.Subject{Namespace: f.namespace, Account: account.Name, UID: string(account.UID), Pod: podNameOf(f.revision, f.instance)}
	if held, err = f.reconciler.Identity.Issue(subject, audiences, life); err != nil {
		return "", err
	}
	f.tokens[source] = held
	return held.Text, nil
}

// downward is what a file says of the instance itself.
func (f *filling) downward(item serving.DownwardAPIVolumeFile) (string, error) {
	if ref := item.ResourceFieldRef; ref != nil {
		for _, c := range f.containers {
			if c.Name == ref.ContainerName || c.Name == "" && ref.ContainerName == unnamedContainer {
				return resource(c, *ref), nil
			}
		}
		return "", fmt.Errorf("there is no container %q to tell %s of", ref.ContainerName, ref.Resource)
	}
	field, key := serving.DownwardField(item.FieldRef.FieldPath)
	switch field {
	case "metadata.name":
		return podNameOf(f.revision, f.instance), nil
	case "metadata.namespace":
		return f.namespace, nil
	case "metadata.labels":
		return named(f.labels, key), nil
	case "metadata.annotations":
		return named(f.annotations, key), nil
	}
	return "", fmt.Errorf("a file cannot have the field %q", item.FieldRef.FieldPath)
}

// named is one of labels or annotations, or with no key all of them, one in a line.
func named(all map[string]string, key string) string {
	if key != "" {
		return all[key]
	}
	var lines []string
	for _, k := range slices.Sorted(maps.Keys(all)) {
		lines = append(lines, k+"="+strconv.Quote(all[k]))
	}
	return strings.Join(lines, "\n")
}

// resource is how much of a resource a container is given, counted in divisors and rounded up. What was not requested
// is as much as the limit.
func resource(c serving.Container, ref serving.ResourceFieldSelector) string {
	list, name, _ := strings.Cut(ref.Resource, ".")
	quantity, requested := c.Resources.Requests[serving.ResourceName(name)]
	if list == "limits" || !requested {
		quantity = c.Resources.Limits[serving.ResourceName(name)]
	}
	amount, divisor := quantity.Value(), ref.Divisor.Value()
	if serving.ResourceName(name) == serving.ResourceCPU {
		amount, divisor = quantity.MilliValue(), ref.Divisor.MilliValue()
		if divisor == 0 {
			divisor = 1000
		}
	}
	divisor = max(divisor, 1)
	return strconv.FormatInt((amount+divisor-1)/divisor, 10)
}

// podNameOf names the pod of an instance of a revision as Knative's pods are named, with the instance's own suffix.
func podNameOf(revision, instance string) string {
	return kmeta.ChildName(revision, "-deployment") + strings.TrimPrefix(instance, revision)
}
