//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/engine"
)

// brainSizes are the sizes of brains, and how often each is measured. whole: also a restore
// over a present brain, and a fork.
var brainSizes = []struct {
	megabytes, rounds int
	whole             bool
}{{20, 3, false}, {200, 5, true}, {2000, 1, false}}

// The series of the part, each with the size of the brain.
const (
	taken       = "snapshot until stored"
	frozen      = "the engine is frozen for a snapshot"
	restored    = "restore until healthy"
	replaced    = "restore over as large a brain"
	forked      = "fork of a running brain until healthy"
	copiedByCP  = "cp"
	packedByTar = "tar"
	packedBack  = "tar back"
	byRestic    = "restic"
	resticBack  = "restic back"

	batchStart = "a batch job that does nothing, until Nomad reports its end"
	// A restore needs a new volume, as a provision does when none is ready.
	coldStart = "provision of an empty engine, with a new volume"
	readyCold = "provision of an empty engine, volume ready"

	filled = "filled" // the directory in a brain with the content that was written
)

// snapshots measures snapshots, restores and forks of brains, compared with copies and
// archives that are made manually and stored on the same S3 server.
func (b *bench) snapshots(ctx context.Context) {
	h, stop := b.newShelf(ctx)
	defer stop()
	s := b.start(ctx, "snapshots", rawExec, roundsPool, h.vars()...)
	f := &floor{rig: b.rig, api: must(api.NewClient(&api.Config{Address: b.stack.NomadAddr}))}
	for i := range batches {
		b.rec.add(batchStart, took(func() { f.batchStart(ctx, fmt.Sprint("nothing-", i)) }))
		s.waiting(ctx, 1, 0)
		b.rec.add(readyCold, took(func() { s.provision(ctx, fmt.Sprint("empty-", i)) }))
		s.destroy(ctx, fmt.Sprint("empty-", i))
	}
	without := b.start(ctx, "without_pool", rawExec, 0)
	for i := range batches {
		b.rec.add(coldStart, took(func() { without.provision(ctx, fmt.Sprint("cold-", i)) }))
		without.destroy(ctx, fmt.Sprint("cold-", i))
	}
	b.cost(ctx, s, f)
	for _, one := range []string{batchStart, readyCold, coldStart} {
		b.add(figure{name: one, unit: "ms", orch: b.rec.summary(one)})
	}
	for _, size := range brainSizes {
		b.brainsOf(ctx, s, h, f, size.megabytes, size.rounds, size.whole)
	}
	b.note("The brains are on %s. Compared with %s.", firstLine(command(ctx, "sh", "-c", `df --output=fstype "$1" | tail -n 1`, "sh", b.dir)), h.describe(ctx))
}

// brainsOf measures brains of one size.
func (b *bench) brainsOf(ctx context.Context, s *service, h *shelf, f *floor, megabytes, rounds int, whole bool) {
	of := func(series string) string { return fmt.Sprintf("%s, %d MB", series, megabytes) }
	user := fmt.Sprint("brain-", megabytes)
	s.waiting(ctx, 1, 0)
	s.provision(ctx, user)
	b.progress("snapshots: filling a brain of %d MB", megabytes)
	newFiller().fill(ctx, filepath.Join(f.volume(ctx, s, user), filled), megabytes*megabyte)
	content := sums(ctx, filepath.Join(f.volume(ctx, s, user), filled))
	for i := range rounds {
		b.progress("snapshots: %d MB, %d of %d", megabytes, i, rounds)
		dir, archive := f.volume(ctx, s, user), ""
		inTurns(i, func() {
			took(func() { s.timed(ctx, b.rec, of(taken), s.snapshot, user) })
			b.rec.add(of(frozen), float64(s.newest(ctx, user).FrozenMS))
		}, func() {
			b.rec.add(of(copiedByCP), took(func() { command(ctx, "cp", "-a", "--reflink=auto", dir, b.dir+"/copied") }))
			check(os.RemoveAll(b.dir + "/copied"))
			b.rec.add(of(packedByTar), took(func() { archive = h.store(ctx, dir) }))
		})
		if h.restic {
			b.resticRound(ctx, h, of, dir)
		}
		if whole {
			s.waiting(ctx, 1, 0)
			took(func() { s.timed(ctx, b.rec, of(replaced), s.restore, user) })
			s.waiting(ctx, 1, 0)
			took(func() { s.timed(ctx, b.rec, of(forked), s.fork, user) })
			s.destroy(ctx, user+"-fork")
		}
		// As after the loss of a disk: what is stored is not there any more, so that the
		// snapshot of the present brain, which each restore takes first, is small.
		s.keepOnly(ctx, user, s.largest(ctx, user))
		check(os.RemoveAll(filepath.Join(f.volume(ctx, s, user), filled)))
		s.waiting(ctx, 1, 0)
		inTurns(i, func() {
			took(func() { s.timed(ctx, b.rec, of(restored), s.restore, user) })
		}, func() {
			back := ""
			b.rec.add(of(packedBack), took(func() { back = h.fetch(ctx, archive) }))
			if sums(ctx, filepath.Join(back, filled)) != content {
				check(errors.New("what was unpacked manually is not what was packed"))
			}
			check(os.RemoveAll(back))
		})
		if sums(ctx, filepath.Join(f.volume(ctx, s, user), filled)) != content {
			check(fmt.Errorf("the restored brain of %s is not the one in the snapshot", user))
		}
		h.drop(ctx, archive)
		s.keepOnly(ctx, user, s.largest(ctx, user))
	}
	s.destroy(ctx, user)
	b.addBrains(of)
}

// resticRound stores a brain in a new repository of restic, and restores it.
func (b *bench) resticRound(ctx context.Context, h *shelf, of func(string) string, dir string) {
	repository, back := h.resticOf(ctx), filepath.Join(b.dir, "restic-back")
	b.rec.add(of(byRestic), took(func() { h.runRestic(ctx, repository, "backup", dir) }))
	b.rec.add(of(resticBack), took(func() { h.runRestic(ctx, repository, "restore", "latest", "--target", back) }))
	check(os.RemoveAll(back))
	check(os.RemoveAll(filepath.Join(b.dir, "s3", bucketName, filepath.Base(repository))))
}

// addBrains adds the figures of brains of one size.
func (b *bench) addBrains(of func(string) string) {
	batch, cold, ready := b.rec.summary(batchStart), b.rec.summary(coldStart), b.rec.summary(readyCold)
	with := func(start summary, series ...string) (sum summary) {
		for _, one := range series {
			part := b.rec.summary(of(one))
			sum = summary{n: part.n, p50: sum.p50 + part.p50, p95: sum.p95 + part.p95, p99: sum.p99 + part.p99}
		}
		return summary{n: sum.n, p50: sum.p50 + start.p50, p95: sum.p95 + start.p50, p99: sum.p99 + start.p50}
	}
	for _, c := range []struct {
		name, of, against string
		floor             summary
		most              float64
	}{
		{of(taken), taken, "tar, zstd, age, and a batch start", with(batch, packedByTar), 1.5},
		{theSame, taken, "restic, without a start", with(summary{}, byRestic), 0},
		{of(frozen), frozen, "cp --reflink=auto", with(summary{}, copiedByCP), 1.5},
		{of(restored), restored, "age, zstd, tar, and a cold start", with(cold, packedBack), 1.5},
		{theSame, restored, "the same, with a volume that is ready", with(ready, packedBack), 0},
		{theSame, restored, "restic, and a cold start", with(cold, resticBack), 0},
		{of(replaced), replaced, "both by tar, and both starts", with(summary{p50: batch.p50 + cold.p50}, packedByTar, packedBack), 0},
		{of(forked), forked, "both by tar, and both starts, volume ready", with(summary{p50: batch.p50 + ready.p50}, packedByTar, packedBack), 0},
	} {
		orch := b.rec.summary(of(c.of))
		if orch.n == 0 || c.floor.n == 0 {
			continue
		}
		f := figure{name: c.name, unit: "ms", orch: orch}.beside(c.against, c.floor)
		b.add(f.most(f.ratio, c.most, "≤ %g ×"))
		if c.name == of(c.of) {
			b.addSteps(b.rec, of(c.of))
		}
	}
}

// volume returns the directory of a user's brain on the node.
func (f *floor) volume(ctx context.Context, s *service, user string) string {
	q := (&api.QueryOptions{}).WithContext(ctx)
	e := must(s.Engine(ctx, user))
	job, _, err := f.api.Jobs().Info(engine.JobPrefix+e.EngineID, q)
	check(err)
	for _, claim := range job.TaskGroups[0].Volumes {
		volumes, _, err := f.api.HostVolumes().List(&api.HostVolumeListRequest{}, q)
		check(err)
		for _, v := range volumes {
			if v.Name == claim.Source {
				full, _, err := f.api.HostVolumes().Get(v.ID, q)
				check(err)
				return full.HostPath
			}
		}
	}
	check(errors.New("the engine of " + user + " has no volume"))
	return ""
}

// The operations on the snapshots of a user's engine.

func (s *service) snapshot(ctx context.Context, user string) {
	_, err := s.Snapshot(ctx, user, "")
	s.settled(ctx, user, err)
}

func (s *service) restore(ctx context.Context, user string) {
	_, err := s.Restore(ctx, user, s.largest(ctx, user))
	s.settled(ctx, user, err)
}

func (s *service) fork(ctx context.Context, user string) {
	_, err := s.Fork(ctx, user, user+"-fork", "")
	s.settled(ctx, user+"-fork", err)
}

// settled waits for the end of an operation that takes longer than a call may wait.
func (s *service) settled(ctx context.Context, user string, err error) {
	if _, longer := errors.AsType[*client.UnderWay](err); !longer {
		check(err)
		return
	}
	until(ctx, 50*time.Millisecond, func() error {
		e, err := s.Engine(ctx, user)
		if err == nil && e.Operation != nil {
			err = fmt.Errorf("%s of %s is at %s", e.Operation.Kind, user, e.Operation.Step)
		}
		return err
	})
}

// newest returns the newest snapshot of a user's engine.
func (s *service) newest(ctx context.Context, user string) client.Snapshot {
	for snapshot, err := range s.AllSnapshots(ctx, user) {
		check(err)
		return snapshot
	}
	check(errors.New("there is no snapshot of " + user))
	return client.Snapshot{}
}

// largest returns the id of the newest of the largest snapshots of a user's engine.
func (s *service) largest(ctx context.Context, user string) (id string) {
	most := int64(-1)
	for snapshot, err := range s.AllSnapshots(ctx, user) {
		if check(err); snapshot.Bytes > most {
			id, most = snapshot.SnapshotID, snapshot.Bytes
		}
	}
	return id
}

// keepOnly deletes all other snapshots of a user's engine.
func (s *service) keepOnly(ctx context.Context, user, id string) {
	var others []string
	for snapshot, err := range s.AllSnapshots(ctx, user) {
		if check(err); snapshot.SnapshotID != id {
			others = append(others, snapshot.SnapshotID)
		}
	}
	for _, other := range others {
		check(s.DeleteSnapshot(ctx, user, other))
	}
}
