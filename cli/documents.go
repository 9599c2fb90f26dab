package cli

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/berth-run/berth/serving"
)

// document is one object of a file.
type document struct {
	place  string // for errors: `file.yaml, document 2`
	kind   serving.Kind
	object serving.Object
}

// readDocuments reads the objects of a YAML or JSON file of one or several documents. A List is its items.
// Fields that the kind does not have, and keys given twice, are errors that name file, document and path.
func readDocuments(file string, content []byte) ([]document, error) {
	var documents []document
	texts, isJSON := splitJSON(content)
	if !isJSON {
		texts = splitDocuments(content)
	}
	for i, text := range texts {
		place := fmt.Sprintf("%s, document %d", file, i+1)
		encoded, err := yaml.YAMLToJSONStrict(text)
		if err != nil {
			return nil, fmt.Errorf("%s: invalid YAML: %s", place, strings.TrimPrefix(err.Error(), "yaml: "))
		}
		if string(encoded) == "null" {
			continue // nothing but comments
		}
		read, err := readDocument(place, encoded)
		if err != nil {
			return nil, err
		}
		documents = append(documents, read...)
	}
	if len(documents) == 0 {
		return nil, fmt.Errorf("%s holds no object", file)
	}
	return documents, nil
}

func readDocument(place string, encoded []byte) ([]document, error) {
	var head struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Items      []any  `json:"items"`
	}
	if err := json.UnmarshalCaseSensitivePreserveInts(encoded, &head); err != nil {
		return nil, fmt.Errorf("%s: it is not an object with apiVersion and kind: %w", place, err)
	}
	if head.APIVersion == "v1" && head.Kind == "List" {
		var documents []document
		for i, item := range head.Items {
			encoded, err := yaml.Marshal(item)
			if err == nil {
				encoded, err = yaml.YAMLToJSON(encoded)
			}
			if err != nil {
				return nil, fmt.Errorf("%s, item %d: %w", place, i+1, err)
			}
			read, err := readDocument(fmt.Sprintf("%s, item %d", place, i+1), encoded)
			if err != nil {
				return nil, err
			}
			documents = append(documents, read...)
		}
		return documents, nil
	}
	kind, ok := serving.FindKind(head.APIVersion, head.Kind)
	if !ok {
		return nil, fmt.Errorf("%s: unknown kind %q of apiVersion %q; known: %s", place, head.Kind, head.APIVersion, knownKinds())
	}
	object := kind.New()
	mistakes, err := json.UnmarshalStrict(encoded, object)
	if err == nil && len(mistakes) > 0 {
		err = mistakes[0]
	}
	if where := serving.QuantityError(encoded); err != nil && where != nil {
		err = where
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %s %q: %w", place, kind.Singular, object.GetName(), err)
	}
	if object.GetName() == "" && object.GetGenerateName() == "" {
		return nil, fmt.Errorf("%s: the %s has no metadata.name", place, kind.Singular)
	}
	return []document{{place: place, kind: kind, object: object}}, nil
}

func knownKinds() string {
	var names []string
	for _, kind := range serving.Kinds {
		if kind.ReadOnly || kind.Name == serving.KindRevision.Name {
			continue // nobody makes these by hand
		}
		names = append(names, kind.Name+" ("+kind.APIVersion()+")")
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// splitDocuments splits a YAML stream at its --- lines. Each document has as many empty lines before it as the file
// has lines there, so that line numbers in errors are those of the file.
func splitDocuments(content []byte) [][]byte {
	var documents [][]byte
	var current bytes.Buffer
	begun := false // the current document has a line
	end := func() {
		if begun {
			documents = append(documents, bytes.Clone(current.Bytes()))
		}
		lines := bytes.Count(current.Bytes(), []byte("\n"))
		current.Reset()
		current.Write(bytes.Repeat([]byte("\n"), lines))
		begun = false
	}
	for line := range bytes.Lines(content) {
		rest, isMarker := bytes.CutPrefix(line, []byte("---"))
		if isMarker && (len(rest) == 0 || bytes.ContainsAny(rest[:1], " \t\r\n")) {
			end()
			line = append([]byte("   "), rest...)
		}
		if trimmed := bytes.TrimSpace(line); len(trimmed) > 0 && trimmed[0] != '#' {
			begun = true
		}
		current.Write(line)
	}
	end()
	return documents
}
