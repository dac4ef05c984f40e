package scheduler

import (
	"context"
	"time"

	"github.com/septemberai/orch/audit"
)

// RecordWrongKeys writes an audit entry that counts calls with wrong keys since a time.
func (s *Scheduler) RecordWrongKeys(ctx context.Context, since time.Time, counts map[string]any) error {
	return s.audit.Record(ctx, audit.Entry{
		Timestamp: since.UTC(), Action: audit.ActionAuthFailed, Actor: actorSystem, Metadata: counts,
	})
}
