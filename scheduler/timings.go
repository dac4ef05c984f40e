package scheduler

import "time"

// timings is where the time of an operation went, for the log: pairs of
// <name>_ms and milliseconds. What its caller waited for besides is HTTP,
// authentication and turns.
type timings []any

func (t *timings) since(name string, began time.Time) { t.took(name, time.Since(began)) }

func (t *timings) took(name string, d time.Duration) {
	*t = append(*t, name+"_ms", float64(d.Microseconds())/1000)
}

// Parts of operations that are no steps.
const (
	timingAsking  = "checks"      // whether the dependencies are there
	timingBegin   = "audit-begin" // the audit row, on the disk
	timingClaim   = "claim"       // the place and the row's first write
	timingRows    = "rows"        // the row after each step
	timingRecord  = "audit-end"   // the audit row's completion
	timingProbing = "probe"       // the last look at a warm engine
)
