package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/jobs"
)

// JobInfo is a job in a list of all jobs.
type JobInfo struct {
	ID          string
	ModifyIndex uint64 // the job's JobModifyIndex
	// EngineID, Deployment and DeploymentID are from the job's meta and name its owner.
	// DeploymentID is empty in jobs of an earlier version of the service.
	EngineID, Deployment, DeploymentID string
	// Count is how many processes the job requests; -1 if unknown.
	Count int
	// Live lists the nodes of its allocations whose process may still exist.
	Live []string
}

// Jobs lists the jobs of the namespace whose name begins with prefix.
func (c *Cluster) Jobs(ctx context.Context, prefix string, throttle Throttle) ([]*JobInfo, error) {
	var list []*JobInfo
	byID := map[string]*JobInfo{}
	q := c.read(ctx)
	q.Prefix = prefix
	_, err := c.pages(ctx, throttle, q, func(q *api.QueryOptions) (*api.QueryMeta, error) {
		stubs, meta, err := c.client.Jobs().ListOptions(&api.JobListOptions{Fields: &api.JobListFields{Meta: true}}, q)
		for _, s := range stubs {
			if byID[s.ID] == nil {
				byID[s.ID] = &JobInfo{ID: s.ID, ModifyIndex: s.JobModifyIndex, EngineID: s.Meta["engine_id"], Deployment: s.Meta["deployment"], DeploymentID: s.Meta[jobs.DeploymentMeta], Count: -1}
				list = append(list, byID[s.ID])
			}
		}
		return meta, err
	})
	if err != nil {
		return nil, err
	}
	// That list has no counts, but the one that Nomad's UI reads has them. It is ordered by
	// the last change, newest first. In reverse order, a job that changes meanwhile appears
	// on a later page.
	q = c.read(ctx)
	q.Params = map[string]string{"reverse": "true"}
	_, err = c.pages(ctx, throttle, q, func(q *api.QueryOptions) (*api.QueryMeta, error) {
		var statuses []struct {
			ID            string
			GroupCountSum int
			Allocs        []struct{ ClientStatus, NodeID string }
		}
		meta, err := c.client.Raw().Query("/v1/jobs/statuses", &statuses, q)
		for _, s := range statuses {
			job := byID[s.ID]
			if job == nil {
				continue
			}
			job.Count, job.Live = s.GroupCountSum, nil
			for _, a := range s.Allocs {
				if alloc := (&Alloc{Client: a.ClientStatus}); !alloc.Terminal() {
					job.Live = append(job.Live, a.NodeID)
				}
			}
		}
		return meta, err
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

// VariableInfo is a job's variable in a list of all variables.
type VariableInfo struct {
	JobID       string
	ModifyIndex uint64
}

// KeyHashes lists the variables of jobs whose name begins with prefix.
func (c *Cluster) KeyHashes(ctx context.Context, prefix string, throttle Throttle) ([]*VariableInfo, error) {
	var infos []*VariableInfo
	_, err := c.pages(ctx, throttle, c.read(ctx), func(q *api.QueryOptions) (*api.QueryMeta, error) {
		list, meta, err := c.client.Variables().PrefixList(variablePath(prefix), q)
		for _, v := range list {
			infos = append(infos, &VariableInfo{JobID: strings.TrimPrefix(v.Path, variablePath("")), ModifyIndex: v.ModifyIndex})
		}
		return meta, err
	})
	if err != nil {
		return nil, err
	}
	return infos, nil
}

// DeleteVariableAt deletes a job's variable if it has not changed since it was listed.
// ErrConflict: it has.
func (c *Cluster) DeleteVariableAt(ctx context.Context, jobID string, index uint64) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := c.client.Variables().CheckedDelete(variablePath(jobID), index, c.write(ctx))
	var conflict api.ErrCASConflict
	if errors.As(err, &conflict) {
		if conflict.Conflict == nil || conflict.Conflict.ModifyIndex == 0 {
			return nil // it is already deleted
		}
		return fmt.Errorf("%w: variable of %s", ErrConflict, jobID)
	}
	if err = classify(err); errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}
