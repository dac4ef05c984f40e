package operation

import (
	"slices"
	"strings"
	"time"

	"github.com/septemberai/orch/engine"
)

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

// ofOthers are the steps in which Nomad, the node or the engine does the work.
var ofOthers = []string{"register", "boot", "scale-down", "drain", "purge", "volume", "thaw", "proof"}

// Elsewhere reports whether in a step others than the service do the work, so that its time
// does not count as the service's own share.
func Elsewhere(step string) bool { return slices.Contains(ofOthers, step) }

// Phase is a part of an operation: one of the Timing constants, or a step.
type Phase struct {
	Name string
	Took time.Duration
}

// phases returns the parts of an operation, in their order.
func (t Timings) phases() []Phase {
	all := make([]Phase, 0, len(t)/2)
	for i := 0; i+1 < len(t); i += 2 {
		name, _ := t[i].(string)
		ms, _ := t[i+1].(float64)
		all = append(all, Phase{strings.TrimSuffix(name, "_ms"), time.Duration(ms * float64(time.Millisecond))})
	}
	return all
}

// Outcome is how an operation ended, for metrics.
type Outcome struct {
	// Kind is the name in the log: the kind, or "warm claim".
	Kind string
	// Action is the operation's name in the audit log.
	Action string
	// Code is the error that its caller got; empty: it succeeded.
	Code engine.Code
	// Took is the time until the end of an operation that succeeded, with what came before
	// its first step. Phases are its parts. Both are empty for one that failed.
	Took   time.Duration
	Phases []Phase
}

// outcome tells the observer how the operation ended. err is what its caller got.
func (o *Operation) outcome(began time.Time, err error) {
	if o.m.Observe == nil {
		return
	}
	out := Outcome{Kind: o.m.Owner.Name(o), Action: o.Began.Action}
	if err != nil {
		out.Code = o.m.Owner.AsError(err).Code
	} else {
		out.Phases = o.timings.phases()
		out.Took = time.Since(began)
		for _, p := range out.Phases[:o.before] {
			out.Took += p.Took
		}
	}
	o.m.Observe(out)
}
