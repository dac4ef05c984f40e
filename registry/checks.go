package registry

import (
	"context"
	"strings"
	"sync"
	"time"

	consul "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
)

// Checks knows which engines' checks fail, as Consul says: one blocking query
// for all of them, and none per engine. It is a hint, never a verdict.
type Checks struct {
	store *Store
	log   hclog.Logger

	mu      sync.RWMutex
	failing map[string]bool // by service, which is named as the engine's job
	fresh   time.Time       // when Consul last answered
}

// NewChecks returns checks that know of nothing until Run has asked.
func (s *Store) NewChecks(log hclog.Logger) *Checks { return &Checks{store: s, log: log} }

// Run keeps what fails up to date until ctx ends.
func (c *Checks) Run(ctx context.Context) {
	var index uint64
	for ctx.Err() == nil {
		failing, next, err := c.critical(ctx, index)
		if err != nil && ctx.Err() == nil {
			c.log.Warn("cannot read the failing checks; trying again", "error", err)
			index = 0
			select {
			case <-ctx.Done():
			case <-time.After(mirrorRetry):
			}
			continue
		}
		if next < index { // a restored Consul counts anew
			next = 0
		}
		index = next
		c.mu.Lock()
		c.failing, c.fresh = failing, time.Now()
		c.mu.Unlock()
	}
}

// critical blocks until the critical checks have changed since index, or
// mirrorWait is over.
func (c *Checks) critical(ctx context.Context, index uint64) (map[string]bool, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, mirrorWait+callTimeout)
	defer cancel()
	checks, meta, err := c.store.client.Health().State(consul.HealthCritical, (&consul.QueryOptions{WaitIndex: index, WaitTime: mirrorWait}).WithContext(ctx))
	if err != nil {
		return nil, 0, unavailable(err)
	}
	failing := map[string]bool{}
	for _, check := range checks {
		if strings.HasPrefix(check.ServiceName, jobPrefix) {
			failing[check.ServiceName] = true
		}
	}
	return failing, meta.LastIndex, nil
}

// Passing is when Consul last told that the check of an engine that runs is not
// failing; the zero time when it fails, or when Consul has not answered of late.
func (c *Checks) Passing(e *Engine) time.Time {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.failing[e.JobID()] || time.Since(c.fresh) > mirrorWait+callTimeout {
		return time.Time{}
	}
	return c.fresh
}

// Fails says whether the check of an engine fails, as far as is known.
func (c *Checks) Fails(e *Engine) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.failing[e.JobID()]
}

// Failing is how many of the rows have a check that fails. A row that should not
// run has none.
func (c *Checks) Failing(rows []*Engine) int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if len(c.failing) == 0 {
		return 0
	}
	n := 0
	for _, e := range rows {
		if c.failing[e.JobID()] {
			n++
		}
	}
	return n
}
