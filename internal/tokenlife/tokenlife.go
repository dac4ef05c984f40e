// Package tokenlife watches when the service's tokens for Nomad and Consul expire, and warns
// before that. (The token for Vault, which the service renews, is watched by package
// secrets.)
package tokenlife

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

const (
	// lifeLeft is the part of a token's lifetime before its end in which the log warns: a
	// fifth, as for certificates (package reload). The warning is repeated every warnAgain.
	lifeLeft  = 5
	warnAgain = 24 * time.Hour
	// A store is asked once every, and more often about a token that does not live long:
	// ten times within the time of the warning, but at most once atLeast.
	every, atLeast = time.Minute, time.Second
	shortLived     = 10 * lifeLeft
	// askWithin limits a question.
	askWithin = 10 * time.Second
)

// Life is the lifetime of a token. The zero Life never ends.
type Life struct{ Made, Ends time.Time }

// Ask returns the lifetime of the token that the service uses now.
type Ask func(ctx context.Context) (Life, error)

// Watcher knows when tokens expire. It is safe for concurrent use.
type Watcher struct {
	log  hclog.Logger
	asks map[string]Ask

	mu     sync.Mutex
	tokens map[string]*token
}

type token struct {
	Life
	warned time.Time
}

// New returns a Watcher of tokens, by the names of their stores.
func New(log hclog.Logger, asks map[string]Ask) *Watcher {
	return &Watcher{log: log, asks: asks, tokens: map[string]*token{}}
}

// Run watches until ctx ends.
func (w *Watcher) Run(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-time.After(w.look(ctx, time.Now)):
		}
	}
}

// Ends returns when tokens expire, by store; those that never expire, or of which that is not
// known, are absent.
func (w *Watcher) Ends() map[string]time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	ends := map[string]time.Time{}
	for store, t := range maps.All(w.tokens) {
		if !t.Ends.IsZero() {
			ends[store] = t.Ends
		}
	}
	return ends
}

// look asks the stores once, warns of the ends that are near, and returns the wait until the
// next time.
func (w *Watcher) look(ctx context.Context, now func() time.Time) time.Duration {
	wait := every
	for store, ask := range w.asks {
		limited, cancel := context.WithTimeout(ctx, askWithin)
		life, err := ask(limited)
		cancel()
		if err != nil && ctx.Err() == nil { // a refusal is logged elsewhere
			w.log.Debug("cannot read when the service's token expires", "store", store, "error", err)
		}
		w.mu.Lock()
		t := w.tokens[store]
		if t == nil {
			t = &token{}
			w.tokens[store] = t
		}
		if err == nil && life != t.Life {
			*t = token{Life: life}
		}
		w.warn(store, t, now())
		if !t.Ends.IsZero() {
			wait = min(wait, max(t.Ends.Sub(t.Made)/shortLived, atLeast))
		}
		w.mu.Unlock()
	}
	return wait
}

func (w *Watcher) warn(store string, t *token, now time.Time) {
	left := t.Ends.Sub(now)
	if t.Ends.IsZero() || left > t.Ends.Sub(t.Made)/lifeLeft || now.Sub(t.warned) < warnAgain {
		return
	}
	t.warned = now
	end := t.Ends.UTC().Format(time.RFC3339)
	if left <= 0 {
		w.log.Error("the service's token has expired: give it another", "store", store, "expired", end)
		return
	}
	w.log.Warn("the service's token expires soon: give it another, unless something renews it", "store", store, "expires", end)
}

// OfJWT returns the lifetime that a JSON Web Token, such as a workload identity of Nomad,
// says it has (RFC 7519, claims iat and exp). ok is false if text is no such token. The
// signature is not verified: only stores rely on the token.
func OfJWT(text string) (life Life, ok bool) {
	parts := strings.Split(text, ".")
	if len(parts) != 3 {
		return Life{}, false
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return Life{}, false
	}
	var claims struct {
		Issued  float64 `json:"iat"`
		Expires float64 `json:"exp"`
	}
	if json.Unmarshal(b, &claims) != nil {
		return Life{}, false
	}
	if claims.Expires > 0 {
		life = Life{Made: time.Unix(int64(claims.Issued), 0), Ends: time.Unix(int64(claims.Expires), 0)}
	}
	return life, true
}
