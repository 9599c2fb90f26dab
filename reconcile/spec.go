package reconcile

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/berth-run/berth/autoscaler"
	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/gateway"
	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

// gatewayRevision is what the gateway needs to know of a revision. It does not keep the revision itself, which is much
// larger, for as long as it is served.
func (r *Reconciler) gatewayRevision(revision *serving.Revision) gateway.Revision {
	id := autoscaler.Key{Namespace: revision.Namespace, Revision: revision.Name}
	_, user := servingContainer(revision)
	service := revision.Labels[serving.LabelService]
	of := gateway.Revision{
		Namespace:     revision.Namespace,
		Service:       service,
		Configuration: revision.Labels[serving.LabelConfiguration],
		Name:          revision.Name,
		Concurrency:   int(revision.Spec.GetContainerConcurrency()),
		Timeout:       seconds(revision.Spec.TimeoutSeconds),
		ResponseStart: seconds(revision.Spec.ResponseStartTimeoutSeconds),
		Idle:          seconds(revision.Spec.IdleTimeoutSeconds),
		Affinity:      revision.Annotations[serving.AnnotationSessionAffinity] == "true",
		HTTP2:         isHTTP2(user),
		Throttled:     r.throttled(revision),
		IdleDelay:     r.IdleDelay,
		Room:          r.room(revision),
		FreezeFailed: func(instance string, err error) {
			r.Logger.Warn("the CPU is not withheld from an instance between requests", "service", service,
				"revision", id.Revision, "instance", instance, "error", err)
		},
		MaxQueue: r.MaxQueue,
		Wake:     func() { r.wake(id) },
		Short:    func() bool { return r.Autoscaler.Outlook(id).Short },
	}
	if r.QueueWait != nil {
		of.QueueWait = func() time.Duration { return r.QueueWait(r.Autoscaler.Outlook(id).AverageStart) }
		of.Full = func() bool { return r.Autoscaler.Outlook(id).Full }
	}
	return of
}

// throttled tells whether instances of a revision have no CPU between requests.
func (r *Reconciler) throttled(revision *serving.Revision) bool {
	return serving.Enabled(revision.Annotations, serving.AnnotationThrottling, r.Throttling)
}

// room is how many requests at the same time an instance of a revision is meant for; 0 where load is not measured so.
func (r *Reconciler) room(revision *serving.Revision) int {
	scale, err := r.Scaling.Scale(revision.Annotations, revision.Spec.GetContainerConcurrency())
	if err != nil || !scale.ByConcurrency() { // the revision's conditions tell the error
		return 0
	}
	return int(scale.Target)
}

// wake asks for capacity for a revision; when it cannot have any, its requests are told why.
func (r *Reconciler) wake(id autoscaler.Key) {
	r.Autoscaler.Wake(id)
	r.mu.Lock()
	d := r.deployments[id]
	r.mu.Unlock()
	if d == nil {
		return
	}
	if why := d.undeclared.Load(); why != nil {
		d.activator.Fail(*why)
	} else if !d.declared.Load() { // the server has just started: now it is this one's turn
		r.queue.add(key{serving.KindRevision.String(), id.Namespace, id.Revision})
	}
}

func seconds(n *int64) time.Duration {
	if n == nil {
		return 0
	}
	return time.Duration(*n) * time.Second
}

// servingPort is where requests go to. A port may have a name only, which tells the protocol.
func servingPort(user serving.Container) int {
	if len(user.Ports) > 0 && user.Ports[0].ContainerPort > 0 {
		return int(user.Ports[0].ContainerPort)
	}
	return serving.DefaultUserPort
}

// servingContainer finds the container of a revision that requests go to: the one with a port, or the only one.
func servingContainer(revision *serving.Revision) (n int, c serving.Container) {
	n = max(0, slices.IndexFunc(revision.Spec.Containers, func(c serving.Container) bool { return len(c.Ports) > 0 }))
	return n, revision.Spec.Containers[n]
}

func isHTTP2(c serving.Container) bool {
	return slices.ContainsFunc(c.Ports, func(p serving.ContainerPort) bool { return p.Name == "h2c" })
}

// declare is what the autoscaler is told of a revision whose image is known.
func (r *Reconciler) declare(ctx context.Context, d *deployment, revision *serving.Revision) (autoscaler.Revision, error) {
	if d.spec == nil {
		spec, err := r.spec(ctx, revision)
		if err != nil {
			return autoscaler.Revision{}, err
		}
		d.spec = &spec
	}
	scale, err := r.Scaling.Scale(revision.Annotations, revision.Spec.GetContainerConcurrency())
	if err != nil {
		return autoscaler.Revision{}, err
	}
	return autoscaler.Revision{
		Key: d.key, Spec: *d.spec, Scale: scale, Pool: d.activator,
		Prove:     !revision.IsReady(),
		Throttled: r.throttled(revision),
		Reachable: r.reachable(revision),
	}, nil
}

// spec is what an engine needs to run the instances of a revision, with every reference resolved.
func (r *Reconciler) spec(ctx context.Context, revision *serving.Revision) (engine.Spec, error) {
	if _, err := r.account(ctx, revision.Namespace, revision.Spec.ServiceAccountName); err != nil {
		return engine.Spec{}, err
	}
	volumes, err := r.volumes(ctx, revision)
	if err != nil {
		return engine.Spec{}, err
	}
	spec := engine.Spec{
		Namespace: revision.Namespace, Service: revision.Labels[serving.LabelService],
		Configuration: revision.Labels[serving.LabelConfiguration], Revision: revision.Name,
		Volumes: volumes, StartupTimeout: r.StartupTimeout,
		Boost: serving.Enabled(revision.Annotations, serving.AnnotationBoost, r.Boost),
	}
	serves, _ := servingContainer(revision)
	for n, user := range revision.Spec.Containers {
		container, err := r.container(ctx, revision, user, revision.Status.ContainerStatuses[n].ImageDigest)
		if err != nil && len(revision.Spec.Containers) > 1 {
			err = fmt.Errorf("container %q: %w", user.Name, err)
		}
		if err != nil {
			return engine.Spec{}, err
		}
		if n != serves {
			setProbes(&container, user)
			spec.Sidecars = append(spec.Sidecars, container)
			continue
		}
		container.Port, container.HTTP2 = servingPort(user), isHTTP2(user)
		setProbes(&container, user)
		spec.Container = container
	}
	return spec, nil
}

// container is what an engine needs to know of one container of a revision, but for what depends on its port.
func (r *Reconciler) container(ctx context.Context, revision *serving.Revision, user serving.Container, digest string) (engine.Container, error) {
	credentials, err := r.credentials(ctx, revision, user.Image)
	if err != nil {
		return engine.Container{}, err
	}
	env, err := r.env(ctx, revision.Namespace, user)
	if err != nil {
		return engine.Container{}, err
	}
	container := engine.Container{
		Name: cmp.Or(user.Name, unnamedContainer), Image: digest, Credentials: credentials,
		Command: user.Command, Args: user.Args, Env: env, WorkingDir: user.WorkingDir, Mounts: mounts(user),
		CPU:        user.Resources.Limits.Cpu().MilliValue(),
		CPURequest: user.Resources.Requests.Cpu().MilliValue(),
		Memory:     user.Resources.Limits.Memory().Value(),
	}
	setSecurity(&container, user.SecurityContext)
	return container, nil
}

// setSecurity gives a container what a security context asks for.
func setSecurity(c *engine.Container, context *serving.SecurityContext) {
	if context == nil {
		return
	}
	c.User, c.Group = context.RunAsUser, context.RunAsGroup
	c.NonRoot = context.RunAsNonRoot != nil && *context.RunAsNonRoot
	c.ReadOnly = context.ReadOnlyRootFilesystem != nil && *context.ReadOnlyRootFilesystem
	if context.Capabilities != nil {
		for _, name := range context.Capabilities.Drop {
			c.Drop = append(c.Drop, string(name))
		}
		for _, name := range context.Capabilities.Add {
			c.Add = append(c.Add, string(name))
		}
	}
}

// env resolves a container's environment: envFrom first, then env, where a later name replaces an earlier one.
// Values of Secrets and ConfigMaps are read when the revision is declared: at deploy and at the server's start.
func (r *Reconciler) env(ctx context.Context, namespace string, user serving.Container) ([]engine.Env, error) {
	var env []engine.Env
	for _, from := range user.EnvFrom {
		var data map[string]string
		var err error
		switch {
		case from.ConfigMapRef != nil:
			data, err = r.data(ctx, serving.KindConfigMap, namespace, from.ConfigMapRef.Name, from.ConfigMapRef.Optional)
		case from.SecretRef != nil:
			data, err = r.data(ctx, serving.KindSecret, namespace, from.SecretRef.Name, from.SecretRef.Optional)
		}
		if err != nil {
			return nil, fmt.Errorf("reading envFrom: %w", err)
		}
		for _, k := range slices.Sorted(maps.Keys(data)) {
			env = append(env, engine.Env{Name: from.Prefix + k, Value: data[k]})
		}
	}
	for _, v := range user.Env {
		value := v.Value
		if from := v.ValueFrom; from != nil {
			kind, ref, key, optional := serving.KindSecret, "", "", (*bool)(nil)
			switch {
			case from.SecretKeyRef != nil:
				ref, key, optional = from.SecretKeyRef.Name, from.SecretKeyRef.Key, from.SecretKeyRef.Optional
			case from.ConfigMapKeyRef != nil:
				kind, ref, key, optional = serving.KindConfigMap, from.ConfigMapKeyRef.Name, from.ConfigMapKeyRef.Key, from.ConfigMapKeyRef.Optional
			default:
				return nil, fmt.Errorf("environment variable %q: only secretKeyRef and configMapKeyRef can be read", v.Name)
			}
			data, err := r.data(ctx, kind, namespace, ref, optional)
			if err != nil {
				return nil, fmt.Errorf("reading environment variable %q: %w", v.Name, err)
			}
			var ok bool
			if value, ok = data[key]; !ok {
				if optional != nil && *optional {
					continue
				}
				return nil, fmt.Errorf("reading environment variable %q: %s %q has no key %q", v.Name, kind.Singular, ref, key)
			}
		}
		env = append(env, engine.Env{Name: v.Name, Value: value})
	}
	return env, nil
}

// data reads the entries of a Secret or ConfigMap.
func (r *Reconciler) data(ctx context.Context, kind serving.Kind, namespace, name string, optional *bool) (map[string]string, error) {
	o, err := r.Store.Get(ctx, kind, namespace, name)
	if err != nil {
		if optional != nil && *optional && errors.Is(err, store.ErrNotFound) {
			return nil, nil
		}
		if errors.Is(err, store.ErrNotFound) {
			return nil, fmt.Errorf("%s %q in namespace %q not found: create it", kind.Singular, name, namespace)
		}
		return nil, fmt.Errorf("%s %q in namespace %q: %w", kind.Singular, name, namespace, err)
	}
	data := map[string]string{}
	switch o := o.(type) {
	case *serving.Secret:
		for k, v := range o.Data {
			data[k] = string(v)
		}
	case *serving.ConfigMap:
		for k, v := range o.Data {
			data[k] = v
		}
		for k, v := range o.BinaryData {
			data[k] = string(v)
		}
	}
	return data, nil
}

// credentials finds what an image of the revision is pulled with: its pull secrets, for the image's registry.
func (r *Reconciler) credentials(ctx context.Context, revision *serving.Revision, image string) (engine.Credentials, error) {
	credentials := engine.Credentials{Insecure: revision.Annotations[serving.AnnotationInsecureRegistry] == "true"}
	secrets, err := r.pullSecrets(ctx, revision)
	if err != nil || len(secrets) == 0 {
		return credentials, err
	}
	ref, err := name.ParseReference(image)
	if err != nil {
		return credentials, fmt.Errorf("parsing image %q: %w", image, err)
	}
	registry := ref.Context().RegistryStr()
	for _, secret := range secrets {
		data, err := r.data(ctx, serving.KindSecret, revision.Namespace, secret.Name, nil)
		if err != nil {
			return credentials, fmt.Errorf("reading image pull secret: %w", err)
		}
		found, err := registryCredentials(data[".dockerconfigjson"], registry)
		if err != nil {
			return credentials, fmt.Errorf("reading image pull secret %q: %w", secret.Name, err)
		}
		if found != nil {
			found.Insecure = credentials.Insecure
			return *found, nil
		}
	}
	return credentials, nil
}

// registryCredentials finds a registry in a Docker config.json; nil when it is not there.
func registryCredentials(config, registry string) (*engine.Credentials, error) {
	var parsed struct {
		Auths map[string]struct{ Username, Password, Auth, RegistryToken string }
	}
	if err := json.Unmarshal([]byte(config), &parsed); err != nil {
		return nil, fmt.Errorf("key .dockerconfigjson is not a Docker config.json: %w", err)
	}
	for server, auth := range parsed.Auths {
		server = strings.TrimPrefix(strings.TrimPrefix(server, "https://"), "http://")
		host, _, _ := strings.Cut(server, "/")
		if host != registry {
			continue
		}
		if auth.Username == "" && auth.Auth != "" {
			plain, err := base64.StdEncoding.DecodeString(auth.Auth)
			if err != nil {
				return nil, fmt.Errorf("auth of %q is not base64", server)
			}
			auth.Username, auth.Password, _ = strings.Cut(string(plain), ":")
		}
		return &engine.Credentials{Username: auth.Username, Password: auth.Password, Token: auth.RegistryToken}, nil
	}
	return nil, nil
}
