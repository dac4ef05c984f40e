package scheduler

import "time"

// spent is where the time of an operation went, for the log: pairs of
// <name>_ms and milliseconds. What its caller waited for besides is HTTP,
// authentication and turns.
type spent []any

func (t *spent) since(name string, began time.Time) { t.took(name, time.Since(began)) }

func (t *spent) took(name string, d time.Duration) {
	*t = append(*t, name+"_ms", float64(d.Microseconds())/1000)
}

// Parts of operations that are no steps.
const (
	spentAsking  = "checks"      // whether the dependencies are there
	spentBegin   = "audit-begin" // the audit row, on the disk
	spentClaim   = "claim"       // the place and the row's first write
	spentRows    = "rows"        // the row after each step
	spentRecord  = "audit-end"   // the audit row's completion
	spentProbing = "probe"       // the last look at a warm engine
)
