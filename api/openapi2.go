package api

import (
	"net/http"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// openAPI2 serves the document of OpenAPI's former version, without any schema: they are in those of version 3.
// kubectl reads it for kinds that the server does not have, to say so, and before 1.27 for all of them.
func (a *api) openAPI2(w http.ResponseWriter, r *http.Request) (any, error) {
	const title, swagger = "Berth", "2.0"
	if !strings.Contains(r.Header.Get("Accept"), "com.github.proto-openapi.spec.v2") {
		return map[string]any{
			"swagger": swagger, "info": map[string]string{"title": title, "version": kubernetes}, "paths": map[string]any{},
		}, nil
	}
	info := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), title)
	info = protowire.AppendString(protowire.AppendTag(info, 2, protowire.BytesType), kubernetes)
	document := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), swagger)
	document = protowire.AppendBytes(protowire.AppendTag(document, 2, protowire.BytesType), info)
	w.Header().Set("Content-Type", "application/com.github.proto-openapi.spec.v2.v1.0+protobuf")
	if _, err := w.Write(document); err != nil {
		a.Logger.Debug("an answer did not reach its client", "path", r.URL.Path, "error", err)
	}
	return nil, nil
}
