// Package serving holds the objects that Berth serves, under plain names: the serving.knative.dev/v1 types, the
// core v1 types they need, their kinds, labels and host names, and admission (defaults and validation).
// It does no I/O. The types are Knative's own, so that the JSON on the wire is exactly Knative's; one file per
// imported package keeps the rest of the tree free of import aliases. Start reading at [Kinds].
package serving

// Host is the host name of a route: NAME.NAMESPACE.DOMAIN, with a tag TAG-NAME.NAMESPACE.DOMAIN, as Knative's
// default domain and tag templates make them.
func Host(namespace, name, tag, domain string) string {
	if tag != "" {
		name = tag + "-" + name
	}
	return name + "." + namespace + "." + domain
}
