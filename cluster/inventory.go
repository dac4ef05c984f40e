package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/hashicorp/nomad/api"
)

// JobInfo is a job as a list of all tells it.
type JobInfo struct {
	ID          string
	ModifyIndex uint64 // its JobModifyIndex
	Meta        map[string]string
	// Count is how many processes it asks for; -1 when that was not told.
	Count int
	// Live are the nodes of its allocations whose process is not known to be
	// gone.
	Live []string
}

// Jobs lists the jobs of the namespace whose name begins with prefix.
func (c *Cluster) Jobs(ctx context.Context, prefix string) ([]*JobInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*callTimeout)
	defer cancel()
	q := c.read(ctx)
	q.Prefix = prefix
	stubs, meta, err := c.client.Jobs().ListOptions(&api.JobListOptions{Fields: &api.JobListFields{Meta: true}}, q)
	if err != nil {
		return nil, classify(err)
	}
	if meta.NextToken != "" {
		return nil, fmt.Errorf("%w: the list of jobs is cut", ErrUnavailable)
	}
	// That list does not tell counts; the one that Nomad's own UI reads does.
	var statuses []struct {
		ID            string
		GroupCountSum int
		Allocs        []struct{ ClientStatus, NodeID string }
	}
	meta, err = c.client.Raw().Query("/v1/jobs/statuses", &statuses, c.read(ctx))
	if err != nil {
		return nil, classify(err)
	}
	if meta.NextToken != "" {
		return nil, fmt.Errorf("%w: the list of job statuses is cut", ErrUnavailable)
	}
	jobs := make([]*JobInfo, 0, len(stubs))
	byID := make(map[string]*JobInfo, len(stubs))
	for _, s := range stubs {
		job := &JobInfo{ID: s.ID, ModifyIndex: s.JobModifyIndex, Meta: s.Meta, Count: -1}
		jobs, byID[s.ID] = append(jobs, job), job
	}
	for _, s := range statuses {
		job := byID[s.ID]
		if job == nil {
			continue
		}
		job.Count = s.GroupCountSum
		for _, a := range s.Allocs {
			if alloc := (&Alloc{Client: a.ClientStatus}); !alloc.Terminal() {
				job.Live = append(job.Live, a.NodeID)
			}
		}
	}
	return jobs, nil
}

// VariableInfo is a job's variable as a list of all tells it.
type VariableInfo struct {
	JobID       string
	ModifyIndex uint64
}

// KeyHashes lists the variables of jobs whose name begins with prefix.
func (c *Cluster) KeyHashes(ctx context.Context, prefix string) ([]*VariableInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	list, meta, err := c.client.Variables().PrefixList(variablePath(prefix), c.read(ctx))
	if err != nil {
		return nil, classify(err)
	}
	if meta.NextToken != "" {
		return nil, fmt.Errorf("%w: the list of variables is cut", ErrUnavailable)
	}
	infos := make([]*VariableInfo, 0, len(list))
	for _, v := range list {
		infos = append(infos, &VariableInfo{JobID: strings.TrimPrefix(v.Path, variablePath("")), ModifyIndex: v.ModifyIndex})
	}
	return infos, nil
}

// DeleteKeyHashAt removes a job's variable that is still the one listed.
// ErrConflict: it was written since.
func (c *Cluster) DeleteKeyHashAt(ctx context.Context, jobID string, index uint64) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := c.client.Variables().CheckedDelete(variablePath(jobID), index, c.write(ctx))
	var conflict api.ErrCASConflict
	if errors.As(err, &conflict) {
		if conflict.Conflict == nil || conflict.Conflict.ModifyIndex == 0 {
			return nil // it is gone
		}
		return fmt.Errorf("%w: variable of %s", ErrConflict, jobID)
	}
	if err = classify(err); errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}
