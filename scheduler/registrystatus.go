package scheduler

import (
	"context"

	"github.com/septemberai/orch/registry"
)

// RegistryStatus is the state of the registry.
type RegistryStatus struct {
	*registry.Deployment
	// Quarantined counts the engines whose owner an admin must decide.
	Quarantined int
}

// Registry returns the state of the registry. BACKEND_UNAVAILABLE.
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

// RegistryState returns the last state of the registry that this replica knows.
func (s *Scheduler) RegistryState() registry.RegistryState {
	if record := s.guard.Current(); record != nil && record.State == registry.RegistryOK {
		return registry.RegistryOK
	}
	return registry.RegistryRecovering
}
