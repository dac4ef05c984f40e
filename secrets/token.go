package secrets

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"
)

const (
	// tokenCheck is how often a token is looked at that cannot be renewed or
	// whose renewal failed.
	tokenCheck = time.Minute
	// tokenShare of its life is left when a token is renewed.
	tokenShare = 3
)

// KeepToken renews the service's Vault token until ctx ends, where it can be
// renewed.
func (v *Vault) KeepToken(ctx context.Context, log hclog.Logger) {
	for {
		wait := tokenCheck
		if v.client.Token() != "" {
			ttl, err := v.renew(ctx)
			if ttl > 0 {
				wait = max(ttl/tokenShare, time.Second)
			}
			if err != nil && ctx.Err() == nil {
				log.Warn("cannot renew the vault token; trying again", "error", classify(err))
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// renew renews the token, where it can be, and returns its time to live then.
func (v *Vault) renew(ctx context.Context) (ttl time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	self, err := v.client.Auth().Token().LookupSelfWithContext(ctx)
	if err != nil {
		return 0, err
	}
	ttl, _ = self.TokenTTL()
	if renewable, _ := self.TokenIsRenewable(); !renewable || ttl <= 0 {
		return 0, nil
	}
	if _, err = v.client.Auth().Token().RenewSelfWithContext(ctx, 0); err != nil {
		return 0, err
	}
	return ttl, nil
}
