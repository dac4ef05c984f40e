// Package health maintains engines without a call: one table (assess) determines what an
// engine needs, and the leader's Monitor does it.
package health

import (
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/scheduler/boot"
)

// nodeState is the state of an engine's node according to Nomad's servers.
type nodeState int

const (
	nodeUp     nodeState = iota
	nodeShut             // it accepts no placements: draining, or made ineligible
	nodeSilent           // it does not report to the servers, or they have forgotten it
)

// observation is the state of one engine, as read from the stores themselves.
type observation struct {
	row   *engine.Row
	alloc *cluster.Alloc // the newest allocation of its job; nil: none
	node  nodeState
	fails bool // its check in Consul is critical
	// vanished: Nomad does not know the allocation in the row. lost: it knows no
	// allocation, and not the volume either.
	vanished, lost bool
	now            time.Time
}

// alive reports whether Nomad wants the engine's process to run and it, or its next one,
// may run.
func (s *observation) alive() bool {
	return s.alloc != nil && !s.alloc.Terminal() && s.alloc.Desired == api.AllocDesiredStatusRun
}

// unheard reports whether the state of the process cannot be known.
func (s *observation) unheard() bool {
	return s.node == nodeSilent || s.alive() && s.alloc.Client == api.AllocClientStatusUnknown
}

// remedy is what the service does for an engine without a call.
type remedy int

const (
	remedyNone    remedy = iota
	remedyFail           // fail it, with the reason that assess returns
	remedyProbe          // its check fails, or its upstreams did: probe it
	remedyRecover        // it has a process that may be healthy again
	remedyPeek           // its process may have recovered by itself: probe it, or else restart it
	remedyRestart        // it needs a new process now
	remedyWait           // it needs a new process at the time in its row
	remedyGiveUp         // it was restarted as often as allowed
	remedySettle         // it sleeps, and its process is not the frozen one: end that process
)

func (c remedy) String() string {
	return [...]string{"none", "fail", "probe", "recover", "peek", "restart", "wait", "give up", "settle"}[c]
}

// assess is the table of what a running, failed or paused engine needs. It does
// not consider storms: whether a restart may begin is decided when it is about to.
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
		case s.unheard(), s.lost: // nothing could be placed there
			return remedyNone, ""
		case s.alive() && wasCut(row.Reason):
			return remedyRecover, ""
		case s.alive() && row.Reason != engine.ReasonKeyProof && row.Reason != engine.ReasonKeyUnconfirmed: // /health does not show these two
			return remedyPeek, ""
		case s.node == nodeShut:
			return remedyNone, ""
		case row.Reason == engine.ReasonNodeDown, row.Reason == engine.ReasonVolumeUnknown:
			return remedyRestart, "" // the engine is not the cause
		}
		return due(row, s.now, backoff), ""
	}
	return remedyNone, ""
}

// wasCut reports whether an engine failed because its process or its node disappeared: then
// a process that exists is a new one, or its node is back.
func wasCut(reason string) bool {
	return reason == engine.ReasonNodeDown || reason == engine.ReasonCrashed || reason == engine.ReasonMemory || reason == engine.ReasonJobMissing || reason == engine.ReasonRecovered ||
		reason == engine.ReasonVolumeUnknown || reason == engine.ReasonAdopted
}

// due reports whether a failed engine must be restarted, by its row.
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
