package scheduler

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/nomad/api"
	"golang.org/x/sync/errgroup"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/internal/link"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

const (
	// pingTimeout limits one availability probe.
	pingTimeout = 2 * time.Second
	// auditTimeout limits a probe of the audit log, which may be a write on a busy disk.
	auditTimeout = audit.CallTimeout
	// pingTrust is how long the result of a probe is used.
	pingTrust = time.Second
	// awayTrust is how long an operation treats a dependency as unavailable after a failed
	// probe: as long as the callers need that waited for this probe. After that, an
	// operation may begin as soon as the dependency responds.
	awayTrust = 250 * time.Millisecond
)

// backendChecks probes dependencies before an operation touches anything, so that an
// unavailable dependency means 503 without a change. There is at most one probe of each
// dependency in progress, however many callers need it.
type backendChecks struct {
	ping map[string]func(context.Context) error

	mu   sync.Mutex
	last map[string]*backendCheck // by name
}

// backendCheck is one probe of a dependency.
type backendCheck struct {
	asked time.Time
	done  chan struct{} // closed when ended and err are set
	ended time.Time
	err   error
}

// trusted reports whether the result of a probe is still used; an error is used for the
// time away.
func (c *backendCheck) trusted(away time.Duration) bool {
	select {
	case <-c.done:
		return c.err == nil && time.Since(c.asked) < pingTrust || c.err != nil && time.Since(c.ended) < away
	default:
		return true // it is in progress
	}
}

// need returns the error of a named dependency that is unavailable. Concurrent callers
// share one probe.
func (b *backendChecks) need(ctx context.Context, names ...string) error {
	open := make([]string, 0, 4)
	for _, name := range names {
		known, err := b.known(name)
		if err != nil {
			return err
		}
		if !known {
			open = append(open, name)
		}
	}
	if len(open) == 0 {
		return nil
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, name := range open {
		group.Go(func() error { return b.look(ctx, name, awayTrust) })
	}
	return group.Wait()
}

// known returns the last result of a dependency, if an operation may use it.
func (b *backendChecks) known(name string) (bool, error) {
	b.mu.Lock()
	c := b.last[name]
	b.mu.Unlock()
	if c == nil || !c.trusted(awayTrust) {
		return false, nil
	}
	select {
	case <-c.done:
		return true, c.err
	default:
		return false, nil
	}
}

// look returns the last result of a dependency, or probes it; an error is used for the time
// away.
func (b *backendChecks) look(ctx context.Context, name string, away time.Duration) error {
	b.mu.Lock()
	c := b.last[name]
	first := c == nil || !c.trusted(away)
	if first {
		c = b.begin(name)
	}
	b.mu.Unlock()
	if first {
		return b.ask(ctx, name, c)
	}
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// begin records that a probe is in progress. The caller holds the lock.
func (b *backendChecks) begin(name string) *backendCheck {
	c := &backendCheck{asked: time.Now(), done: make(chan struct{})}
	if b.last == nil {
		b.last = map[string]*backendCheck{}
	}
	b.last[name] = c
	return c
}

// ask probes a dependency. Other callers wait for the result too, so the probe does not end
// with its caller's request.
// caller's request.
func (b *backendChecks) ask(ctx context.Context, name string, c *backendCheck) error {
	limit := pingTimeout
	if name == "audit" {
		limit = auditTimeout
	}
	ctx, cancel := context.WithTimeout(link.FailFast(context.WithoutCancel(ctx)), limit)
	defer cancel()
	defer func() {
		c.ended = time.Now()
		close(c.done)
	}()
	c.err = errNotAsked
	c.err = b.ping[name](ctx)
	return c.err
}

// errNotAsked is the result of a probe that panicked.
var errNotAsked = errors.New("the dependency could not be probed")

// BackendState is the state of a dependency.
type BackendState string

// The states in GET /health.
const (
	BackendOK      BackendState = "ok"
	BackendAway    BackendState = "unavailable"
	BackendRefused BackendState = "refused" // it responds, but refuses the service's token
)

// Health returns the state of every dependency, by name, at most a second old.
func (s *Scheduler) Health(ctx context.Context) map[string]BackendState {
	var mu sync.Mutex
	var wg sync.WaitGroup
	result := make(map[string]BackendState, len(s.checks.ping))
	for name := range s.checks.ping {
		wg.Go(func() {
			err := s.checks.look(ctx, name, pingTrust)
			if err != nil {
				s.log.Debug("a dependency is not available", "dependency", name, "error", err)
			}
			mu.Lock()
			defer mu.Unlock()
			result[name] = backendState(err)
		})
	}
	wg.Wait()
	return result
}

func backendState(err error) BackendState {
	switch {
	case err == nil:
		return BackendOK
	case errors.Is(err, secrets.ErrDenied), errors.Is(err, registry.ErrDenied), errors.Is(err, cluster.ErrRejected):
		return BackendRefused
	}
	return BackendAway
}

// warnOfTemplateLimits logs the nodes whose agents would kill engines during an outage of
// Vault or of the Nomad servers, because their template retries are limited. If the service's
// token may not read the agents' settings, it only says so.
func (s *Scheduler) warnOfTemplateLimits(ctx context.Context) {
	client := s.cluster.Client()
	nodes, _, err := client.Nodes().List((&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return
	}
	for _, node := range nodes {
		if node.Status != api.NodeStatusReady || ctx.Err() != nil {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, pingTimeout)
		limited, err := retriesLimited(ctx, client, node.ID)
		var refusal api.UnexpectedResponseError
		if errors.As(err, &refusal) && refusal.HasStatusCode() && refusal.StatusCode() == http.StatusForbidden {
			cancel()
			s.log.Warn("the settings of Nomad's agents were not checked, because the service's token may not read them",
				"store", "nomad", "endpoint", "GET /v1/agent/self", "capability", `agent { policy = "read" }`)
			return
		}
		if err == nil && limited {
			s.log.Warn("this node's Nomad agent kills engines during a long outage of Vault or Nomad: set template { vault_retry { attempts = 0 } nomad_retry { attempts = 0 } consul_retry { attempts = 0 } } in its client block", "node", node.Name)
		}
		cancel()
	}
}

func retriesLimited(ctx context.Context, client *api.Client, nodeID string) (bool, error) {
	direct, err := client.GetNodeClientWithTimeout(nodeID, pingTimeout, (&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return false, err
	}
	type retry struct{ Attempts *int }
	var self struct {
		Config struct {
			Client struct {
				TemplateConfig *struct{ VaultRetry, NomadRetry, ConsulRetry *retry }
			}
		} `json:"config"`
	}
	if _, err := direct.Raw().Query("/v1/agent/self", &self, (&api.QueryOptions{}).WithContext(ctx)); err != nil {
		return false, err
	}
	t := self.Config.Client.TemplateConfig
	if t == nil {
		return true, nil
	}
	for _, r := range []*retry{t.VaultRetry, t.NomadRetry, t.ConsulRetry} {
		if r == nil || r.Attempts == nil || *r.Attempts != 0 {
			return true, nil
		}
	}
	return false, nil
}

func asRules(err error, rules **jobs.RulesError) bool { return errors.As(err, rules) }

// Reachable returns nil if this replica can serve calls. Admits of running engines need the
// registry, which must have responded within the last second, a session, and keys, which
// are usually cached. A replica that cannot follow the registry is not ready, because it
// refuses lists.
// refused.
func (s *Scheduler) Reachable(ctx context.Context) error {
	if _, err := s.viewAge(); err != nil {
		return err
	}
	if err := s.checks.look(ctx, "consul", awayTrust); err != nil {
		return err
	}
	if s.replica.Session() == "" {
		return registry.ErrNoSession
	}
	return nil
}
