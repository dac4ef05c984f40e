// Package terraform runs the Terraform provider with the real terraform, against a service on
// real agents.
package terraform

import (
	"testing"

	"github.com/septemberai/orch/internal/e2e/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
