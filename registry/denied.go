package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/link"
)

const (
	// consulDenies begins the error of a transaction's operation that the token may not
	// carry out (PermissionDeniedError in Consul's acl package). The transaction as a whole
	// then has the status of a conflict.
	consulDenies = "Permission denied"
	// consulUnknown is the error of a call whose token does not exist, or has expired
	// (ErrNotFound in the same package).
	consulUnknown = "ACL not found"
)

func denied(said string) error {
	return fmt.Errorf("%w: %w: %s", ErrUnavailable, ErrDenied, link.WithoutName(said))
}

// notCommitted wraps the error of a transaction that Consul did not begin. Unlike all other
// calls of its client, it has the response's text and not its status.
func notCommitted(err error) error {
	if text := err.Error(); strings.Contains(text, consulUnknown) || strings.Contains(text, consulDenies) {
		return denied(text)
	}
	return unavailable(err)
}

// unfiltered returns nil if a list of the keys below a prefix of the store is complete.
// Consul leaves out what the token may not read. It reports this in the response's metadata,
// but not for a missing token; so an empty list must be confirmed by a read, which Consul
// refuses. ErrDenied.
func (s *Store) unfiltered(ctx context.Context, below string, meta *consul.QueryMeta, found int) error {
	if meta.ResultsFilteredByACLs {
		return denied("it hides keys below " + s.prefix + below + ": key:read is missing")
	}
	if found > 0 {
		return nil
	}
	_, err := s.get(ctx, s.prefix+below)
	return err
}

// mayReadChecks returns ErrDenied if the service's token may not read the checks of engines.
// Consul then lists none and refuses nothing, as if no engine had a check. It refuses only
// calls that name one service or node; neither has to exist.
func (s *Store) mayReadChecks(ctx context.Context) error {
	for _, call := range []string{"/v1/agent/health/service/name/" + engine.JobPrefix, "/v1/coordinate/node/orch"} {
		_, err := s.client.Raw().Query(call, nil, (&consul.QueryOptions{}).WithContext(ctx))
		var status consul.StatusError
		// 404: there is no such object. 401 is for coordinates that are turned off.
		if errors.As(err, &status) && status.Code == http.StatusForbidden {
			return denied(status.Body)
		}
	}
	return nil
}
