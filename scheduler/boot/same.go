package boot

import (
	"github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
)

// SameProcess reports whether the process in f is that of the allocation, and may still
// exist.
func SameProcess(f *engine.Frozen, row *engine.Row, alloc *cluster.Alloc) bool {
	return alloc != nil && alloc.ID == f.AllocID && !alloc.Terminal() && alloc.Desired == api.AllocDesiredStatusRun &&
		alloc.Crash <= row.Crash && alloc.Started <= f.Started
}
