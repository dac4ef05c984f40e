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
	// tokenCheck is the interval at which a token is checked that cannot be renewed or
	// whose renewal failed.
	tokenCheck = time.Minute
	// tokenShare: a token is renewed when 1/tokenShare of its lifetime remains.
	tokenShare = 3
	// defaultMaxTTL is Vault's default max_lease_ttl (documentation of its configuration).
	defaultMaxTTL = 768 * time.Hour
)

// KeepToken renews the service's Vault token until ctx ends, if the token can be renewed,
// and warns before the end of a token that will expire anyway.
//
// The Vault client's LifetimeWatcher is no substitute. It treats a denied renewal as a
// token that cannot be renewed, and reports nothing until the old lifetime is nearly over.
// It gives up if Vault is unavailable for that long, and does not know when renewals end.
func (v *Vault) KeepToken(ctx context.Context, log hclog.Logger) {
	var w endWarner
	for {
		wait := tokenCheck
		if v.client.Token() != "" {
			life, err := v.renew(ctx)
			switch {
			case err != nil && ctx.Err() != nil:
			case errors.Is(err, ErrDenied):
				log.Error("vault refuses the service's token, so every change of an engine fails: it has expired, was revoked, or may not look up and renew itself; give the service another token (VAULT_TOKEN_FILE, or VAULT_TOKEN and a restart)", "error", err)
			case err != nil:
				log.Warn("cannot renew the vault token; retrying", "error", err)
			default:
				w.tell(log, life, time.Now())
				v.expires.Store(life.expires(time.Now()))
				if life.renewed {
					wait = max(life.ttl/tokenShare, time.Second)
				}
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-v.changed:
		case <-time.After(wait):
		}
	}
}

// UseToken replaces the service's token, from the next call on.
func (v *Vault) UseToken(token string) {
	v.client.SetToken(token)
	select {
	case v.changed <- struct{}{}:
	default:
	}
}

// tokenLife is the lifetime of a token.
type tokenLife struct {
	// ttl is the remaining time; 0: the token does not expire. renewed: it was just
	// renewed.
	ttl     time.Duration
	renewed bool
	// ends is when the token expires despite renewals, and by is the limit that causes it;
	// zero: renewals keep it alive.
	ends time.Time
	by   string
}

// expires returns the end of the token unless it is renewed again, as time.Time.UnixNano; 0:
// the token does not expire.
func (l tokenLife) expires(now time.Time) int64 {
	if l.ttl <= 0 {
		return 0
	}
	return now.Add(l.ttl).UnixNano()
}

// TokenExpires returns when the service's token expires unless it is renewed again. false:
// that is not known, or it does not expire.
func (v *Vault) TokenExpires() (time.Time, bool) {
	at := v.expires.Load()
	return time.Unix(0, at), at != 0
}

// renew renews the token, if it can be renewed.
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

// lastEnd returns when a renewable token finally expires, and by which limit: its own
// (explicit_max_ttl) or, if it is not periodic, that of its mount. The mount's limit
// becomes known when a renewal gets less than the token's initial TTL. Until then, Vault's
// default is assumed.
func lastEnd(self *vault.Secret, renewedFor time.Duration, now time.Time) (ends time.Time, by string) {
	made := time.Unix(int64(seconds(self, "creation_time")/time.Second), 0)
	most, period := seconds(self, "explicit_max_ttl"), seconds(self, "period")
	switch {
	case most > 0:
		return made.Add(most), "its explicit_max_ttl"
	case period > 0:
		return time.Time{}, ""
	case renewedFor < seconds(self, "creation_ttl")-time.Second: // Vault reports times in whole seconds
		return now.Add(renewedFor), "the max_lease_ttl of its mount"
	}
	ends = made.Add(defaultMaxTTL)
	if least := now.Add(renewedFor); ends.Before(least) {
		ends = least
	}
	return ends, "Vault's default max_lease_ttl, unless its mount has another"
}

// seconds reads a field of a token's data; 0: the field is absent.
func seconds(self *vault.Secret, field string) time.Duration {
	number, _ := self.Data[field].(json.Number)
	n, _ := number.Int64()
	return time.Duration(n) * time.Second
}

// endWarner warns of a token's end: once, and again each time that half of the remaining
// time has passed.
type endWarner struct {
	told bool
	left time.Duration // at the last warning; 0: the token does not expire
}

func (w *endWarner) tell(log hclog.Logger, life tokenLife, now time.Time) {
	if life.ends.IsZero() {
		if !w.told || w.left > 0 {
			log.Info("the vault token will not expire while the service runs", "renewed", life.renewed)
		}
		w.told, w.left = true, 0
		return
	}
	left := life.ends.Sub(now)
	if w.told && w.left > 0 && left > w.left/2 {
		return
	}
	w.told, w.left = true, left
	log.Warn("the vault token will expire despite renewals, and then every change of an engine fails: give the service a periodic token (VAULT_TOKEN) before that",
		"ends", life.ends.UTC().Format(time.RFC3339), "because", life.by, "left", left.Round(time.Second).String())
}
