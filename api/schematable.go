package api

// What the Go types do not say about themselves. Kubernetes' types carry their documentation and most rules of
// merging; its rules that stand only in comments, and all of Knative's, are here.

const (
	core = "io.k8s.api.core.v1."
	meta = "io.k8s.apimachinery.pkg.apis.meta.v1."
)

// mergeKeys are the fields that tell the elements of a list apart, where the tags do not say all of them.
var mergeKeys = map[string][]any{
	core + "Container.ports":                   {"containerPort", "protocol"},
	core + "EphemeralContainerCommon.ports":    {"containerPort", "protocol"},
	core + "PodSpec.topologySpreadConstraints": {"topologyKey", "whenUnsatisfiable"},
	core + "ResourceRequirements.claims":       {"name"},
	core + "ServiceSpec.ports":                 {"port", "protocol"},
}

// defaultValues are the values that fields have when they are left out. A key of a list needs its own.
var defaultValues = map[string]any{
	core + "ContainerPort.protocol":    "TCP",
	core + "LocalObjectReference.name": "",
	core + "ServicePort.protocol":      "TCP",
}

// atomicTypes belong to one writer as a whole.
var atomicTypes = []string{
	core + "ConfigMapKeySelector", core + "EndpointAddress", core + "EndpointPort", core + "FileKeySelector",
	core + "LocalObjectReference", core + "NodeSelector", core + "NodeSelectorTerm", core + "ObjectFieldSelector",
	core + "ObjectReference", core + "ResourceFieldSelector", core + "ScopeSelector", core + "SecretKeySelector",
	core + "SecretReference", core + "TopologySelectorTerm", core + "TypedLocalObjectReference",
	meta + "LabelSelector", meta + "OwnerReference",
}

// atomicFields belong to one writer as a whole. Probes are among them because a probe that nobody declared is
// given a handler, which must go when somebody declares one with another handler.
var atomicFields = []string{
	core + "Container.livenessProbe", core + "Container.readinessProbe", core + "Container.startupProbe",
	core + "PodSpec.nodeSelector", core + "PodStatus.hostIPs", core + "ServiceSpec.selector",
}

// optionalFields may be left out although their types say otherwise: they have defaults.
var optionalFields = []string{
	core + "Container.name",
	"dev.knative.pkg.apis.Condition.lastTransitionTime",
	"dev.knative.serving.pkg.apis.serving.v1.ConfigurationSpec.template",
	"dev.knative.serving.pkg.apis.serving.v1.ServiceSpec.template",
}

// descriptions are a sentence for each of Knative's kinds ("") and for each field of its types.
var descriptions = map[string]map[string]string{
	"serving/pkg/apis/serving/v1.Service": {
		"":         "A program in a container that answers requests. A service has the configuration that makes its revisions and the route that leads to them.",
		"metadata": "The service's name, labels and annotations.",
		"spec":     "What to run, and how requests are divided among its revisions.",
		"status":   "What was observed. The platform writes it.",
	},
	"serving/pkg/apis/serving/v1.Configuration": {
		"":         "What is to run. Each change of its template makes a new revision.",
		"metadata": "The configuration's name, labels and annotations.",
		"spec":     "What is to run.",
		"status":   "What was observed. The platform writes it.",
	},
	"serving/pkg/apis/serving/v1.ConfigurationSpec": {
		"template": "What the next revision is made from. A change of it makes a new revision.",
	},
	"serving/pkg/apis/serving/v1.ConfigurationStatusFields": {
		"latestReadyRevisionName":   "The newest revision that became ready.",
		"latestCreatedRevisionName": "The newest revision, ready or not.",
	},
	"serving/pkg/apis/serving/v1.Revision": {
		"":         "One version of a program and its settings. The platform makes it from a configuration's template, and its spec never changes.",
		"metadata": "The revision's name, labels and annotations.",
		"spec":     "What instances of the revision run: containers and volumes as in a pod, and how requests reach them.",
		"status":   "What was observed. The platform writes it.",
	},
	"serving/pkg/apis/serving/v1.RevisionTemplateSpec": {
		"metadata": "Labels and annotations of the revision, among them those that bound its scale, and its name if it is to have a certain one.",
		"spec":     "What instances of the revision run: containers and volumes as in a pod, and how requests reach them.",
	},
	"serving/pkg/apis/serving/v1.RevisionSpec": {
		"containerConcurrency":        "The most requests that one instance has at the same time; the rest wait. 0 is no limit.",
		"timeoutSeconds":              "Seconds within which an answer must begin; after them the request gets status 504.",
		"responseStartTimeoutSeconds": "Seconds within which the container must send the first byte of an answer, counted from when it got the request.",
		"idleTimeoutSeconds":          "Seconds for which a request may be open without a byte from the container, before its answer or within it.",
	},
	"serving/pkg/apis/serving/v1.RevisionStatus": {
		"logUrl":                "Where to read the revision's log.",
		"containerStatuses":     "The containers' images with their digests, in the order of the spec.",
		"initContainerStatuses": "The init containers' images with their digests, in the order of the spec.",
		"actualReplicas":        "How many instances are ready.",
		"desiredReplicas":       "How many instances there should be.",
	},
	"serving/pkg/apis/serving/v1.ContainerStatus": {
		"name":        "The container's name.",
		"imageDigest": "The image's repository and digest.",
	},
	"serving/pkg/apis/serving/v1.Route": {
		"":         "A URL and the revisions that answer its requests.",
		"metadata": "The route's name, labels and annotations.",
		"spec":     "How requests are divided among revisions.",
		"status":   "What was observed. The platform writes it.",
	},
	"serving/pkg/apis/serving/v1.RouteSpec": {
		"traffic": "The revisions that get requests, with the share of each. The shares add up to 100.",
	},
	"serving/pkg/apis/serving/v1.RouteStatusFields": {
		"url":     "Where the route takes requests.",
		"address": "Where others on this platform reach the route.",
		"traffic": "How requests are divided now, by the names of the revisions.",
	},
	"serving/pkg/apis/serving/v1.TrafficTarget": {
		"tag":               "A name that gets a URL of its own, which leads to this revision only.",
		"revisionName":      "The revision that gets the requests.",
		"configurationName": "The configuration whose latest ready revision gets the requests.",
		"latestRevision":    "True to follow the latest ready revision; it must be false or absent beside revisionName.",
		"percent":           "The share of the requests, from 0 to 100.",
		"url":               "The URL of the tag. The platform writes it.",
	},
	"serving/pkg/apis/serving/v1beta1.DomainMapping": {
		"":         "A domain name, which is the object's own name, that leads to a service.",
		"metadata": "The domain name, labels and annotations.",
		"spec":     "Where the domain leads.",
		"status":   "What was observed. The platform writes it.",
	},
	"serving/pkg/apis/serving/v1beta1.DomainMappingSpec": {
		"ref": "The service, or other object with a URL, that gets the domain's requests.",
		"tls": "The certificate for the domain.",
	},
	"serving/pkg/apis/serving/v1beta1.DomainMappingStatus": {
		"url":     "Where the domain takes requests.",
		"address": "Where others on this platform reach it.",
	},
	"serving/pkg/apis/serving/v1beta1.SecretTLS": {
		"secretName": "The secret of type kubernetes.io/tls, in the same namespace.",
	},
	"networking/pkg/apis/networking/v1alpha1.ClusterDomainClaim": {
		"":         "Says which namespace may map a domain, which is the object's own name.",
		"metadata": "The domain name, labels and annotations.",
		"spec":     "Who may map the domain.",
	},
	"networking/pkg/apis/networking/v1alpha1.ClusterDomainClaimSpec": {
		"namespace": "The one namespace whose domain mappings may use the domain.",
	},
	"pkg/apis/duck/v1.Status": {
		"observedGeneration": "The generation of the spec that this status is about.",
		"conditions":         "What holds of the object, one condition for each aspect.",
		"annotations":        "Further facts that the platform adds.",
	},
	"pkg/apis.Condition": {
		"type":               "What the condition is about, such as Ready.",
		"status":             "True, False or Unknown.",
		"severity":           "How bad it is when the condition does not hold: Error if empty, Warning or Info.",
		"lastTransitionTime": "When the status changed last.",
		"reason":             "Why, in one word.",
		"message":            "Why, for people.",
	},
	"pkg/apis/duck/v1.Addressable": {
		"name":     "What the address is called.",
		"url":      "The address.",
		"CACerts":  "The certificate authorities to trust there, in PEM.",
		"audience": "The audience that a token for the address must have.",
	},
	"pkg/apis/duck/v1.KReference": {
		"kind":       "The object's kind.",
		"namespace":  "The object's namespace; that of the referrer if empty.",
		"name":       "The object's name.",
		"apiVersion": "The group and version of the object's kind.",
		"group":      "The group of the object's kind, without a version.",
		"address":    "Which of the object's addresses.",
	},
}
