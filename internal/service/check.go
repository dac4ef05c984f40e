package service

import (
	"context"
	"errors"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/internal/config"
	"github.com/septemberai/orch/internal/link"
	"github.com/septemberai/orch/internal/preflight"
	"github.com/septemberai/orch/internal/reload"
)

// Check tries everything that the service needs from its stores and their agents, without
// serving. Its error is a mistake in the configuration.
func Check(ctx context.Context, cfg *config.Config, clients Clients) ([]preflight.Result, error) {
	files := reload.New(hclog.NewNullLogger()) // which are read once
	n, toNomad, nerr := nomadClient(clients, files)
	c, ask, toConsul, cerr := consulClient(clients, files)
	v, toVault, verr := vaultClient(clients, files)
	for _, l := range []*link.Link{toNomad, toConsul, toVault} {
		if l != nil {
			defer l.Close()
		}
	}
	if err := errors.Join(nerr, cerr, verr); err != nil {
		return nil, err
	}
	within := func(check func(context.Context) []preflight.Result) []preflight.Result {
		limited, cancel := context.WithTimeout(link.FailFast(ctx), rightsWithin)
		defer cancel()
		return check(limited)
	}
	stores := &preflight.Stores{
		Nomad: n, Namespace: cfg.NomadNamespace, Driver: cfg.EngineDriver, AllowOpenNomad: cfg.AllowOpenNomad, LocalSnapshots: cfg.LocalSnapshots(), Consul: c, ConsulAsk: ask, Prefix: cfg.ConsulPrefix, Vault: v, Mount: cfg.VaultMount,
	}
	results := append(within(stores.Rights), within(stores.Settings)...)
	return append(results, checkAudit(ctx, cfg)), nil
}

// checkAudit checks that the audit log's database can be reached.
func checkAudit(ctx context.Context, cfg *config.Config) preflight.Result {
	r := preflight.Result{Store: "audit", Needs: "a database that can be reached, or a file that can be written", State: preflight.OK}
	if err := audit.Reach(ctx, cfg.DatabaseURL); err != nil {
		r.State, r.Said, r.Remedy = preflight.Missing, err.Error(), "see ORCH_DATABASE_URL in docs/configuration.md"
	}
	return r
}
