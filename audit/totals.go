package audit

import (
	"context"
	"database/sql"
	"time"
)

// life is an engine of a product. An engine that was created in advance belongs first to
// the service, then to a product.
type life struct{ engineID, productID string }

// count updates the totals over all time in GET /metrics. A destroy counts only if the
// provision of its engine was counted. So there are never more destroys than provisions,
// and equally many when all engines are destroyed.
func (l *Log) count(ctx context.Context, tx *sql.Tx, action, outcome string, of life) error {
	if outcome != OutcomeOK || (action != ActionProvision && action != ActionDestroy) {
		return nil
	}
	if action == ActionProvision {
		if err := addOne(ctx, tx, of.productID, ActionProvision); err != nil {
			return err
		}
	}
	if of.engineID == "" {
		return nil
	}
	over, err := l.note(ctx, tx, action, of)
	if err != nil {
		return err
	}
	keep := of.productID
	if over {
		if err := addOne(ctx, tx, of.productID, ActionDestroy); err != nil {
			return err
		}
		keep = "" // no product has this id, so all rows of the engine are deleted
	}
	// An engine that the service had created in advance now belongs to a product.
	_, err = tx.ExecContext(ctx, `DELETE FROM audit_lives WHERE engine_id = $1 AND product_id <> $2`, of.engineID, keep)
	return err
}

// note records that an engine was provisioned or destroyed, and reports whether both are
// now recorded. It is one statement, so that the later of two transactions sees the
// earlier.
func (l *Log) note(ctx context.Context, tx *sql.Tx, action string, of life) (over bool, err error) {
	provisioned, destroyedAt := 1, any(nil)
	if action == ActionDestroy {
		provisioned, destroyedAt = 0, l.db.time(stampOf(time.Now()))
	}
	err = tx.QueryRowContext(ctx, `INSERT INTO audit_lives (engine_id, product_id, provisioned, destroyed_at) VALUES ($1, $2, $3, $4)
		ON CONFLICT (engine_id, product_id) DO UPDATE SET
			provisioned = CASE WHEN excluded.provisioned = 1 THEN 1 ELSE audit_lives.provisioned END,
			destroyed_at = COALESCE(audit_lives.destroyed_at, excluded.destroyed_at)
		RETURNING provisioned = 1 AND destroyed_at IS NOT NULL`, of.engineID, of.productID, provisioned, destroyedAt).Scan(&over)
	return over, err
}

func addOne(ctx context.Context, tx *sql.Tx, productID, action string) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO audit_totals (product_id, action, total) VALUES ($1, $2, 1)
		ON CONFLICT (product_id, action) DO UPDATE SET total = audit_totals.total + 1`, productID, action)
	return err
}
