package server

import (
	"net/http"

	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler"
)

// registryAnswer is the state of the registry.
type registryAnswer struct {
	DeploymentID  string                 `json:"deployment_id"`
	RegistryID    string                 `json:"registry_id"`
	Epoch         int                    `json:"epoch"`
	State         registry.RegistryState `json:"state"`
	Why           string                 `json:"why,omitempty"`
	Since         string                 `json:"since,omitempty"`
	Keys          string                 `json:"keys"`
	KeysLostSince string                 `json:"keys_lost_since,omitempty"`
	KeysMissing   int                    `json:"keys_missing"`
	Quarantined   int                    `json:"quarantined"`
	LastRecovery  *recoveryAnswer        `json:"last_recovery,omitempty"`
}

// recoveryAnswer is what a recovery of the registry did.
type recoveryAnswer struct {
	Why       string `json:"why"`
	BeganAt   string `json:"began_at"`
	EndedAt   string `json:"ended_at"`
	Rebuilt   int    `json:"rebuilt"`
	Corrected int    `json:"corrected"`
	Missing   int    `json:"missing"`
	Products  int    `json:"products"`
	Pooled    int    `json:"pooled"`
}

// stateOf returns the state in the registry's record. Without a record the registry counts
// as recovering, so that no engine is handed out.
func stateOf(r scheduler.RegistryStatus) registry.RegistryState {
	if r.State == registry.RegistryOK {
		return registry.RegistryOK
	}
	return registry.RegistryRecovering
}

func showRegistry(r scheduler.RegistryStatus) registryAnswer {
	answer := registryAnswer{
		DeploymentID: r.ID, RegistryID: r.Registry, Epoch: r.Epoch, State: stateOf(r), Why: r.Why, Since: timestamp(r.Since),
		Keys: "ok", KeysMissing: r.KeysMissing, Quarantined: r.Quarantined,
	}
	if r.KeysLost != nil {
		answer.Keys, answer.KeysLostSince = "lost", timestamp(*r.KeysLost)
	}
	if l := r.Last; l != nil {
		answer.LastRecovery = &recoveryAnswer{
			Why: l.Why, BeganAt: timestamp(l.BeganAt), EndedAt: timestamp(l.EndedAt),
			Rebuilt: l.Rebuilt, Corrected: l.Corrected, Missing: l.Missing, Products: l.Products, Pooled: l.Pooled,
		}
	}
	return answer
}

func (s *Server) registryStatus(w http.ResponseWriter, r *http.Request, _ string) error {
	if err := s.admin(r); err != nil {
		return err
	}
	if q := queryOf(r); q.err != nil {
		return q.err
	}
	recorded, err := s.scheduler.Registry(r.Context())
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, showRegistry(recorded))
	return nil
}

func (s *Server) planRecovery(w http.ResponseWriter, r *http.Request, _ string) error {
	if err := s.admin(r); err != nil {
		return err
	}
	if q := queryOf(r); q.err != nil {
		return q.err
	}
	actions, err := s.scheduler.PlanRecovery(r.Context())
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, struct {
		Actions []actionAnswer `json:"actions"`
	}{showActions(actions)})
	return nil
}

func (s *Server) requestRecovery(w http.ResponseWriter, r *http.Request, _ string) error {
	if err := s.admin(r); err != nil {
		return err
	}
	if err := decode(w, r, &emptyBody{}); err != nil {
		return err
	}
	if err := s.scheduler.RequestRecovery(r.Context()); err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, struct {
		Status string `json:"status"`
	}{"requested"})
	return nil
}

func (s *Server) rekey(w http.ResponseWriter, r *http.Request, _ string) error {
	if err := s.admin(r); err != nil {
		return err
	}
	if err := decode(w, r, &emptyBody{}); err != nil {
		return err
	}
	done, err := s.scheduler.Rekey(r.Context())
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, struct {
		Rekeyed int `json:"rekeyed"`
		AtStart int `json:"at_start"`
		Failed  int `json:"failed"`
		Left    int `json:"left"`
	}{done.Rekeyed, done.AtStart, done.Failed, done.Left})
	return nil
}
