package harness

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
)

// Disagreement returns how the stores disagree about a deployment's engines, or nil: no row
// has an operation, every row has all that belongs to it, and nothing exists without a row.
// idPrefix is the prefix of the deployment's ids.
func (s *Stores) Disagreement(prefix, idPrefix string) error {
	rows, err := s.Engines(prefix)
	if err != nil {
		return err
	}
	ids := map[string]bool{}
	for _, row := range rows {
		if row.Op != nil {
			return fmt.Errorf("%s of %s is at %s", row.Op.Kind, row.UserID, row.Op.Step)
		}
		ids[row.EngineID] = true
		if err := s.WantSound(row); err != nil {
			return fmt.Errorf("%s engine of %s: %w", row.State, row.UserID, err)
		}
	}
	counts := s.Census(prefix)
	if counts["quota"] != len(rows) || counts["engine-ids/"] != len(rows) || counts["graves/"] != 0 {
		return fmt.Errorf("%d rows, but %v", len(rows), counts)
	}
	return s.wantOwned(prefix, idPrefix, ids)
}

// WantSound checks everything that belongs to one row.
func (s *Stores) WantSound(row *engine.Row) error {
	name := row.JobID()
	job, _, err := s.Nomad.Jobs().Info(name, nil)
	if err != nil {
		return err
	}
	// A failed engine may have an unhealthy process.
	if running := row.State == engine.Running || row.Frozen != nil; row.State != engine.Failed && running != (*job.TaskGroups[0].Count == 1) {
		return fmt.Errorf("its job's count is %d", *job.TaskGroups[0].Count)
	}
	allocs, _, err := s.Nomad.Jobs().Allocations(name, true, nil)
	if err != nil {
		return err
	}
	alive := 0
	for _, a := range allocs {
		if a.ClientStatus == nomad.AllocClientStatusRunning || a.ClientStatus == nomad.AllocClientStatusPending {
			alive++
		}
	}
	if want := *job.TaskGroups[0].Count; alive != want {
		return fmt.Errorf("%d allocations are alive, want %d", alive, want)
	}
	secret, err := s.Vault.KVv2(s.MountWith(row.EngineID)).GetVersion(s.T.Context(), "engines/"+row.EngineID, row.KeyVersion)
	if err != nil {
		return err
	}
	key, _ := secret.Data["api_key"].(string)
	variable, _, err := s.Nomad.Variables().Read("nomad/jobs/"+name, nil)
	if err != nil {
		return err
	}
	if sum := sha256.Sum256([]byte(key)); variable.Items["key_hash"] != hex.EncodeToString(sum[:]) {
		return errors.New("its variable is not the hash of its key")
	}
	volumes, _, err := s.Nomad.HostVolumes().List(&nomad.HostVolumeListRequest{}, nil)
	if err != nil {
		return err
	}
	found := 0
	for _, v := range volumes {
		if of, ok := engine.ParseVolume(v.Name); ok && of.EngineID == row.EngineID {
			found++
			if v.Name != row.Volume() {
				return fmt.Errorf("volume %s, but %s in its row", v.Name, row.Volume())
			}
			if v.ID != row.VolumeID || v.NodeID != row.NodeID {
				return fmt.Errorf("volume %s on %s, but %s on %s in its row", v.ID, v.NodeID, row.VolumeID, row.NodeID)
			}
		}
	}
	if found != 1 {
		return fmt.Errorf("%d volumes", found)
	}
	return nil
}

// worker is the prefix of the names of the workers of snapshots.
const worker = jobs.WorkerPrefix

// wantOwned checks that everything of a deployment belongs to a row or to the pool.
func (s *Stores) wantOwned(prefix, idPrefix string, ids map[string]bool) error {
	if idPrefix == "" {
		return nil
	}
	mine := func(name string) (id string, ok bool) {
		id = strings.TrimPrefix(name, "engine-")
		return id, strings.HasPrefix(id, idPrefix)
	}
	jobs, _, err := s.Nomad.Jobs().List(nil)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		if id, ok := mine(j.ID); ok && !ids[id] {
			return fmt.Errorf("job %s has no row", j.ID)
		}
		if strings.HasPrefix(j.ID, worker+idPrefix) {
			return fmt.Errorf("the worker %s is left", j.ID)
		}
	}
	variables, _, err := s.Nomad.Variables().List(nil)
	if err != nil {
		return err
	}
	for _, v := range variables {
		if id, ok := mine(strings.TrimPrefix(v.Path, "nomad/jobs/")); ok && !ids[id] {
			return fmt.Errorf("variable %s has no row", v.Path)
		}
		if strings.HasPrefix(v.Path, "nomad/jobs/"+worker+idPrefix) {
			return fmt.Errorf("the order %s is left", v.Path)
		}
	}
	secret, err := s.Vault.Logical().List(MountName(prefix) + "/metadata/engines")
	if err != nil {
		return err
	}
	if secret != nil {
		for _, key := range secret.Data["keys"].([]any) {
			if id, ok := mine(key.(string)); ok && !ids[id] {
				return fmt.Errorf("key %s has no row", id)
			}
		}
	}
	// The pool is read last: a volume that is claimed meanwhile would be in neither list.
	volumes, _, err := s.Nomad.HostVolumes().List(&nomad.HostVolumeListRequest{}, nil)
	if err != nil {
		return err
	}
	pool, _, err := s.Consul.KV().Keys(prefix+"pool/volumes/", "", nil)
	if err != nil {
		return err
	}
	pooled := map[string]bool{}
	for _, key := range pool {
		pooled[key[strings.LastIndexByte(key, '/')+1:]] = true
	}
	for _, v := range volumes {
		if of, ok := engine.ParseVolume(v.Name); ok && strings.HasPrefix(of.EngineID, idPrefix) && !ids[of.EngineID] && !pooled[of.EngineID] {
			return fmt.Errorf("volume %s has no row", v.Name)
		}
	}
	return nil
}
