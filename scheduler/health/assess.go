// Package health looks after engines that nobody asked about: what an engine needs is one
// table (assess), and the leader has it done (Monitor).
package health

import (
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/scheduler/boot"
)

// nodeState is what the servers know of an engine's node.
type nodeState int

const (
	nodeUp     nodeState = iota
	nodeShut             // it takes no placements: draining, or closed manually
	nodeSilent           // the servers do not hear from it, or have forgotten it
)

// observation is what there is of one engine, as the stores themselves say.
type observation struct {
	row   *engine.Row
	alloc *cluster.Alloc // the newest of its job; nil: there is none
	node  nodeState
	fails bool // its check in Consul is critical
	// vanished: Nomad does not know the allocation of the row. lost: it knows none, nor
	// the volume.
	vanished, lost bool
	now            time.Time
}

// alive says whether Nomad means the engine's process to run and it, or its next
// one, may do so.
func (s *observation) alive() bool {
	return s.alloc != nil && !s.alloc.Terminal() && s.alloc.Desired == api.AllocDesiredStatusRun
}

// unheard says whether nobody can say how the process is.
func (s *observation) unheard() bool {
	return s.node == nodeSilent || s.alive() && s.alloc.Client == api.AllocClientStatusUnknown
}

// remedy is what is done for an engine without anybody asking.
type remedy int

const (
	remedyNone    remedy = iota
	remedyFail           // it is failed, for the reason that assess returns
	remedyProbe          // Consul says that it fails, or its upstreams did: ask itself how it is
	remedyRecover        // it has a process that may be healthy again
	remedyPeek           // its process may have healed by itself: ask it, else restart
	remedyRestart        // it needs a new process, now
	remedyWait           // it needs a new process, at the row's time
	remedyGiveUp         // it was restarted as often as it may be
	remedySettle         // it sleeps, and its process is not the one that was frozen: end that
)

func (c remedy) String() string {
	return [...]string{"none", "fail", "probe", "recover", "peek", "restart", "wait", "give up", "settle"}[c]
}

// assess is the one table of what a running, failed or paused engine needs (DESIGN
// section 5). It knows nothing of storms: whether a restart may go ahead is
// asked when it is to begin.
func assess(s observation, backoff engine.Backoff) (remedy, string) {
	row := s.row
	if row.Op == nil && row.State == engine.Sleeping && row.Frozen != nil && !s.unheard() && !s.lost && !boot.SameProcess(row.Frozen, row, s.alloc) {
		return remedySettle, ""
	}
	if row.Op != nil || row.Desired != engine.Running {
		return remedyNone, ""
	}
	switch row.State {
	case engine.Running:
		switch {
		case s.unheard(), !s.alive() && s.node == nodeShut:
			return remedyFail, engine.ReasonNodeDown
		case s.lost:
			return remedyFail, engine.ReasonVolumeUnknown
		case s.alloc == nil:
			return remedyFail, engine.ReasonJobMissing
		case s.alloc.ID == row.AllocID && s.alloc.Crash > row.Crash && s.alloc.OutOfMemory:
			return remedyFail, engine.ReasonMemory
		case !s.alive(), s.alloc.ID != row.AllocID, s.alloc.Crash > row.Crash:
			return remedyFail, engine.ReasonCrashed
		case s.fails, row.Reason != "":
			return remedyProbe, engine.ReasonUnhealthy
		}
	case engine.Failed:
		switch {
		case s.unheard(), s.lost: // nothing that is started could be placed
			return remedyNone, ""
		case s.alive() && wasCut(row.Reason):
			return remedyRecover, ""
		case s.alive() && row.Reason != engine.ReasonKeyProof && row.Reason != engine.ReasonKeyUnconfirmed: // these it says nothing of in /health
			return remedyPeek, ""
		case s.node == nodeShut:
			return remedyNone, ""
		case row.Reason == engine.ReasonNodeDown, row.Reason == engine.ReasonVolumeUnknown:
			return remedyRestart, "" // no fault of its own
		}
		return due(row, s.now, backoff), ""
	}
	return remedyNone, ""
}

// wasCut says whether an engine failed because its process or its node went
// away: then a process that is there is a new one, or its node is back.
func wasCut(reason string) bool {
	return reason == engine.ReasonNodeDown || reason == engine.ReasonCrashed || reason == engine.ReasonMemory || reason == engine.ReasonJobMissing || reason == engine.ReasonRecovered ||
		reason == engine.ReasonVolumeUnknown || reason == engine.ReasonAdopted
}

// due says whether a failed engine is to be restarted, by its row.
func due(row *engine.Row, now time.Time, backoff engine.Backoff) remedy {
	r := row.Restarts
	switch {
	case r == nil:
		return remedyRestart
	case r.GaveUp:
		return remedyNone
	case r.Attempts >= backoff.MaxAttempts:
		return remedyGiveUp
	case engine.StillWaits(r.NextAt, now, backoff.Longest()):
		return remedyWait
	}
	return remedyRestart
}
