// Package service wires the parts of the service together: the one constructor
// that main, the dev stack and the tests use.
package service

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/images"
	"github.com/septemberai/orch/internal/config"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler"
	"github.com/septemberai/orch/secrets"
	"github.com/septemberai/orch/server"
)

// Service is a replica of the service, listening but not yet answering.
type Service struct {
	Server    *server.Server
	Scheduler *scheduler.Scheduler
	// Drain is how long Run lets what is in flight finish once its context has
	// ended; New makes it enough for any operation. What is not done by then is
	// cut, as a crash would, and another replica finishes it.
	Drain time.Duration

	vault    *secrets.Vault
	audit    *audit.Log
	images   *images.Resolver // nil: images are not pinned
	profiles *profiles
	log      hclog.Logger
	// adminKeyFile is where ReloadAdminKey reads; empty: nowhere.
	adminKeyFile string
	idle         []func()
}

// openAudit bounds the opening of the audit log.
const openAudit = 30 * time.Second

// New connects the parts, opens the audit log and the listener.
func New(ctx context.Context, cfg *config.Config, clients Clients, log hclog.Logger) (_ *Service, err error) {
	svc := &Service{log: log, adminKeyFile: cfg.AdminKeyFile}
	transport := func() *http.Transport {
		t := newTransport()
		svc.idle = append(svc.idle, t.CloseIdleConnections)
		return t
	}
	n, err := nomadClient(clients, transport())
	if err != nil {
		return nil, err
	}
	c, err := consulClient(clients, transport())
	if err != nil {
		return nil, err
	}
	v, err := vaultClient(clients, transport())
	if err != nil {
		return nil, err
	}
	keys := secrets.New(v, cfg.VaultMount)
	opts := cfg.Scheduler()
	if len(opts.ProviderKeys) > 0 {
		opts.Job.ProviderKeysPath = keys.EnvTemplatePath()
	}
	svc.vault = keys
	opening, cancel := context.WithTimeout(ctx, openAudit)
	defer cancel()
	svc.audit, err = audit.Open(opening, cfg.DatabaseURL, audit.Options{RetentionDays: cfg.AuditRetentionDays, Log: log.Named("audit")})
	if err != nil {
		return nil, fmt.Errorf("ORCH_DATABASE_URL: the audit log: %w", err)
	}
	if cfg.PinImages && opts.Job.Driver == jobs.Docker {
		svc.images = images.New(log.Named("images"))
		opts.Digests = svc.images
	}
	svc.Scheduler = scheduler.New(opts, registry.New(c, cfg.ConsulPrefix), cluster.New(n, cfg.NomadNamespace, log.Named("cluster")), keys, svc.audit, log.Named("scheduler"))
	svc.Drain = svc.Scheduler.LongestOperation()
	if svc.profiles, err = listenProfiles(ctx, cfg.PprofAddr); err != nil {
		return nil, errors.Join(err, svc.audit.Close())
	}
	if svc.Server, err = server.New(cfg.Addr, cfg.AdminKey, svc.Scheduler, log.Named("server")); err != nil {
		return nil, errors.Join(err, svc.profiles.close(), svc.audit.Close())
	}
	return svc, nil
}

// ReloadAdminKey reads the admin key's file again; where there is none, or it
// cannot be used, the key stays as it is.
func (s *Service) ReloadAdminKey() {
	if s.adminKeyFile == "" {
		s.log.Warn("SIGHUP: ORCH_ADMIN_KEY_FILE is not set, so there is nothing to read again")
		return
	}
	key, err := config.ReadAdminKey(s.adminKeyFile)
	if err != nil {
		s.log.Error("SIGHUP: ORCH_ADMIN_KEY_FILE cannot be used; the admin key stays as it is", "error", err)
		return
	}
	s.Server.SetAdminKey(key)
	s.log.Info("the admin key was read again")
}

// Run serves until ctx ends, then stops accepting, finishes what is in flight,
// and gives the replica's session up. It returns early when serving fails or
// the engine's job file cannot be used.
func (s *Service) Run(ctx context.Context) error {
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	scheduled, served, renewed, logged, profiled := make(chan error, 1), make(chan error, 1), make(chan struct{}), make(chan struct{}), make(chan struct{})
	// The audit log outlives what it records.
	logging, endLog := context.WithCancel(context.WithoutCancel(ctx))
	defer endLog()
	go func() { defer close(logged); s.audit.Run(logging) }()
	go func() { scheduled <- s.Scheduler.Run(work) }()
	go func() { served <- s.Server.Serve() }()
	go func() { defer close(renewed); s.vault.KeepToken(work, s.log.Named("vault")) }()
	go func() { defer close(profiled); s.profiles.serve() }()
	if s.profiles != nil {
		s.log.Info("serving profiles", "addr", s.profiles.listener.Addr().String())
	}
	connections, files := s.Server.Limits()
	s.log.Info("listening", "addr", s.Server.Addr().String(), "max_connections", connections, "open_files", files)

	var err error
	running := true
	select {
	case <-ctx.Done():
	case err = <-served:
	case err = <-scheduled:
		running = false
	}
	grace, cancel := context.WithTimeout(work, s.Drain)
	defer cancel()
	if err == nil {
		s.log.Info("stopping: finishing what is in flight", "at_most", s.Drain.String())
		s.Scheduler.Retire(grace)
		if err = s.Server.Shutdown(grace); errors.Is(err, context.DeadlineExceeded) {
			s.log.Warn("cutting what is still in flight")
			err = nil
		}
		s.Scheduler.Drain(grace)
	}
	err = errors.Join(err, s.Server.Close())
	stop()
	if running {
		err = errors.Join(err, <-scheduled)
	}
	<-renewed
	err = errors.Join(err, s.profiles.close())
	<-profiled
	endLog()
	<-logged
	err = errors.Join(err, s.audit.Close())
	if s.images != nil {
		s.images.Close()
	}
	for _, closeIdle := range s.idle {
		closeIdle()
	}
	return err
}
