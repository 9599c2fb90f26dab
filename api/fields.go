package api

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"unicode"
	"weak"

	"k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

// writer is who writes, and which part of an object: what metadata.managedFields says of them.
type writer struct {
	manager string
	part    store.Part
}

// writerOf reads who writes from a request: its fieldManager, else the name of the program that sent it.
func writerOf(r *http.Request, part store.Part) (writer, error) {
	manager := r.URL.Query().Get("fieldManager")
	list := validation.ValidateUpdateOptions(&v1.UpdateOptions{FieldManager: manager})
	if len(list) > 0 {
		return writer{}, badRequest("fieldManager: %s", list[0].ErrorBody())
	}
	if manager == "" {
		program, _, _ := strings.Cut(r.UserAgent(), "/")
		for _, char := range program {
			if unicode.IsPrint(char) && len(manager)+len(string(char)) <= validation.FieldManagerMaxLength {
				manager += string(char)
			}
		}
	}
	return writer{manager, part}, nil
}

// converters keep what knows the types of a group's fields for as long as it is in use: an idle server has none.
type converters struct {
	mu   sync.Mutex
	made map[schema.GroupVersion]weak.Pointer[converter] // guarded by mu
}

type converter struct{ managedfields.TypeConverter }

func (c *converters) of(gv schema.GroupVersion) (*converter, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if kept := c.made[gv].Value(); kept != nil {
		return kept, nil
	}
	types, err := managedfields.NewTypeConverter(schemasOf(gv), false)
	if err != nil {
		return nil, fmt.Errorf("reading the types of group %q: %w", gv, err)
	}
	if c.made == nil {
		c.made = map[schema.GroupVersion]weak.Pointer[converter]{}
	}
	made := &converter{types}
	c.made[gv] = weak.Make(made)
	return made, nil
}

// fieldManager returns what keeps the owners of a kind's fields, as Kubernetes does it.
func (c *converters) fieldManager(kind serving.Kind, part store.Part) (*managedfields.FieldManager, error) {
	types, err := c.of(kind.GroupVersion())
	if err != nil {
		return nil, err
	}
	subresource, others := "", []fieldpath.Path(nil)
	switch {
	case part == store.Status:
		subresource = "status"
		others = []fieldpath.Path{fieldpath.MakePathOrDie("spec"), fieldpath.MakePathOrDie("metadata")}
	case hasStatus(kind):
		others = []fieldpath.Path{fieldpath.MakePathOrDie("status")}
	}
	version := fieldpath.APIVersion(kind.APIVersion())
	notWritten := map[fieldpath.APIVersion]fieldpath.Filter{version: fieldpath.NewExcludeSetFilter(fieldpath.NewSet(others...))}
	gv := kind.GroupVersion()
	return managedfields.NewDefaultCRDFieldManager(types, oneVersion{}, oneVersion{}, oneVersion{}, gv.WithKind(kind.Name), gv, subresource, notWritten)
}

// oneVersion is what the field manager asks of kinds with several versions and defaults of their own: ours have
// one version, and get their defaults when they are admitted, so that nobody owns these.
type oneVersion struct{}

func (oneVersion) Default(runtime.Object) {}

func (oneVersion) New(gvk schema.GroupVersionKind) (runtime.Object, error) {
	o := new(unstructured.Unstructured)
	o.SetGroupVersionKind(gvk)
	return o, nil
}

func (oneVersion) Convert(in, out, _ any) error {
	return fmt.Errorf("converting %T to %T: objects have one version", in, out)
}

func (oneVersion) ConvertToVersion(in runtime.Object, _ runtime.GroupVersioner) (runtime.Object, error) {
	return in, nil
}

func (oneVersion) ConvertFieldLabel(_ schema.GroupVersionKind, label, value string) (string, string, error) {
	return label, value, nil
}

// own writes to the metadata of o, which a writer makes of old (nil on creation), whose fields are whose.
func (a *api) own(kind serving.Kind, by writer, old, o serving.Object) error {
	manager, err := a.converters.fieldManager(kind, by.part)
	if err != nil {
		return err
	}
	before, err := fieldsOf(kind, old)
	if err != nil {
		return err
	}
	after, err := fieldsOf(kind, o)
	if err != nil {
		return err
	}
	if err := declared(kind, after, o); err != nil {
		return err
	}
	owned, err := manager.Update(before, after, by.manager)
	if err != nil {
		// An element of a list without its key, for one: as in Kubernetes that is no reason to refuse the write.
		a.Logger.Warn("the owners of an object's fields stay as they were", "kind", kind.String(), "namespace", o.GetNamespace(), "name", o.GetName(), "error", err)
		owned = before
	}
	o.SetManagedFields(owned.(*unstructured.Unstructured).GetManagedFields())
	return nil
}

// fieldsOf is an object as the field manager reads it; nil is an object without fields.
func fieldsOf(kind serving.Kind, o serving.Object) (*unstructured.Unstructured, error) {
	u := new(unstructured.Unstructured)
	if o != nil {
		data, err := json.Marshal(o)
		if err != nil {
			return nil, fmt.Errorf("encoding %s %q: %w", kind, o.GetName(), err)
		}
		if err := decodeFields(data, u); err != nil {
			return nil, fmt.Errorf("decoding %s %q: %w", kind, o.GetName(), err)
		}
	}
	u.SetGroupVersionKind(kind.GroupVersion().WithKind(kind.Name))
	return u, nil
}

// declared brings fields that a user wrote into the form in which they are stored and owned: a secret's stringData
// becomes data, a container without a name gets the one that it will have, and what belongs to one owner as a whole
// gets the defaults within it, without which it would differ from the stored. o is the same as an object.
func declared(kind serving.Kind, fields *unstructured.Unstructured, o serving.Object) error {
	if kind.Name == serving.KindSecret.Name && kind.Group == "" {
		return encodeSecret(fields)
	}
	if kind.Group != serving.Group {
		return nil
	}
	complete, err := fieldsOf(kind, serving.Completed(o))
	if err != nil {
		return err
	}
	completeKeys(fields.Object["spec"], complete.Object["spec"], "traffic")
	template := []string{"spec", "template", "spec"}
	written, _, _ := unstructured.NestedFieldNoCopy(fields.Object, template...)
	whole, _, _ := unstructured.NestedFieldNoCopy(complete.Object, template...)
	for _, list := range []string{"containers", "initContainers"} {
		have, with := listOf(written, list), listOf(whole, list)
		for i := range min(len(have), len(with)) {
			completeKeys(have[i], with[i], "livenessProbe", "readinessProbe", "startupProbe")
			to, ok := have[i].(map[string]any)
			if from, named := with[i].(map[string]any); ok && named {
				to["name"] = from["name"]
			}
		}
	}
	return nil
}

// completeKeys replaces the values of keys that an object has by those that another has.
func completeKeys(to, from any, keys ...string) {
	written, _ := to.(map[string]any)
	whole, _ := from.(map[string]any)
	for _, key := range keys {
		if value, ok := whole[key]; ok && written[key] != nil {
			written[key] = value
		}
	}
}

func listOf(object any, key string) []any {
	fields, _ := object.(map[string]any)
	list, _ := fields[key].([]any)
	return list
}

func encodeSecret(fields *unstructured.Unstructured) error {
	written, _, err := unstructured.NestedStringMap(fields.Object, "stringData")
	if err != nil {
		return badRequest("stringData: %s", err)
	}
	for key, value := range written {
		if err := unstructured.SetNestedField(fields.Object, base64.StdEncoding.EncodeToString([]byte(value)), "data", key); err != nil {
			return badRequest("data: %s", err)
		}
	}
	unstructured.RemoveNestedField(fields.Object, "stringData")
	return nil
}
