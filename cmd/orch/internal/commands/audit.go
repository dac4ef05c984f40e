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
		name: "audit tail", needs: needsEither, product: "only rows of this `product`, by slug or id (for the admin)",
		synopsis: "Show the newest rows of the audit log, and follow it",
		about: `Show the newest rows of the audit log, the newest last: with a platform key the
product's rows; as the admin (-admin, or no platform key) the rows of all products,
or of the product that -product names. The row of an operation in progress is
shown again when the operation has ended. With -json each row is a line.`,
		examples: []string{
			"orch audit tail", "orch audit tail -f", "orch audit tail -n 100 -since 24h -action destroy",
			"orch audit tail -user alice@example.com -since 2026-01-31T12:00:00Z", "orch audit tail -product acme",
		},
		flags: func(fs *flag.FlagSet) {
			fs.IntVar(&most, "n", 20, "number of rows; 0: all")
			fs.BoolVar(&follow, "f", false, "follow: print new rows as they appear, until interrupted")
			fs.StringVar(&f.UserID, "user", "", "only rows of this `user_id`")
			fs.StringVar(&f.Action, "action", "", "only rows with this `action`")
			fs.StringVar(&since, "since", "", "only rows from this `time` on: 2026-01-31T12:00:00Z, or 90m for 90 minutes ago")
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
					return cmdline.Wrong("-product is for the admin: set the admin key (%s)", adminVar)
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

// moments reads a time, or a duration before now.
func moments(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if ago, err := time.ParseDuration(s); err == nil && ago >= 0 {
		return now.Add(-ago), nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return time.Time{}, cmdline.Wrong("-since must be a time, such as 2026-01-31T12:00:00Z, or a duration before now, such as 90m")
	}
	return t, nil
}
