package api

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kube-openapi/pkg/util"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"github.com/berth-run/berth/serving"
)

// refPrefix is where a document keeps its schemas.
const refPrefix = "#/components/schemas/"

// schemas are OpenAPI schemas by name. They are read off the Go types of serving.Kinds, so that a kind needs
// nothing but its type to be explained and applied.
type schemas map[string]*spec.Schema

// schemasOf returns the schemas of a group's kinds and of all that they are made of.
func schemasOf(gv schema.GroupVersion) schemas {
	s := schemas{}
	for _, k := range serving.Kinds {
		if k.GroupVersion() == gv {
			t := reflect.TypeOf(k.New()).Elem()
			s.add(t)
			s[nameOf(t)].AddExtension("x-kubernetes-group-version-kind", []any{
				map[string]any{"group": k.Group, "version": k.Version, "kind": k.Name},
			})
		}
	}
	return s
}

func nameOfKind(kind serving.Kind) string { return nameOf(reflect.TypeOf(kind.New()).Elem()) }

// nameOf is the name of a type's schema: Kubernetes' own for its types, else the path of its package in the same form.
func nameOf(t reflect.Type) string {
	if namer, ok := reflect.Zero(t).Interface().(interface{ OpenAPIModelName() string }); ok && ofKubernetes(t) {
		return namer.OpenAPIModelName()
	}
	return util.ToRESTFriendlyName(t.PkgPath() + "." + t.Name())
}

// add makes the schema of a named type, unless it is there.
func (s schemas) add(t reflect.Type) {
	name := nameOf(t)
	if s[name] != nil {
		return
	}
	made := new(spec.Schema)
	s[name] = made // before its fields: types may be recursive
	made.Description = documentation(t)[""]
	if opaque(t, made) {
		return
	}
	made.Type = spec.StringOrArray{"object"}
	made.Properties = map[string]spec.Schema{}
	s.addFields(made, name, t)
	if slices.Contains(atomicTypes, name) {
		made.AddExtension("x-kubernetes-map-type", "atomic")
	}
}

// addFields adds the fields of a struct to a schema, those of embedded structs too.
func (s schemas) addFields(to *spec.Schema, name string, t reflect.Type) {
	docs := documentation(t)
	for field := range t.Fields() {
		key, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		switch {
		case key == "-" || !field.IsExported():
			continue
		case key == "" && field.Anonymous:
			s.addFields(to, name, field.Type)
			continue
		case key == "":
			key = field.Name
		}
		property := s.of(field.Type)
		if doc := docs[key]; doc != "" {
			if property.Ref.String() != "" { // what is beside a $ref counts for nothing
				property = spec.Schema{SchemaProps: spec.SchemaProps{AllOf: []spec.Schema{property}}}
			}
			property.Description = doc
		}
		merging(&property, nameOf(t)+"."+key, field)
		to.Properties[key] = property
		optional := strings.Contains(options, "omit") || field.Type.Kind() == reflect.Pointer
		if !optional && !slices.Contains(optionalFields, name+"."+key) && !slices.Contains(to.Required, key) {
			to.Required = append(to.Required, key)
		}
	}
}

// merging says how a list or map is merged when it is applied, and patched strategically: Kubernetes keeps the
// rule of a list in the tags of its field, and what these do not say is in [mergeKeys] and [atomicFields].
func merging(property *spec.Schema, name string, field reflect.StructField) {
	if slices.Contains(atomicFields, name) {
		property.AddExtension("x-kubernetes-map-type", "atomic")
	}
	if value, ok := defaultValues[name]; ok {
		property.Default = value
	}
	strategy, key := field.Tag.Get("patchStrategy"), field.Tag.Get("patchMergeKey")
	if strategy != "" {
		property.AddExtension("x-kubernetes-patch-strategy", strategy)
	}
	if key != "" {
		property.AddExtension("x-kubernetes-patch-merge-key", key)
	}
	if len(property.Type) == 0 || property.Type[0] != "array" {
		return
	}
	keys := mergeKeys[name]
	if keys == nil && key != "" {
		keys = []any{key}
	}
	switch {
	case slices.Contains(atomicFields, name):
		property.AddExtension("x-kubernetes-list-type", "atomic")
	case keys != nil:
		property.AddExtension("x-kubernetes-list-type", "map")
		property.AddExtension("x-kubernetes-list-map-keys", keys)
	case strings.Contains(strategy, "merge"):
		property.AddExtension("x-kubernetes-list-type", "set")
	default:
		property.AddExtension("x-kubernetes-list-type", "atomic")
	}
}

// of is the schema of a type where it is used: a reference if the type has a name of its own.
func (s schemas) of(t reflect.Type) spec.Schema {
	typed := func(name, format string) spec.Schema {
		return spec.Schema{SchemaProps: spec.SchemaProps{Type: spec.StringOrArray{name}, Format: format}}
	}
	switch {
	case t.Kind() == reflect.Pointer:
		return s.of(t.Elem())
	case t.Kind() == reflect.Struct:
		s.add(t)
		return spec.Schema{SchemaProps: spec.SchemaProps{Ref: spec.MustCreateRef(refPrefix + nameOf(t))}}
	}
	switch t.Kind() {
	case reflect.Bool:
		return typed("boolean", "")
	case reflect.Int64, reflect.Uint64, reflect.Int, reflect.Uint:
		return typed("integer", "int64")
	case reflect.Int32, reflect.Uint32, reflect.Int16, reflect.Uint16, reflect.Int8, reflect.Uint8:
		return typed("integer", "int32")
	case reflect.Float64, reflect.Float32:
		return typed("number", "double")
	case reflect.String:
		return typed("string", "")
	case reflect.Slice, reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 {
			return typed("string", "byte")
		}
		list := typed("array", "")
		items := s.of(t.Elem())
		list.Items = &spec.SchemaOrArray{Schema: &items}
		return list
	case reflect.Map:
		object := typed("object", "")
		values := s.of(t.Elem())
		object.AdditionalProperties = &spec.SchemaOrBool{Allows: true, Schema: &values}
		return object
	}
	return spec.Schema{} // anything
}

// opaque fills the schema of a struct whose JSON is not made of its fields, and says whether the type is one.
func opaque(t reflect.Type, to *spec.Schema) bool {
	zero := reflect.Zero(t).Interface()
	switch zero := zero.(type) {
	case runtime.RawExtension, v1.FieldsV1:
		to.Type = spec.StringOrArray{"object"}
		to.AddExtension("x-kubernetes-preserve-unknown-fields", true)
		return true
	case interface {
		OpenAPIV3OneOfTypes() []string
		OpenAPISchemaFormat() string
	}:
		to.Format = zero.OpenAPISchemaFormat()
		for _, name := range zero.OpenAPIV3OneOfTypes() {
			to.OneOf = append(to.OneOf, spec.Schema{SchemaProps: spec.SchemaProps{Type: spec.StringOrArray{name}}})
		}
		return true
	case interface {
		OpenAPISchemaType() []string
		OpenAPISchemaFormat() string
	}:
		to.Type, to.Format = zero.OpenAPISchemaType(), zero.OpenAPISchemaFormat()
		return true
	case json.Marshaler: // Knative's URL and VolatileTime
		to.Type = spec.StringOrArray{"string"}
		return true
	}
	return false
}

// documentation is what is known of a struct ("") and of its fields, by their names in JSON.
func documentation(t reflect.Type) map[string]string {
	if documented, ok := reflect.Zero(t).Interface().(interface{ SwaggerDoc() map[string]string }); ok && ofKubernetes(t) {
		return documented.SwaggerDoc()
	}
	return descriptions[strings.TrimPrefix(t.PkgPath(), "knative.dev/")+"."+t.Name()]
}

// ofKubernetes tells Kubernetes' types from those that have its methods only because they embed one.
func ofKubernetes(t reflect.Type) bool { return strings.HasPrefix(t.PkgPath(), "k8s.io/") }
