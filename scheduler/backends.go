package scheduler

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/nomad/api"
	"golang.org/x/sync/errgroup"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

const (
	// pingTimeout bounds one look at a dependency.
	pingTimeout = 2 * time.Second
	// pingTrust is how long an answer of a dependency counts.
	pingTrust = time.Second
)

// backendChecks asks dependencies whether they serve this service before an operation
// touches anything: so that a dependency that is down means 503 and nothing changed.
// However many ask, there is one question at a time to each of them.
type backendChecks struct {
	ping map[string]func(context.Context) error

	mu   sync.Mutex
	last map[string]*pingAnswer
}

// pingAnswer is what a dependency answered, once done is closed.
type pingAnswer struct {
	asked time.Time
	done  chan struct{}
	err   error
}

// ended says whether the answer is there.
func (a *pingAnswer) ended() bool {
	select {
	case <-a.done:
		return true
	default:
		return false
	}
}

// need returns the error of a named dependency that is not there.
func (b *backendChecks) need(ctx context.Context, names ...string) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, name := range names {
		group.Go(func() error { return b.ask(ctx, name, false) })
	}
	return group.Wait()
}

// ask asks a dependency, unless it did that less than pingTrust ago, or does it now. An
// operation does not trust an old error: it may begin as soon as the dependency is back.
func (b *backendChecks) ask(ctx context.Context, name string, trustErrors bool) error {
	b.mu.Lock()
	a := b.last[name]
	if a == nil || a.ended() && (time.Since(a.asked) >= pingTrust || a.err != nil && !trustErrors) {
		a = &pingAnswer{asked: time.Now(), done: make(chan struct{})}
		if b.last == nil {
			b.last = map[string]*pingAnswer{}
		}
		b.last[name] = a
		b.mu.Unlock()
		// The others want the answer even if this caller goes.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTimeout)
		defer cancel()
		defer close(a.done)
		a.err = errNotAsked
		a.err = b.ping[name](ctx)
		return a.err
	}
	b.mu.Unlock()
	select {
	case <-a.done:
		return a.err
	case <-ctx.Done():
		return ctx.Err()
	}
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
			err := s.checks.ask(ctx, name, true)
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
// need the registry alone, and keys that are mostly cached. A replica that cannot
// follow the registry leaves them to others, for its lists are refused.
func (s *Scheduler) Reachable(ctx context.Context) error {
	if _, err := s.viewAge(); err != nil {
		return err
	}
	return s.checks.need(ctx, "consul")
}
