package brains

import (
	"testing"

	"github.com/septemberai/orch/internal/e2e/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
