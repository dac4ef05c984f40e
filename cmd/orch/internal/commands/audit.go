package commands

import (
	"context"
	"flag"
	"time"

	"github.com/posener/complete"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/cmdline"
)

func auditTail() *spec {
	var f client.AuditFilter
	var since string
	var most int
	var follow bool
	return &spec{
		name: "audit tail", needs: needsEither, product: "only those of one `product`, by slug or id (for the admin)",
		synopsis: "Show what happened last, and what happens",
		about: `Show the newest rows of the audit log, the newest last: with a platform key those
of the product; as the admin (-admin, or no platform key) those of all products, or
of the one that -product names. The row of an operation that is under way is shown
again when the operation has ended. With -json each row is a line.`,
		examples: []string{
			"orch audit tail", "orch audit tail -f", "orch audit tail -n 100 -since 24h -action destroy",
			"orch audit tail -user alice@example.com -since 2026-01-31T12:00:00Z", "orch audit tail -product acme",
		},
		flags: func(fs *flag.FlagSet) {
			fs.IntVar(&most, "n", 20, "how many rows; 0: all")
			fs.BoolVar(&follow, "f", false, "follow: print new rows as they come, until it is interrupted")
			fs.StringVar(&f.UserID, "user", "", "only those of one `user_id`")
			fs.StringVar(&f.Action, "action", "", "only those of one `action`")
			fs.StringVar(&since, "since", "", "only from a `time` on: 2026-01-31T12:00:00Z, or 90m for 90 minutes ago")
		},
		predict: map[string]complete.Predictor{"action": complete.PredictSet(audit.Actions...)},
		run: func(ctx context.Context, in *invocation) (err error) {
			if f.Since, err = moments(since, time.Now()); err != nil {
				return err
			}
			if err := oneOf("-action", f.Action, audit.Actions); err != nil {
				return err
			}
			if most < 0 {
				return cmdline.Wrong("-n must be 0 or more")
			}
			if in.product != "" {
				if in.client.AdminKey == "" {
					return cmdline.Wrong("-product is for the admin, and there is no admin key (%s)", adminVar)
				}
				if f.ProductID, err = in.namedProduct(ctx); err != nil {
					return err
				}
			}
			t := &tail{in: in, filter: f, seen: map[int64]client.AuditEntry{}}
			if err := t.begin(ctx, most, follow); err != nil || !follow {
				return err
			}
			return t.follow(ctx)
		},
	}
}

// moments reads a time, or how long ago it was.
func moments(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if ago, err := time.ParseDuration(s); err == nil && ago >= 0 {
		return now.Add(-ago), nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return time.Time{}, cmdline.Wrong("-since must be a time as in 2026-01-31T12:00:00Z, or how long ago as in 90m")
	}
	return t, nil
}
