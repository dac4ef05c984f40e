// Package service connects the parts of the service: the one constructor for main, the dev
// stack and the tests.
package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	consul "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/images"
	"github.com/septemberai/orch/internal/adminkeys"
	"github.com/septemberai/orch/internal/config"
	"github.com/septemberai/orch/internal/link"
	"github.com/septemberai/orch/internal/ops"
	"github.com/septemberai/orch/internal/preflight"
	"github.com/septemberai/orch/internal/reload"
	"github.com/septemberai/orch/internal/tokenlife"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler"
	"github.com/septemberai/orch/secrets"
	"github.com/septemberai/orch/server"
)

// Service is a replica of the service that listens, but does not serve before Run.
type Service struct {
	Server    *server.Server
	Scheduler *scheduler.Scheduler
	// Drain is how long Run lets operations in progress finish after its context has ended;
	// New sets it to the duration of the longest operation. Operations that have not
	// finished by then are interrupted as by a crash, and another replica finishes them.
	Drain time.Duration
	// DrainDelay is how long Run still serves after its context has ended, while /ready
	// returns 503 (ORCH_DRAIN_DELAY_S).
	DrainDelay time.Duration

	vault   *secrets.Vault
	audit   *audit.Log
	images  *images.Resolver // nil: images are not pinned
	ops     *ops.Listener    // nil: there is none
	metrics *ops.Metrics
	log     hclog.Logger
	admins  *adminKeys
	links   []*link.Link
	files   *reload.Watcher
	tokens  *tokenlife.Watcher
	rights  *rights
}

// Built tells which version of the service this is, for its metrics.
func (s *Service) Built(version, commit string) { s.metrics.Built(version, commit) }

// openAudit limits the time to open the audit log.
const openAudit = 30 * time.Second

// New connects the parts, and opens the audit log and the listener.
func New(ctx context.Context, cfg *config.Config, clients Clients, log hclog.Logger) (_ *Service, err error) {
	svc := &Service{
		log: log, files: reload.New(log.Named("files")), metrics: ops.NewMetrics(),
		DrainDelay: time.Duration(cfg.DrainDelayS) * time.Second,
	}
	defer func() {
		if err != nil {
			svc.closeLinks()
		}
	}()
	n, toNomad, err := nomadClient(clients, svc.files)
	if err != nil {
		return nil, err
	}
	svc.links = append(svc.links, toNomad)
	c, ask, toConsul, err := consulClient(clients, svc.files)
	if err != nil {
		return nil, err
	}
	svc.links = append(svc.links, toConsul)
	v, toVault, err := vaultClient(clients, svc.files)
	if err != nil {
		return nil, err
	}
	svc.links = append(svc.links, toVault)
	for _, l := range svc.links {
		l.Observe(svc.metrics.Call)
	}
	rows, nodes := registry.New(c, cfg.ConsulPrefix), cluster.New(n, cfg.NomadNamespace, cfg.VolumePlugin, log.Named("cluster"))
	keys := secrets.New(v, cfg.VaultMount)
	if err := vaultToken(keys, svc.files); err != nil {
		return nil, err
	}
	opts := cfg.Scheduler()
	opts.Observer = svc.metrics
	if opts.EngineCAs, err = engineCAs(cfg.EngineCAFile, svc.files); err != nil {
		return nil, err
	}
	if opts.Snapshots.Store, err = cfg.SnapshotStore(); err != nil {
		return nil, fmt.Errorf("ORCH_SNAPSHOT_URL: %w", err)
	}
	if len(opts.ProviderKeys) > 0 {
		opts.Job.ProviderKeysPath = keys.EnvTemplatePath()
	}
	svc.vault = keys
	svc.tokens = tokenLives(n, cmp.Or(clients.NomadToken, os.Getenv("NOMAD_TOKEN")), c, cmp.Or(clients.ConsulToken, os.Getenv(consul.HTTPTokenEnvName)), log)
	svc.rights = newRights(&preflight.Stores{
		Nomad: n, Namespace: cfg.NomadNamespace, Driver: cfg.EngineDriver, AllowOpenNomad: cfg.AllowOpenNomad, LocalSnapshots: cfg.LocalSnapshots(), Consul: c, ConsulAsk: ask, Prefix: cfg.ConsulPrefix, Vault: v, Mount: keys.Mount(),
	}, log)
	opening, cancel := context.WithTimeout(ctx, openAudit)
	defer cancel()
	svc.audit, err = audit.Open(opening, cfg.DatabaseURL, audit.Options{RetentionDays: cfg.AuditRetentionDays, Log: log.Named("audit"), Observe: svc.metrics.Audit})
	if err != nil {
		return nil, fmt.Errorf("ORCH_DATABASE_URL: cannot open the audit log: %w", err)
	}
	if cfg.PinImages && opts.Job.Driver == jobs.Docker {
		svc.images = images.New(log.Named("images"))
		opts.Digests = svc.images
	}
	for l, ping := range map[*link.Link]func(context.Context) error{toNomad: nodes.Ping, toConsul: rows.Ping, toVault: keys.Ping} {
		l.Watch(ping, svc.tell(l))
		l.TellRefusals(svc.rights.refused)
	}
	svc.Scheduler = scheduler.New(opts, rows, nodes, keys, svc.audit, log.Named("scheduler"))
	svc.rights.lacks = svc.Scheduler.Lacks
	svc.Drain = svc.Scheduler.LongestOperation()
	if svc.ops, err = listenOps(ctx, cfg, log); err != nil {
		return nil, errors.Join(err, svc.audit.Close())
	}
	if svc.Server, err = server.New(cfg.Addr, adminkeys.Set{}, svc.Scheduler, log.Named("server")); err != nil {
		return nil, errors.Join(err, svc.ops.Close(), svc.audit.Close())
	}
	svc.admins = newAdminKeys(cfg, log, svc.Server.SetAdminKeys)
	err = svc.admins.watch(svc.files)
	secure, tlsErr := serverTLS(cfg, svc.files)
	if err = errors.Join(err, tlsErr); err != nil {
		return nil, errors.Join(err, svc.Server.Close(), svc.ops.Close(), svc.audit.Close())
	}
	svc.Server.UseTLS(secure)
	svc.Server.Limit(server.Edge{MaxRequests: cfg.MaxRequests, MaxConnections: cfg.MaxConns, NoDocs: !cfg.Docs, WrongKeys: cfg.WrongKeys})
	svc.Server.ConfineAdmin(cfg.AdminOpsOnly)
	svc.Server.Observe(svc.metrics)
	if cfg.AccessLog {
		svc.Server.LogRequests(log.Named("access"))
	}
	svc.collect()
	return svc, nil
}

// Reload reads again what is in files: the admin keys, certificates and tokens.
func (s *Service) Reload() {
	s.admins.reload()
	s.files.Reload()
}

// Run serves until ctx ends. Then it reports that it is not ready, serves on for DrainDelay,
// stops accepting connections, finishes what is in progress, and destroys the replica's
// session. It returns early if serving fails or the engine's job file cannot be used.
func (s *Service) Run(ctx context.Context) error {
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	scheduled, served, renewed, logged, operated, tried := make(chan error, 1), make(chan error, 1), make(chan struct{}), make(chan struct{}), make(chan struct{}), make(chan struct{})
	// The audit log is closed after everything that writes to it.
	var watching sync.WaitGroup
	watching.Go(func() { s.files.Run(work) })
	watching.Go(func() { s.tokens.Run(work) })
	logging, endLog := context.WithCancel(context.WithoutCancel(ctx))
	defer endLog()
	go func() { defer close(logged); s.audit.Run(logging) }()
	go func() { scheduled <- s.Scheduler.Run(work) }()
	go func() { served <- s.Server.Serve() }()
	go func() { defer close(renewed); s.vault.KeepToken(work, s.log.Named("vault")) }()
	go func() { defer close(operated); s.ops.Serve(s.metrics.Handler(), s.Server.AdminHandler()) }()
	go func() { defer close(tried); s.rights.run(work) }()
	connections, files := s.Server.Limits()
	s.log.Info("listening", "addr", s.Server.Addr().String(), "tls", s.Server.TLS(), "ops_addr", s.OpsAddr(), "max_connections", connections, "open_files", files)

	var err error
	running := true
	for stop, delay := ctx.Done(), (<-chan time.Time)(nil); stop != nil || delay != nil; {
		select {
		case <-stop:
			s.log.Info("stopping: not ready any more, but still serving", "for", s.DrainDelay.String())
			s.Server.Drain()
			stop, delay = nil, time.After(s.DrainDelay)
			s.retire(work)
		case <-delay:
			delay = nil
		case err = <-served:
			stop, delay = nil, nil
		case err = <-scheduled:
			running, stop, delay = false, nil, nil
		}
	}
	grace, cancel := context.WithTimeout(work, s.Drain)
	defer cancel()
	if err == nil {
		s.log.Info("stopping: finishing requests and operations in progress", "at_most", s.Drain.String())
		if err = s.Server.Shutdown(grace); errors.Is(err, context.DeadlineExceeded) {
			s.log.Warn("interrupting requests and operations that are still in progress")
			err = nil
		}
		s.Scheduler.Drain(grace)
		err = errors.Join(err, s.ops.Shutdown(grace)) // last, so that the drain can be watched
	}
	err = errors.Join(err, s.Server.Close())
	stop()
	if running {
		err = errors.Join(err, <-scheduled)
	}
	<-renewed
	watching.Wait()
	<-tried
	err = errors.Join(err, s.ops.Close())
	<-operated
	endLog()
	<-logged
	err = errors.Join(err, s.audit.Close())
	if s.images != nil {
		s.images.Close()
	}
	s.closeLinks()
	return err
}

// retire gives up the lead, so that another replica leads at once.
func (s *Service) retire(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, s.Drain)
	defer cancel()
	s.Scheduler.Retire(ctx)
}

func (s *Service) closeLinks() {
	for _, l := range s.links {
		l.Close()
	}
}

// tell returns a function that logs when a store stops responding, and when it responds
// again.
func (s *Service) tell(l *link.Link) func(away bool) {
	return func(away bool) {
		if away {
			s.log.Warn("a store does not respond; calls that need it get 503 until it does", "store", l.Name())
		} else {
			s.log.Info("a store responds again", "store", l.Name())
		}
	}
}
