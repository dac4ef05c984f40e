package reconcile

import (
	"context"
	"strings"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/scheduler/witness"
)

// Found is everything under one engine_id outside the registry.
type Found struct {
	id       string
	job      *cluster.JobInfo
	volumes  []*cluster.Volume
	variable *cluster.VariableInfo
	key      bool
}

// whole reports whether an engine may contain a user's memory: it has a process, or a
// volume that another record refers to.
func (f *Found) whole() bool {
	return len(f.volumes) > 0 && (f.key || f.job != nil || f.variable != nil) || f.job != nil && len(f.job.Live) > 0
}

func (f *Found) empty() bool {
	return f.job == nil && len(f.volumes) == 0 && f.variable == nil && !f.key
}

// String lists the parts that exist.
func (f *Found) String() string { return strings.Join(f.Parts(), ", ") }

// Parts returns the parts that exist.
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

// Evidence reads everything that the stores contain about an engine. f is what the lists
// contained about it: which volumes to read, and the processes of an existing job. row is
// the engine's row, or nil.
func (r *Reconciler) Evidence(ctx context.Context, f *Found, row *engine.Row) (*witness.Evidence, error) {
	of := witness.Subject{EngineID: f.id, Deployment: r.d.Guard.ID(), Row: row, Volumes: f.volumes, Undone: r.d.Undone}
	if f.job != nil {
		of.Live = len(f.job.Live)
	}
	return witness.Read(ctx, r.d.Nomad, r.d.Vault, of)
}

// Find reads everything of one engine outside the registry.
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
