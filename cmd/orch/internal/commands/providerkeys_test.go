package commands

import (
	"fmt"
	"strings"
	"testing"
)

func TestProviderKeysCommand(t *testing.T) {
	rollout := func(status string, pending, failed int) string {
		return fmt.Sprintf(`{"status": %q, "target_version": 2, "pending": %d, "restarted": 3, "failed": %d}`, status, pending, failed)
	}
	vars, _ := answering(t, map[string]string{"POST /provider-keys/apply": rollout("rolling", 1, 0), "GET /provider-keys": rollout("halted", 1, 3)})
	if code, stdout, _ := orch(t, vars, "provider-keys", "apply"); code != 0 || stdout != "Status     rolling\nVersion    2\nPending    1\nRestarted  3\nFailed     0\n" {
		t.Errorf("%d, %q", code, stdout)
	}
	if code, stdout, _ := orch(t, vars, "provider-keys", "status"); code != 0 || stdout != "Status     halted\nVersion    2\nPending    1\nRestarted  3\nFailed     3\n" {
		t.Errorf("status: %d, %q", code, stdout)
	}
	if code, stdout, _ := orch(t, vars, "provider-keys", "status", "-json"); code != 0 || !strings.Contains(stdout, `"pending": 1`) {
		t.Errorf("status -json: %d, %q", code, stdout)
	}
	if code, stdout, _ := orch(t, vars, "provider-keys", "apply", "-wait"); code != 1 || !strings.HasPrefix(stdout, "Status     halted\n") {
		t.Errorf("-wait: %d, %q", code, stdout)
	}
}
