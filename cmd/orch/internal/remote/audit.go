package remote

import (
	"context"
	"errors"
	"flag"
	"time"

	"github.com/posener/complete"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/client"
)

func auditTail() *spec {
	var f client.AuditFilter
	var since, product string
	var most int
	var follow bool
	return &spec{
		name: "audit tail", needs: needsEither,
		synopsis: "Show what happened last, and what happens",
		about: `Show the newest rows of the audit log, the newest last: with a platform key those
of the product, with only the admin key, or for -product, any. A row that is not
over is shown once more when it is. With -json each row is a line.`,
		examples: []string{
			"orch audit tail", "orch audit tail -f", "orch audit tail -n 100 -since 24h -action destroy",
			"orch audit tail -user alice@example.com -since 2026-01-31T12:00:00Z", "orch audit tail -product acme",
		},
		flags: func(fs *flag.FlagSet) {
			fs.IntVar(&most, "n", 20, "how many rows; 0: all")
			fs.BoolVar(&follow, "f", false, "follow: go on with what happens, until it is interrupted")
			fs.StringVar(&f.UserID, "user", "", "only those of one `user_id`")
			fs.StringVar(&f.Action, "action", "", "only those of one `action`")
			fs.StringVar(&since, "since", "", "only from a `time` on: 2026-01-31T12:00:00Z, or 90m for 90 minutes ago")
			fs.StringVar(&product, "product", "", "only those of one `product`, by slug or id (for the admin)")
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
				return wrong("-n must be 0 or more")
			}
			if product != "" {
				if in.client.AdminKey == "" {
					return wrong("-product is for the admin, and %s is not set", adminVar)
				}
				if f.ProductID, err = auditedProduct(ctx, in.client, product); err != nil {
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
		return time.Time{}, wrong("-since must be a time as in 2026-01-31T12:00:00Z, or how long ago as in 90m")
	}
	return t, nil
}

// auditedProduct is the id of a product. One that is deleted has rows, but can
// only be named by its id.
func auditedProduct(ctx context.Context, c *client.Client, name string) (string, error) {
	p, err := findProduct(ctx, c, name)
	if errors.Is(err, client.ErrProductNotFound) {
		return name, nil
	}
	if err != nil {
		return "", err
	}
	return p.ProductID, nil
}
