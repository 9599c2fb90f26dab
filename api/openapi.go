package api

import (
	"net/http"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/berth-run/berth/serving"
)

// openAPIIndex and openAPI say, in the OpenAPI form that kubectl reads, that the server checks the fields of what
// it is sent. They hold no schemas.
func (a *api) openAPIIndex(http.ResponseWriter, *http.Request) (any, error) {
	paths := map[string]any{}
	for _, gv := range groupVersions() {
		paths[strings.TrimPrefix(prefix(gv), "/")] = map[string]string{"serverRelativeURL": "/openapi/v3" + prefix(gv)}
	}
	return map[string]any{"paths": paths}, nil
}

func (a *api) openAPI(gv schema.GroupVersion) handler {
	parameters := []map[string]any{
		query("dryRun", "All: do everything but store."),
		query("fieldManager", "Who writes. It is not kept."),
		query("fieldValidation", "Strict (the default) refuses fields that the kind does not have, Warn drops them with a warning, Ignore drops them."),
	}
	paths := map[string]any{}
	for _, k := range serving.Kinds {
		if k.GroupVersion() != gv {
			continue
		}
		path := prefix(gv) + "/" + k.Plural
		if k.Namespaced {
			path = prefix(gv) + "/namespaces/{namespace}/" + k.Plural
		}
		kind := map[string]string{"group": k.Group, "version": k.Version, "kind": k.Name}
		operation := func(action string) map[string]any {
			return map[string]any{
				"x-kubernetes-action": action, "x-kubernetes-group-version-kind": kind, "parameters": parameters,
				"responses": map[string]any{"200": map[string]string{"description": "OK"}},
			}
		}
		if served(route{kind: k, method: "POST"}) {
			paths[path] = map[string]any{"post": operation("post")}
		}
		paths[path+"/{name}"] = map[string]any{"put": operation("put"), "patch": operation("patch")}
	}
	document := map[string]any{
		"openapi": "3.0.0", "info": map[string]string{"title": "Berth", "version": kubernetes}, "paths": paths,
	}
	return func(http.ResponseWriter, *http.Request) (any, error) { return document, nil }
}

func query(name, description string) map[string]any {
	return map[string]any{"name": name, "in": "query", "description": description, "schema": map[string]any{"type": "string", "uniqueItems": true}}
}
