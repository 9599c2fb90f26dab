package api

import (
	"bytes"
	"fmt"
	"io"
	"mime"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/berth-run/berth/serving"
)

// The formats of bodies.
const (
	formatJSON     = "application/json"
	formatYAML     = "application/yaml"
	formatProtobuf = "application/vnd.kubernetes.protobuf"
)

// strictness is what happens to fields that no type has, the fieldValidation of Kubernetes.
type strictness string

const (
	strict  strictness = "Strict" // refused; the default
	warning strictness = "Warn"   // dropped with a warning
	ignore  strictness = "Ignore" // dropped
)

func strictnessOf(r *http.Request) (strictness, error) {
	switch s := strictness(r.URL.Query().Get("fieldValidation")); s {
	case "":
		return strict, nil
	case strict, warning, ignore:
		return s, nil
	default:
		return "", badRequest("fieldValidation is %q: use Strict, Warn or Ignore", s)
	}
}

// readBody reads a request's body within the limits of size and time, and tells its format.
func readBody(w http.ResponseWriter, r *http.Request) (body []byte, format string, err error) {
	if encoding := r.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		return nil, "", failure(http.StatusUnsupportedMediaType, "UnsupportedMediaType",
			fmt.Sprintf("the body's Content-Encoding is %q: send it without one", encoding))
	}
	// Not every writer has deadlines; the limit is then missing.
	controller := http.NewResponseController(w)
	_ = controller.SetReadDeadline(time.Now().Add(bodyTimeout))
	defer func() { _ = controller.SetReadDeadline(time.Time{}) }()
	body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return nil, "", fmt.Errorf("reading the request's body: %w", err)
	}
	return body, mediaType(r.Header.Get("Content-Type")), nil
}

// mediaType is a Content-Type without its parameters; nothing is JSON.
func mediaType(contentType string) string {
	if contentType == "" {
		return formatJSON
	}
	media, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return contentType
	}
	return media
}

// objectFormats are the formats in which a kind's objects are taken.
func objectFormats(kind serving.Kind) []string {
	formats := []string{formatJSON, formatYAML}
	if kind.Group == "" {
		formats = append(formats, formatProtobuf)
	}
	return formats
}

// decodeObject makes a body an object of a kind. Fields that the kind does not have are refused, or named in the
// warnings.
func decodeObject(kind serving.Kind, body []byte, format string, s strictness) (o serving.Object, warnings []string, err error) {
	o = kind.New()
	if formats := objectFormats(kind); !slices.Contains(formats, format) {
		return nil, nil, unsupportedMediaType(format, formats...)
	}
	what := fmt.Sprintf("%s in version %q cannot be handled as a %s", kind.Name, kind.Version, kind.Name)
	warnings, err = decode(body, format, s, what, o)
	if err != nil {
		return nil, nil, err
	}
	if gvk := o.GetObjectKind().GroupVersionKind(); !gvk.Empty() && gvk != kind.GroupVersion().WithKind(kind.Name) {
		apiVersion, name := gvk.ToAPIVersionAndKind()
		return nil, nil, badRequest("the object in the body is apiVersion %q, kind %q: this address takes apiVersion %q, kind %q",
			apiVersion, name, kind.APIVersion(), kind.Name)
	}
	kind.Stamp(o)
	return o, warnings, nil
}

// decode fills a pointer to a struct from a body. what begins the message of an error.
func decode(body []byte, format string, s strictness, what string, into any) (warnings []string, err error) {
	switch format {
	case formatProtobuf:
		if err := decodeProtobuf(body, into); err != nil {
			return nil, badRequest("%s: %s", what, err)
		}
		return nil, nil
	case formatYAML:
		if body, err = fromYAML(body, s); err != nil {
			return nil, badRequest("%s: %s", what, err)
		}
	case formatJSON:
	default:
		return nil, unsupportedMediaType(format, formatJSON, formatYAML)
	}
	if err := wellFormed(body); err != nil {
		return nil, badRequest("%s: %s", what, err)
	}
	unknown, err := json.UnmarshalStrict(body, into)
	if err != nil {
		if where := serving.QuantityError(body); where != nil {
			err = where
		}
		return nil, badRequest("%s: %s", what, err)
	}
	for _, e := range unknown {
		warnings = append(warnings, e.Error())
	}
	switch {
	case s == ignore:
		return nil, nil
	case s == strict && len(warnings) > 0:
		return nil, badRequest("%s: strict decoding error: %s", what, strings.Join(warnings, ", "))
	}
	return warnings, nil
}

// decodeFields reads JSON with whole numbers as such: a float would not hold them all.
func decodeFields(data []byte, into *unstructured.Unstructured) error {
	return json.UnmarshalCaseSensitivePreserveInts(data, &into.Object)
}

// fromYAML makes one YAML document JSON.
func fromYAML(body []byte, s strictness) ([]byte, error) {
	documents := 0
	for part := range bytes.SplitSeq(append([]byte("\n"), body...), []byte("\n---")) {
		if len(bytes.TrimSpace(part)) > 0 {
			documents++
		}
	}
	if documents > 1 {
		return nil, fmt.Errorf("the body holds %d YAML documents: send one at a time", documents)
	}
	convert := yaml.YAMLToJSON
	if s == strict {
		convert = yaml.YAMLToJSONStrict
	}
	data, err := convert(body)
	if err != nil {
		return nil, err
	}
	// Aliases make a small document a large one.
	if len(data) > 2*maxBody {
		return nil, fmt.Errorf("the YAML document unfolds to %d bytes, and %d is the most that is taken", len(data), 2*maxBody)
	}
	return data, nil
}

// wellFormed refuses what is not a JSON object, and one that nests too deep to be walked without care.
func wellFormed(data []byte) error {
	data = bytes.TrimSpace(data)
	if len(data) == 0 {
		return fmt.Errorf("the body is empty: send the object")
	}
	if data[0] != '{' {
		return fmt.Errorf("the body is not a JSON object: it begins with %q", data[0])
	}
	return shallow(data)
}

// shallow refuses JSON that nests deeper than maxDepth.
func shallow(data []byte) error {
	depth, quoted := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return fmt.Errorf("the body nests deeper than %d levels, the most that is taken", maxDepth)
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return nil
}

// protobufMagic begins every body in Kubernetes' protobuf.
const protobufMagic = "k8s\x00"

// decodeProtobuf fills into, which must have Kubernetes' generated code, from an envelope that names a type.
func decodeProtobuf(body []byte, into any) error {
	raw, ok := bytes.CutPrefix(body, []byte(protobufMagic))
	if !ok {
		return fmt.Errorf("the body does not begin with %q as Kubernetes' protobuf does", protobufMagic)
	}
	var envelope runtime.Unknown
	if err := envelope.Unmarshal(raw); err != nil {
		return fmt.Errorf("reading the protobuf envelope: %w", err)
	}
	if envelope.ContentEncoding != "" {
		return fmt.Errorf("the protobuf's contentEncoding is %q: send it without one", envelope.ContentEncoding)
	}
	name := reflect.TypeOf(into).Elem().Name()
	if envelope.Kind != "" && envelope.Kind != name {
		return fmt.Errorf("the body is a %q, not a %s", envelope.Kind, name)
	}
	message, ok := into.(interface{ Unmarshal([]byte) error })
	if !ok {
		return fmt.Errorf("%s has no protobuf form: send JSON", name)
	}
	if err := message.Unmarshal(envelope.Raw); err != nil {
		return fmt.Errorf("reading the protobuf of %s: %w", name, err)
	}
	return nil
}
