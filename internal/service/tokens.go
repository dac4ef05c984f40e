package service

import (
	"context"
	"os"

	consul "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/internal/link"
	"github.com/septemberai/orch/internal/reload"
	"github.com/septemberai/orch/internal/tokenlife"
)

// tokenLives returns a watcher of the service's tokens in Nomad and Consul. Without a token,
// a store is not asked.
func tokenLives(n *nomad.Client, nomadToken string, c *consul.Client, consulToken string, log hclog.Logger) *tokenlife.Watcher {
	asks := map[string]tokenlife.Ask{}
	if file := os.Getenv(nomadTokenFile); file != "" || nomadToken != "" {
		asks["nomad"] = func(ctx context.Context) (tokenlife.Life, error) {
			token := nomadToken
			if file != "" {
				var err error
				if token, err = reload.Token(file); err != nil {
					return tokenlife.Life{}, err
				}
			}
			// A workload identity is no token that Nomad could look up.
			if life, ok := tokenlife.OfJWT(token); ok {
				return life, nil
			}
			self, _, err := n.ACLTokens().Self((&nomad.QueryOptions{}).WithContext(asking(ctx)))
			if err != nil || self.ExpirationTime == nil {
				return tokenlife.Life{}, err
			}
			return tokenlife.Life{Made: self.CreateTime, Ends: *self.ExpirationTime}, nil
		}
	}
	if consulToken != "" || os.Getenv(consulTokenFile) != "" {
		asks["consul"] = func(ctx context.Context) (tokenlife.Life, error) {
			self, _, err := c.ACL().TokenReadSelf((&consul.QueryOptions{}).WithContext(asking(ctx)))
			if err != nil || self.ExpirationTime == nil {
				return tokenlife.Life{}, err
			}
			return tokenlife.Life{Made: self.CreateTime, Ends: *self.ExpirationTime}, nil
		}
	}
	return tokenlife.New(log, asks)
}

// asking marks a call whose refusal is not reported: other calls meet it, too.
func asking(ctx context.Context) context.Context { return link.Trying(link.FailFast(ctx)) }
