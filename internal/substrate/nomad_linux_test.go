package substrate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-version"
	"github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/jobs"
)

// checkedAtCommit is the first version of Nomad that compares the index of a registration
// when it commits it.
var checkedAtCommit = version.Must(version.NewVersion("2.0.1"))

// markedJob is a job that runs nothing.
func markedJob(id, mark string) *api.Job {
	job := api.NewServiceJob(id, id, "global", 50)
	group := api.NewTaskGroup("engine", 0)
	group.Services = []*api.Service{{Name: id, Provider: "nomad"}}
	task := api.NewTask("engine", "raw_exec").SetConfig("command", "/bin/true")
	job.AddTaskGroup(group.AddTask(task))
	none := 0
	job.Update = &api.UpdateStrategy{MaxParallel: &none} // no deployment, as in an engine's job
	jobs.Note{Mark: mark}.Write(job)
	return job
}

// TestNomadRegistrationsAtOneIndex shows why cluster.Register reads jobs back: a server
// before 2.0.1 reports several registrations at one index as successful. A later server
// must never do so.
func TestNomadRegistrationsAtOneIndex(t *testing.T) {
	t.Parallel()
	eachNomad(t, func(t *testing.T, s *devstack.Stack) {
		const (
			bursts = 40
			atMost = 10 * time.Second
		)
		client := nomadClient(t, s, nil)
		const id = "at-one-index"
		resp, _, err := client.Jobs().Register(markedJob(id, "before"), nil)
		if err != nil {
			t.Fatal(err)
		}
		at, several, done := resp.JobModifyIndex, 0, 0
		for began := time.Now(); done < bursts && time.Since(began) < atMost; done++ {
			won := make(chan uint64, writers)
			var ready, all sync.WaitGroup
			ready.Add(writers)
			for w := range writers {
				all.Go(func() {
					job := markedJob(id, fmt.Sprintf("%d-%d", done, w))
					ready.Done()
					ready.Wait()
					resp, _, err := client.Jobs().EnforceRegister(job, at, nil)
					switch {
					case err == nil:
						won <- resp.JobModifyIndex
					case !strings.Contains(err.Error(), api.RegisterEnforceIndexErrPrefix):
						t.Error(err)
					}
				})
			}
			all.Wait()
			close(won)
			winners := len(won)
			if winners > 1 {
				several++
			}
			for index := range won {
				at = max(at, index)
			}
			if winners == 0 {
				t.Fatalf("burst %d: nobody registered the job at index %d", done, at)
			}
		}
		t.Logf("in %d of %d bursts more than one of %d registrations at one index was made", several, done, writers)
		switch old := nomadVersion(t, client).LessThan(checkedAtCommit); {
		case several > 0 && !old:
			t.Error("the index of a registration is not compared when it is committed")
		case several == 0 && old:
			t.Skip("this server is known to do so, and did not on this machine")
		}
	})
}

// TestNomadRegister: the result of cluster.Register is true on every server.
func TestNomadRegister(t *testing.T) {
	t.Parallel()
	eachNomad(t, func(t *testing.T, s *devstack.Stack) {
		r := &jobRegister{id: "register"}
		r.cluster = cluster.New(nomadClient(t, s, r.watch), "default", cluster.Mkdir, hclog.NewNullLogger())
		h := compareAndSet(t, r)
		versions, _, _, err := r.cluster.Client().Jobs().Versions(r.id, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		won := map[uint64]string{}
		for _, c := range h.calls {
			if c.kind == write && !c.refused {
				won[c.index] = c.value
			}
		}
		for _, v := range versions {
			if mark, is := won[*v.JobModifyIndex]; is && jobs.Mark(v) != mark {
				t.Errorf("the job at index %d was written by %q, but %q was told that it wrote it", *v.JobModifyIndex, jobs.Mark(v), mark)
			}
		}
	})
}

// jobRegister is a register: the mark of a job, written by cluster.Register.
type jobRegister struct {
	cluster *cluster.Cluster
	id      string
}

// committedKey is the context key for Nomad's response to a registration.
type committedKey struct{}

// roundTrip is a function as a transport.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// watch records the index at which Nomad reports a job as registered.
func (r *jobRegister) watch(next http.RoundTripper) http.RoundTripper {
	return roundTrip(func(req *http.Request) (*http.Response, error) {
		index, wanted := req.Context().Value(committedKey{}).(*uint64)
		if !wanted || req.URL.Path != "/v1/jobs" {
			return next.RoundTrip(req)
		}
		req = req.Clone(req.Context())
		req.Header.Del("Accept-Encoding") // the response is read here
		resp, err := next.RoundTrip(req)
		if err != nil || resp.StatusCode != http.StatusOK {
			return resp, err
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return nil, err
		}
		if err := resp.Body.Close(); err != nil {
			return nil, err
		}
		var answer struct{ JobModifyIndex uint64 }
		if err := json.Unmarshal(body, &answer); err != nil {
			return nil, err
		}
		*index, resp.Body = answer.JobModifyIndex, io.NopCloser(bytes.NewReader(body))
		return resp, nil
	})
}

func (r *jobRegister) read(ctx context.Context) (uint64, string, error) {
	job, err := r.cluster.Job(ctx, r.id)
	if errors.Is(err, cluster.ErrNotFound) {
		return 0, "", nil
	}
	if err != nil {
		return 0, "", err
	}
	return *job.JobModifyIndex, jobs.Mark(job), nil
}

func (r *jobRegister) write(ctx context.Context, at uint64, value string) (uint64, error) {
	var committed uint64
	index, err := r.cluster.Register(context.WithValue(ctx, committedKey{}, &committed), markedJob(r.id, value), at)
	switch {
	case errors.Is(err, cluster.ErrConflict) && committed != 0:
		return committed, errReplaced
	case errors.Is(err, cluster.ErrConflict):
		return 0, errRefused
	}
	return index, err
}

// TestNomadVariables: a variable is changed and removed only at the index that the call
// names.
func TestNomadVariables(t *testing.T) {
	t.Parallel()
	eachNomad(t, func(t *testing.T, s *devstack.Stack) {
		compareAndSet(t, &variable{vars: nomadClient(t, s, nil).Variables(), path: "nomad/jobs/variable"})
	})
}

// variable is a Nomad variable with one item.
type variable struct {
	vars *api.Variables
	path string
}

const item = "key_hash"

func (v *variable) read(ctx context.Context) (uint64, string, error) {
	held, _, err := v.vars.Read(v.path, (&api.QueryOptions{}).WithContext(ctx))
	if errors.Is(err, api.ErrVariablePathNotFound) {
		return 0, "", nil
	}
	if err != nil {
		return 0, "", err
	}
	return held.ModifyIndex, held.Items[item], nil
}

func (v *variable) write(ctx context.Context, at uint64, value string) (uint64, error) {
	put := api.NewVariable(v.path)
	put.ModifyIndex, put.Items = at, api.VariableItems{item: value}
	written, _, err := v.vars.CheckedUpdate(put, (&api.WriteOptions{}).WithContext(ctx))
	if err != nil {
		return 0, refusedVariable(err)
	}
	return written.ModifyIndex, nil
}

func (v *variable) remove(ctx context.Context, at uint64) error {
	_, err := v.vars.CheckedDelete(v.path, at, (&api.WriteOptions{}).WithContext(ctx))
	return refusedVariable(err)
}

func refusedVariable(err error) error {
	var moved api.ErrCASConflict
	if errors.As(err, &moved) {
		return errRefused
	}
	return err
}
