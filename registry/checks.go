package registry

import (
	"context"
	"sync"
	"time"

	consul "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/engine"
)

// Standing is the state of an engine's check in Consul.
type Standing int

const (
	// Unknown means that Consul has not responded recently, or its agent on the engine's node is
	// dead, so that the check's last state means nothing.
	Unknown Standing = iota
	// Absent means that Consul has no check of the engine's process that was ever run.
	Absent
	// Passing means that a live agent reports the check as passing.
	Passing
	// Critical means that a live agent reports the check as failing.
	Critical
)

func (s Standing) String() string { return [...]string{"unknown", "absent", "passing", "critical"}[s] }

const (
	// listChecks is the interval at which the checks of all engines are listed, if there
	// are up to listAtOnce; for more it grows in proportion. Between two lists, one query
	// follows the failing checks.
	listChecks = 15 * time.Second
	listAtOnce = 1000
	// settleCheck is how long, in addition to its interval, the first check of a new
	// process may be missing, because it begins at a random moment of the interval.
	settleCheck = 10 * time.Second

	// serfHealth is the check of a node's own agent (CheckID in Consul's agent/structs).
	serfHealth = "serfHealth"
)

// Checks follows the state of engines' checks in Consul, with one blocking query for the
// critical ones and an occasional list of all, but no query per engine. The result is a
// hint, never a verdict. A check belongs to an engine if Nomad registered it for the
// engine's allocation, because names are not unique.
type Checks struct {
	store    *Store
	log      hclog.Logger
	interval time.Duration // of an engine's check
	every    time.Duration // listChecks; tests shorten it

	mu      sync.RWMutex
	failing map[string]time.Time   // by allocation: since when, as this replica has seen it
	dead    map[string]bool        // nodes in Consul whose agent does not respond
	listed  map[string]listedCheck // by allocation
	fresh   time.Time              // when Consul last reported the critical checks
	list    time.Time              // when the list began
}

type listedCheck struct {
	node   string // in Consul
	status string
}

// NewChecks returns Checks that know nothing before Run has read them. interval is that of
// an engine's check.
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
		if err != nil || next < index { // the indexes of a restored Consul can be lower
			next = 0
		}
		index = next
		return 0, err
	})
}

// keep calls ask until ctx ends, with the wait that each call returns; after an error at
// least mirrorRetry.
func (c *Checks) keep(ctx context.Context, ask func(context.Context) (time.Duration, error)) {
	for ctx.Err() == nil {
		wait, err := ask(ctx)
		if err != nil && ctx.Err() == nil {
			c.log.Warn("cannot read the checks of engines; retrying", "error", err)
			wait = max(wait, mirrorRetry)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// followCritical waits until the critical checks have changed since index, at most
// mirrorWait, and stores them.
func (c *Checks) followCritical(ctx context.Context, index uint64) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, mirrorWait+callTimeout)
	defer cancel()
	checks, meta, err := c.store.client.Health().State(consul.HealthCritical, (&consul.QueryOptions{WaitIndex: index, WaitTime: mirrorWait}).WithContext(ctx))
	if err != nil {
		return 0, unavailable(err)
	}
	dead := map[string]bool{}
	for _, check := range checks {
		if check.CheckID == serfHealth {
			dead[check.Node] = true
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	failing, now := map[string]time.Time{}, time.Now()
	for _, check := range checks {
		id := allocOf(check.ServiceID)
		if check.CheckID == serfHealth || id == "" {
			continue
		}
		since, before := c.failing[id]
		if !before || dead[check.Node] || now.Sub(c.fresh) > mirrorWait+callTimeout { // it may have passed meanwhile
			since = now
		}
		failing[id] = since
	}
	c.failing, c.dead, c.fresh = failing, dead, now
	return meta.LastIndex, nil
}

// FailsFor returns for how long the check of a running engine has been critical without a
// break; 0: it is not known to be. A check is also critical, without having run, after its
// agent was started anew.
func (c *Checks) FailsFor(e *engine.Row) time.Duration {
	standing, _ := c.Of(e)
	c.mu.RLock()
	defer c.mu.RUnlock()
	if since, fails := c.failing[e.AllocID]; fails && standing == Critical {
		return time.Since(since)
	}
	return 0
}

// followList lists the checks of all engines.
func (c *Checks) followList(ctx context.Context) (next time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, mirrorWait+callTimeout)
	defer cancel()
	began := time.Now()
	checks, _, err := c.store.client.Health().State(consul.HealthAny, (&consul.QueryOptions{Filter: `ServiceName matches "^` + engine.JobPrefix + `"`}).WithContext(ctx))
	if err != nil {
		return 0, unavailable(err)
	}
	if len(checks) == 0 {
		if err := c.store.mayReadChecks(ctx); err != nil {
			return c.every, err
		}
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

// Of returns the state of the check of an engine that runs, and when it was known.
func (c *Checks) Of(e *engine.Row) (Standing, time.Time) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	check, listed := c.listed[e.AllocID]
	switch {
	case time.Since(c.fresh) > mirrorWait+callTimeout, listed && c.dead[check.node]:
		return Unknown, time.Time{}
	case !c.failing[e.AllocID].IsZero():
		return Critical, c.fresh
	case listed && check.status == consul.HealthPassing:
		return Passing, c.fresh
	case listed && check.status == consul.HealthCritical: // it has passed since, or the list is older
		return Unknown, time.Time{}
	case c.list.IsZero() || c.list.Before(e.RunningSince.Add(settleCheck+c.interval)):
		return Unknown, time.Time{}
	}
	return Absent, time.Time{}
}

// Passes reports whether the check of an allocation passes.
func (c *Checks) Passes(allocID string) bool {
	standing, _ := c.Of(&engine.Row{AllocID: allocID})
	return standing == Passing
}

// AgentDead reports whether Consul's agent on the engine's node does not respond, so that
// nobody runs the engine's check.
func (c *Checks) AgentDead(e *engine.Row) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	check, listed := c.listed[e.AllocID]
	return listed && c.dead[check.node]
}

// Failing counts the rows whose check fails. A row that should not run has no check.
func (c *Checks) Failing(rows []*engine.Row) int {
	n := 0
	for _, e := range rows {
		if standing, _ := c.Of(e); standing == Critical {
			n++
		}
	}
	return n
}
