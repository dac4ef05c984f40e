package harness

import (
	"encoding/json"
	"fmt"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
)

// Pooled returns the pool's entries.
func (s *Stores) Pooled(prefix string) ([]registry.PooledVolume, error) {
	pairs, _, err := s.Consul.KV().List(prefix+"pool/volumes/", nil)
	if err != nil {
		return nil, err
	}
	entries := make([]registry.PooledVolume, len(pairs))
	for i, pair := range pairs {
		if err := json.Unmarshal(pair.Value, &entries[i]); err != nil {
			return nil, err
		}
	}
	return entries, nil
}

// AwaitWarm waits until n warm engines run.
func (s *Stores) AwaitWarm(r *Replica, n int) {
	s.T.Helper()
	Eventually(s.T, fmt.Sprint(n, " warm engines run"), func() error {
		if got := r.Scheduler.WarmEngines(); got != n {
			return fmt.Errorf("%d", got)
		}
		return nil
	})
}

// WarmRows returns the rows of warm engines that belong to no user.
func (s *Stores) WarmRows(prefix string) (warm []*engine.Row) {
	s.T.Helper()
	rows, err := s.Engines(prefix)
	if err != nil {
		s.T.Fatal(err)
	}
	for _, row := range rows {
		if row.ProductID == engine.WarmProduct {
			warm = append(warm, row)
		}
	}
	return warm
}
