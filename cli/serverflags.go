package cli

import (
	"encoding"
	"fmt"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-run/berth/server"
)

// bindStruct makes a flag of every field of a struct that has a flag tag, and of those of the structs in it.
func bindStruct(flags *pflag.FlagSet, structure reflect.Value) {
	for i := range structure.NumField() {
		field := structure.Type().Field(i)
		name, tagged := field.Tag.Lookup("flag")
		switch {
		case tagged:
			value := &fieldValue{field: structure.Field(i)}
			flag := flags.VarPF(value, name, "", field.Tag.Get("help"))
			if field.Type.Kind() == reflect.Bool {
				flag.NoOptDefVal = "true"
			}
		case field.Type.Kind() == reflect.Struct && field.IsExported():
			bindStruct(flags, structure.Field(i))
		}
	}
}

// fieldValue is a field of a struct as a flag's value.
type fieldValue struct {
	field reflect.Value
	given bool // Set was called: a list has lost its default
}

// String is the value as one would give it.
func (v *fieldValue) String() string {
	if !v.field.IsValid() {
		return ""
	}
	switch value := v.field.Interface().(type) {
	case []string:
		return strings.Join(value, ",")
	case time.Duration:
		return shortDuration(value)
	case netip.Prefix:
		if !value.IsValid() {
			return ""
		}
		return value.String()
	default:
		return fmt.Sprint(value)
	}
}

// Type names the kind of value in the help.
func (v *fieldValue) Type() string {
	switch value := v.field.Interface().(type) {
	case []string:
		return "list"
	case time.Duration:
		return "duration"
	case server.ByteSize:
		return "size"
	case netip.Prefix:
		return "network"
	case server.QueueWait:
		return "duration|auto"
	case interface{ Type() string }:
		return value.Type()
	case float64:
		return "number"
	default:
		return v.field.Kind().String()
	}
}

// Set parses a value. Lists are separated by commas, and grow when the flag is repeated.
func (v *fieldValue) Set(text string) error {
	switch target := v.field.Addr().Interface().(type) {
	case *string:
		*target = text
	case *[]string:
		if !v.given {
			*target = nil
		}
		for item := range strings.SplitSeq(text, ",") {
			if item = strings.TrimSpace(item); item != "" {
				*target = append(*target, item)
			}
		}
	case *bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return fmt.Errorf("not true or false")
		}
		*target = b
	case *int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("not a whole number")
		}
		*target = n
	case *float64:
		f, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return fmt.Errorf("not a number such as 0.7")
		}
		*target = f
	case *time.Duration:
		d, err := parseDuration(text)
		if err != nil {
			return err
		}
		*target = d
	case *server.ByteSize:
		quantity, err := resource.ParseQuantity(text)
		if err != nil {
			return fmt.Errorf("not a size such as 16Mi")
		}
		*target = server.ByteSize(quantity.Value())
	case encoding.TextUnmarshaler:
		if err := target.UnmarshalText([]byte(text)); err != nil {
			return err
		}
	default:
		return fmt.Errorf("a setting of type %s cannot be given on the command line", v.field.Type())
	}
	v.given = true
	return nil
}

// parseDuration reads a duration, "90s" or "5m"; a bare number is seconds.
func parseDuration(text string) (time.Duration, error) {
	if seconds, err := strconv.ParseFloat(text, 64); err == nil {
		return time.Duration(seconds * float64(time.Second)), nil
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("not a duration such as 300, 300s or 5m")
	}
	return d, nil
}

// shortDuration prints 5m0s as 5m.
func shortDuration(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = text[:len(text)-2]
	}
	if strings.HasSuffix(text, "h0m") {
		text = text[:len(text)-2]
	}
	return text
}

// goneFlag is a flag that there was once: whoever gives it is told what to give instead.
type goneFlag string

// String is nothing: it has no value.
func (goneFlag) String() string { return "" }

// Type is nothing.
func (goneFlag) Type() string { return "" }

// Set refuses.
func (instead goneFlag) Set(string) error {
	return fmt.Errorf("there is no such flag any more: give %s", string(instead))
}
