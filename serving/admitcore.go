package serving

import (
	"encoding/json"
	"fmt"

	"k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// admitCore fills the defaults of core objects and checks them, as Kubernetes does.
func admitCore(kind Kind, change Change) error {
	var list field.ErrorList
	switch o := change.New.(type) {
	case *Namespace:
		if o.Status.Phase == "" {
			o.Status.Phase = NamespaceActive
		}
	case *Secret:
		old, _ := change.Old.(*Secret)
		list = admitSecret(o, old)
	case *ConfigMap:
		old, _ := change.Old.(*ConfigMap)
		list = admitConfigMap(o, old)
	case *ClusterDomainClaim:
		if o.Spec.Namespace == "" {
			list = append(list, field.Required(field.NewPath("spec", "namespace"), ""))
		}
	}
	if len(list) > 0 {
		return invalid(kind, change.New, list)
	}
	return nil
}

func admitSecret(s, old *Secret) (list field.ErrorList) {
	for key, value := range s.StringData {
		if s.Data == nil {
			s.Data = map[string][]byte{}
		}
		s.Data[key] = []byte(value)
	}
	s.StringData = nil
	if s.Type == "" {
		s.Type = v1.SecretTypeOpaque
	}
	data := field.NewPath("data")
	size := 0
	for key, value := range s.Data {
		list = append(list, keyErrors(data, key)...)
		size += len(value)
	}
	if size > v1.MaxSecretSize {
		list = append(list, field.TooLong(data, "", v1.MaxSecretSize))
	}
	switch s.Type {
	case v1.SecretTypeDockerConfigJson:
		config, ok := s.Data[v1.DockerConfigJsonKey]
		if !ok {
			list = append(list, field.Required(data.Key(v1.DockerConfigJsonKey), "a secret of type "+string(s.Type)+" needs it"))
		} else if !json.Valid(config) {
			// The value is a credential: it is not repeated in the message.
			list = append(list, field.Invalid(data.Key(v1.DockerConfigJsonKey), "<secret contents redacted>", "must be JSON as in Docker's config.json"))
		}
	case v1.SecretTypeTLS:
		for _, key := range []string{v1.TLSCertKey, v1.TLSPrivateKeyKey} {
			if _, ok := s.Data[key]; !ok {
				list = append(list, field.Required(data.Key(key), "a secret of type "+string(s.Type)+" needs it"))
			}
		}
	}
	if old == nil {
		return list
	}
	if s.Type != old.Type {
		list = append(list, field.Invalid(field.NewPath("type"), s.Type, fmt.Sprintf("field is immutable: it is %q; delete the secret and create it again", old.Type)))
	}
	if old.Immutable != nil && *old.Immutable {
		list = append(list, immutableErrors(s.Immutable, equality.Semantic.DeepEqual(s.Data, old.Data))...)
	}
	return list
}

func admitConfigMap(c, old *ConfigMap) (list field.ErrorList) {
	size := 0
	for key, value := range c.Data {
		list = append(list, keyErrors(field.NewPath("data"), key)...)
		if _, twice := c.BinaryData[key]; twice {
			list = append(list, field.Invalid(field.NewPath("data").Key(key), key, "duplicate of key present in binaryData"))
		}
		size += len(value)
	}
	for key, value := range c.BinaryData {
		list = append(list, keyErrors(field.NewPath("binaryData"), key)...)
		size += len(value)
	}
	if size > v1.MaxSecretSize {
		// The same limit of 1 MiB as for secrets.
		list = append(list, field.TooLong(field.NewPath(""), "", v1.MaxSecretSize))
	}
	if old != nil && old.Immutable != nil && *old.Immutable {
		same := equality.Semantic.DeepEqual(c.Data, old.Data) && equality.Semantic.DeepEqual(c.BinaryData, old.BinaryData)
		list = append(list, immutableErrors(c.Immutable, same)...)
	}
	return list
}

func immutableErrors(immutable *bool, same bool) (list field.ErrorList) {
	if immutable == nil || !*immutable {
		list = append(list, field.Forbidden(field.NewPath("immutable"), "field is immutable when `immutable` is set"))
	}
	if !same {
		list = append(list, field.Forbidden(field.NewPath("data"), "field is immutable when `immutable` is set"))
	}
	return list
}

func keyErrors(path *field.Path, key string) (list field.ErrorList) {
	for _, message := range validation.IsConfigMapKey(key) {
		list = append(list, field.Invalid(path.Key(key), key, message))
	}
	return list
}
