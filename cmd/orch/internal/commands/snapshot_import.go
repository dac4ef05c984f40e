package commands

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/cmdline"
)

// importedEngine is an engine of the snapshot store after the command.
type importedEngine struct {
	client.StoredEngine
	// Outcome is imported, failed or skipped; without an import it is empty.
	Outcome string `json:"outcome,omitempty"`
	Error   string `json:"error,omitempty"`
}

// The outcomes of an engine.
const (
	wasImported = "imported"
	wasSkipped  = "skipped"
	wasRefused  = "failed"
)

func snapshotImport() *spec {
	var dry bool
	var only string
	parallel := 4
	return &spec{
		name: "snapshot import", needs: needsAdminKey, product: "only engines of this `product`, by slug or id",
		synopsis: "Bring back engines that only the snapshot store and Vault have (for the admin)",
		about: `Bring back the engines of which the snapshot store has snapshots and Vault the keys,
after Consul and Nomad have lost everything. Each gets its newest snapshot under its
own engine_id and user, and keeps its API key if Vault has that. An engine that
exists is not touched, so the command may be repeated: it continues with what is
left. While the registry recovers, the command waits.

STATUS is importable, or why an engine is skipped: present (it exists), in_cluster
(Nomad or Consul has something of it), no_key (Vault does not have the key of its
snapshots), foreign (its manifest and Vault name different owners), no_product,
user_taken (its user has another engine), damaged (its manifest cannot be read).`,
		examples: []string{"orch snapshot import -dry-run", "orch snapshot import -product acme -parallel 8"},
		codes:    "It exits with 1 if an import failed.",
		flags: func(f *flag.FlagSet) {
			f.BoolVar(&dry, "dry-run", false, "only list the engines")
			f.BoolVar(&dry, "n", false, "the same as -dry-run")
			f.StringVar(&only, "engine", "", "only the engine with this `engine_id`, or with this name of its Nomad job")
			f.IntVar(&parallel, "parallel", parallel, "import `n` engines at a time")
		},
		run: func(ctx context.Context, in *invocation) error {
			if parallel < 1 {
				return cmdline.Wrong("-parallel must be 1 or more")
			}
			list, err := in.stored(ctx, strings.TrimPrefix(only, engine.JobPrefix))
			if err != nil {
				return err
			}
			if dry {
				return in.Show(map[string][]*importedEngine{"engines": list}, importTable(list, true))
			}
			in.importAll(ctx, list, parallel)
			counts := map[string]int{}
			for _, e := range list {
				counts[e.Outcome]++
			}
			if err := in.Show(map[string][]*importedEngine{"engines": list}, importTable(list, false)); err != nil {
				return err
			}
			in.Say("%d imported, %d skipped, %d failed", counts[wasImported], counts[wasSkipped], counts[wasRefused])
			if counts[wasRefused] > 0 {
				return fmt.Errorf("%d engines were not imported; the same command continues with them", counts[wasRefused])
			}
			return ctx.Err()
		},
	}
}

// stored lists the engines of the store that the flags select; only is an engine_id, or "".
func (in *invocation) stored(ctx context.Context, only string) (list []*importedEngine, err error) {
	product, err := in.namedProduct(ctx)
	if err != nil {
		return nil, err
	}
	list = []*importedEngine{}
	read := func() error {
		list = list[:0]
		for e, err := range in.client.AllStoredEngines(ctx) {
			if err != nil {
				return err
			}
			if (only == "" || e.EngineID == only) && (product == "" || e.ProductID == product) {
				list = append(list, &importedEngine{StoredEngine: e})
			}
		}
		return nil
	}
	if err = read(); !errors.Is(err, client.ErrRegistryRecovering) {
		return list, err
	}
	in.Say("the registry recovers (waiting)")
	return list, in.poll(ctx, "snapshot import", func(context.Context) (bool, error) { return true, read() })
}

// importAll imports the engines that can be, some at a time, and notes what became of each.
func (in *invocation) importAll(ctx context.Context, list []*importedEngine, parallel int) {
	var work errgroup.Group
	var mu sync.Mutex // of what is printed
	work.SetLimit(parallel)
	for _, e := range list {
		if e.Status != client.Importable {
			e.Outcome = wasSkipped
			continue
		}
		work.Go(func() error {
			err := ctx.Err()
			if err == nil {
				err = in.importOne(ctx, e.EngineID)
			}
			e.Outcome = wasImported
			if err != nil {
				e.Outcome, e.Error = wasRefused, describe(err)
			}
			mu.Lock()
			defer mu.Unlock()
			in.Say("%s %s of %s%s", e.Outcome, cmdline.Clean(e.EngineID), cmdline.Clean(e.UserID), reasonText(e.Error))
			return nil
		})
	}
	_ = work.Wait()
}

func reasonText(text string) string {
	if text == "" {
		return ""
	}
	return ": " + text
}

// importOne imports an engine, and waits for its end if the service does not.
func (in *invocation) importOne(ctx context.Context, engineID string) error {
	_, err := in.client.Import(ctx, engineID, "")
	if !errors.As(err, new(*client.UnderWay)) {
		return err
	}
	var failed error
	err = in.poll(ctx, "snapshot import", func(ctx context.Context) (bool, error) {
		e, err := in.client.EngineByID(ctx, engineID)
		if err != nil || e.Operation != nil {
			return false, err
		}
		if last := e.LastOperation; last != nil && last.Outcome != "ok" {
			failed = errors.New(last.Message)
		}
		return true, nil
	})
	return errors.Join(err, failed)
}

// importTable shows engines of the store.
func importTable(list []*importedEngine, dry bool) *cmdline.Table {
	t := &cmdline.Table{Empty: "the store has no such engines"}
	if dry {
		t.Head("ENGINE", "PRODUCT", "USER", "STATUS", "SNAPSHOTS", "NEWEST", "SIZE", "IMAGE", "WHY")
	} else {
		t.Head("ENGINE", "PRODUCT", "USER", "STATUS", "OUTCOME", "NEWEST", "WHY")
	}
	for _, e := range list {
		if dry {
			t.Row(e.EngineID, e.ProductID, e.UserID, e.Status, e.Snapshots, e.CreatedAt, sizeOf(e.Bytes), e.EngineVersion, e.Why)
		} else {
			t.Row(e.EngineID, e.ProductID, e.UserID, e.Status, e.Outcome, e.CreatedAt, e.Why+e.Error)
		}
	}
	return t
}
