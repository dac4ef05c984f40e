package operation

import "time"

// Timings shows in the log how the time of an operation was spent: pairs of <name>_ms and
// milliseconds. The rest of the caller's waiting time is HTTP, authentication and queues.
type Timings []any

// Since records the duration of a part that began at that time and ends now.
func (t *Timings) Since(name string, began time.Time) { t.Took(name, time.Since(began)) }

// Took records the duration of a part.
func (t *Timings) Took(name string, d time.Duration) {
	*t = append(*t, name+"_ms", float64(d.Microseconds())/1000)
}

// Parts of operations besides steps.
const (
	TimingAsking  = "checks"      // availability probes
	TimingBegin   = "audit-begin" // writing the audit row
	TimingClaim   = "claim"       // choosing the place and the first write of the row
	timingRows    = "rows"        // writing the row after each step
	timingRecord  = "audit-end"   // completing the audit row
	TimingProbing = "probe"       // the last probe of a warm engine
)
