package api

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/berth-run/berth/serving"
)

// documents keeps what identifies the OpenAPI document of each group, so that clients load it once. The documents
// are made again each time they are asked for.
type documents struct {
	mu     sync.Mutex
	hashes map[schema.GroupVersion]string // guarded by mu
}

func (d *documents) hash(gv schema.GroupVersion) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if hash := d.hashes[gv]; hash != "" {
		return hash, nil
	}
	data, err := json.Marshal(document(gv))
	if err != nil {
		return "", fmt.Errorf("encoding the OpenAPI document of %q: %w", gv, err)
	}
	sum := sha256.Sum256(data)
	if d.hashes == nil {
		d.hashes = map[schema.GroupVersion]string{}
	}
	d.hashes[gv] = strings.ToUpper(hex.EncodeToString(sum[:]))
	return d.hashes[gv], nil
}

// openAPIIndex lists the OpenAPI documents, one for each group.
func (a *api) openAPIIndex(http.ResponseWriter, *http.Request) (any, error) {
	paths := map[string]any{}
	for _, gv := range groupVersions() {
		hash, err := a.documents.hash(gv)
		if err != nil {
			return nil, err
		}
		paths[strings.TrimPrefix(prefix(gv), "/")] = map[string]string{"serverRelativeURL": "/openapi/v3" + prefix(gv) + "?hash=" + hash}
	}
	return map[string]any{"paths": paths}, nil
}

// openAPI serves the OpenAPI document of a group: with the hash that the index gives, for ever.
func (a *api) openAPI(gv schema.GroupVersion) handler {
	return func(w http.ResponseWriter, r *http.Request) (any, error) {
		hash, err := a.documents.hash(gv)
		if err != nil {
			return nil, err
		}
		tag := `"` + hash + `"`
		w.Header().Set("ETag", tag)
		w.Header().Set("Vary", "Accept")
		w.Header().Set("Cache-Control", "no-cache, private")
		if given := r.URL.Query().Get("hash"); given == hash {
			w.Header().Set("Cache-Control", "public, immutable, max-age=31536000")
		}
		if r.Header.Get("If-None-Match") == tag {
			w.WriteHeader(http.StatusNotModified)
			return nil, nil
		}
		return document(gv), nil
	}
}

// document is what a group's kinds look like and what can be done with them.
func document(gv schema.GroupVersion) any {
	paths := map[string]any{}
	for _, k := range serving.Kinds {
		if k.GroupVersion() != gv {
			continue
		}
		path := prefix(gv) + "/" + k.Plural
		if k.Namespaced {
			path = prefix(gv) + "/namespaces/{namespace}/" + k.Plural
		}
		all, each := map[string]any{}, map[string]any{}
		for method, in := range map[string]map[string]any{"GET": each, "POST": all, "PUT": each, "PATCH": each, "DELETE": each} {
			if served(route{kind: k, method: method, pattern: path}) {
				in[strings.ToLower(method)] = operation(k, method)
			}
		}
		if len(all) > 0 {
			paths[path] = all
		}
		paths[path+"/{name}"] = each
	}
	return map[string]any{
		"openapi": "3.0.0", "info": map[string]string{"title": "Berth", "version": kubernetes},
		"paths": paths, "components": map[string]any{"schemas": schemasOf(gv)},
	}
}

// operation describes one method. Clients read there which parameters and which patches the server takes.
func operation(kind serving.Kind, method string) map[string]any {
	schema := map[string]any{"$ref": refPrefix + nameOfKind(kind)}
	answer := map[string]any{formatJSON: map[string]any{"schema": schema}}
	op := map[string]any{
		"x-kubernetes-action":             strings.ToLower(method),
		"x-kubernetes-group-version-kind": map[string]string{"group": kind.Group, "version": kind.Version, "kind": kind.Name},
		"responses":                       map[string]any{"200": map[string]any{"description": "OK", "content": answer}},
	}
	switch method {
	case "GET":
		return op
	case "DELETE":
		op["parameters"] = []any{query("dryRun", "All: do everything but store.")}
		delete(op["responses"].(map[string]any)["200"].(map[string]any), "content")
		return op
	}
	parameters := []any{
		query("dryRun", "All: do everything but store."),
		query("fieldManager", "Who writes. The fields that are written become the manager's, as metadata.managedFields shows. Required to apply."),
		query("fieldValidation", "Strict (the default) refuses fields that the kind does not have, Warn drops them with a warning, Ignore drops them."),
	}
	content := map[string]any{}
	for _, format := range objectFormats(kind) {
		content[format] = map[string]any{"schema": schema}
	}
	if method == "PATCH" {
		parameters = append(parameters, map[string]any{
			"name": "force", "in": "query", "description": "Take over the fields that other managers own. For applying only.",
			"schema": map[string]any{"type": "boolean", "uniqueItems": true},
		})
		content = map[string]any{}
		for _, format := range patchFormats(kind) {
			content[format] = map[string]any{"schema": map[string]string{"type": "object"}}
		}
	}
	op["parameters"] = parameters
	op["requestBody"] = map[string]any{"required": true, "content": content}
	return op
}

func query(name, description string) map[string]any {
	return map[string]any{"name": name, "in": "query", "description": description, "schema": map[string]any{"type": "string", "uniqueItems": true}}
}
