package preflight

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/engine"
)

const consulRemedy = "give the token the policy deploy/consul/orch.policy.hcl, with the prefix of ORCH_CONSUL_PREFIX"

// authorization is a question to Consul about the rights of the token that asks
// (ACLAuthorizationRequest and -Response in Consul's agent/structs).
type authorization struct {
	Resource, Access, Segment string
	Allow                     bool `json:",omitempty"`
}

// consulRights asks Consul, because it hides what a token may not read instead of refusing
// it.
func (s *Stores) consulRights(ctx context.Context) []Result {
	ask := []authorization{
		{Resource: "key", Access: "read", Segment: s.Prefix + "x"},
		{Resource: "key", Access: "write", Segment: s.Prefix + "x"},
		{Resource: "session", Access: "read", Segment: "x"},
		{Resource: "session", Access: "write", Segment: "x"},
		{Resource: "service", Access: "read", Segment: engine.JobPrefix + "x"},
		{Resource: "node", Access: "read", Segment: "x"},
	}
	needs := []string{
		fmt.Sprintf("key_prefix %q: read", s.Prefix), fmt.Sprintf("key_prefix %q: write", s.Prefix),
		`session_prefix "": read`, `session_prefix "": write`, fmt.Sprintf("service_prefix %q: read", engine.JobPrefix), `node_prefix "": read`,
	}
	var said []authorization
	status, err := s.ConsulAsk(ctx, "/v1/internal/acl/authorize", ask, &said)
	results := make([]Result, len(ask))
	for i, right := range needs {
		r := Result{Store: "consul", Needs: right, State: OK}
		switch {
		case err == nil && status == http.StatusUnauthorized: // ACLs are off (aclDisabled in Consul's agent)
			r.State, r.Said, r.Remedy = s.withoutACLs(ctx)
		case err == nil && refused(status):
			r.State, r.Said, r.Remedy = Missing, "the token is not known", consulRemedy
		case err != nil || status != http.StatusOK || len(said) != len(ask):
			r.State, r.Said, r.Remedy = Unknown, fmt.Sprintf("status %d, %v", status, err), "see that Consul can be reached at CONSUL_HTTP_ADDR"
		case !said[i].Allow:
			r.State, r.Said, r.Remedy = Missing, "not allowed", consulRemedy
		}
		results[i] = r
	}
	return results
}

// withoutACLs reads a key, to be sure that everything is allowed because Consul's ACLs are
// off.
func (s *Stores) withoutACLs(ctx context.Context) (State, string, string) {
	_, _, err := s.Consul.KV().Get(s.Prefix+"x", (&consul.QueryOptions{}).WithContext(ctx))
	var bad consul.StatusError
	switch {
	case err == nil:
		return OK, "", ""
	case errors.As(err, &bad) && refused(bad.Code):
		return Missing, bad.Body, consulRemedy
	}
	return Unknown, err.Error(), "see that Consul can be reached at CONSUL_HTTP_ADDR"
}
