package scheduler

import (
	"context"
	"errors"
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
	// pingTimeout bounds one look at a dependency.
	pingTimeout = 2 * time.Second
	// auditTimeout is the same of the audit log, whose answer may be that of a write on a
	// busy disk.
	auditTimeout = audit.CallTimeout
	// pingTrust is how long an answer of a dependency counts.
	pingTrust = time.Second
	// awayTrust is how long one that did not answer is taken to be away by an operation: as
	// long as those need who waited for that answer. It may begin as soon as it is back.
	awayTrust = 250 * time.Millisecond
)

// backendChecks asks dependencies whether they serve this service before an operation
// touches anything: so that a dependency that is down means 503 and nothing changed.
// However many ask, there is one question at a time to each of them.
type backendChecks struct {
	ping map[string]func(context.Context) error

	mu   sync.Mutex
	last map[string]*backendCheck // by name
}

// backendCheck is one question to a dependency.
type backendCheck struct {
	asked time.Time
	done  chan struct{} // closed when ended and err are set
	ended time.Time
	err   error
}

// trusted says whether the answer to a question still counts, where an error counts for
// a time.
func (c *backendCheck) trusted(away time.Duration) bool {
	select {
	case <-c.done:
		return c.err == nil && time.Since(c.asked) < pingTrust || c.err != nil && time.Since(c.ended) < away
	default:
		return true // it will
	}
}

// need returns the error of a named dependency that is not there. However many ask,
// one of them asks the dependency, and all get its answer.
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

// known is the last answer of a dependency, if that counts for an operation.
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

// look is what a dependency answers, or answered of late; an error counts for a time.
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

// begin notes that a dependency is being asked. The lock is held.
func (b *backendChecks) begin(name string) *backendCheck {
	c := &backendCheck{asked: time.Now(), done: make(chan struct{})}
	if b.last == nil {
		b.last = map[string]*backendCheck{}
	}
	b.last[name] = c
	return c
}

// ask asks a dependency. Others wait for the answer too: it does not end with its
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

// errNotAsked is the answer of a question that ended in a panic.
var errNotAsked = errors.New("the dependency could not be asked")

// BackendState is how a dependency stands, in a word.
type BackendState string

// The words of GET /health.
const (
	BackendOK      BackendState = "ok"
	BackendAway    BackendState = "unavailable"
	BackendRefused BackendState = "refused" // it answers, and refuses the service's token
)

// Health is how every dependency stands, by name; at most a second old.
func (s *Scheduler) Health(ctx context.Context) map[string]BackendState {
	var mu sync.Mutex
	var wg sync.WaitGroup
	result := make(map[string]BackendState, len(s.checks.ping))
	for name := range s.checks.ping {
		wg.Go(func() {
			err := s.checks.look(ctx, name, pingTrust)
			if err != nil {
				s.log.Debug("a dependency does not serve", "dependency", name, "error", err)
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

// warnOfTemplateLimits names the nodes whose agents would kill engines during
// an outage of Vault or of the Nomad servers: those whose template retries are
// limited. It is a look where the token allows one, never a condition.
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
		if limited, err := retriesLimited(ctx, client, node.ID); err == nil && limited {
			s.log.Warn("this node's Nomad agent kills engines in a long outage of Vault or Nomad: set template { vault_retry { attempts = 0 } nomad_retry { attempts = 0 } consul_retry { attempts = 0 } } in its client block", "node", node.Name)
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

// Reachable says whether this replica can be sent calls: admits of running engines
// need the registry, as it answered within the last second, a session, and keys that are
// mostly cached.
// A replica that cannot follow the registry leaves them to others, for its lists are
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
