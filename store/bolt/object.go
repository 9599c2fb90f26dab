package bolt

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"

	"k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-run/berth/serving"
)

// clone returns a shallow copy: its fields may be set, but what they point to is shared and stays as it is.
func clone(o serving.Object) serving.Object {
	to := reflect.New(reflect.TypeOf(o).Elem())
	to.Elem().Set(reflect.ValueOf(o).Elem())
	return to.Interface().(serving.Object)
}

// content is an object's JSON in the three parts that versions and generations tell apart. What the store itself
// sets in the metadata is left out, and so are the times of managed fields, which say when and not what.
type content struct {
	metadata, spec, status string
}

func contentOf(o serving.Object) (content, error) {
	var c content
	rest := reflect.ValueOf(clone(o)).Elem()

	field := rest.FieldByName("ObjectMeta")
	meta := field.Interface().(v1.ObjectMeta)
	meta.ResourceVersion = ""
	meta.Generation = 0
	meta.ManagedFields = slices.Clone(meta.ManagedFields)
	for i := range meta.ManagedFields {
		meta.ManagedFields[i].Time = nil
	}
	data, err := json.Marshal(meta)
	if err != nil {
		return content{}, fmt.Errorf("encoding its metadata: %w", err)
	}
	c.metadata = string(data)
	field.SetZero()

	if field := rest.FieldByName("Status"); field.IsValid() {
		if data, err = json.Marshal(field.Interface()); err != nil {
			return content{}, fmt.Errorf("encoding its status: %w", err)
		}
		c.status = string(data)
		field.SetZero()
	}

	rest.FieldByName("TypeMeta").SetZero()
	if data, err = json.Marshal(rest.Interface()); err != nil {
		return content{}, fmt.Errorf("encoding it: %w", err)
	}
	c.spec = string(data)
	return c, nil
}

// newUID returns a random (version 4) UUID.
func newUID() types.UID {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return types.UID(fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:]))
}
