package deploy

import (
	"os"
	"os/exec"
	"testing"
)

// The unit is one that systemd knows, and its exposure is below 2.5 of 10.
func TestUnit(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil && os.Getenv("CI") == "" {
		t.Skip("needs systemd-analyze")
	}
	out, err := exec.CommandContext(t.Context(), "systemd-analyze", "security", "--offline=true", "--threshold=25", "--no-pager", "systemd/orch.service").CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
