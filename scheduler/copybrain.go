package scheduler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/fault"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/scheduler/operation"
)

const (
	// frozenMost limits for how long an engine is frozen for a copy. A copy that takes longer
	// needs a file system that shares blocks (XFS, Btrfs).
	frozenMost = 60 * time.Second
	// maxCopyResponse limits what is read of a worker's response, in bytes.
	maxCopyResponse = 64 << 10
)

// copies sends requests to workers, which are addresses on nodes: no proxy, and no
// connection is used twice.
var copies = &http.Client{
	Transport:     &http.Transport{DisableKeepAlives: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// copyBrain freezes the engine, lets the worker copy its brain, and lets the engine go on.
// Without a process there is nothing to freeze, and the worker has copied without being
// asked.
//
// If an earlier attempt may have frozen the engine, the engine goes on first, and what that
// attempt's worker has copied is worth nothing.
func (o *work) copyBrain(ctx context.Context) error {
	t, op := o.Row.Op.Taking, o.Row.Op
	if t.AllocID == "" {
		return nil
	}
	if t.Freezing {
		if err := o.thawCopied(ctx); err != nil {
			return err
		}
		if err := o.removeWorker(ctx); err != nil {
			return err
		}
		op.Worker, op.Step = o.Row.NodeID, stepTakeWorker
		op.Attempt++
		return operation.ErrDetour
	}
	state, err := o.s.cluster.Worker(ctx, o.worker())
	if errors.Is(err, cluster.ErrNotFound) {
		return nil // awaitSent says why
	}
	if err != nil {
		return err
	}
	if state.Ended || state.Addr == "" {
		return nil // awaitSent says why
	}
	token, err := o.copyToken(ctx)
	if err != nil {
		return err
	}
	t.Freezing = true
	if err := o.Save(ctx); err != nil {
		return err
	}
	began := time.Now()
	err = o.WhileOwned(ctx, func(ctx context.Context) error { return o.copyFrozen(ctx, state.Addr, token) })
	// This is not interrupted either: whatever has the engine now, it may not stay frozen.
	lasting := context.WithoutCancel(ctx)
	if err != nil || time.Since(began) > actsWithin {
		o.awaitOtherCopy(lasting)
	}
	if thawed := o.thawCopied(lasting); err == nil {
		err = thawed
	}
	return err
}

// awaitOtherCopy waits while another owner or operation may have frozen the engine, because
// this replica was paused meanwhile: a late SIGCONT would let the brain change during that
// copy. The other owner lets the engine go on by itself.
func (o *work) awaitOtherCopy(ctx context.Context) {
	for until := time.Now().Add(frozenMost + workerEnds); time.Now().Before(until); {
		row, err := o.s.store.Engine(ctx, o.Row.ProductID, o.Row.UserID)
		if err != nil || row.Op == nil || row.Op.Taking == nil || !row.Op.Taking.Freezing || row.Op.Kind == engine.OpDestroy {
			return
		}
		if row.Op.ID == o.ID && row.Op.Owner == o.s.replica.ID {
			return
		}
		if !pause.For(ctx, pollEvery) {
			return
		}
	}
}

// copyFrozen sends SIGSTOP, and asks for the copy. The caller sends SIGCONT.
func (o *work) copyFrozen(ctx context.Context, addr, token string) error {
	t := o.Row.Op.Taking
	if err := o.fenceNow(ctx); err != nil {
		return err
	}
	began := time.Now()
	t.At = began.UTC()
	if err := o.s.cluster.Signal(context.WithoutCancel(ctx), t.AllocID, sigStop); err != nil {
		if errors.Is(err, cluster.ErrUnavailable) {
			return err
		}
		return &engine.Error{Code: engine.SnapshotFailed, Message: "the engine cannot be frozen for the copy; retry", Err: err}
	}
	fault.Hit(pointFrozen)
	limited, cancel := context.WithTimeout(ctx, frozenMost)
	defer cancel()
	err := askForCopy(limited, addr, token)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		return &engine.Error{Code: engine.SnapshotFailed, Message: fmt.Sprintf("the copy of the brain takes longer than %s, for which an engine may be frozen: stop the engine for a snapshot, or use a file system that shares blocks (XFS, Btrfs)", frozenMost), Err: err}
	}
	if err != nil {
		return err
	}
	t.FrozenMS = time.Since(began).Milliseconds()
	return nil
}

// thawCopied lets the engine go on after a copy. A node that does not respond cannot be
// asked to; when it is back, the engine's check fails, and the monitor lets it go on.
func (o *work) thawCopied(ctx context.Context) error {
	t := o.Row.Op.Taking
	if t == nil || !t.Freezing {
		return nil
	}
	began := time.Now()
	err := o.s.cluster.Signal(ctx, t.AllocID, sigCont)
	gone := errors.Is(err, cluster.ErrNotFound) || errors.Is(err, cluster.ErrRejected)
	if err != nil && !gone && !o.s.nodeSilent(o.Row.NodeID) {
		if now, known := o.s.cluster.Newest(o.Row.JobID()); !known || now.ID == t.AllocID && !now.Terminal() {
			return err
		}
	}
	if err != nil {
		o.Log.Debug("cannot let the engine go on after a copy", "error", err)
	}
	if t.FrozenMS > 0 {
		t.FrozenMS += time.Since(began).Milliseconds()
	}
	t.Freezing = false
	return nil
}

// askForCopy sends the request to copy, and returns when the copy is done.
func askForCopy(ctx context.Context, addr, token string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/copy", http.NoBody)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := copies.Do(req)
	if err != nil {
		return &brain.Error{Kind: brain.Interrupted, Message: "the worker did not respond to the request to copy", Err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxCopyResponse))
	if err == nil && resp.StatusCode == http.StatusOK {
		return nil
	}
	said := new(brain.ErrorText)
	if err == nil && json.Unmarshal(body, said) == nil && said.Kind != "" {
		return &brain.Error{Kind: said.Kind, Message: said.Message}
	}
	return &brain.Error{Kind: brain.Interrupted, Message: fmt.Sprintf("the worker refused the request to copy with status %d", resp.StatusCode), Err: err}
}
