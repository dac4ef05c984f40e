// Package health looks after engines that nobody asked about: what an engine needs is one
// table (assess), and the leader has it done (Monitor).
package health

import (
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/boot"
)

// nodeState is what the servers know of an engine's node.
type nodeState int

const (
	nodeUp     nodeState = iota
	nodeShut             // it takes no placements: draining, or closed manually
	nodeSilent           // the servers do not hear from it, or have forgotten it
)

// sight is what there is of one engine, as the stores themselves say.
type sight struct {
	row   *registry.Engine
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
func (s *sight) alive() bool {
	return s.alloc != nil && !s.alloc.Terminal() && s.alloc.Desired == api.AllocDesiredStatusRun
}

// unheard says whether nobody can say how the process is.
func (s *sight) unheard() bool {
	return s.node == nodeSilent || s.alive() && s.alloc.Client == api.AllocClientStatusUnknown
}

// care is what an engine needs that nobody asked about.
type care int

const (
	careNone    care = iota
	careFail         // it is failed, for the verdict's reason
	careProbe        // Consul says that it fails, or its upstreams did: ask itself how it is
	careRecover      // it has a process that may be healthy again
	carePeek         // its process may have healed by itself: ask it, else restart
	careRestart      // it needs a new process, now
	careWait         // it needs a new process, at the row's time
	careGiveUp       // it was restarted as often as it may be
	careSettle       // it sleeps, and its process is not the one that was frozen: end that
)

func (c care) String() string {
	return [...]string{"none", "fail", "probe", "recover", "peek", "restart", "wait", "give up", "settle"}[c]
}

// assess is the one table of what a running, failed or paused engine needs (DESIGN
// section 5). It knows nothing of storms: whether a restart may go ahead is
// asked when it is to begin.
func assess(s sight, backoff engine.Backoff) (care, string) {
	row := s.row
	if row.Op == nil && row.State == registry.Sleeping && row.Frozen != nil && !s.unheard() && !s.lost && !boot.SameProcess(row.Frozen, row, s.alloc) {
		return careSettle, ""
	}
	if row.Op != nil || row.Desired != registry.Running {
		return careNone, ""
	}
	switch row.State {
	case registry.Running:
		switch {
		case s.unheard(), !s.alive() && s.node == nodeShut:
			return careFail, engine.ReasonNodeDown
		case s.lost:
			return careFail, engine.ReasonVolumeUnknown
		case s.alloc == nil:
			return careFail, engine.ReasonJobMissing
		case s.alloc.ID == row.AllocID && s.alloc.Crash > row.Crash && s.alloc.OutOfMemory:
			return careFail, engine.ReasonMemory
		case !s.alive(), s.alloc.ID != row.AllocID, s.alloc.Crash > row.Crash:
			return careFail, engine.ReasonCrashed
		case s.fails, row.Reason != "":
			return careProbe, engine.ReasonUnhealthy
		}
	case registry.Failed:
		switch {
		case s.unheard(), s.lost: // nothing that is started could be placed
			return careNone, ""
		case s.alive() && wasCut(row.Reason):
			return careRecover, ""
		case s.alive() && row.Reason != engine.ReasonKeyProof && row.Reason != engine.ReasonKeyUnconfirmed: // these it says nothing of in /health
			return carePeek, ""
		case s.node == nodeShut:
			return careNone, ""
		case row.Reason == engine.ReasonNodeDown, row.Reason == engine.ReasonVolumeUnknown:
			return careRestart, "" // no fault of its own
		}
		return due(row, s.now, backoff), ""
	}
	return careNone, ""
}

// wasCut says whether an engine failed because its process or its node went
// away: then a process that is there is a new one, or its node is back.
func wasCut(reason string) bool {
	return reason == engine.ReasonNodeDown || reason == engine.ReasonCrashed || reason == engine.ReasonMemory || reason == engine.ReasonJobMissing || reason == engine.ReasonRecovered ||
		reason == engine.ReasonVolumeUnknown || reason == engine.ReasonAdopted
}

// due says whether a failed engine is to be restarted, by its row.
func due(row *registry.Engine, now time.Time, backoff engine.Backoff) care {
	r := row.Restarts
	switch {
	case r == nil:
		return careRestart
	case r.GaveUp:
		return careNone
	case r.Attempts >= backoff.MaxAttempts:
		return careGiveUp
	case engine.StillWaits(r.NextAt, now, backoff.Longest()):
		return careWait
	}
	return careRestart
}
