package serving

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/api/resource"
)

// QuantityError finds the first resource of an object in JSON whose quantity cannot be parsed, and names it: the
// error of decoding the object does not say where it was. It is nil when there is none.
func QuantityError(object []byte) error {
	var decoded any
	if json.Unmarshal(object, &decoded) != nil {
		return nil
	}
	return quantityError(decoded, "")
}

func quantityError(value any, path string) error {
	switch value := value.(type) {
	case []any:
		for i, v := range value {
			if err := quantityError(v, fmt.Sprintf("%s[%d]", path, i)); err != nil {
				return err
			}
		}
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(value)) {
			inner := key
			if path != "" {
				inner = path + "." + key
			}
			if key == "resources" {
				if err := resourcesError(value[key], inner); err != nil {
					return err
				}
				continue
			}
			if err := quantityError(value[key], inner); err != nil {
				return err
			}
		}
	}
	return nil
}

func resourcesError(resources any, path string) error {
	lists, _ := resources.(map[string]any)
	for _, list := range []string{"limits", "requests"} {
		quantities, _ := lists[list].(map[string]any)
		for _, name := range slices.Sorted(maps.Keys(quantities)) {
			text, isText := quantities[name].(string)
			if !isText {
				continue
			}
			if _, err := resource.ParseQuantity(text); err != nil {
				return fmt.Errorf("%s.%s.%s: %q is not a quantity: give a number with a unit, as 500m or 512Mi", path, list, name, text)
			}
		}
	}
	return nil
}
