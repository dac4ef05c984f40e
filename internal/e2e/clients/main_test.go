// Package clients tests what callers in other languages build on: docs/openapi.yaml is linted,
// three generators make clients from it, and these and the TypeScript client call a service.
package clients

import (
	"testing"

	"github.com/septemberai/orch/internal/e2e/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
