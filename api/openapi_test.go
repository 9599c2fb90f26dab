package api_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/berth-run/berth/serving"
)

func TestOpenAPI_IsLoadedOnce(t *testing.T) {
	s := newServer(t)
	index := decoded[struct {
		Paths map[string]struct {
			URL string `json:"serverRelativeURL"`
		}
	}](t, s.do("GET", "/openapi/v3", "").want(t, 200))
	url := index.Paths["apis/serving.knative.dev/v1"].URL
	first := s.do("GET", url, "").want(t, 200)
	if cache := first.header.Get("Cache-Control"); !strings.Contains(cache, "immutable") {
		t.Errorf("with the hash of the index, Cache-Control is %q", cache)
	}
	s.do("GET", url, "", "If-None-Match", first.header.Get("ETag")).want(t, 304)
	plain, _, _ := strings.Cut(url, "?")
	if cache := s.do("GET", plain, "").want(t, 200).header.Get("Cache-Control"); strings.Contains(cache, "immutable") {
		t.Errorf("without a hash, Cache-Control is %q", cache)
	}
}

func TestOpenAPI_SaysWhatCanBeDoneWithEveryKind(t *testing.T) {
	s := newServer(t)
	for _, kind := range serving.Kinds {
		path := "/api/v1"
		if kind.Group != "" {
			path = "/apis/" + kind.APIVersion()
		}
		document := decoded[struct {
			Paths map[string]map[string]struct {
				RequestBody struct {
					Content map[string]json.RawMessage
				}
			}
			Components struct {
				Schemas map[string]json.RawMessage
			}
		}](t, s.do("GET", "/openapi/v3"+path, "").want(t, 200))
		all := path + "/" + kind.Plural
		if kind.Namespaced {
			all = path + "/namespaces/{namespace}/" + kind.Plural
		}
		each, ok := document.Paths[all+"/{name}"]
		if !ok || len(document.Components.Schemas) == 0 {
			t.Fatalf("%s: the document has no path %s, or no schemas", kind, all+"/{name}")
		}
		if _, written := each["put"]; written == kind.ReadOnly {
			t.Errorf("%s: put is %v, read-only is %v", kind, written, kind.ReadOnly)
		}
		if kind.ReadOnly {
			continue
		}
		patches := each["patch"].RequestBody.Content
		if _, ok := patches["application/apply-patch+yaml"]; !ok {
			t.Errorf("%s takes no apply", kind)
		}
		// kubectl makes strategic merge patches for the kinds that say they take them.
		if _, ok := patches["application/strategic-merge-patch+json"]; ok != (kind.Group == "") {
			t.Errorf("%s: strategic merge patches: %v", kind, ok)
		}
	}
}
