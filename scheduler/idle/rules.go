package idle

import (
	"context"
	"time"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
)

// idleRule is a product's settings for its idle engines.
type idleRule struct {
	after time.Duration // 0: they never sleep
	pause bool
}

// rules returns the settings of each product; there are none for engines without a user, or
// for products whose record cannot be read.
func (z *Sleeper) rules(ctx context.Context) (map[string]idleRule, error) {
	products, _, err := z.d.Store.Products(ctx)
	if err != nil {
		return nil, err
	}
	rules := make(map[string]idleRule, len(products))
	for _, p := range products {
		rule := idleRule{after: z.d.Timeout, pause: p.Policy.SleepMode == engine.SleepPause}
		if timeout := p.Policy.IdleTimeoutS; timeout != nil {
			rule.after = time.Duration(min(*timeout, longestIdle)) * time.Second
		}
		rules[p.ProductID] = rule
	}
	return rules, nil
}

// idle returns the engines that were not in use for their timeout and are not marked yet.
func (z *Sleeper) idle(rows []*engine.Row, rules map[string]idleRule, now time.Time) []*attempt {
	z.mu.Lock()
	defer z.mu.Unlock()
	var idle []*attempt
	z.sweeps++
	for _, row := range rows {
		engine := registry.Fingerprint(row.ProductID, row.UserID)
		woke, known := z.woke[engine]
		if !known || woke.allocID != row.AllocID || !woke.since.Equal(row.RunningSince) {
			woke = wakeUp{allocID: row.AllocID, since: row.RunningSince, at: now}
		}
		woke.sweep = z.sweeps
		z.woke[engine] = woke
		rule := rules[row.ProductID]
		if rule.after <= 0 || z.attempts[engine] != nil {
			continue
		}
		used := z.feed.lastUsed(engine)
		if idleTime := idleFor(now, used, woke.at, row.KeepAwakeUntil); idleTime >= rule.after {
			idle = append(idle, &attempt{row: row.Clone(), engine: engine, used: used, began: now, idle: idleTime, pause: rule.pause})
		}
	}
	for engine, woke := range z.woke {
		if woke.sweep != z.sweeps {
			delete(z.woke, engine)
		}
	}
	z.feed.forget(func(engine uint64) bool { _, runs := z.woke[engine]; return runs }, now.Add(-time.Minute))
	return idle
}
