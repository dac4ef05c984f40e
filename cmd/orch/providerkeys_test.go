package main

import (
	"fmt"
	"testing"
)

func TestProviderKeysCommand(t *testing.T) {
	rollout := func(status string, pending, failed int) string {
		return fmt.Sprintf(`{"status": %q, "target_version": 2, "pending": %d, "restarted": 3, "failed": %d}`, status, pending, failed)
	}
	vars, _ := answering(t, map[string]string{"POST /provider-keys/apply": rollout("rolling", 1, 0), "GET /provider-keys": rollout("halted", 1, 3)})
	if code, stdout, _ := orch(t, vars, "provider-keys", "apply"); code != 0 || stdout != "rolling: version 2, 1 pending, 3 restarted, 0 failed\n" {
		t.Errorf("%d, %q", code, stdout)
	}
	if code, stdout, _ := orch(t, vars, "provider-keys", "apply", "-wait"); code != 1 || stdout != "halted: version 2, 1 pending, 3 restarted, 3 failed\n" {
		t.Errorf("-wait: %d, %q", code, stdout)
	}
}
