package operation

import "time"

// Timings is where the time of an operation went, for the log: pairs of
// <name>_ms and milliseconds. What its caller waited for besides is HTTP,
// authentication and turns.
type Timings []any

// Since notes how long a part took that began then and ends now.
func (t *Timings) Since(name string, began time.Time) { t.Took(name, time.Since(began)) }

// Took notes how long a part took.
func (t *Timings) Took(name string, d time.Duration) {
	*t = append(*t, name+"_ms", float64(d.Microseconds())/1000)
}

// Parts of operations that are no steps.
const (
	TimingAsking  = "checks"      // whether the dependencies are there
	TimingBegin   = "audit-begin" // the audit row, on the disk
	TimingClaim   = "claim"       // the place and the row's first write
	timingRows    = "rows"        // the row after each step
	timingRecord  = "audit-end"   // the audit row's completion
	TimingProbing = "probe"       // the last look at a warm engine
)
