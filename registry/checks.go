package registry

import (
	"context"
	"sync"
	"time"

	consul "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/engine"
)

// Standing is what Consul says of an engine's check.
type Standing int

const (
	// Unknown says that Consul has not answered of late, or its agent on the engine's node is
	// dead, and with it what that last said.
	Unknown Standing = iota
	// Absent says that Consul has no check of the engine's process that has run.
	Absent
	// Passing says that a living agent's check passes.
	Passing
	// Critical says that a living agent's check fails.
	Critical
)

func (s Standing) String() string { return [...]string{"unknown", "absent", "passing", "critical"}[s] }

const (
	// listChecks is how often all checks of engines are listed, with up to listAtOnce of
	// them: more in proportion. Between two lists one query tells of those that fail.
	listChecks = 15 * time.Second
	listAtOnce = 1000
	// settleCheck is how long after its start the first check of a process may be
	// missing, beside its interval: it begins at a random moment of that.
	settleCheck = 10 * time.Second

	// serfHealth is the check of a node's own agent (CheckID in Consul's agent/structs).
	serfHealth = "serfHealth"
)

// Checks knows how the checks of engines stand, as Consul says: a blocking query for
// those that are critical, and a list of all now and then; none per engine. It is a
// hint, never a verdict. A check is an engine's when Nomad registered it for the
// engine's allocation: a name is not an identity.
type Checks struct {
	store    *Store
	log      hclog.Logger
	interval time.Duration // of an engine's check
	every    time.Duration // listChecks; tests make it short

	mu      sync.RWMutex
	failing map[string]bool        // by allocation
	dead    map[string]bool        // nodes in Consul whose agent does not answer
	listed  map[string]listedCheck // by allocation
	fresh   time.Time              // when Consul last told which are critical
	list    time.Time              // when the list was begun
}

type listedCheck struct {
	node   string // in Consul
	status string
}

// NewChecks returns checks that know of nothing until Run has asked. interval is that
// of an engine's check.
func (s *Store) NewChecks(interval time.Duration, log hclog.Logger) *Checks {
	return &Checks{store: s, interval: interval, every: listChecks, log: log}
}

// Run keeps the checks up to date until ctx ends.
func (c *Checks) Run(ctx context.Context) {
	var lists sync.WaitGroup
	defer lists.Wait()
	lists.Go(func() { c.keep(ctx, c.followList) })
	var index uint64
	c.keep(ctx, func(ctx context.Context) (time.Duration, error) {
		next, err := c.followCritical(ctx, index)
		if err != nil || next < index { // a restored Consul counts anew
			next = 0
		}
		index = next
		return 0, err
	})
}

// keep calls ask until ctx ends, with the waits between two calls that it names.
func (c *Checks) keep(ctx context.Context, ask func(context.Context) (time.Duration, error)) {
	for ctx.Err() == nil {
		wait, err := ask(ctx)
		if err != nil && ctx.Err() == nil {
			c.log.Warn("cannot read the checks of engines; trying again", "error", err)
			wait = mirrorRetry
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// followCritical blocks until the critical checks have changed since index, or
// mirrorWait is over, and takes them over.
func (c *Checks) followCritical(ctx context.Context, index uint64) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, mirrorWait+callTimeout)
	defer cancel()
	checks, meta, err := c.store.client.Health().State(consul.HealthCritical, (&consul.QueryOptions{WaitIndex: index, WaitTime: mirrorWait}).WithContext(ctx))
	if err != nil {
		return 0, unavailable(err)
	}
	failing, dead := map[string]bool{}, map[string]bool{}
	for _, check := range checks {
		if check.CheckID == serfHealth {
			dead[check.Node] = true
		} else if id := allocOf(check.ServiceID); id != "" {
			failing[id] = true
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failing, c.dead, c.fresh = failing, dead, time.Now()
	return meta.LastIndex, nil
}

// followList lists all checks of engines.
func (c *Checks) followList(ctx context.Context) (next time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, mirrorWait+callTimeout)
	defer cancel()
	began := time.Now()
	checks, _, err := c.store.client.Health().State(consul.HealthAny, (&consul.QueryOptions{Filter: `ServiceName matches "^` + engine.JobPrefix + `"`}).WithContext(ctx))
	if err != nil {
		return 0, unavailable(err)
	}
	listed := make(map[string]listedCheck, len(checks))
	for _, check := range checks {
		id := allocOf(check.ServiceID)
		if before, twice := listed[id]; id == "" || twice && before.status == consul.HealthCritical {
			continue
		}
		listed[id] = listedCheck{check.Node, check.Status}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.listed, c.list = listed, began
	return c.every * time.Duration(1+len(checks)/listAtOnce), nil
}

// Of is how the check of an engine that runs stands, and when that was known.
func (c *Checks) Of(e *engine.Row) (Standing, time.Time) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	check, listed := c.listed[e.AllocID]
	switch {
	case time.Since(c.fresh) > mirrorWait+callTimeout, listed && c.dead[check.node]:
		return Unknown, time.Time{}
	case c.failing[e.AllocID]:
		return Critical, c.fresh
	case listed && check.status == consul.HealthPassing:
		return Passing, c.fresh
	case listed && check.status == consul.HealthCritical: // it has healed since, or the list is older
		return Unknown, time.Time{}
	case c.list.IsZero() || c.list.Before(e.RunningSince.Add(settleCheck+c.interval)):
		return Unknown, time.Time{}
	}
	return Absent, time.Time{}
}

// Passes says whether the check of an allocation passes.
func (c *Checks) Passes(allocID string) bool {
	standing, _ := c.Of(&engine.Row{AllocID: allocID})
	return standing == Passing
}

// AgentDead says whether Consul's agent on the node of an engine does not answer, so
// that nobody runs the engine's check.
func (c *Checks) AgentDead(e *engine.Row) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	check, listed := c.listed[e.AllocID]
	return listed && c.dead[check.node]
}

// Failing is how many of the rows have a check that fails. A row that should not
// run has none.
func (c *Checks) Failing(rows []*engine.Row) int {
	n := 0
	for _, e := range rows {
		if standing, _ := c.Of(e); standing == Critical {
			n++
		}
	}
	return n
}
