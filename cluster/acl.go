package cluster

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/hashicorp/nomad/api"
)

// ErrOpen means that Nomad's ACLs are off, so that it does for everybody what they ask for.
var ErrOpen = errors.New("cluster: Nomad's ACLs are off")

// aclDisabled is in the response of Nomad's ACL endpoints while ACLs are off
// (nomad/acl_endpoint.go).
const aclDisabled = "ACL support disabled"

// CheckACL returns nil if Nomad's ACLs are on, whatever the service's token may do, and
// ErrOpen if they are off. With any other error it is unknown.
func (c *Cluster) CheckACL(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, _, err := c.client.ACLPolicies().List(c.read(ctx))
	var refusal api.UnexpectedResponseError
	if errors.As(err, &refusal) && refusal.HasStatusCode() {
		switch code := refusal.StatusCode(); {
		case code == http.StatusUnauthorized || code == http.StatusForbidden:
			return nil
		case strings.Contains(refusal.Body(), aclDisabled):
			return ErrOpen
		}
	}
	return classify(err)
}
