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
	limited, cancel := context.WithTimeout(ctx, rightsWithin)
	defer cancel()
	stores := &preflight.Stores{
		Nomad: n, Namespace: cfg.NomadNamespace, AllowOpenNomad: cfg.AllowOpenNomad, Consul: c, ConsulAsk: ask, Prefix: cfg.ConsulPrefix, Vault: v, Mount: cfg.VaultMount,
	}
	results := append(stores.Rights(limited), stores.Settings(limited)...)
	return append(results, checkAudit(limited, cfg)), nil
}

// checkAudit opens the audit log, which creates its tables if they do not exist.
func checkAudit(ctx context.Context, cfg *config.Config) preflight.Result {
	r := preflight.Result{Store: "audit", Needs: "a database that takes writes", State: preflight.OK}
	log, err := audit.Open(ctx, cfg.DatabaseURL, audit.Options{RetentionDays: cfg.AuditRetentionDays, Log: hclog.NewNullLogger()})
	if err == nil {
		err = errors.Join(log.Ping(ctx), log.Close())
	}
	switch {
	case err == nil:
	case errors.Is(err, audit.ErrInUse):
		r.State, r.Said, r.Remedy = preflight.Unknown, err.Error(), "check it while no replica runs"
	default:
		r.State, r.Said, r.Remedy = preflight.Missing, err.Error(), "see ORCH_DATABASE_URL in docs/configuration.md"
	}
	return r
}
