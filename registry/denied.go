package registry

import (
	"context"
	"fmt"

	consul "github.com/hashicorp/consul/api"
)

// consulDenies begins the error of a transaction's operation that the token may not carry
// out (PermissionDeniedError in Consul's acl package). The transaction as a whole then has
// the status of a conflict.
const consulDenies = "Permission denied"

func denied(said string) error {
	return fmt.Errorf("%w: %w: %s", ErrUnavailable, ErrDenied, said)
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
