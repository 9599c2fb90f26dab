package serving

import (
	"fmt"
	"reflect"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Object is any API object: its metadata and its kind.
type Object interface {
	Meta
	runtime.Object
}

// Kind describes one kind of object that Berth stores and serves.
// A new resource is one more entry in [Kinds].
type Kind struct {
	Group      string // "" for core v1
	Version    string
	Name       string // CamelCase singular, as in the kind field: "Service"
	Plural     string // as in URLs: "services"
	Singular   string
	ShortNames []string
	Categories []string
	Namespaced bool
	// Ephemeral objects say how things are now: they live in memory only and are gone after a restart, when the
	// platform makes them anew. Their resourceVersions rise across restarts as all do.
	Ephemeral bool
	// ReadOnly objects are the platform's own: clients read and delete them.
	ReadOnly bool
	// New returns a new empty object of this kind.
	New func() Object
}

// SystemNamespace is where the platform keeps objects about itself.
const SystemNamespace = "berth-system"

// The kinds that Berth knows.
var (
	KindService = Kind{
		Group: Group, Version: "v1", Name: "Service", Plural: "services", Singular: "service",
		ShortNames: []string{"kservice", "ksvc"}, Categories: []string{"all", "knative", "serving"}, Namespaced: true,
		New: func() Object { return new(Service) },
	}
	KindConfiguration = Kind{
		Group: Group, Version: "v1", Name: "Configuration", Plural: "configurations", Singular: "configuration",
		ShortNames: []string{"config", "cfg"}, Categories: []string{"all", "knative", "serving"}, Namespaced: true,
		New: func() Object { return new(Configuration) },
	}
	KindRevision = Kind{
		Group: Group, Version: "v1", Name: "Revision", Plural: "revisions", Singular: "revision",
		ShortNames: []string{"rev"}, Categories: []string{"all", "knative", "serving"}, Namespaced: true,
		New: func() Object { return new(Revision) },
	}
	KindRoute = Kind{
		Group: Group, Version: "v1", Name: "Route", Plural: "routes", Singular: "route",
		ShortNames: []string{"rt"}, Categories: []string{"all", "knative", "serving"}, Namespaced: true,
		New: func() Object { return new(Route) },
	}
	KindDomainMapping = Kind{
		Group: Group, Version: "v1beta1", Name: "DomainMapping", Plural: "domainmappings", Singular: "domainmapping",
		ShortNames: []string{"dm"}, Categories: []string{"all", "knative", "serving"}, Namespaced: true,
		New: func() Object { return new(DomainMapping) },
	}
	KindClusterDomainClaim = Kind{
		Group: NetworkingGroup, Version: "v1alpha1", Name: "ClusterDomainClaim", Plural: "clusterdomainclaims", Singular: "clusterdomainclaim",
		ShortNames: []string{"cdc"}, Categories: []string{"knative-internal", "networking"},
		New: func() Object { return new(ClusterDomainClaim) },
	}
	KindNamespace = Kind{
		Version: "v1", Name: "Namespace", Plural: "namespaces", Singular: "namespace",
		ShortNames: []string{"ns"},
		New:        func() Object { return new(Namespace) },
	}
	KindSecret = Kind{
		Version: "v1", Name: "Secret", Plural: "secrets", Singular: "secret", Namespaced: true,
		New: func() Object { return new(Secret) },
	}
	KindConfigMap = Kind{
		Version: "v1", Name: "ConfigMap", Plural: "configmaps", Singular: "configmap",
		ShortNames: []string{"cm"}, Namespaced: true,
		New: func() Object { return new(ConfigMap) },
	}
	KindServiceAccount = Kind{
		Version: "v1", Name: "ServiceAccount", Plural: "serviceaccounts", Singular: "serviceaccount",
		ShortNames: []string{"sa"}, Namespaced: true,
		New: func() Object { return new(ServiceAccount) },
	}
)

// Kinds that tell how things are, made by the platform for clients to read.
var (
	KindPod = Kind{
		Version: "v1", Name: "Pod", Plural: "pods", Singular: "pod",
		ShortNames: []string{"po"}, Categories: []string{"all"}, Namespaced: true, Ephemeral: true, ReadOnly: true,
		New: func() Object { return new(Pod) },
	}
	KindEvent = Kind{
		Version: "v1", Name: "Event", Plural: "events", Singular: "event",
		ShortNames: []string{"ev"}, Namespaced: true, Ephemeral: true, ReadOnly: true,
		New: func() Object { return new(Event) },
	}
	// KindCoreService shares its name with KindService, the one of Knative.
	KindCoreService = Kind{
		Version: "v1", Name: "Service", Plural: "services", Singular: "service",
		ShortNames: []string{"svc"}, Categories: []string{"all"}, Namespaced: true, ReadOnly: true,
		New: func() Object { return new(CoreService) },
	}
)

// Kinds lists every kind, owners before the kinds they own.
var Kinds = []Kind{
	KindNamespace, KindSecret, KindConfigMap, KindServiceAccount,
	KindService, KindConfiguration, KindRoute, KindRevision,
	KindDomainMapping, KindClusterDomainClaim,
	KindCoreService, KindPod, KindEvent,
}

// APIVersion is the kind's apiVersion field: "v1" or "serving.knative.dev/v1".
func (k Kind) APIVersion() string { return k.GroupVersion().String() }

// GroupVersion is the kind's API group and version.
func (k Kind) GroupVersion() schema.GroupVersion {
	return schema.GroupVersion{Group: k.Group, Version: k.Version}
}

// GroupResource names the kind in errors: "services.serving.knative.dev".
func (k Kind) GroupResource() schema.GroupResource {
	return schema.GroupResource{Group: k.Group, Resource: k.Plural}
}

// String is the kind's resource name with its group.
func (k Kind) String() string {
	if name, ok := resources[k.GroupResource()]; ok {
		return name
	}
	return k.GroupResource().String()
}

// resources are the names of the kinds' resources: many keep one for each object.
var resources = func() map[schema.GroupResource]string {
	names := map[schema.GroupResource]string{}
	for _, k := range Kinds {
		names[k.GroupResource()] = k.GroupResource().String()
	}
	return names
}()

// Stamp sets the object's apiVersion and kind fields.
func (k Kind) Stamp(o Object) {
	o.GetObjectKind().SetGroupVersionKind(k.GroupVersion().WithKind(k.Name))
}

// KindOf returns the kind of an object by its Go type. It panics for a type that is not in [Kinds],
// which is a programming error.
func KindOf(o Object) Kind {
	i, ok := kindsOfTypes[reflect.TypeOf(o)]
	if !ok {
		panic(fmt.Sprintf("serving: no kind for %T", o))
	}
	return Kinds[i]
}

// kindsOfTypes are the indexes into Kinds of the kinds' Go types.
var kindsOfTypes = func() map[reflect.Type]int {
	kinds := map[reflect.Type]int{}
	for i, k := range Kinds {
		kinds[reflect.TypeOf(k.New())] = i
	}
	return kinds
}()

// FindKind returns the kind with an apiVersion and a kind name, as an owner reference gives them.
func FindKind(apiVersion, name string) (Kind, bool) {
	for _, k := range Kinds {
		if k.Name == name && k.APIVersion() == apiVersion {
			return k, true
		}
	}
	return Kind{}, false
}
