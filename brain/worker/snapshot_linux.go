package worker

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/brain/archive"
	"github.com/septemberai/orch/brain/freeze"
	"github.com/septemberai/orch/brain/transfer"
)

// copied is what is noted about a finished copy, beside it.
type copied struct {
	CopyMS       int64     `json:"copy_ms"`
	Began        time.Time `json:"copy_began"`
	Ended        time.Time `json:"copy_ended"`
	Shared       int64     `json:"shared"`
	Skipped      int64     `json:"skipped"`
	SkippedNames []string  `json:"skipped_names,omitempty"`
	Changed      int64     `json:"changed,omitempty"`
}

func snapshot(ctx context.Context, o *brain.SnapshotOrder, w work, client *transfer.Client, r *reporter) (*brain.Result, error) {
	of, err := nameOf(o)
	if err != nil {
		return nil, err
	}
	result, err := w.result(of)
	if result == nil && err == nil {
		result, err = take(ctx, o, of, w, client, r)
	}
	kind := brain.KindOf(err)
	if kind.Retry() || kind == brain.Refused { // a refused order may be signed again
		return nil, err
	}
	// Nobody needs the copy any more. If it cannot be removed, the snapshot is still good, and
	// Nomad removes the copy with the allocation.
	left := w.clear(journalFile, copyDir, partialDir)
	if err != nil {
		return nil, errors.Join(err, brain.Local(left, brain.Internal, "the copy cannot be removed"))
	}
	result.CopyLeft = left != nil
	return result, nil
}

func take(ctx context.Context, o *brain.SnapshotOrder, of string, w work, client *transfer.Client, r *reporter) (*brain.Result, error) {
	c, err := copyBrain(ctx, o, w, r)
	if err != nil {
		return nil, err
	}
	result, err := send(ctx, o, w, client, r)
	if errors.Is(err, transfer.ErrDiffers) {
		// This program is another version than the one that began. A new key must encrypt
		// what is different now.
		if err := w.clear(journalFile); err != nil {
			return nil, err
		}
		result, err = send(ctx, o, w, client, r)
	}
	if err != nil {
		return nil, err
	}
	result.CopyMS, result.CopyBegan, result.CopyEnded, result.Shared = c.CopyMS, c.Began, c.Ended, c.Shared
	result.Skipped += c.Skipped
	result.Changed = c.Changed
	result.SkippedNames = append(c.SkippedNames, result.SkippedNames...)
	return result, w.note(of, result, writeVolatile)
}

const (
	treeName   = "tree"
	copiedName = "copied.json"
)

// copyBrain returns when there is a finished copy. If the order says so, it
// waits until it is asked to copy, and responds as soon as the engine need not be frozen.
func copyBrain(ctx context.Context, o *brain.SnapshotOrder, w work, r *reporter) (c copied, err error) {
	there, err := readJSON(w.path(copyDir+"/"+copiedName), &c)
	if err != nil || there {
		return c, err
	}
	if err := w.clear(copyDir, partialDir); err != nil {
		return c, err
	}
	if err := os.Mkdir(w.path(partialDir), 0o700); err != nil {
		return c, brain.Local(err, brain.Internal, "the work directory cannot be used")
	}
	work := func(ctx context.Context) (copied, error) {
		began := time.Now()
		stats, err := freeze.Copy(ctx, o.Brain, w.path(partialDir+"/"+treeName))
		return copied{stats.Took.Milliseconds(), began.UTC(), began.Add(stats.Took).UTC(), stats.Shared, stats.Skipped, stats.SkippedNames, stats.Changed}, err
	}
	if o.Listen == "" {
		r.send(brain.Report{Phase: "copy"})
		c, err = work(ctx)
	} else {
		c, err = whenAsked(ctx, o, r, work)
	}
	if err == nil && o.Listen == "" && c.Changed > 0 {
		err = brain.Errorf(brain.Busy, "somebody changed %d files or directories of the brain during the copy, although its engine does not run", c.Changed)
	}
	if err != nil {
		return c, err
	}
	if err = writeJSON(w.path(partialDir+"/"+copiedName), c, writeVolatile); err == nil {
		err = os.Rename(w.path(partialDir), w.path(copyDir))
	}
	return c, brain.Local(err, brain.Internal, "the copy cannot be completed")
}

func send(ctx context.Context, o *brain.SnapshotOrder, w work, client *transfer.Client, r *reporter) (*brain.Result, error) {
	j, err := openJournal(w.path(journalFile), o)
	if err != nil {
		return nil, brain.Local(err, brain.Internal, "the journal cannot be used")
	}
	defer j.close()
	up := client.Upload(ctx, o.Parts, o.PartBytes, j)
	defer up.Abort()
	stop := r.phase("upload", up.Sent)
	defer stop()
	packed, err := archive.Pack(ctx, w.path(copyDir+"/"+treeName), j.key, up)
	if err == nil {
		err = up.Close()
	}
	if err != nil {
		return nil, err
	}
	return &brain.Result{Content: packed.Content, Parts: up.Parts(), SkippedNames: packed.SkippedNames}, nil
}
