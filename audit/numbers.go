package audit

import (
	"context"
	"time"
)

// Numbers are what GET /metrics reports of a product (docs/metrics.md). "1h" is
// what began in the hour before now.
type Numbers struct {
	Provisions1h    int64   // provisions that ended well
	Crashes1h       int64   // engines that failed
	Restarts1h      int64   // automatic restarts that ended well
	AvgBootMS       float64 // mean boot of the hour's provisions, starts, wakes and automatic restarts that ended well, ms; 0 when there was none
	TotalProvisions int64   // that ended well, ever
	TotalDestroys   int64   // that ended well, ever, of engines whose provision did
}

// Numbers counts a product's rows. The lifetime totals have a table of their
// own, which retention does not touch. [ErrUnavailable].
func (l *Log) Numbers(ctx context.Context, productID string) (Numbers, error) {
	var n Numbers
	err := l.db.call(ctx, func(ctx context.Context) error {
		return l.db.reader.QueryRowContext(ctx, numbersQuery, clean(productID), l.db.time(stampOf(time.Now().Add(-time.Hour)))).
			Scan(&n.Provisions1h, &n.Crashes1h, &n.Restarts1h, &n.AvgBootMS, &n.TotalProvisions, &n.TotalDestroys)
	})
	return n, err
}

// boot_ms is set for boots alone. The actions are named, and not left to the
// filters, so that an index leads past the many rows of denied admits.
const numbersQuery = `SELECT
	COUNT(*) FILTER (WHERE action = '` + ActionProvision + `' AND outcome = '` + OutcomeOK + `'),
	COUNT(*) FILTER (WHERE action = '` + ActionHealthFailed + `'),
	COUNT(*) FILTER (WHERE action = '` + ActionAutoRestartSuccess + `'),
	CAST(COALESCE(AVG(boot_ms) FILTER (WHERE outcome = '` + OutcomeOK + `'), 0) AS DOUBLE PRECISION),
	COALESCE((SELECT total FROM audit_totals WHERE product_id = $1 AND action = '` + ActionProvision + `'), 0),
	COALESCE((SELECT total FROM audit_totals WHERE product_id = $1 AND action = '` + ActionDestroy + `'), 0)
FROM audit_entries
WHERE product_id = $1 AND timestamp >= $2 AND action IN ('` + ActionProvision + `', '` + ActionStart + `', '` + ActionWake + `', '` +
	ActionAutoRestartSuccess + `', '` + ActionHealthFailed + `')`
