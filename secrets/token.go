package secrets

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/hashicorp/go-hclog"
	vault "github.com/hashicorp/vault/api"
)

const (
	// tokenCheck is how often a token is looked at that cannot be renewed or
	// whose renewal failed.
	tokenCheck = time.Minute
	// tokenShare of its life is left when a token is renewed.
	tokenShare = 3
	// defaultMaxTTL is Vault's own max_lease_ttl (its configuration's documentation).
	defaultMaxTTL = 768 * time.Hour
)

// KeepToken renews the service's Vault token until ctx ends, where it can be
// renewed, and warns of one that will end all the same.
//
// The Vault client's LifetimeWatcher would not do: it takes a renewal that is denied for
// a token that cannot be renewed and says nothing until its old time is nearly over, gives
// up when Vault is away for that long, and does not know when renewals end.
func (v *Vault) KeepToken(ctx context.Context, log hclog.Logger) {
	var w endWarner
	for {
		wait := tokenCheck
		if v.client.Token() != "" {
			life, err := v.renew(ctx)
			switch {
			case err != nil && ctx.Err() != nil:
			case errors.Is(err, ErrDenied):
				log.Error("vault refuses the service's token: it ended, was revoked, or may not look itself up and renew itself; every change of an engine fails until the service has another one (VAULT_TOKEN)", "error", err)
			case err != nil:
				log.Warn("cannot renew the vault token; trying again", "error", err)
			default:
				w.tell(log, life, time.Now())
				if life.renewed {
					wait = max(life.ttl/tokenShare, time.Second)
				}
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// tokenLife is how long a token lives.
type tokenLife struct {
	// ttl is what is left of it; 0: it does not end. renewed: it was just renewed.
	ttl     time.Duration
	renewed bool
	// ends is when it ends even if it is renewed, and by is the limit that says so;
	// zero: renewal keeps it.
	ends time.Time
	by   string
}

// renew renews the token, where it can be renewed.
func (v *Vault) renew(ctx context.Context) (tokenLife, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	self, err := v.client.Auth().Token().LookupSelfWithContext(ctx)
	if err != nil {
		return tokenLife{}, classify(err)
	}
	now := time.Now()
	ttl, _ := self.TokenTTL()
	renewable, _ := self.TokenIsRenewable()
	life := tokenLife{ttl: ttl}
	if ttl <= 0 { // a root token
		return life, nil
	}
	if !renewable {
		life.ends, life.by = now.Add(ttl), "it cannot be renewed"
		return life, nil
	}
	renewed, err := v.client.Auth().Token().RenewSelfWithContext(ctx, 0)
	if err != nil {
		return tokenLife{}, classify(err)
	}
	life.renewed = true
	if t, err := renewed.TokenTTL(); err == nil && t > 0 {
		life.ttl = t
	}
	life.ends, life.by = lastEnd(self, life.ttl, now)
	return life, nil
}

// lastEnd is when a token ends that can be renewed, and by which limit: its own
// (explicit_max_ttl) or, of one without a period, that of its mount, which is known once
// a renewal gets less than the token was made with. Before, it is taken for Vault's
// default.
func lastEnd(self *vault.Secret, renewedFor time.Duration, now time.Time) (ends time.Time, by string) {
	made := time.Unix(int64(seconds(self, "creation_time")/time.Second), 0)
	most, period := seconds(self, "explicit_max_ttl"), seconds(self, "period")
	switch {
	case most > 0:
		return made.Add(most), "its explicit_max_ttl"
	case period > 0:
		return time.Time{}, ""
	case renewedFor < seconds(self, "creation_ttl")-time.Second: // Vault tells times in whole seconds
		return now.Add(renewedFor), "the max_lease_ttl of its mount"
	}
	ends = made.Add(defaultMaxTTL)
	if least := now.Add(renewedFor); ends.Before(least) {
		ends = least
	}
	return ends, "Vault's default max_lease_ttl, unless its mount has another"
}

// seconds is a field of a token's data; 0: it is not there.
func seconds(self *vault.Secret, field string) time.Duration {
	number, _ := self.Data[field].(json.Number)
	n, _ := number.Int64()
	return time.Duration(n) * time.Second
}

// endWarner tells of a token's end: once, and again each time that half of what was left
// is over.
type endWarner struct {
	told bool
	left time.Duration // when it was told last; 0: it does not end
}

func (w *endWarner) tell(log hclog.Logger, life tokenLife, now time.Time) {
	if life.ends.IsZero() {
		if !w.told || w.left > 0 {
			log.Info("the vault token does not end while the service runs", "renewed", life.renewed)
		}
		w.told, w.left = true, 0
		return
	}
	left := life.ends.Sub(now)
	if w.told && w.left > 0 && left > w.left/2 {
		return
	}
	w.told, w.left = true, left
	log.Warn("the vault token ends however often it is renewed: give the service a periodic one (VAULT_TOKEN) before, or every change of an engine fails from then on",
		"ends", life.ends.UTC().Format(time.RFC3339), "because", life.by, "left", left.Round(time.Second).String())
}
