package scheduler

import (
	"crypto/rand"
	"strings"

	"github.com/septemberai/orch/engine"
)

// newID returns an id that was never used: 26 characters a-z2-7, 130 bits.
func newID() string { return strings.ToLower(rand.Text()) }

// newEngineID returns an engine_id of this deployment that was never used.
func (s *Scheduler) newEngineID() string { return engine.NewID(s.guard.ID()) }
