package audit

import (
	"context"
	"time"
)

// Numbers are the figures of a product in GET /metrics. "1h" counts what
// began within the last hour.
type Numbers struct {
	Provisions1h    int64   // successful provisions
	Crashes1h       int64   // engines that failed
	Restarts1h      int64   // successful automatic restarts
	AvgBootMS       float64 // mean boot time in ms of the hour's successful provisions, starts, wakes and automatic restarts; 0 if there were none
	TotalProvisions int64   // successful provisions, ever
	TotalDestroys   int64   // successful destroys, ever, of engines whose provision succeeded
}

// Numbers counts a product's rows. The totals over all time have their own table, which
// retention does not touch. [ErrUnavailable].
func (l *Log) Numbers(ctx context.Context, productID string) (Numbers, error) {
	var n Numbers
	err := l.db.call(ctx, func(ctx context.Context) error {
		return l.db.reader.QueryRowContext(ctx, numbersQuery, clean(productID), l.db.time(stampOf(time.Now().Add(-time.Hour)))).
			Scan(&n.Provisions1h, &n.Crashes1h, &n.Restarts1h, &n.AvgBootMS, &n.TotalProvisions, &n.TotalDestroys)
	})
	return n, err
}

// boot_ms is set only for boots. The query names the actions instead of leaving them to the
// filters, so that an index skips the many rows of denied admits.
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
