package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"

	"k8s.io/apimachinery/pkg/util/net"

	"github.com/berth-run/berth/identity"
	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

// handler answers a request with a body that becomes JSON, or with an error that becomes a Status. A handler that
// wrote the answer itself (a stream) returns nil and nil.
type handler func(w http.ResponseWriter, r *http.Request) (any, error)

// reply is an answer with another code than 200.
type reply struct {
	code int
	body any
}

// route is one line of the table.
type route struct {
	method  string // "" is every method
	pattern string // in the syntax of http.ServeMux
	access  access
	handler handler
	kind    serving.Kind // what errors are about; the zero Kind for none
}

// podPath is where one pod is.
const podPath = "/api/v1/namespaces/{namespace}/pods/{name}"

// routes is the table of all that the API serves.
func (a *api) routes() []route {
	none := serving.Kind{}
	table := []route{
		{"GET", "/healthz", public, a.healthz, none},
		{"GET", "/livez", public, a.healthz, none},
		{"GET", "/readyz", public, a.readyz, none},
		{"GET", identity.ConfigurationPath, public, a.published("application/json", a.Identity.Configuration), none},
		{"GET", identity.KeysPath, public, a.published("application/jwk-set+json", a.Identity.Keys), none},
		{"POST", "/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token", token, a.tokens(), serving.KindServiceAccount},
		{"GET", "/version", token, a.version, none},
		{"GET", "/api", token, a.apiVersions, none},
		{"GET", "/apis", token, a.apiGroups, none},
		// As token requests, reviews are no objects: their groups have no discovery documents.
		{"POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", token, a.reviewAccess, none},
		{"POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", token, a.reviewRules, none},
		{"POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", token, a.reviewUser, none},
		{"GET", "/openapi/v2", token, a.openAPI2, none},
		{"GET", "/openapi/v3", token, a.openAPIIndex, none},
		// Berth's own is not in the discovery documents: clients complain of a group without objects.
		{"GET", "/apis/berth.run/v1/info", token, a.info, none},
		{"GET", "/apis/berth.run/v1/instances", token, a.instances, none},
		{"GET", "/apis/berth.run/v1/namespaces/{namespace}/instances", token, a.instances, none},
		{"GET", "/apis/berth.run/v1/namespaces/{namespace}/services/{name}/log", token, a.log, serving.KindService},
		{"GET", podPath + "/log", token, a.podLog, serving.KindPod},
		{"GET", podPath + "/exec", token, a.exec, serving.KindPod},
		{"POST", podPath + "/exec", token, a.exec, serving.KindPod},
		{"GET", podPath + "/portforward", token, a.portForward, serving.KindPod},
		{"POST", podPath + "/portforward", token, a.portForward, serving.KindPod},
		{"", podPath + "/attach", token, instead(noAttach), serving.KindPod},
		{"", podPath + "/ephemeralcontainers", token, instead(noDebug), serving.KindPod},
		{"", "/v2/", registry, handOver(a.Registry), none},
		{"GET", "/metrics", token, handOver(a.Metrics), none},
	}
	for _, gv := range groupVersions() {
		table = append(table,
			route{"GET", prefix(gv), token, a.apiResources(gv), none},
			route{"GET", "/openapi/v3" + prefix(gv), token, a.openAPI(gv), none})
	}
	for _, name := range groupNames() {
		table = append(table, route{"GET", "/apis/" + name, token, a.apiGroup(name), none})
	}
	for _, k := range serving.Kinds {
		everywhere := prefix(k.GroupVersion()) + "/" + k.Plural
		all := everywhere
		if k.Namespaced {
			all = prefix(k.GroupVersion()) + "/namespaces/{namespace}/" + k.Plural
			table = append(table, route{"GET", everywhere, token, a.list(k), k})
		}
		each := all + "/{name}"
		table = append(table,
			route{"GET", all, token, a.list(k), k},
			route{"POST", all, token, a.create(k), k},
			route{"DELETE", all, token, a.deleteCollection(k), k},
			route{"GET", each, token, a.get(k), k},
			route{"PUT", each, token, a.put(k, store.Spec), k},
			route{"PATCH", each, token, a.patch(k, store.Spec), k},
			route{"DELETE", each, token, a.delete(k), k})
		if k.Group == serving.KindService.Group && k.Name != serving.KindDomainMapping.Name {
			table = append(table, route{"", each + "/scale", token, instead(noScale), k})
		}
		if hasStatus(k) {
			table = append(table,
				route{"GET", each + "/status", token, a.get(k), k},
				route{"PUT", each + "/status", token, a.put(k, store.Status), k},
				route{"PATCH", each + "/status", token, a.patch(k, store.Status), k})
		}
	}
	return slices.DeleteFunc(table, func(rt route) bool { return rt.handler == nil || !served(rt) })
}

// served says which routes of kinds there are: revisions are made by the platform only (contract KA3), read-only
// kinds can be deleted and not written, and namespaces go one at a time.
func served(rt route) bool {
	if rt.pattern == podPath+"/exec" || rt.pattern == podPath+"/portforward" {
		return true // they change no object
	}
	if rt.kind.ReadOnly && slices.Contains([]string{"POST", "PUT", "PATCH"}, rt.method) {
		return false
	}
	switch rt.kind.Name {
	case serving.KindRevision.Name:
		return rt.method != "POST"
	case serving.KindNamespace.Name:
		return rt.method != "DELETE" || rt.pattern != "/api/v1/namespaces"
	}
	return true
}

// handOver is a handler that another package serves; nil for none.
func handOver(h http.Handler) handler {
	if h == nil {
		return nil
	}
	return func(w http.ResponseWriter, r *http.Request) (any, error) {
		h.ServeHTTP(w, r)
		return nil, nil
	}
}

// mux makes the table one handler. Where a path is known and the method is not, the answer is 405 with a Status;
// where the path is not known it is 404.
func (a *api) mux() http.Handler {
	mux := http.NewServeMux()
	methods := map[string][]route{}
	for _, rt := range a.routes() {
		pattern := rt.pattern
		if rt.method != "" {
			pattern = rt.method + " " + rt.pattern
			methods[rt.pattern] = append(methods[rt.pattern], rt)
		}
		mux.Handle(pattern, a.serve(rt))
	}
	for pattern, known := range methods {
		rt := known[0]
		var allowed []string
		for _, k := range known {
			allowed = append(allowed, k.method)
		}
		rt.handler = func(w http.ResponseWriter, r *http.Request) (any, error) {
			for _, m := range allowed {
				w.Header().Add("Allow", m)
			}
			e := methodNotAllowed(r.Method, r.URL.Path, allowed)
			if why := madeByPlatform(rt.kind, r.Method); why != "" {
				e.status.Message += "; " + why
			}
			return nil, e
		}
		mux.Handle(pattern, a.serve(rt))
	}
	mux.Handle("/", a.serve(route{access: token, handler: func(_ http.ResponseWriter, r *http.Request) (any, error) {
		return nil, noSuchPath(r.URL.Path)
	}}))
	return mux
}

// madeByPlatform says why a kind's objects cannot be written with a method, and what to do instead.
func madeByPlatform(kind serving.Kind, method string) string {
	switch kind.String() {
	case serving.KindRevision.String():
		if method == http.MethodPost {
			return "revisions are made by the platform: change the template of a service or configuration"
		}
	case serving.KindPod.String():
		return "pods are made by the platform, one for each instance: create a service of " + serving.KindService.APIVersion() + " (ksvc)"
	case serving.KindEvent.String():
		return "events are written by the platform"
	case serving.KindCoreService.String():
		return "services of v1 are made by the platform, one for each route: for one of your own use " + serving.KindService.APIVersion() + " (ksvc)"
	}
	return ""
}

// serve runs one route: limits, access, handler, answer.
func (a *api) serve(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			switch p := recover(); p {
			case nil:
			case http.ErrAbortHandler:
				panic(p)
			default:
				a.Logger.Error("a request panicked", "method", r.Method, "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
				a.fail(w, r, rt, fmt.Errorf("the server panicked: %v", p))
			}
		}()
		body, err := a.answer(w, r, rt)
		switch {
		case err != nil:
			a.fail(w, r, rt, err)
		case body != nil:
			code := http.StatusOK
			if rep, ok := body.(reply); ok {
				code, body = rep.code, rep.body
			}
			if err := writeJSON(w, code, body); err != nil {
				a.Logger.Debug("an answer did not reach its client", "method", r.Method, "path", r.URL.Path, "error", err)
			}
		}
	})
}

func (a *api) answer(w http.ResponseWriter, r *http.Request, rt route) (any, error) {
	if size := headerSize(r); size > maxHeader {
		return nil, headerTooLarge(size)
	}
	if !a.allowed(rt.access, r) {
		if rt.access == registry {
			return refuseRegistry(w), nil
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="berth"`)
		return nil, unauthorized(missing(r))
	}
	return rt.handler(w, r)
}

// fail answers with the Status of an error.
func (a *api) fail(w http.ResponseWriter, r *http.Request, rt route, err error) {
	status := statusOf(err, rt.kind, r.PathValue("name"))
	if status.Code == http.StatusInternalServerError {
		a.Logger.Error("a request did not succeed", "method", r.Method, "path", r.URL.Path, "error", err)
	}
	if status.Details != nil && status.Details.RetryAfterSeconds > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(status.Details.RetryAfterSeconds)))
	}
	if err := writeJSON(w, int(status.Code), status); err != nil {
		a.Logger.Debug("an answer did not reach its client", "method", r.Method, "path", r.URL.Path, "error", err)
	}
}

func writeJSON(w http.ResponseWriter, code int, body any) error {
	if raw, ok := body.(text); ok {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(code)
		_, err := w.Write([]byte(raw))
		return err
	}
	data, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("encoding the answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(data)+1))
	w.WriteHeader(code)
	_, err = w.Write(append(data, '\n'))
	return err
}

// text is an answer in plain text, for health checks.
type text string

func headerSize(r *http.Request) int {
	size := len(r.RequestURI)
	for key, values := range r.Header {
		for _, value := range values {
			size += len(key) + len(value)
		}
	}
	return size
}

// warn adds a warning that kubectl and kn show to their user.
func warn(w http.ResponseWriter, warnings []string) {
	for _, message := range warnings {
		if header, err := net.NewWarningHeader(299, "-", printable(message)); err == nil {
			w.Header().Add("Warning", header)
		}
	}
}

// printable keeps a message on one line of a header.
func printable(s string) string {
	clean := []rune(s)
	for i, r := range clean {
		if r < ' ' || r == 0x7f {
			clean[i] = ' '
		}
	}
	return string(clean)
}
