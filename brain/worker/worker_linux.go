// Package worker carries out one order on the node of a brain: a snapshot, or a restore. It
// knows neither Nomad, Consul nor Vault, and has no credentials but those in its order.
//
// It may be killed at any time, and started again with the same order:
//
//   - a snapshot keeps its copy of the brain and a journal in the work directory, and sends
//     only the parts that are not stored yet;
//   - a restore starts again as long as nothing is verified, and then only moves files.
package worker

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/brain/transfer"
	"github.com/septemberai/orch/brain/tree"
)

// progressEvery is how often a report says how far the work is.
const progressEvery = 5 * time.Second

// Run reads the order in the file at path, carries it out, and writes reports to out, a line
// of JSON each. The last one has the result, or the error that is returned, too.
func Run(ctx context.Context, path string, out io.Writer) error {
	r := reporter{out: out}
	order, err := brain.ReadOrder(path)
	if err != nil {
		r.send(brain.Report{Phase: "done", Error: brain.TextOf(err)})
		return err
	}
	r.order = order.ID
	result, err := carryOut(ctx, order, &r)
	if err != nil {
		r.send(brain.Report{Phase: "done", Error: brain.TextOf(err)})
		return err
	}
	r.send(brain.Report{Phase: "done", Result: result})
	return nil
}

func carryOut(ctx context.Context, order *brain.Order, r *reporter) (*brain.Result, error) {
	client, err := transfer.New(transfer.Options{
		CA: order.CA, BytesPerSecond: order.BytesPerSecond, GiveUp: order.GiveUp(), Stall: order.Stall(),
	})
	if err != nil {
		return nil, err
	}
	defer client.Close()
	w := work(order.Work)
	if err := w.claim(order.ID); err != nil {
		return nil, brain.Local(err, brain.Internal, "the work directory cannot be used")
	}
	if order.Snapshot != nil {
		return snapshot(ctx, order.Snapshot, w, client, r)
	}
	return restore(ctx, order, w, client, r)
}

// work is the directory that outlives a restart.
type work string

// The names in the work directory.
const (
	orderFile   = "order"        // the id of the order to which the rest belongs
	copyDir     = "copy"         // the finished copy of the brain
	partialDir  = "copy.partial" // an unfinished one
	journalFile = "journal"
	resultFile  = "result.json" // the order is done
)

func (w work) path(name string) string { return filepath.Join(string(w), name) }

// claim removes what belongs to another order.
func (w work) claim(id string) error {
	if err := os.MkdirAll(string(w), 0o700); err != nil {
		return err
	}
	text, err := os.ReadFile(w.path(orderFile))
	if err == nil && string(text) == id {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := w.clear(resultFile, journalFile, copyDir, partialDir); err != nil {
		return err
	}
	return writeFile(w.path(orderFile), []byte(id))
}

func (w work) clear(names ...string) error {
	for _, name := range names {
		if err := tree.Remove(w.path(name)); err != nil {
			return err
		}
	}
	return nil
}

// result returns the result of an order that is done, otherwise nil.
func (w work) result() (*brain.Result, error) {
	var r brain.Result
	found, err := readJSON(w.path(resultFile), &r)
	if !found || err != nil {
		return nil, err
	}
	return &r, nil
}

// readJSON reports whether there is a file.
func readJSON(path string, to any) (bool, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = json.Unmarshal(text, to)
	}
	return true, err
}

func writeJSON(path string, from any) error {
	text, err := json.Marshal(from)
	if err != nil {
		return err
	}
	return writeFile(path, text)
}

// writeFile writes a file that is there after a crash completely, or not at all.
func writeFile(path string, text []byte) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// reporter writes reports.
type reporter struct {
	mu    sync.Mutex
	out   io.Writer
	order string
}

func (r *reporter) send(line brain.Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	line.Order = r.order
	_ = json.NewEncoder(r.out).Encode(line)
}

// phase reports a phase at its begin and every few seconds, with what bytes returns, until
// the returned function is called.
func (r *reporter) phase(name string, bytes func() int64) (stop func()) {
	r.send(brain.Report{Phase: name})
	done := make(chan struct{})
	var owner sync.WaitGroup
	owner.Go(func() {
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				r.send(brain.Report{Phase: name, Bytes: bytes()})
			}
		}
	})
	return func() { close(done); owner.Wait() }
}
