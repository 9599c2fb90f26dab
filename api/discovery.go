package api

import (
	"net/http"
	"runtime"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"

	"github.com/berth-run/berth/serving"
)

// kubernetes is the version of Kubernetes whose API this is, for clients that compare versions.
const kubernetes = "v1.37.0"

func groupVersions() (all []schema.GroupVersion) {
	for _, k := range serving.Kinds {
		if gv := k.GroupVersion(); !slices.Contains(all, gv) {
			all = append(all, gv)
		}
	}
	return all
}

// prefix is where the paths of a group begin.
func prefix(gv schema.GroupVersion) string {
	if gv.Group == "" {
		return "/api/" + gv.Version
	}
	return "/apis/" + gv.Group + "/" + gv.Version
}

func (a *api) version(http.ResponseWriter, *http.Request) (any, error) {
	git := kubernetes + "+berth" + buildMetadata(a.Version)
	return version.Info{Major: "1", Minor: "37", GitVersion: git, GoVersion: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}, nil
}

// buildMetadata is a version as the last part of another: semantic versioning, by which kubectl reads it, allows
// letters, digits, dots and hyphens there.
func buildMetadata(version string) string {
	version = strings.Trim(strings.Map(func(r rune) rune {
		switch {
		case r >= '0' && r <= '9', r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r == '.', r == '-':
			return r
		case r == ' ', r == '+':
			return '.'
		}
		return -1
	}, strings.TrimPrefix(version, "v")), ".-")
	if version == "" {
		return ""
	}
	return "." + version
}

func (a *api) apiVersions(http.ResponseWriter, *http.Request) (any, error) {
	return v1.APIVersions{
		TypeMeta: v1.TypeMeta{Kind: "APIVersions"}, Versions: []string{"v1"},
		ServerAddressByClientCIDRs: []v1.ServerAddressByClientCIDR{},
	}, nil
}

func (a *api) apiGroups(http.ResponseWriter, *http.Request) (any, error) {
	groups := v1.APIGroupList{TypeMeta: v1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}}
	for _, name := range groupNames() {
		groups.Groups = append(groups.Groups, group(name))
	}
	return groups, nil
}

func (a *api) apiGroup(name string) handler {
	return func(http.ResponseWriter, *http.Request) (any, error) {
		g := group(name)
		g.TypeMeta = v1.TypeMeta{Kind: "APIGroup", APIVersion: "v1"}
		return g, nil
	}
}

// groupNames are the names of the groups but the core one.
func groupNames() (names []string) {
	for _, gv := range groupVersions() {
		if gv.Group != "" && !slices.Contains(names, gv.Group) {
			names = append(names, gv.Group)
		}
	}
	return names
}

// group is a group with its versions, of which clients prefer the first that the kinds name.
func group(name string) v1.APIGroup {
	g := v1.APIGroup{Name: name}
	for _, gv := range groupVersions() {
		if gv.Group == name {
			g.Versions = append(g.Versions, v1.GroupVersionForDiscovery{GroupVersion: gv.String(), Version: gv.Version})
		}
	}
	g.PreferredVersion = g.Versions[0]
	return g
}

// apiResources lists the kinds of a group with the verbs that the table of routes serves.
func (a *api) apiResources(gv schema.GroupVersion) handler {
	return func(http.ResponseWriter, *http.Request) (any, error) { return resources(gv), nil }
}

// podSubresources are what can be done with a pod.
func podSubresources() []v1.APIResource {
	return []v1.APIResource{
		{Name: "pods/exec", Namespaced: true, Kind: "PodExecOptions", Verbs: v1.Verbs{"create", "get"}},
		{Name: "pods/log", Namespaced: true, Kind: serving.KindPod.Name, Verbs: v1.Verbs{"get"}},
		{Name: "pods/portforward", Namespaced: true, Kind: "PodPortForwardOptions", Verbs: v1.Verbs{"create", "get"}},
	}
}

func resources(gv schema.GroupVersion) v1.APIResourceList {
	l := v1.APIResourceList{
		TypeMeta: v1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: gv.String(), APIResources: []v1.APIResource{},
	}
	for _, k := range serving.Kinds {
		if k.GroupVersion() != gv {
			continue
		}
		verbs := v1.Verbs{"delete", "get", "list", "watch"}
		for method, verb := range map[string]string{"POST": "create", "PUT": "update", "PATCH": "patch"} {
			if served(route{kind: k, method: method}) {
				verbs = append(verbs, verb)
			}
		}
		if k.Namespaced {
			verbs = append(verbs, "deletecollection")
		}
		slices.Sort(verbs)
		l.APIResources = append(l.APIResources, v1.APIResource{
			Name: k.Plural, SingularName: k.Singular, Namespaced: k.Namespaced, Kind: k.Name, Verbs: verbs,
			ShortNames: k.ShortNames, Categories: k.Categories,
		})
		if k.String() == serving.KindServiceAccount.String() {
			l.APIResources = append(l.APIResources, v1.APIResource{
				Name: k.Plural + "/token", Namespaced: true, Group: "authentication.k8s.io", Version: "v1", Kind: "TokenRequest", Verbs: v1.Verbs{"create"},
			})
		}
		if hasStatus(k) {
			verbs := v1.Verbs{"get", "patch", "update"}
			if k.ReadOnly {
				verbs = v1.Verbs{"get"}
			}
			l.APIResources = append(l.APIResources, v1.APIResource{
				Name: k.Plural + "/status", Namespaced: k.Namespaced, Kind: k.Name, Verbs: verbs,
			})
		}
		if k.String() == serving.KindPod.String() {
			l.APIResources = append(l.APIResources, podSubresources()...)
		}
	}
	return l
}
