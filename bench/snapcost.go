//go:build linux

package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/pause"
)

const (
	// costed is how many snapshots of small brains are taken to find what one costs.
	costed = 20
	// batches is how many batch jobs without work are timed.
	batches = 5
	anHour  = 1000 // snapshots, to which the costs are extrapolated
)

// batchStart runs a batch job that does nothing, and returns when Nomad reports that it has
// ended.
func (f *floor) batchStart(ctx context.Context, id string) {
	job := api.NewBatchJob(id, id, api.GlobalRegion, 50).AddDatacenter("*").AddTaskGroup(
		api.NewTaskGroup("true", 1).AddTask(api.NewTask("true", rawExec).SetConfig("command", "/bin/true")))
	_, _, err := f.api.Jobs().Register(job, (&api.WriteOptions{}).WithContext(ctx))
	check(err)
	for q := (&api.QueryOptions{}).WithContext(ctx); ; {
		allocs, meta, err := f.api.Jobs().Allocations(id, false, q)
		check(err)
		if slices.ContainsFunc(allocs, func(a *api.AllocationListStub) bool { return a.ClientStatus == api.AllocClientStatusComplete }) {
			return
		}
		q.WaitIndex = meta.LastIndex
	}
}

// raftIndex returns the number of entries that Nomad's servers have written to their log.
func (f *floor) raftIndex() float64 {
	self := must(f.api.Agent().Self())
	return must(strconv.ParseFloat(self.Stats["raft"]["last_log_index"], 64))
}

// evaluations returns how many evaluations Nomad has created after an index, and that of the
// newest.
func (f *floor) evaluations(ctx context.Context, after uint64) (n int, newest uint64) {
	all, _, err := f.api.Evaluations().List((&api.QueryOptions{}).WithContext(ctx))
	check(err)
	newest = after
	for _, e := range all {
		if e.CreateIndex > after {
			n, newest = n+1, max(newest, e.CreateIndex)
		}
	}
	return n, newest
}

// cost measures what a snapshot of a small brain costs Nomad's servers, with the CPU time of
// all processes.
func (b *bench) cost(ctx context.Context, s *service, f *floor) {
	const user = "costs"
	s.waiting(ctx, 1, 0)
	s.provision(ctx, user)
	s.snapshot(ctx, user)
	s.waiting(ctx, 1, 0) // new volumes cost evaluations, too
	index, began := f.raftIndex(), time.Now()
	if !pause.For(ctx, restSeconds*time.Second) {
		check(ctx.Err())
	}
	atRest := (f.raftIndex() - index) / time.Since(began).Seconds()
	_, newest := f.evaluations(ctx, 0)
	index, began = f.raftIndex(), time.Now()
	b.metered(s, "snapshot of a small brain", func() int {
		for range costed {
			s.snapshot(ctx, user)
		}
		return costed
	})
	seconds := time.Since(began).Seconds()
	created, _ := f.evaluations(ctx, newest)
	evaluations := float64(created) / costed
	entries := (f.raftIndex() - index - atRest*seconds) / costed
	b.add(figure{name: "evaluations of Nomad per snapshot", unit: "1", orch: once(evaluations)})
	b.add(figure{name: "entries in the raft log of Nomad per snapshot", unit: "1", orch: once(entries)})
	b.note("%d snapshots of one empty brain, one after another, took %.1f s. At rest, Nomad's servers write %.0f entries per hour.", costed, seconds, atRest*3600)
	b.note("Extrapolated, not measured: %d snapshots in an hour cost Nomad's servers %.0f evaluations and %.0f entries in the raft log.", anHour, anHour*evaluations, anHour*entries)
	s.destroy(ctx, user)
}

// describe returns the versions of the programs that are compared.
func (h *shelf) describe(ctx context.Context) string {
	text := fmt.Sprintf("%s, %s (-3 -T0), age %s, in parts of %d MiB to versitygw %s, on the same disk", firstLine(command(ctx, "tar", "--version")),
		strings.Trim(firstLine(command(ctx, "zstd", "--version")), "* "), firstLine(command(ctx, "age", "--version")), handPart>>20, devstack.GatewayVersion)
	if h.restic {
		text += ", and with " + firstLine(command(ctx, "restic", "version")) + ", each time in a new repository"
	}
	return text
}

func firstLine(text string) string {
	first, _, _ := strings.Cut(text, "\n")
	return first
}
