package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/berth-run/berth/serving"
)

// mostTries bounds how often a write is tried again because others write at the same time.
const mostTries = 20

// Resource is the objects of one kind in one namespace, or in all of them when the namespace is "".
// Every error of the server is a *StatusError.
type Resource[T serving.Object] struct {
	client    *Client
	kind      serving.Kind
	namespace string
}

// Services are the services of a namespace.
func (c *Client) Services(namespace string) Resource[*serving.Service] {
	return Resource[*serving.Service]{c, serving.KindService, namespace}
}

// Configurations are the configurations of a namespace.
func (c *Client) Configurations(namespace string) Resource[*serving.Configuration] {
	return Resource[*serving.Configuration]{c, serving.KindConfiguration, namespace}
}

// Revisions are the revisions of a namespace.
func (c *Client) Revisions(namespace string) Resource[*serving.Revision] {
	return Resource[*serving.Revision]{c, serving.KindRevision, namespace}
}

// Routes are the routes of a namespace.
func (c *Client) Routes(namespace string) Resource[*serving.Route] {
	return Resource[*serving.Route]{c, serving.KindRoute, namespace}
}

// DomainMappings are the domain mappings of a namespace.
func (c *Client) DomainMappings(namespace string) Resource[*serving.DomainMapping] {
	return Resource[*serving.DomainMapping]{c, serving.KindDomainMapping, namespace}
}

// ClusterDomainClaims are the claims of hosts.
func (c *Client) ClusterDomainClaims() Resource[*serving.ClusterDomainClaim] {
	return Resource[*serving.ClusterDomainClaim]{c, serving.KindClusterDomainClaim, ""}
}

// Secrets are the secrets of a namespace.
func (c *Client) Secrets(namespace string) Resource[*serving.Secret] {
	return Resource[*serving.Secret]{c, serving.KindSecret, namespace}
}

// ConfigMaps are the config maps of a namespace.
func (c *Client) ConfigMaps(namespace string) Resource[*serving.ConfigMap] {
	return Resource[*serving.ConfigMap]{c, serving.KindConfigMap, namespace}
}

// Namespaces are the namespaces.
func (c *Client) Namespaces() Resource[*serving.Namespace] {
	return Resource[*serving.Namespace]{c, serving.KindNamespace, ""}
}

// Objects are the objects of any kind, for callers that learn the kind while they run.
func (c *Client) Objects(kind serving.Kind, namespace string) Resource[serving.Object] {
	return Resource[serving.Object]{c, kind, namespace}
}

// Selector chooses objects of a list or a watch. The zero value chooses all.
type Selector struct {
	Name   string            // the one object of this name
	Labels map[string]string // objects that have all of these
}

func (s Selector) query() url.Values {
	query := url.Values{}
	if s.Name != "" {
		query.Set("fieldSelector", "metadata.name="+s.Name)
	}
	if len(s.Labels) > 0 {
		var terms []string
		for key, value := range s.Labels {
			terms = append(terms, key+"="+value)
		}
		query.Set("labelSelector", strings.Join(terms, ","))
	}
	return query
}

// Get returns one object.
func (r Resource[T]) Get(ctx context.Context, name string) (T, error) {
	return r.one(ctx, request{method: http.MethodGet, path: r.path(name)})
}

// List returns the chosen objects as the server orders them, and the version to watch from.
func (r Resource[T]) List(ctx context.Context, selector Selector) ([]T, string, error) {
	query := selector.query()
	var objects []T
	for {
		var page struct {
			Metadata struct {
				ResourceVersion string `json:"resourceVersion"`
				Continue        string `json:"continue"`
			} `json:"metadata"`
			Items []json.RawMessage `json:"items"`
		}
		list := request{method: http.MethodGet, path: collection(r.kind, r.namespace), query: query}
		if err := r.client.call(ctx, list, &page); err != nil {
			return nil, "", err
		}
		for _, item := range page.Items {
			object, err := r.decode(item)
			if err != nil {
				return nil, "", err
			}
			objects = append(objects, object)
		}
		if page.Metadata.Continue == "" {
			return objects, page.Metadata.ResourceVersion, nil
		}
		query.Set("continue", page.Metadata.Continue)
	}
}

// Create stores a new object and returns it as the server completed it.
func (r Resource[T]) Create(ctx context.Context, object T) (T, error) {
	body, err := r.encode(object)
	if err != nil {
		return *new(T), err
	}
	return r.one(ctx, request{method: http.MethodPost, path: collection(r.kind, r.namespace), body: body})
}

// Update replaces an object. When the object carries a resourceVersion and the stored one is newer, the error
// satisfies [IsConflict].
func (r Resource[T]) Update(ctx context.Context, object T) (T, error) {
	body, err := r.encode(object)
	if err != nil {
		return *new(T), err
	}
	return r.one(ctx, request{method: http.MethodPut, path: r.path(object.GetName()), body: body})
}

// Patch changes an object by a JSON merge patch (RFC 7396).
func (r Resource[T]) Patch(ctx context.Context, name string, patch []byte) (T, error) {
	return r.one(ctx, request{
		method: http.MethodPatch, path: r.path(name), body: patch, contentType: "application/merge-patch+json",
	})
}

// Delete starts the deletion of an object; it may take until what the object owns is gone.
func (r Resource[T]) Delete(ctx context.Context, name string, options serving.DeleteOptions) error {
	options.TypeMeta = serving.TypeMeta{Kind: "DeleteOptions", APIVersion: "v1"}
	body, err := json.Marshal(options)
	if err != nil {
		return fmt.Errorf("encoding delete options: %w", err)
	}
	return r.client.call(ctx, request{method: http.MethodDelete, path: r.path(name), body: body}, nil)
}

// Apply creates the object or replaces the one of its name, as it is given: what the caller leaves out is left to
// the server's defaults, except who created the object, which stays. created tells which of the two it was.
func (r Resource[T]) Apply(ctx context.Context, object T) (result T, created bool, err error) {
	for range mostTries {
		var current T
		current, err = r.Get(ctx, object.GetName())
		switch {
		case IsNotFound(err):
			object.SetResourceVersion("")
			result, err = r.Create(ctx, object)
			if IsAlreadyExists(err) {
				continue
			}
			return result, true, err
		case err != nil:
			return result, false, err
		}
		object.SetResourceVersion(current.GetResourceVersion())
		keepServerAnnotations(object, current)
		result, err = r.Update(ctx, object)
		if !IsConflict(err) {
			return result, false, err
		}
	}
	return result, false, err
}

// keepServerAnnotations copies the annotations that only the server may set: Knative refuses an update without them.
func keepServerAnnotations(object, current serving.Object) {
	annotations := object.GetAnnotations()
	for key, value := range current.GetAnnotations() {
		if !strings.HasPrefix(key, serving.Group+"/") {
			continue
		}
		if annotations == nil {
			annotations = map[string]string{}
		}
		annotations[key] = value
	}
	object.SetAnnotations(annotations)
}

// Modify reads an object, lets change change it, and writes it, again and again while others write in between.
// An error of change ends it. When change changes nothing nothing new is stored.
func (r Resource[T]) Modify(ctx context.Context, name string, change func(T) error) (result T, err error) {
	for range mostTries {
		var object T
		if object, err = r.Get(ctx, name); err != nil {
			return object, err
		}
		if err = change(object); err != nil {
			return object, err
		}
		result, err = r.Update(ctx, object)
		if !IsConflict(err) {
			return result, err
		}
	}
	return result, err
}

func (r Resource[T]) path(name string) string {
	return collection(r.kind, r.namespace) + "/" + url.PathEscape(name)
}

func (r Resource[T]) one(ctx context.Context, q request) (T, error) {
	var body json.RawMessage
	if err := r.client.call(ctx, q, &body); err != nil {
		return *new(T), err
	}
	return r.decode(body)
}

func (r Resource[T]) encode(object T) ([]byte, error) {
	r.kind.Stamp(object)
	body, err := json.Marshal(object)
	if err != nil {
		return nil, fmt.Errorf("encoding %s %q: %w", r.kind.Singular, object.GetName(), err)
	}
	return body, nil
}

func (r Resource[T]) decode(body []byte) (T, error) {
	object := r.kind.New()
	if err := json.Unmarshal(body, object); err != nil {
		return *new(T), fmt.Errorf("decoding a %s of %s: %w", r.kind.Singular, r.client.Server(), err)
	}
	r.kind.Stamp(object) // items of a list may leave apiVersion and kind out
	return object.(T), nil
}
