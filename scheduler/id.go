package scheduler

import (
	"crypto/rand"
	"strings"

	"github.com/septemberai/orch/engine"
)

// newID returns a new, unique id: 26 characters a-z2-7, 130 bits.
func newID() string { return strings.ToLower(rand.Text()) }

// newEngineID returns a new, unique engine_id of this deployment.
func (s *Scheduler) newEngineID() string { return engine.NewID(s.guard.ID()) }
