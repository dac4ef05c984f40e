// Package docs holds the documents that the service itself serves.
package docs

import _ "embed"

// OpenAPI is the OpenAPI 3.1 document of the REST API: the one source of its
// requests and responses.
//
//go:embed openapi.yaml
var OpenAPI []byte
