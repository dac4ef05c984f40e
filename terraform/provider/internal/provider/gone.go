package provider

import (
	"context"
	"fmt"
	"time"

	"github.com/septemberai/orch/client"
)

// auditLooks is how often the audit log is read again for the outcome of a provision.
const auditLooks = 10

// whyGone returns the error of a provision that left nothing behind, which only the audit log
// has (docs/api.md).
func whyGone(ctx context.Context, c *client.Client, user, engineID string) error {
	for tries := 0; ; tries++ {
		log, err := c.Audit(ctx, client.AuditFilter{UserID: user, Action: "provision", Limit: 10})
		if err != nil {
			return fmt.Errorf("engine %s is gone, and the audit log, which has the reason, cannot be read: %w", engineID, err)
		}
		for _, e := range log.Entries {
			if e.EngineID == engineID && e.Outcome != "ok" && e.Outcome != "interrupted" {
				return &client.Error{Code: client.Code(e.Outcome), Message: "nothing is left of engine " + engineID}
			}
		}
		// The outcome is written a moment after the engine is gone.
		if tries == auditLooks || wait(ctx, time.Second) != nil {
			break
		}
	}
	return fmt.Errorf("somebody destroyed engine %s while it was booting", engineID)
}
