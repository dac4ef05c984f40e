package commands

import (
	"context"
	"errors"
	"os"

	"github.com/septemberai/orch/internal/cmdline"
	"github.com/septemberai/orch/internal/config"
	"github.com/septemberai/orch/internal/preflight"
	"github.com/septemberai/orch/internal/service"
)

// checkServer prints what the service needs, and whether it has it.
func checkServer(ctx context.Context, call *cmdline.Call) error {
	cfg, err := config.Load(os.Environ())
	if err = errors.Join(err, service.CheckClients()); err != nil {
		return cmdline.ConfiguredWrongly(err)
	}
	ctx, stop := untilSignal(ctx)
	defer stop()
	results, err := service.Check(ctx, cfg, service.Clients{})
	if err != nil {
		return cmdline.ConfiguredWrongly(err)
	}
	t := &cmdline.Table{}
	t.Head("STORE", "STATE", "NEEDS", "SAID", "REMEDY")
	for _, r := range results {
		t.Row(r.Store, cmdline.State(r.State), r.Needs, r.Said, r.Remedy)
	}
	if err := call.Show(results, t); err != nil {
		return err
	}
	if preflight.Failed(results) {
		return cmdline.ErrReported
	}
	return nil
}
