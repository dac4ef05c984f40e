package scheduler

import (
	"context"

	"github.com/septemberai/orch/registry"
)

// RegistryStatus is how the registry stands.
type RegistryStatus struct {
	*registry.Deployment
	// Quarantined are the engines that an admin has to decide about.
	Quarantined int
}

// Registry says how the registry stands. BACKEND_UNAVAILABLE.
func (s *Scheduler) Registry(ctx context.Context) (RegistryStatus, error) {
	record, err := s.store.Deployment(ctx)
	if err != nil {
		return RegistryStatus{}, err
	}
	list, err := s.store.Quarantine(ctx)
	if err != nil {
		return RegistryStatus{}, err
	}
	return RegistryStatus{record, len(list)}, nil
}

// RegistryState is what this replica last knew of its registry.
func (s *Scheduler) RegistryState() registry.RegistryState {
	if record := s.guard.Current(); record != nil && record.State == registry.RegistryOK {
		return registry.RegistryOK
	}
	return registry.RegistryRecovering
}
