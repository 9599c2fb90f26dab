package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
)

// splitJSON splits JSON values that follow each other, which YAML's --- cannot. It is false for anything else.
func splitJSON(content []byte) ([][]byte, bool) {
	if trimmed := bytes.TrimSpace(content); len(trimmed) == 0 || trimmed[0] != '{' {
		return nil, false
	}
	var values [][]byte
	decoder := json.NewDecoder(bytes.NewReader(content))
	for {
		var value json.RawMessage
		err := decoder.Decode(&value)
		if errors.Is(err, io.EOF) {
			return values, true
		}
		if err != nil {
			return nil, false // let YAML, which JSON is a part of, say what is wrong and in which line
		}
		values = append(values, value)
	}
}
