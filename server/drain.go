package server

import "github.com/septemberai/orch/engine"

// errDraining is the response of /ready while this replica drains.
var errDraining = engine.Errorf(engine.BackendUnavailable, "this replica is stopping; use another one")

// Drain makes clients go to another replica, while all requests are still served: /ready
// returns 503, and each response makes its client close the connection. The server never
// closes an idle connection here, because its client may be sending a request on it.
func (s *Server) Drain() { s.draining.Store(true) }
