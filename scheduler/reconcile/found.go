package reconcile

import (
	"context"
	"strings"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
)

// Found is what there is under one engine_id outside the registry.
type Found struct {
	id       string
	job      *cluster.JobInfo
	volumes  []*cluster.Volume
	variable *cluster.VariableInfo
	key      bool
}

// whole says whether what there is of an engine may hold somebody's memory: a
// volume that something else knows of, or a process.
func (f *Found) whole() bool {
	return len(f.volumes) > 0 && (f.key || f.job != nil || f.variable != nil) || f.job != nil && len(f.job.Live) > 0
}

func (f *Found) empty() bool {
	return f.job == nil && len(f.volumes) == 0 && f.variable == nil && !f.key
}

// String names what there is.
func (f *Found) String() string { return strings.Join(f.Parts(), ", ") }

// Parts names each thing that there is.
func (f *Found) Parts() []string {
	var parts []string
	if f.job != nil {
		parts = append(parts, "job")
	}
	for range f.volumes {
		parts = append(parts, "volume")
	}
	if f.variable != nil {
		parts = append(parts, "variable")
	}
	if f.key {
		parts = append(parts, "key")
	}
	return parts
}

// Find reads what there is of one engine outside the registry.
func (r *Reconciler) Find(ctx context.Context, engineID string) (*Found, error) {
	f := &Found{id: engineID}
	jobs, err := r.d.Nomad.Jobs(ctx, engine.JobID(engineID), cluster.Unthrottled)
	if err != nil {
		return nil, err
	}
	for _, j := range jobs {
		if j.ID == engine.JobID(engineID) {
			f.job = j
		}
	}
	if f.volumes, err = r.d.Engines.VolumesOf(ctx, engineID); err != nil {
		return nil, err
	}
	variables, err := r.d.Nomad.KeyHashes(ctx, engine.JobID(engineID), cluster.Unthrottled)
	if err != nil {
		return nil, err
	}
	for _, v := range variables {
		if v.JobID == engine.JobID(engineID) {
			f.variable = v
		}
	}
	version, err := r.d.Vault.NewestVersion(ctx, engineID)
	f.key = version > 0
	return f, err
}
