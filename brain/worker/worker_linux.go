// Package worker carries out one order on the node of a brain: a snapshot, or a restore. It
// knows neither Nomad, Consul nor Vault, and has no credentials but those in its order.
//
// It may be killed at any time, and started again with the same order:
//
//   - a snapshot keeps its copy of the brain and a journal in the work directory, and sends
//     only the parts that are not stored yet. After a crash of the machine it begins anew;
//   - a restore starts again as long as nothing is verified, and then only moves files.
package worker

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/brain/integrity"
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
	unlock, err := w.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := w.claim(order); err != nil {
		return nil, brain.Local(err, brain.Internal, "the work directory cannot be used")
	}
	if order.Snapshot != nil {
		return snapshot(ctx, order.Snapshot, w, client, r)
	}
	result, err := restore(ctx, order, w, client, r)
	if err != nil || !order.Restore.Drill {
		return result, err
	}
	return check(ctx, order.Restore.Volume, result, r)
}

// check checks what a drill has restored. A worker that starts again checks it again.
func check(ctx context.Context, volume string, result *brain.Result, r *reporter) (*brain.Result, error) {
	r.send(brain.Report{Phase: "check"})
	found, err := integrity.Check(ctx, volume, "/proc/self/exe")
	if err != nil {
		return nil, brain.Local(err, brain.Internal, "the databases cannot be checked")
	}
	if found.Damaged > 0 {
		return nil, brain.Errorf(brain.Damaged, "%d of %d databases are damaged, such as %s", found.Damaged, found.Databases, found.First)
	}
	result.Databases, result.Unchecked = found.Databases, found.Unchecked
	return result, nil
}

// work is the directory that outlives a restart.
type work string

// The names in the work directory.
const (
	orderFile   = "order"        // the order to which the rest belongs
	copyDir     = "copy"         // the finished copy of the brain
	partialDir  = "copy.partial" // an unfinished one
	journalFile = "journal"
	resultFile  = "result.json" // the order is done
	removedDir  = "removed"     // what is being removed
)

func (w work) path(name string) string { return filepath.Join(string(w), name) }

// lock makes sure that no other worker uses the directory, which it creates.
func (w work) lock() (unlock func(), err error) {
	if err := os.MkdirAll(string(w), 0o700); err != nil {
		return nil, brain.Local(err, brain.Internal, "the work directory cannot be used")
	}
	return lockDir(string(w), "the work directory")
}

// lockDir takes an exclusive lock on a directory. The kernel releases it when this process
// dies. The error has the kind Busy if another process has the lock. An engine has it on its
// brain with raw_exec (jobs/brainlock.go).
func lockDir(path, what string) (unlock func(), err error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, brain.Local(err, brain.Internal, what+" cannot be opened")
	}
	f := os.NewFile(uintptr(fd), path)
	err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return func() { _ = f.Close() }, nil
	}
	_ = f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, brain.Errorf(brain.Busy, "%s is in use by another process", what)
	}
	return nil, brain.Local(err, brain.Internal, what+" cannot be locked")
}

// claim removes what belongs to another order, or to a snapshot before the machine was
// booted: a snapshot makes nothing durable, because to flush a whole copy costs more than to
// copy again after such a crash.
func (w work) claim(order *brain.Order) error {
	mark, write := order.ID, writeFile
	if order.Snapshot != nil {
		mark, write = order.ID+" "+bootID(), writeVolatile
	}
	text, err := os.ReadFile(w.path(orderFile))
	if err == nil && string(text) == mark {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := w.clear(resultFile, journalFile, copyDir, partialDir); err != nil {
		return err
	}
	return write(w.path(orderFile), []byte(mark))
}

// bootID identifies the time since the machine was booted; see random(4). Where it cannot be
// read, it is another one for each process.
func bootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return rand.Text()
	}
	return strings.TrimSpace(string(id))
}

// clear removes names. Each loses its name before its content is removed, because whoever
// finds the name trusts the content, and this process can be killed between any two files.
func (w work) clear(names ...string) error {
	if err := tree.Remove(w.path(removedDir)); err != nil {
		return err
	}
	for _, name := range names {
		err := os.Rename(w.path(name), w.path(removedDir))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = tree.Remove(w.path(removedDir))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// noted is what the file of a result contains.
type noted struct {
	// Of identifies the upload or the volume, because the id of an order may be given twice.
	Of     string       `json:"of"`
	Result brain.Result `json:"result"`
}

// result returns the result of an order that is done, otherwise nil. The error has the kind
// BadOrder if the order was done with another upload or volume.
func (w work) result(of string) (*brain.Result, error) {
	var n noted
	found, err := readJSON(w.path(resultFile), &n)
	if !found || err != nil {
		return nil, brain.Local(err, brain.Internal, "the work directory cannot be read")
	}
	if n.Of != of {
		return nil, brain.Errorf(brain.BadOrder, "the order with this id was done with another upload or volume")
	}
	return &n.Result, nil
}

// note notes the result, by writeFile or writeVolatile.
func (w work) note(of string, r *brain.Result, write func(path string, text []byte) error) error {
	return brain.Local(writeJSON(w.path(resultFile), noted{of, *r}, write), brain.Internal, "the result cannot be noted")
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
